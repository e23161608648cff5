"""The page of the study of DistilPythia: tables, the picture, and sentences that depend on the numbers.

    python -m studies.distilpythia.report    makes README.md and results.png again from logs/

The text is in page.md, whose fields `write_report` fills in. A regression is tested by paired t-tests over the seeds.
"""

import math
import statistics
from pathlib import Path

from studies.report import (
    Figure,
    Results,
    against,
    compared,
    cost_columns,
    difference_table,
    draw_rows,
    grid,
    mean_table,
    read_results,
    save,
    seed_table,
    write_page,
)
from studies.second_size import section
from studies.stats import bound, paired

HERE = Path("studies/distilpythia")  # where it is written; the study runs in the repository's root
# differences that the section on the second size follows
PAIRS = [("published", "start"), ("no_mask", "start"), ("rate_10", "start"), ("rate_30", "start")]
PAIRS += [("fixed", "start"), ("fixed", "control")]

TEST = Figure("test nats/token", lambda run: run.test)
# the logarithm, as the seeds' perplexities differ by factors; published: ln 420.70 - ln 140.81 = +1.09
LAMBADA = Figure("LAMBADA ln(ppl)", lambda run: math.log(run.metric("lambada", "word_ppl")), ".3f")
ACCURACY = Figure("LAMBADA acc, %", lambda run: 100 * run.metric("lambada", "word_acc"), ".2f")
QUALITY = [TEST, LAMBADA, ACCURACY]

SIZE = Figure("weights, rms", lambda run: run.record["updates"]["weight_rms"], ".3f")
UNCHANGED = Figure("unchanged in bfloat16, %", lambda run: 100 * run.record["updates"]["unchanged"], ".1f")
MOVED = Figure(
    "moved by, % of the weights", lambda run: 100 * run.record["updates"]["change_rms"] / size_before(run), ".2f"
)
RATIO = Figure("rate, % of the weights", lambda run: 100 * run.record["learning_rate"] / size_before(run), ".2f")

PUBLISHED_FACTOR = 420.70 / 140.81  # of LAMBADA's perplexity
# as published, with one thing changed that was suspected, or that the fixed recipe changes
SUSPECTS = ["float32", "warmup", "packed", "token_mean", "mask_by_id", "no_mask", "temperature_1", "no_teacher"]
RATES = ["rate_0.1", "published", "rate_3", "rate_10", "rate_30"]
TAKEN_APART = ["published", *SUSPECTS, "rate_0.1", "rate_3", "rate_10", "rate_30"]
FIXED = ["fixed", "control", "fixed_tuned", "control_tuned", "control_flops"]


def size_before(run) -> float:
    """Root of the mean square of the weights that the run began with."""
    return run.record["updates"]["weight_rms"]


# ---------------------------------------------------------------------------------------------
# comparisons


def change(results: Results, figure: Figure, row: str, reference: str) -> float:
    """The mean difference of two rows, paired by seed."""
    return paired(figure.values(results.table[row]), figure.values(results.table[reference]))[0]


def rate_of(results: Results, row: str) -> float:
    return results.table[row][0].record["learning_rate"]


def factor(results: Results, row: str, reference="start") -> float:
    """The factor by which LAMBADA's perplexity grows: the geometric mean over seeds."""
    return math.exp(change(results, LAMBADA, row, reference))


def listed(results: Results, rows: list[str]) -> str:
    """The titles of rows, or "none"."""
    return ", ".join(f"*{results.titles[row]}*" for row in rows) or "none"


# ---------------------------------------------------------------------------------------------
# the answer


def answer(results: Results) -> str:
    """What the numbers say about the published regression, its suspects, and the fixed recipe."""
    paragraphs = [
        does_it_regress(results),
        which_suspect(results),
        which_rate(results),
        which_updates(results),
        is_it_fixed(results),
        does_the_teacher_help(results),
    ]
    return "\n\n".join(paragraphs)


def does_it_regress(results: Results) -> str:
    """The recipe as published against the student that it starts from."""
    outcome = {
        "higher": "Yes, it does",
        "lower": "No: it ends better than it began",
        "not significant": "Not measurably",
    }[compared(results, LAMBADA, "published", "start")]
    return (
        f"**Does the published recipe make this student worse? {outcome}** by LAMBADA: its perplexity is multiplied by "
        f"{factor(results, 'published'):.2f} (published: {PUBLISHED_FACTOR:.2f}), in logarithms "
        f"{against(results, LAMBADA, 'published', 'start')}. The test loss changes by "
        f"{against(results, TEST, 'published', 'start')} nats per token. {does_accuracy_fall(results)}"
    )


