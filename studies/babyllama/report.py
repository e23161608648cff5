"""The page of the Baby Llama study: answer, tables and pictures, all from the files of its runs.

The text is in page.md, whose fields `write_report` fills in; sentences that depend on the
numbers are made here, by paired t-tests over the seeds.
"""

import statistics
from itertools import chain
from pathlib import Path

import matplotlib.pyplot as plt

from common.figures import draw_curves
from common.files import read_utf8
from plot import read_log
from studies.report import copy_logs, grid, save
from studies.stats import (
    Measured,
    bound,
    difference,
    each_seed,
    mean_sd,
    measure_all,
    significance,
    verdict,
)

HERE = Path("studies/babyllama")  # where it is written; the study runs in the repository's root
PAGE = Path(__file__).with_name("page.md")

# ---------------------------------------------------------------------------------------------
# tables


def main_table(study, results: dict) -> str:
    """What each row took and reached, means over seeds."""
    rows = []
    for row, runs in results.items():
        # the first three do not depend on the seed
        cost = [
            f"{runs[0].parameters:,}",
            f"{runs[0].tokens:,}",
            f"{runs[0].teraflop:,.0f}",
            f"{statistics.mean(each_seed(runs, 'minutes')):.1f}",
        ]
        scores = [
            mean_sd(each_seed(runs, "dev")),
            mean_sd(each_seed(runs, "bits")),
            mean_sd(each_seed(runs, "blimp"), ".1f"),
        ]
        # cost beside scores: a student that is better for more compute has not distilled anything
        rows.append([study.rows[row].title, *cost, *scores])
    head = ["", "parameters", "tokens", "TFLOP", "core minutes"]
    head += ["dev nats/token", "bits/byte", "BLiMP"]
    return grid(head, rows)


def difference_table(study, results: dict) -> str:
    """Each student against its control and both teachers, paired by seed."""
    rows = []
    for row, runs in results.items():
        # these three are what the others are compared with
        if row in ("gpt", "llama", "control"):
            continue
        cells = [study.rows[row].title]
        # of losses, a negative difference is the better one
        for other in ("control", "gpt", "llama"):
            cells.append(difference(each_seed(runs, "dev"), each_seed(results[other], "dev")))
        control = each_seed(results["control"], "blimp")
        cells.append(difference(each_seed(runs, "blimp"), control, "+.2f"))
        rows.append(cells)
    head = ["dev nats/token", "− control", "− GPT teacher", "− LLaMA teacher", "BLiMP, − control"]
    return grid(head, rows)


def seed_table(study, results: dict, seeds: list[int]) -> str:
    """Dev loss and BLiMP of every row and seed: what means, differences and errors are made of."""
    head = [""]
    head += [f"dev, seed {seed}" for seed in seeds]
    head += [f"BLiMP, seed {seed}" for seed in seeds]
    rows = []
    for row, runs in results.items():
        cells = [study.rows[row].title]
        cells += [f"{run.dev:.4f}" for run in runs]
        cells += [f"{run.blimp:.2f}" for run in runs]
        rows.append(cells)
    return grid(head, rows)


def parts_table(study, results: dict, figure: str, form: str, factor=1.0) -> str:
    """Means over seeds of the parts of a figure ("domains" or "fields"), a column each."""
    first_run = next(iter(results.values()))[0]
    # every run was scored on the same files, and so has the same parts
    names = list(getattr(first_run, figure))
    rows = []
    for row, runs in results.items():
        cells = [study.rows[row].title]
        for name in names:
            mean = statistics.mean(parts[name] for parts in each_seed(runs, figure))
            cells.append(f"{factor * mean:{form}}")
        rows.append(cells)
    return grid(["", *names], rows)


def trial_table(study, trials: dict) -> str:
    """Dev loss of every trial, a line for each row and learning rate; what was kept in bold."""
    lines = {}  # {(title, learning rate): {epochs: dev loss}}
    for row, runs in trials.items():
        for run in runs:
            shown = f"{study.dev_loss(run):.4f}"
            if run == study.chosen[row]:
                shown = f"**{shown}**"
            line = lines.setdefault((study.rows[row].title, f"{run.rate:g}"), {})
            line[f"{run.epochs:g} epochs"] = shown
    # all rows were tried with the same epochs
    epochs = next(iter(lines.values()))
    rows = [[*line, *cells.values()] for line, cells in lines.items()]
    return grid(["dev nats/token", "learning rate", *epochs], rows)


