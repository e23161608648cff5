"""The page of the study of DistilGPT2: answers, tables and a picture, all from logs/.

    python -m studies.distilgpt2.report

The text is in page.md, whose fields are filled in here; sentences that depend on the numbers are made by paired t-tests
over the seeds.
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
from studies.stats import bound, paired, significance

HERE = Path("studies/distilgpt2")  # where it is written; the study runs in the repository's root
# differences that the section on the second size follows
PAIRS = [("three_short", "teacher"), ("three", "teacher"), ("three_short", "control_short")]
PAIRS += [("three", "control"), ("three", "control_flops"), ("no_kl", "three")]

TEST = Figure("test nats/token", lambda run: run.test)
WIKITEXT = Figure("WikiText ppl", lambda run: run.metric("wikitext", "ppl"), ",.1f")
PTB = Figure("PTB ppl", lambda run: run.metric("ptb", "ppl"), ",.1f")
LAMBADA = Figure("LAMBADA word ppl", lambda run: run.metric("lambada", "word_ppl"), ",.0f")
FIGURES = [TEST, WIKITEXT, PTB, LAMBADA]
# perplexities of teacher and student
PUBLISHED = {WIKITEXT: (29.16, 47.61), PTB: (35.86, 85.56), LAMBADA: (45.28, 100.01)}

LENGTHS = {"short": "_short", "long": ""}  # {length: how its rows' names end}
# rows of each length: variants of the three losses, and controls
VARIANTS = ("no_kl", "no_ce", "no_cos", "kl", "cos", "equal", "random", "unfrozen", "published")
CONTROLS = ("control", "control_flops")

# words for a difference of losses, of which less is better
BETTER = {"lower": "better", "higher": "worse", "not significant": "not measurably different"}

# ---------------------------------------------------------------------------------------------
# the answer


def ratio(results: Results, figure: Figure, row: str, reference: str) -> str:
    """A perplexity as a multiple of the reference's, "1.63 times": the geometric mean over seeds, paired by seed."""
    logs = {}
    for name in (row, reference):
        logs[name] = [math.log(value) for value in figure.values(results.table[name])]
    mean, error = paired(logs[row], logs[reference])
    # the error of the logarithm, which for small ones is that of the ratio in percent
    return f"{math.exp(mean):.2f} times ± {100 * error:.0f} % ({significance(logs[row], logs[reference])})"


def plain_title(results: Results, row: str, length: str) -> str:
    """A row's title without its length, for sentences that name the length."""
    return results.titles[row].removesuffix(f", {length}")


def answer(results: Results) -> str:
    """The questions, one by one."""
    paragraphs = [
        *(what_is_lost(results, length) for length in LENGTHS),
        what_removes_it(results),
        *(against_controls(results, length) for length in LENGTHS),
        *(which_loss(results, length) for length in LENGTHS),
        *(other_choices(results, length) for length in LENGTHS),
        sampling(results),
    ]
    return "\n\n".join(paragraphs)


def what_is_lost(results: Results, length: str) -> str:
    """The student of the three losses against its teacher."""
    row = "three" + LENGTHS[length]
    outcome = {
        "higher": "yes, in kind",
        "lower": "no, the student is better than its teacher",
        "not significant": "not significantly",
    }[compared(results, TEST, row, "teacher")]
    published = []
    for figure, (teacher, student) in PUBLISHED.items():
        measured = ratio(results, figure, row, "teacher")
        published.append(f"{figure.head} {measured}, published {student / teacher:.2f}")
    return (
        f"**Is the loss of quality reproduced in the {length} run? {outcome[0].upper()}{outcome[1:]}.** "
        f"Test loss against the teacher's: {against(results, TEST, row, 'teacher')}. "
        f"Perplexities, as multiples of the teacher's: {'; '.join(published)}. "
        f"The same six blocks, not trained on: {against(results, TEST, 'copied', 'teacher')}."
    )


def what_removes_it(results: Results) -> str:
    """Whether eight times the steps help, and which rows are not shown to be worse than the teacher."""
    lost = {}
    teacher = TEST.values(results.table["teacher"])
    for length, suffix in LENGTHS.items():
        lost[length], _ = paired(TEST.values(results.table["three" + suffix]), teacher)
    helps = {
        "lower": "A longer run lessens it",
        "higher": "A longer run makes it worse",
        "not significant": "A longer run does not measurably change it",
    }[compared(results, TEST, "three", "three_short")]
    level = []
    for suffix in LENGTHS.values():
        for row in ("three", *VARIANTS, *CONTROLS):
            if compared(results, TEST, row + suffix, "teacher") != "higher":
                level.append(results.titles[row + suffix])
    level_rows = "not shown to be worse than the teacher: " + "; ".join(level)
    if not level:
        level_rows = "no row removes it: each is worse than the teacher, significantly"
    return (
        f"**What removes it?** {helps}: with {results.about['steps']['long']} steps in the place of "
        f"{results.about['steps']['short']} the test loss changes by {against(results, TEST, 'three', 'three_short')}; "
        f"the distance from the teacher is {lost['long']:+.4f} in the place of {lost['short']:+.4f}. "
        f"Of all students, {level_rows}."
    )