def does_accuracy_fall(results: Results) -> str:
    """LAMBADA's accuracy, which cannot fall where the start predicts none of the words."""
    before = statistics.mean(ACCURACY.values(results.table["start"]))
    if before < 1:
        return f"LAMBADA's accuracy is {before:.2f} % before: at this size its published fall cannot be seen."
    return (
        f"LAMBADA's accuracy changes by {against(results, ACCURACY, 'published', 'start')} points from {before:.2f} % "
        "(published: -5.58 from 21.40 %)."
    )


def which_suspect(results: Results) -> str:
    """One thing changed at a time: what reproduces the loss of quality, and what removes it."""
    sentences = ["**Which of the suspects is it?**"]
    figures = (LAMBADA, TEST)
    for figure in figures:
        above_start = [row for row in ["published", *SUSPECTS] if compared(results, figure, row, "start") == "higher"]
        lowering = [row for row in SUSPECTS if compared(results, figure, row, "published") == "lower"]
        raising = [row for row in SUSPECTS if compared(results, figure, row, "published") == "higher"]
        sentences.append(
            f"By {figure.head}, rows at the published rate that end above the start: {listed(results, above_start)}. "
            f"Changes that lower it against the published recipe: {listed(results, lowering)}; that raise it: "
            f"{listed(results, raising)}. All others do not differ significantly from the published recipe."
        )
        if is_regression(results, figure):
            sentences.append(what_removes(results, figure))
    if not any(is_regression(results, figure) for figure in figures):
        sentences.append(
            "By neither does the published recipe end above the start: there is no regression here that a single "
            "change could remove."
        )
    return " ".join(sentences)


def is_regression(results: Results, figure: Figure) -> bool:
    return compared(results, figure, "published", "start") == "higher"


def what_removes(results: Results, figure: Figure) -> str:
    """The single changes that remove the published recipe's loss of quality."""
    removing = []
    for row in [*SUSPECTS, "rate_0.1"]:
        is_lower = compared(results, figure, row, "published") == "lower"
        if is_lower and compared(results, figure, row, "start") != "higher":
            removing.append(row)
    return f"Single changes that remove this regression: {listed(results, removing)}."


def which_rate(results: Results) -> str:
    """How the published recipe depends on its learning rate."""
    # titles give the rate as a multiple of the published one
    factors = [f"{factor(results, row):.2f} ({results.titles[row]})" for row in RATES]
    tripled = [
        row
        for row in RATES
        if factor(results, row) >= PUBLISHED_FACTOR and compared(results, LAMBADA, row, "start") == "higher"
    ]
    lowest = "At none of the rates is it multiplied by as much as published."
    if tripled:
        lowest = f"The lowest tried that multiplies it by as much as published: *{results.titles[tripled[0]]}*."
    return (
        "**Would a rate too high do it?** All else as published, LAMBADA's perplexity is multiplied by "
        f"{', '.join(factors)}. {lowest}"
    )


def which_updates(results: Results) -> str:
    """How many updates bfloat16 rounds away, and what that costs."""
    rounded = statistics.mean(UNCHANGED.values(results.table["published"]))
    exact = statistics.mean(UNCHANGED.values(results.table["float32"]))
    size = statistics.mean(SIZE.values(results.table["published"]))
    rate = rate_of(results, "published")
    return (
        f"**Which updates survive in bfloat16?** The rate is {100 * rate / size:.2f} % of the weights' root "
        f"mean square ({size:.3f}), and a step of Adam is about the rate at most, while bfloat16 rounds a step away "
        f"that is under 0.2 to 0.4 % of its weight. After the 64 steps {rounded:.1f} % of the weights are the number "
        f"that they were; in float32, with all else the same, {exact:.1f} % would still round to that number. "
        f"The difference: {against(results, UNCHANGED, 'published', 'float32')} points. "
        f"What that costs: float32 − bfloat16 is {against(results, TEST, 'float32', 'published')} nats per token and "
        f"{against(results, LAMBADA, 'float32', 'published')} in ln(ppl)."
    )