def point_table(study, results: dict, points: dict[str, list[Measured]]) -> str:
    """The further points, one seed each, against the rows of that seed."""
    rows = []
    for row, (point,) in points.items():
        # the control of the same size and epochs, where there is one
        control = points.get(f"control_{row}", results["control"])[0]
        against_control = ""
        if study.rows[row].teachers:
            against_control = f"{point.dev - control.dev:+.4f}"
        rows.append(
            [
                study.rows[row].title,
                f"{point.parameters:,}",
                f"{point.tokens:,}",
                f"{point.dev:.4f}",
                against_control,
                f"{point.dev - results['gpt'][0].dev:+.4f}",
                f"{point.dev - results['llama'][0].dev:+.4f}",
                f"{point.blimp:.1f}",
            ]
        )
    head = ["", "parameters", "tokens", "dev nats/token"]
    head += ["− its control", "− GPT teacher", "− LLaMA teacher", "BLiMP"]
    return grid(head, rows)


# ---------------------------------------------------------------------------------------------
# the answer


def answer(results: dict) -> str:
    """The claim, part by part, as the numbers have it."""
    # each sentence is about dev losses, and pairs them by seed
    dev = {row: each_seed(runs, "dev") for row, runs in results.items()}
    teachers = " ".join([beats(dev, "gpt"), beats(dev, "llama")])
    paragraphs = [
        does_it_distil(results),
        f"**Does it beat its teachers?** {teachers}",
        does_the_scale_matter(dev),
        other_choices(dev),
    ]
    return "\n\n".join(paragraphs)


def does_it_distil(results: dict) -> str:
    """The student of both teachers against its control, with what it costs."""
    student = each_seed(results["student"], "dev")
    control = each_seed(results["control"], "dev")
    yes = {
        "lower": "Yes",
        "higher": "No: it hurts",
        "not significant": "Not measurably",
    }[verdict(student, control)]

    # a second measure that nothing was tuned on: the dev loss chose the learning rates
    student_blimp = each_seed(results["student"], "blimp")
    control_blimp = each_seed(results["control"], "blimp")
    blimp_difference = difference(student_blimp, control_blimp, "+.2f")

    # in units of the control's whole run
    cost = {row: statistics.mean(each_seed(runs, "teraflop")) for row, runs in results.items()}
    student_cost = cost["student"] / cost["control"]
    teachers_cost = (cost["gpt"] + cost["llama"]) / cost["control"]
    return (
        f"**Does it distil? {yes}.** Taught by both teachers, with the KL of the formula, "
        f"the student reaches {statistics.mean(student):.4f} nats per token of held-out text. "
        "Without a teacher the same model, from the same weights on the same data, "
        f"reaches {statistics.mean(control):.4f}; each has the best of its own four pairs of "
        f"learning rate and epochs. The difference is **{difference(student, control)}** "
        f"(± standard error, paired over {len(student)} seeds); "
        f"on BLiMP it is {blimp_difference} points ({significance(student_blimp, control_blimp)}). "
        f"In FLOPs the student's run costs {student_cost:.1f} times the control's, "
        f"and training its teachers {teachers_cost:.0f} times, trials not counted."
    )


def beats(dev: dict[str, list[float]], row: str) -> str:
    """The student, and the control, against a teacher."""
    name = {"gpt": "GPT", "llama": "LLaMA"}[row]
    student = dev["student"]
    control = dev["control"]
    teacher = dev[row]
    # beside the test: with three seeds it seldom finds anything significant
    won = sum(s < t for s, t in zip(student, teacher))
    student_verdict = {
        "lower": "Yes",
        "higher": "No",
        "not significant": "Not significantly",
    }[verdict(student, teacher)]
    # a student that beats a teacher has learnt little from it if the control beats it too
    control_verdict = {
        "lower": "beats it",
        "higher": "does not beat it",
        "not significant": "does not differ significantly from it",
    }[verdict(control, teacher)]
    return (
        f"The {name}: {student_verdict}, {difference(student, teacher)}, "
        f"lower in {won} of {len(student)} seeds; "
        f"the control, which had no teacher, {control_verdict} ({difference(control, teacher)})."
    )


def does_the_scale_matter(dev: dict[str, list[float]]) -> str:
    """The published code divides the KL by rows, not tokens: `kl_norm` in distill.py."""
    published = dev["published"]
    from_formula = difference(published, dev["student"])
    from_control = difference(published, dev["control"])
    return (
        "**Does the published scale of the KL matter?** "
        f"With it the student ends {from_formula} from the formula's "
        f"({significance(published, dev['student'])}), and {from_control} from the control."
    )


