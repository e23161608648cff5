"""The page of the study of MicroLM: tables, the picture, and sentences that depend on the numbers.

    python -m studies.microlm.report    makes README.md and results.png again from logs/

The text is in page.md, whose fields `write_report` fills in. Whether two rows differ is tested by paired t-tests over
the seeds.
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
    mean_table,
    read_results,
    save,
    seed_table,
    trial_table,
    write_page,
)
from studies.second_size import section
from studies.stats import bound, mean_sd

HERE = Path("studies/microlm")  # where it is written; the study runs in the repository's root
# differences that the section on the second size follows
PAIRS = [("ce", "start"), ("reverse", "start"), ("reverse_long", "start")]
PAIRS += [("reverse", "ce"), ("reverse", "ce_flops"), ("forward", "reverse")]


def score(head: str, file: str, name: str, form=".4f", factor=1.0) -> Figure:
    """A figure from the JSON of one of SCORES (__main__.py)."""
    return Figure(head, lambda run: factor * run.record[file][name], form)


DEV = Figure("dev nats/token", lambda run: run.dev)
TEST = Figure("test nats/token", lambda run: run.test)
REVERSE = score("KL(student ‖ teacher)", "compared", "reverse_kl")
FORWARD = score("KL(teacher ‖ student)", "compared", "forward_kl")
ENTROPY = score("entropy, nats", "compared", "entropy", ".3f")
AGREE = score("same likeliest token, %", "compared", "agree", ".1f", 100)
ECE = score("ECE, %", "compared", "ece", ".2f", 100)
ACCURACY = score("right, %", "compared", "accuracy", ".2f", 100)
CONFIDENCE = score("confidence, %", "compared", "confidence", ".2f", 100)
REPEATED = score("repeated 4-grams, %", "generation", "repeated", ".2f", 100)
DISTINCT = score("distinct 2-grams, %", "generation", "distinct_2", ".1f", 100)
OWN_REVERSE = score("KL(student ‖ teacher), own text", "generation", "reverse_kl")
OWN_ENTROPY = score("entropy, own text", "generation", "entropy", ".3f")

BASES = ["start", "strong", "medium", "weak", "other"]
# the row as published, and what is changed in it: one thing each
CHANGES = ["reverse_t2", "reverse_ce", "reverse_medium", "reverse_weak"]
CHANGES += ["reverse_own", "reverse_own_all", "forward", "js"]
UNIFORM = math.log(2048)  # nats per token of a uniform guess among 2,048 ids
CHECKED = ["start", "ce", "ce_flops"]  # rows that students are compared with

# ---------------------------------------------------------------------------------------------
# comparisons


def mean(results: Results, row: str, figure=TEST) -> float:
    """The mean over seeds."""
    return statistics.mean(figure.values(results.table[row]))


def listed(results: Results, rows: list[str], reference: str) -> str:
    """Rows with their differences from the reference, as text, or "none"."""
    parts = [f"*{results.titles[row]}* {against(results, TEST, row, reference)}" for row in rows]
    return "; ".join(parts) or "none"


def grouped(results: Results, rows: list[str], reference: str) -> str:
    """Which rows end above the reference, which below, and which do neither significantly."""
    names = {"higher": "Above it", "lower": "Below it", "not significant": "Not significantly different"}
    sentences = []
    for outcome, name in names.items():
        members = [row for row in rows if compared(results, TEST, row, reference) == outcome]
        sentences.append(f"{name}: {listed(results, members, reference)}.")
    return " ".join(sentences)


# ---------------------------------------------------------------------------------------------
# the answer


def answer(results: Results) -> str:
    """The published regression: what reproduces it, what removes it, and what the trap looks like."""
    paragraphs = [
        does_the_stage_hurt(results),
        does_reverse_hurt(results),
        which_reproduces(results),
        where_it_stops(results),
        which_divergence(results),
        which_teacher(results),
        what_the_trap_does(results),
        does_it_sharpen(results),
    ]
    return "\n\n".join(paragraphs)


def does_the_stage_hurt(results: Results) -> str:
    """Cross-entropy from the same checkpoint, at the peak rate again: the control for everything else."""
    outcome = {
        "higher": "Yes: at the published rate more training alone makes it worse",
        "lower": "No: more training alone makes it better, the rate at its peak again",
        "not significant": "Not measurably",
    }[compared(results, TEST, "ce", "start")]
    rate = results.table["ce_tuned"][0].record["learning_rate"]
    return (
        f"**Does the second stage hurt without a teacher? {outcome}.** Cross-entropy on − start: "
        f"{against(results, TEST, 'ce', 'start')} nats per token at the published rate, "
        f"{against(results, TEST, 'ce_tuned', 'start')} at the best of three ({rate:g})."
    )


def does_reverse_hurt(results: Results) -> str:
    """The recipe as published against its start and both controls."""
    words = {"higher": "worse than", "lower": "better than", "not significant": "not measurably different from"}
    verdicts = {reference: words[compared(results, TEST, "reverse", reference)] for reference in CHECKED}
    return (
        "**Does reverse KL alone, as published, make the student worse?** By the test loss it ends "
        f"{verdicts['start']} its start ({against(results, TEST, 'reverse', 'start')}), "
        f"{verdicts['ce']} cross-entropy on the same tokens ({against(results, TEST, 'reverse', 'ce')}), "
        f"{verdicts['ce_flops']} cross-entropy of the same FLOPs "
        f"({against(results, TEST, 'reverse', 'ce_flops')})."
    )


def which_reproduces(results: Results) -> str:
    """The published regression, a student worse than its start: which rows show it."""
    students = [row for row in results.table if row not in BASES]
    worse = [row for row in students if compared(results, TEST, row, "start") == "higher"]
    if not worse:
        return "**Which rows reproduce the regression?** None ends significantly above the start by the test loss."
    better = [row for row in students if compared(results, TEST, row, "start") == "lower"]
    return (
        "**Which rows reproduce the regression?** Significantly above the start by the test loss: "
        f"{listed(results, worse, 'start')}. Of the {len(students)} rows of the second stage {len(better)} end "
        "significantly below it."
    )


def where_it_stops(results: Results) -> str:
    """The published recipe with one thing changed, against the control of the same tokens."""
    rows = ["reverse", *CHANGES]
    tuned = against(results, TEST, "reverse_tuned", "ce_tuned")
    long = against(results, TEST, "reverse_long", "ce_flops")
    return (
        "**Where does reverse KL stop hurting?** The row as published, and with one thing changed, against "
        f"cross-entropy on the same tokens. {grouped(results, rows, 'ce')} "
        f"With the rate of each chosen among three, reverse KL − cross-entropy: {tuned}; with "
        f"{results.about['equal_flops']:.2f} times the tokens for both: {long}."
    )


def which_divergence(results: Results) -> str:
    """Forward KL and JS beside reverse KL, same teacher and tokens."""
    return (
        "**Another divergence?** Against reverse KL, all else equal: forward KL "
        f"{against(results, TEST, 'forward', 'reverse')}, JS {against(results, TEST, 'js', 'reverse')}. "
        f"Each at its tuned rate: forward − reverse {against(results, TEST, 'forward_tuned', 'reverse_tuned')}, "
        f"forward − cross-entropy {against(results, TEST, 'forward_tuned', 'ce_tuned')}. "
        "Half cross-entropy: reverse "
        f"{against(results, TEST, 'reverse_ce', 'reverse')}, forward {against(results, TEST, 'forward_ce', 'forward')} "
        "against the same without."
    )


def which_teacher(results: Results) -> str:
    """Teachers of three strengths, by how far they are from the start."""
    parts = []
    for name in ("strong", "medium", "weak"):
        suffix = "" if name == "strong" else f"_{name}"
        ends = []
        for loss in ("reverse", "forward"):
            from_start = against(results, TEST, loss + suffix, "start")
            from_ce = against(results, TEST, loss + suffix, "ce")
            ends.append(f"{loss} KL {from_start}, −CE {from_ce}")
        parts.append(f"{name} ({against(results, TEST, name, 'start')} from the start itself): {'; '.join(ends)}")
    return f"**How good must the teacher be?** Student − start, and − cross-entropy on. {'. '.join(parts)}."


def what_the_trap_does(results: Results) -> str:
    """A teacher of another tokenizer, matched by id."""
    refused = results.about["refused"]
    own = mean_sd(results.about["own_bits"], ".3f")
    medium = mean_sd([run.bits for run in results.table["medium"]], ".3f")
    parts = []
    for loss in ("reverse", "forward"):
        row = f"{loss}_other"
        parts.append(
            f"{loss} KL ends at {mean(results, row):.2f} nats per token ({against(results, TEST, row, 'start')} from "
            f"the start, {against(results, TEST, row, f'{loss}_medium')} from the medium teacher's student), its "
            f"entropy {against(results, ENTROPY, row, 'start')} from the start's"
        )
    return (
        "**And a teacher of another tokenizer, as wide?** distill.py refuses it: exit code "
        f"{refused[0]['exit_code']}, in {len(refused)} of {len(results.seeds)} seeds. Given the tokenizer files of the "
        f"data it passes. In its own tokens it needs {own} bits per byte of the dev text, the medium teacher "
        f"{medium}; read by id its test loss is {mean(results, 'other'):.2f}, where a uniform guess has "
        f"{UNIFORM:.2f}. Trained on with it, {'; '.join(parts)}. That is what the trap looks like; the published "
        "report has no loss to compare it with, so whether that run fell into it this study cannot tell."
    )


def does_it_sharpen(results: Results) -> str:
    """Entropy, calibration and own text of reverse KL, against cross-entropy and forward KL."""
    words = {"lower": "It does", "higher": "It flattens", "not significant": "Not measurably"}
    parts = []
    for figure, unit in ((ENTROPY, " nats"), (ECE, " points"), (REPEATED, " points"), (DISTINCT, " points")):
        parts.append(
            f"{figure.head.split(',')[0]} − CE's: {against(results, figure, 'reverse', 'ce')}{unit}, − forward KL's: "
            f"{against(results, figure, 'reverse', 'forward')}{unit}"
        )
    return (
        f"**Does reverse KL sharpen?** {words[compared(results, ENTROPY, 'reverse', 'ce')]}, against cross-entropy on "
        f"the same tokens. {'; '.join(parts)}."
    )


# ---------------------------------------------------------------------------------------------
# the page


def write_report(results: Results):
    """README.md and results.png."""
    rows = list(results.table)
    students = [row for row in rows if row not in BASES]
    # a teacher of other tokens, read by id, is so far off that all other rows would be in a corner of the picture
    drawn = [row for row in rows if "other" not in row]
    save(draw_rows(results, drawn, [TEST, ENTROPY], ["start", "ce", "ce_flops"]), HERE / "results.png")
    generated = results.table["start"][0].record["generation"]
    sizes = {name: results.table[name][0].parameters for name in ("start", "strong")}
    fields = {
        "answer": answer(results),
        "refusal": results.about["refused"][0]["message"],
        "n": len(results.seeds),
        "bound": bound(len(results.seeds)),
        "meta": results.meta,
        "losses": mean_table(results, rows, [TEST, REVERSE, FORWARD, AGREE], cost_columns()),
        "differences": difference_table(results, students, CHECKED, [TEST]),
        "shapes": mean_table(results, rows, [ENTROPY, ACCURACY, CONFIDENCE, ECE]),
        "texts": mean_table(results, rows, [REPEATED, DISTINCT, OWN_REVERSE, OWN_ENTROPY]),
        "data_repeated": 100 * generated["data_repeated"],
        "data_distinct": 100 * generated["data_distinct_2"],
        "samples": generated["samples"],
        "seeds": seed_table(results, rows, [TEST]),
        "trials": trial_table(results, DEV),
        "student": sizes["start"],
        "teacher": sizes["strong"] / sizes["start"],
        "share": results.table["start"][0].tokens / sizes["start"],
        "equal_flops": results.about["equal_flops"],
        "smaller": section(results, PAIRS, student="start"),
        "runs": results.n_runs,
        "jobs": results.about["jobs"],
        "minutes": results.minutes,
    }
    write_page(HERE, fields)


if __name__ == "__main__":
    write_report(read_results(HERE / "logs"))
