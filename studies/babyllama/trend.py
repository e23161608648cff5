"""The section of Baby Llama's page on its second size: what changes with four times the text and the parameters."""

from pathlib import Path

from studies.report import (
    Figure,
    Results,
    against,
    cost_columns,
    difference_table,
    grid,
    mean_table,
    read_results,
    trial_table,
)
from studies.stats import difference, each_seed, significance, verdict

DEV = Figure("dev nats/token", lambda run: run.dev)
BITS = Figure("bits/byte", lambda run: run.bits)
BLIMP = Figure("BLiMP", lambda run: run.blimp, ".2f")
PARAMETERS = Figure("parameters", lambda run: run.parameters, ",.0f")
CHANCE = 50.0  # of BLiMP, %

# {a difference: ((row, reference) at the first size, the same at the second)}
PAIRS = {
    "student ← LLaMA − control": (("from_llama", "control"), ("student", "control")),
    "student ← LLaMA − its teacher": (("from_llama", "llama"), ("student", "llama")),
    "published scale − formula": (("published", "student"), ("published", "student")),
}


def section(small: Results, logs: Path) -> str:
    """The section, from the logs of the second size, or, where there are none, how to make them."""
    if not (logs / "study.json").is_file():
        return "Not run yet: `make study-babyllama-larger`."
    larger = read_results(logs)
    size = larger.table["student"][0].parameters
    times = size / small.table["student"][0].parameters
    text_times = larger.meta["train_tokens"] / small.meta["train_tokens"]
    teacher = larger.table["llama"][0].parameters / size
    rows = [row for row in larger.table if row not in ("llama", "control")]
    paragraphs = [
        f"{times:.1f} times the student's parameters and {text_times:.1f} times its text. The only teacher is a LLaMA "
        f"of {teacher:.1f} times the student, cached whole: the students' costs hold no teacher's passes. "
        "The published scale was taught by both teachers at the first size.",
        trend_table(small, larger),
        " ".join([trend(small, larger), chance(larger)]),
        mean_table(larger, list(larger.table), [DEV, BITS, BLIMP], [PARAMETERS, *cost_columns()]),
        difference_table(larger, rows, ["control", "llama"], [DEV]),
        difference_table(larger, rows, ["control"], [BLIMP]),
        "Trials, by the dev loss of the first seed; one more for the control (in bold: kept):",
        trial_table(larger, DEV),
        f"{larger.minutes:.0f} minutes on {larger.about['jobs']} cores: data, {larger.n_runs} runs, caches, scores.",
    ]
    return "\n\n".join(paragraphs)


def trend_table(small: Results, larger: Results) -> str:
    """The same differences at both sizes, in nats per token and in points of BLiMP."""
    lines = []
    for name, (at_first, at_second) in PAIRS.items():
        for figure in (DEV, BLIMP):
            cells = [against(small, figure, *at_first), against(larger, figure, *at_second)]
            lines.append([name, figure.head, *cells])
    sizes = [f"{results.table['student'][0].parameters / 1e6:.2f} M" for results in (small, larger)]
    return grid(["", "", *sizes], lines)


def trend(small: Results, larger: Results) -> str:
    """Whether the teacher helps at each size, by a test over its seeds."""
    gains = {}
    for name, results, row in (("first", small, "from_llama"), ("second", larger, "student")):
        student = each_seed(results.table[row], "dev")
        control = each_seed(results.table["control"], "dev")
        gains[name] = (difference(student, control), verdict(student, control))
    words = {"lower": "gains", "higher": "loses", "not significant": "does not change significantly"}
    return (
        f"**Which way does it go?** Taught by the LLaMA, the student {words[gains['first'][1]]} at the first size "
        f"({gains['first'][0]}) and {words[gains['second'][1]]} at the second ({gains['second'][0]}). "
        "Losses of the two are not of the same tokens; two sizes show a direction and no law."
    )


def chance(larger: Results) -> str:
    """Whether BLiMP is above chance, by a test against it over seeds."""
    parts = []
    for row in ("control", "student", "llama"):
        scores = each_seed(larger.table[row], "blimp")
        by_chance = [CHANCE] * len(scores)
        above = difference(scores, by_chance, "+.2f")
        parts.append(f"{larger.titles[row]} {above} ({significance(scores, by_chance)})")
    return f"**Does BLiMP leave chance?** Points above 50, over seeds: {'; '.join(parts)}."