def other_choices(dev: dict[str, list[float]]) -> str:
    """One teacher, the other KL, other rows. Tuned for none of them, which the sentence says."""
    student = dev["student"]
    return (
        "**The other choices**, at the student's learning rate and epochs, against it: "
        f"the GPT alone {difference(dev['from_gpt'], student)}, "
        f"the LLaMA alone {difference(dev['from_llama'], student)}, "
        f"reverse KL {difference(dev['reverse'], student)}, "
        f"a random offset {difference(dev['offset'], student)} "
        f"(which gives the control {difference(dev['control_offset'], dev['control'])})."
    )


# ---------------------------------------------------------------------------------------------
# pictures and the page


def draw_rows(study, results: dict) -> plt.Figure:
    """A line for each row, with a mark for each seed and a bar at their mean.

    Left the dev loss, right BLiMP.
    """
    size = (11, 0.8 + 0.38 * len(results))  # inches
    figure, (left, right) = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained")
    # teachers, controls and students are told apart in print, too, where colours are not
    marks = {"gpt": "s", "llama": "D", "control": "x", "control_offset": "x"}
    for axis, name in ((left, "dev"), (right, "blimp")):
        for place, (row, runs) in enumerate(results.items()):
            values = each_seed(runs, name)
            axis.plot(
                values,
                [place] * len(values),
                marks.get(row, "o"),
                color="black",
                markerfacecolor="none",
                markersize=6,
            )
            # beside the seeds, not instead of them: a mean alone would hide how far they scatter
            mean = statistics.mean(values)
            axis.plot([mean, mean], [place - 0.3, place + 0.3], color="C0", linewidth=2)
        control = statistics.mean(each_seed(results["control"], name))
        axis.axvline(control, color="black", linewidth=0.8, linestyle=":")
        axis.grid(axis="x", alpha=0.3)
    left.set_yticks(range(len(results)), [study.rows[row].title for row in results])
    left.invert_yaxis()  # the first row on top, as in the table
    left.set(xlabel="dev loss, nats per token: less is better")
    left.set(title="a mark a seed, a bar their mean")
    right.set(xlabel="BLiMP, % of pairs: more is better")
    right.set(title="dotted: the control's mean")
    return figure


def draw_first_seed(study, table: dict) -> plt.Figure:
    """The losses while training."""
    # one seed and the main rows: all of them would hide one another
    curves = {}
    for row in ("gpt", "llama", "control", "student", "published", "reverse"):
        first_run = table[row][0]
        curves[study.rows[row].title] = read_log(str(study.out / first_run.name))
    return draw_curves(curves, curve="")


def write_report(study, table: dict, points: dict, trials: dict, meta: dict):
    """README.md, results.png and curves.png, and every log in logs/, all of them in studies/babyllama.

    table, points, trials: {row: its runs}.
    meta: meta.json of the data, and what was cut from which corpus.
    """
    # a set, as a trial that was chosen is also the first seed's run in the table
    runs = set(chain(*table.values(), *points.values(), *trials.values()))
    copy_logs(study, runs, HERE / "logs")
    results = measure_all(study.out, table)
    save(draw_rows(study, results), HERE / "results.png")
    save(draw_first_seed(study, table), HERE / "curves.png")

    # teachers and data are given in units of the student
    size = results["student"][0].parameters
    seeds = [run.seed for run in table["student"]]
    page = read_utf8(PAGE).format(
        answer=answer(results),
        n=len(seeds),
        bound=bound(len(seeds)),
        val=meta["val_tokens"],
        pairs=study.blimp_limit or 1000,
        rows=main_table(study, results),
        differences=difference_table(study, results),
        seeds=seed_table(study, results, seeds),
        meta=meta,
        names=", ".join(f"`{name}`" for name in meta["domains"]),
        gpt=results["gpt"][0].parameters / size,
        llama=results["llama"][0].parameters / size,
        share=meta["train_tokens"] / size,
        trials=trial_table(study, trials),
        points=point_table(study, results, measure_all(study.out, points)),
        domains=parts_table(study, results, "domains", ".3f"),
        fields=parts_table(study, results, "fields", ".1f", factor=100),
        runs=len(runs),
        jobs=study.jobs,
        minutes=study.seconds() / 60,
    )
    (HERE / "README.md").write_text(page, encoding="utf-8")
    print(f"{HERE / 'README.md'}, after {study.seconds() / 60:.0f} minutes")
