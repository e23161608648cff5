"""The page of the Baby Llama study: answer, tables and pictures, all from the files of logs/.

    python -m studies.babyllama.report

The text is in page.md, whose fields `write_report` fills in; sentences that depend on the
numbers are made here, by paired t-tests over the seeds.
"""

from common.one_line import end_in_one_line  # isort: split

import statistics
from pathlib import Path

import matplotlib.pyplot as plt

from common.figures import draw_curves
from plot import read_log
from studies.babyllama import trend
from studies.babyllama.trend import BITS, BLIMP, DEV, PARAMETERS
from studies.report import (
    Figure,
    Results,
    cost_columns,
    difference_table,
    draw_rows,
    grid,
    mean_table,
    read_results,
    save,
    seed_table,
    trial_table,
    write_page,
)
from studies.stats import Measured, bound, difference, each_seed, significance, verdict

HERE = Path("studies/babyllama")  # where it is written; the study runs in the repository's root


# ---------------------------------------------------------------------------------------------
# tables that only this study has


def parts_table(results: Results, figure: str, form: str, factor=1.0) -> str:
    """Means over seeds of a figure's parts ("domains" or "fields"), with a column for each part."""
    first_run = next(iter(results.table.values()))[0]
    # all runs were scored on the same files, and so have the same parts
    names = list(getattr(first_run, figure))
    rows = []
    for row, runs in results.table.items():
        cells = [results.titles[row]]
        for name in names:
            mean = statistics.mean(parts[name] for parts in each_seed(runs, figure))
            cells.append(f"{factor * mean:{form}}")
        rows.append(cells)
    return grid(["", *names], rows)


def point_table(results: Results) -> str:
    """The further points, one seed each, compared with the rows of that seed."""
    controls = [f"control_{row}" for row in results.points]
    rows = []
    for row, (point,) in results.points.items():
        # the control of the same size and epochs, where there is one
        (control, *_) = results.points.get(f"control_{row}", results.table["control"])
        rows.append(
            [
                results.titles[row],
                f"{point.parameters:,}",
                f"{point.tokens:,}",
                f"{point.dev:.4f}",
                "" if row in controls else f"{point.dev - control.dev:+.4f}",
                f"{point.dev - results.table['gpt'][0].dev:+.4f}",
                f"{point.dev - results.table['llama'][0].dev:+.4f}",
                f"{point.blimp:.1f}",
            ]
        )
    head = ["", "parameters", "tokens", "dev nats/token"]
    head += ["− its control", "− GPT teacher", "− LLaMA teacher", "BLiMP"]
    return grid(head, rows)


# ---------------------------------------------------------------------------------------------
# the answer


def answer(results: dict[str, list[Measured]]) -> str:
    """What the numbers say about each part of the claim."""
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


def does_it_distil(results: dict[str, list[Measured]]) -> str:
    """The student of both teachers against its control, with what it costs."""
    student = each_seed(results["student"], "dev")
    control = each_seed(results["control"], "dev")
    yes = {
        "lower": "Yes",
        "higher": "No: it hurts",
        "not significant": "Not measurably",
    }[verdict(student, control)]

    # a second measure, on which nothing was tuned: learning rates were chosen by the dev loss
    student_blimp = each_seed(results["student"], "blimp")
    control_blimp = each_seed(results["control"], "blimp")
    blimp_difference = difference(student_blimp, control_blimp, "+.2f")

    # in units of the control's cost
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
    # stated with the test, which with three seeds seldom finds anything significant
    n_won = sum(s < t for s, t in zip(student, teacher))
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
        f"lower in {n_won} of {len(student)} seeds; "
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
    """One teacher, the other KL, other rows: all with settings that were not tuned for them, as the text says."""
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


def draw_first_seed(results: Results) -> plt.Figure:
    """The losses during training."""
    # one seed of the main rows, as more curves would hide each other
    curves = {}
    for row in ("gpt", "llama", "control", "student", "published", "reverse"):
        log = results.logs / f"{results.name('table', row, 0)}.txt"
        curves[results.titles[row]] = read_log(str(log))
    return draw_curves(curves, curve="")


def draw_all_seeds(results: Results) -> plt.Figure:
    """Dev loss and BLiMP of every row and seed."""
    figures = [
        Figure("dev loss, nats per token: less is better", lambda run: run.dev),
        Figure("BLiMP, % of pairs: more is better", lambda run: run.blimp),
    ]
    return draw_rows(results, list(results.table), figures, ["control"])


def write_report(results: Results):
    """README.md, results.png and curves.png, all of them in studies/babyllama."""
    save(draw_all_seeds(results), HERE / "results.png")
    save(draw_first_seed(results), HERE / "curves.png")

    table = results.table
    rows = list(table)
    # all but the three that they are compared with
    compared = [row for row in rows if row not in ("gpt", "llama", "control")]
    size = table["student"][0].parameters
    fields = {
        "answer": answer(table),
        "n": len(results.seeds),
        "bound": bound(len(results.seeds)),
        "val": results.meta["val_tokens"],
        "pairs": results.about["pairs"],
        # costs beside scores: a student that is better by more compute has not distilled anything
        "rows": mean_table(results, rows, [DEV, BITS, BLIMP], [PARAMETERS, *cost_columns()]),
        # of losses, a negative difference is the better one
        "differences": difference_table(results, compared, ["control", "gpt", "llama"], [DEV]),
        "blimp_differences": difference_table(results, compared, ["control"], [BLIMP]),
        "seeds": seed_table(results, rows, [DEV, BLIMP]),
        "meta": results.meta,
        "names": ", ".join(f"`{name}`" for name in results.meta["domains"]),
        # teachers and data in units of the student's parameters
        "gpt": table["gpt"][0].parameters / size,
        "llama": table["llama"][0].parameters / size,
        "share": results.meta["train_tokens"] / size,
        "trials": trial_table(results, DEV),
        "points": point_table(results),
        "domains": parts_table(results, "domains", ".3f"),
        "larger": trend.section(results, HERE / "logs_larger"),
        "fields": parts_table(results, "fields", ".1f", factor=100),
        "runs": results.n_runs,
        "jobs": results.about["jobs"],
        "minutes": results.minutes,
    }
    write_page(HERE, fields)


if __name__ == "__main__":
    end_in_one_line()
    write_report(read_results(HERE / "logs"))