def against_controls(results: Results, length: str) -> str:
    """What the teacher adds: the student against the same blocks trained on data alone, for equal tokens and FLOPs."""
    suffix = LENGTHS[length]
    row = "three" + suffix
    same_tokens = BETTER[compared(results, TEST, row, "control" + suffix)]
    same_flops = BETTER[compared(results, TEST, row, "control_flops" + suffix)]
    return (
        f"**Does the teacher help, in the {length} run?** The three losses are {same_tokens} than cross-entropy alone "
        f"for the same tokens ({against(results, TEST, row, 'control' + suffix)}) and {same_flops} than it for the "
        f"same FLOPs ({against(results, TEST, row, 'control_flops' + suffix)})."
        # "different from" where there is no comparative
        .replace("different than", "different from")
    )


def which_loss(results: Results, length: str) -> str:
    """The student without each of the losses, and with each alone."""
    suffix = LENGTHS[length]
    row = "three" + suffix
    left_out = []
    for name in ("no_kl", "no_ce", "no_cos"):
        left_out.append(f"{plain_title(results, name + suffix, length)} {against(results, TEST, name + suffix, row)}")
    alone = []
    for name in ("kl", "control", "cos"):
        alone.append(f"{plain_title(results, name + suffix, length)} {against(results, TEST, name + suffix, row)}")
    harmful = []
    for name in ("no_kl", "no_ce", "no_cos"):
        if compared(results, TEST, name + suffix, row) == "higher":
            harmful.append(plain_title(results, name + suffix, length))
    carried = "None of the three is shown to be needed"
    if harmful:
        carried = "Shown to be needed, as the student is worse: " + "; ".join(harmful)
    return (
        f"**Which loss carries it, in the {length} run?** {carried}. Less the three losses together: "
        f"{'; '.join(left_out)}. Alone: {'; '.join(alone)}."
    )


def other_choices(results: Results, length: str) -> str:
    """Random blocks, equal weights, free positions, the published rows and mean."""
    suffix = LENGTHS[length]
    parts = []
    for name in ("random", "equal", "unfrozen", "published"):
        row = name + suffix
        outcome = BETTER[compared(results, TEST, row, "three" + suffix)]
        change = against(results, TEST, row, "three" + suffix)
        parts.append(f"{plain_title(results, row, length)}: {outcome}, {change}")
    return (
        f"**The other choices, in the {length} run**, relative to the three losses with the fixed rows and mean. "
        f"{'; '.join(parts)}."
    )


def sampling(results: Results) -> str:
    """Tokens a second of teacher and student."""
    speeds = results.about["speed"]
    teacher = [speed["teacher"] for speed in speeds]
    student = [speed["student"] for speed in speeds]
    faster = [100 * (s / t - 1) for s, t in zip(student, teacher)]
    error = statistics.stdev(faster) / math.sqrt(len(faster))
    return (
        f"**Is sampling 60 % faster?** Here by {statistics.mean(faster):.0f} ± {error:.0f} % (mean and standard error "
        f"over seeds): {statistics.mean(student):,.0f} tokens/s in the place of {statistics.mean(teacher):,.0f}, "
        "one row on one core. "
        "The figure compares with the published one in kind alone: what is no block takes as long for both; its share "
        "is another at another width and vocabulary."
    )


# ---------------------------------------------------------------------------------------------
# the page


def rows_of(length: str) -> list[str]:
    """The students of one length, in the order of the table."""
    return [name + LENGTHS[length] for name in ("three", *VARIANTS, *CONTROLS)]


def tables(results: Results, length: str) -> dict[str, str]:
    """The fields of page.md that show the rows of one length."""
    rows = rows_of(length)
    three = rows[0]
    references = [three, "teacher"]
    return {
        f"rows_{length}": mean_table(results, ["teacher", "copied", *rows], FIGURES, cost_columns()),
        f"differences_{length}": difference_table(results, rows, references, [TEST]),
    }


def fields(results: Results) -> dict:
    """The fields of page.md."""
    teacher = results.table["teacher"][0]
    student = results.table["three"][0]
    filled = {"answer": answer(results)}
    for length in LENGTHS:
        filled |= tables(results, length)
    filled |= {
        "seeds": seed_table(results, list(results.table), [TEST]),
        # all were tried with the steps of the long run
        "trials": trial_table(results, Figure("dev nats/token", lambda run: run.dev)).replace(
            "| 0 epochs |", f"| {results.about['steps']['long']} steps |"
        ),
        "n": len(results.seeds),
        "bound": bound(len(results.seeds)),
        "meta": results.meta,
        "steps": results.about["steps"],
        "limit": results.about["limit"] or "(all)",
        "teacher": teacher.parameters,
        "student": student.parameters,
        "teacher_tokens": teacher.tokens,
        "long_tokens": student.tokens,
        "short_tokens": results.table["three_short"][0].tokens,
        "flops_tokens": results.table["control_flops"][0].tokens / student.tokens,
        "read": teacher.tokens / student.tokens,
        "smaller": section(results, PAIRS, student="three"),
        "runs": results.n_runs,
        "jobs": results.about["jobs"],
        "minutes": results.minutes,
    }
    return filled


def write_report(results: Results):
    """README.md and results.png."""
    rows = ["teacher", "copied", *rows_of("long"), *rows_of("short")]
    # on an axis with the random blocks the others could not be told apart
    rows = [row for row in rows if not row.startswith("random")]
    save(draw_rows(results, rows, [TEST], ["teacher", "control"]), HERE / "results.png")
    write_page(HERE, fields(results))


if __name__ == "__main__":
    write_report(read_results(HERE / "logs"))