def is_it_fixed(results: Results) -> str:
    """The fixed recipe against its start and against the published one."""
    rows = ["fixed", "fixed_tuned"]
    # the two are one run where the best of the rates is the published one
    is_best = rate_of(results, "fixed") == rate_of(results, "fixed_tuned")
    if is_best:
        rows.remove("fixed_tuned")
    parts = []
    for row in rows:
        outcome = {
            "lower": "below it",
            "higher": "above it",
            "not significant": "not measurably away from it",
        }[compared(results, TEST, row, "start")]
        rate = f"at a rate of {rate_of(results, row):g}"
        if is_best:
            rate += ", also the best of those tried,"
        parts.append(
            f"{rate} {outcome}, {against(results, TEST, row, 'start')} nats per token, "
            f"LAMBADA's perplexity times {factor(results, row):.2f} ({against(results, LAMBADA, row, 'start')})"
        )
    return (
        f"**Does the fixed recipe end below the warm start?** It ends {'; '.join(parts)}. Against the published "
        f"recipe, at its rate: {against(results, TEST, 'fixed', 'published')} nats per token, "
        f"{against(results, LAMBADA, 'fixed', 'published')} in ln(ppl)."
    )


def does_the_teacher_help(results: Results) -> str:
    """The fixed student against the same training without a teacher."""
    comparisons = {
        "at the published rate": ("fixed", "control"),
        "each at the best of its own rates": ("fixed_tuned", "control_tuned"),
        "the same, with the student's FLOPs for the control": ("fixed_tuned", "control_flops"),
    }
    # where both have their best rate at the published one, the second comparison is the first again
    if all(rate_of(results, row) == rate_of(results, f"{row}_tuned") for row in ("fixed", "control")):
        comparisons = {
            "at the published rate, the best of those tried for both": ("fixed", "control"),
            "with the student's FLOPs for the control": ("fixed_tuned", "control_flops"),
        }
    words = {"lower": "better", "higher": "worse", "not significant": "no different measurably"}
    parts = []
    for condition, (student, control) in comparisons.items():
        parts.append(
            f"{condition} {words[compared(results, TEST, student, control)]} by the test loss, "
            f"{against(results, TEST, student, control)} nats per token, "
            f"and {words[compared(results, LAMBADA, student, control)]} by LAMBADA, "
            f"{against(results, LAMBADA, student, control)} in ln(ppl)"
        )
    return f"**Is it the teacher?** The fixed student against the same without one: {'; '.join(parts)}."


# ---------------------------------------------------------------------------------------------
# tables and the page


def trial_table(results: Results) -> str:
    """Dev loss of every trial, a column for each learning rate; what was kept in bold."""
    lines = []
    for row, runs in results.trials.items():
        cells = []
        for place, run in enumerate(runs):
            kept = results.name("trials", row, place) == results.about["chosen"][row]
            cells.append(f"**{run.dev:.4f}**" if kept else f"{run.dev:.4f}")
        lines.append([results.titles[row], *cells])
    rates = [f"{run.record['learning_rate']:g}" for run in next(iter(results.trials.values()))]
    return grid(["dev nats/token", *rates], lines)


def write_report(results: Results):
    """README.md and results.png."""
    rows = list(results.table)
    students = [row for row in rows if row not in ("teacher", "start")]
    save(draw_rows(results, rows[1:], [TEST, LAMBADA], ["start", "teacher"]), HERE / "results.png")
    fields = {
        "answer": answer(results),
        "n": len(results.seeds),
        "bound": bound(len(results.seeds)),
        "limit": results.about["lambada_limit"] or "5,153",
        "meta": results.meta,
        "rows": mean_table(results, rows, QUALITY, cost_columns()),
        "apart": difference_table(results, TAKEN_APART, ["start", "published"], QUALITY[:2]),
        "fixed": difference_table(results, FIXED, ["start", "control", "control_tuned"], QUALITY[:2]),
        "updates": mean_table(results, students, [RATIO, UNCHANGED, MOVED]),
        "seeds": seed_table(results, rows, QUALITY[:2]),
        "trials": trial_table(results),
        "teacher": results.table["teacher"][0].parameters / results.table["start"][0].parameters,
        "student": results.table["start"][0].parameters,
        "smaller": section(results, PAIRS, student="start"),
        "runs": results.n_runs,
        "jobs": results.about["jobs"],
        "minutes": results.minutes,
    }
    write_page(HERE, fields)


if __name__ == "__main__":
    write_report(read_results(HERE / "logs"))
