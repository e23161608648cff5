"""The section of a study's page on its second size (studies/smaller.py): the same differences at both sizes."""

import math
import statistics

from studies.report import Figure, Results, against, cost_columns, grid, mean_table, read_results, trial_table
from studies.stats import bound, each_seed, verdict

DEV = Figure("dev nats/token", lambda run: run.dev)
TEST = Figure("test nats/token", lambda run: run.test)
PARAMETERS = Figure("parameters", lambda run: run.parameters, ",.0f")


def section(first: Results, pairs: list[tuple[str, str]], student: str) -> str:
    """The section, or, where the second size has not been run, how to run it.

    pairs: (row, what it is compared with). student: the row whose number of parameters is the size.
    """
    study = first.logs.parent.name
    logs = first.logs.with_name("logs_smaller")
    if not (logs / "study.json").is_file():
        return f"Not run yet: `make study-{study}-smaller`."
    second = read_results(logs)
    sizes = [results.table[student][0].parameters for results in (second, first)]
    # without the minutes, as other work ran on the same cores
    tokens, flops, _ = cost_columns()
    paragraphs = [
        f"The main rows once more, by models of half the width: the student has {sizes[0]:,} parameters in the place "
        f"of {sizes[1]:,}. Data, tokens and seeds are the same, and so are learning rates where no trials are shown.",
        comparison(second, first, pairs, sizes),
        "\n".join(f"- {direction(second, first, pair, sizes)}" for pair in pairs),
        "A line through two sizes is a direction and no law; what it says beyond them is a guess, by the logarithm of "
        "the student's parameters.",
        mean_table(second, list(second.table), [TEST], [PARAMETERS, tokens, flops]),
    ]
    if second.trials:
        paragraphs.append("Trials at the smaller size, by the dev loss of the first seed (in bold: kept):")
        # with the steps of the row, which are no number of epochs
        paragraphs.append(trial_table(second, DEV).replace("| 0 epochs |", "| the row's steps |"))
    paragraphs.append(
        f"{second.minutes:.0f} minutes on {second.about['jobs']} cores, other work beside: {second.n_runs} runs."
    )
    return "\n\n".join(paragraphs)


def comparison(second: Results, first: Results, pairs: list[tuple[str, str]], sizes: list[int]) -> str:
    """A line for each difference of the test loss, a column for each size."""
    lines = []
    for row, reference in pairs:
        name = f"{first.titles[row]} − {first.titles[reference]}"
        lines.append([name, *(against(results, TEST, row, reference) for results in (second, first))])
    return grid([TEST.head, *(f"{size:,} parameters" for size in sizes)], lines)


def differences(results: Results, pair: tuple[str, str]) -> list[float]:
    """For each seed the test loss of the row, less that of the row it is compared with."""
    row, reference = (each_seed(results.table[name], "test") for name in pair)
    return [a - b for a, b in zip(row, reference, strict=True)]


def direction(second: Results, first: Results, pair: tuple[str, str], sizes: list[int]) -> str:
    """Whether a difference depends on the size, and at which size a line through both is 0."""
    small = differences(second, pair)
    large = differences(first, pair)
    name = f"**{first.titles[pair[0]]} − {first.titles[pair[1]]}**"
    change = statistics.mean(large) - statistics.mean(small)
    # not paired by seed, as runs of different sizes share no weights
    error = math.hypot(*(statistics.stdev(values) / math.sqrt(len(values)) for values in (small, large)))
    if abs(change) <= bound(min(len(small), len(large))) * error:
        text = f"{name} does not change measurably with the size ({change:+.4f} ± {error:.4f})"
        if is_significant(small) and is_significant(large):
            return f"{text}, and is significant at both."
        return f"{text}: no size can be named that would decide it; more seeds might."
    grown = "rises" if change > 0 else "falls"
    text = f"{name} {grown} with the size ({change:+.4f} ± {error:.4f})"
    slope = change / math.log(sizes[1] / sizes[0])
    # from the larger size to the zero of the line, in units of the size's natural logarithm
    log_factor = -statistics.mean(large) / slope
    # beyond a factor of e^7, a thousand, nothing can be guessed from a factor of 3
    if not 0 < log_factor < 7:
        return f"{text}; on a line through both it does not become 0 at a larger size."
    return (
        f"{text}; on a line through both it would be 0 at {sizes[1] * math.exp(log_factor) / 1e6:,.1f} million "
        "parameters."
    )


def is_significant(values: list[float]) -> bool:
    return verdict(values, [0.0] * len(values)) != "not significant"
