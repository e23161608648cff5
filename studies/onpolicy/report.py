"""The page of the study of on-policy learning: table, picture and verdicts, all from the files of logs/.

    python -m studies.onpolicy.report

The text is in page.md, whose fields `write_report` fills in; sentences that depend on the numbers
are made here, by paired t-tests over the seeds.
"""

from common.one_line import end_in_one_line  # isort: split

import statistics
from pathlib import Path

import matplotlib.pyplot as plt

from common.figures import MARKERS
from studies.report import (
    Figure,
    Results,
    against,
    cost_columns,
    difference_table,
    grid,
    mean_table,
    read_results,
    save,
    seed_table,
    write_page,
)
from studies.stats import bound, paired

HERE = Path("studies/onpolicy")  # where it is written; the study runs in the repository's root

KINDS = ("forward", "reverse", "js")
SHARES = ("0.25", "0.5")


def of_text(name: str, head: str, form=".4f") -> Figure:
    """A figure of a run's own text (studies/generation.py)."""
    return Figure(head, lambda run: run.record["generation"][name], form)


DEV = Figure("dev nats/token", lambda run: run.dev)
REVERSE_KL = of_text("reverse_kl", "KL(student ‖ teacher), own text")
FORWARD_KL = of_text("forward_kl", "KL(teacher ‖ student), own text")
ENTROPY = of_text("entropy", "entropy, own text", ".3f")
REPEATED = of_text("repeated", "repeated 4-grams")
DISTINCT = of_text("distinct_2", "distinct 2-grams")


def of_data(results: Results, name: str) -> float:
    """The same figure for the data's own continuations, which does not depend on the run."""
    return results.table["llama"][0].record["generation"][f"data_{name}"]


def main_table(results: Results) -> str:
    """Costs and results of each row, means over seeds, and the figures of the data itself."""
    # the rows' tokens differ only by those that are written
    costs = [cost for cost in cost_columns() if cost.head != "tokens"]
    figures = [DEV, REVERSE_KL, FORWARD_KL, ENTROPY, REPEATED, DISTINCT]
    counts = [f"{of_data(results, name):.4f}" for name in ("repeated", "distinct_2")]
    last_line = ["the data's continuations", *[""] * 6, *counts]
    return mean_table(results, list(results.table), figures, costs) + "\n| " + " | ".join(last_line) + " |"


def own_text_table(results: Results) -> str:
    """What own text changes, against the same divergence on data alone."""
    figures = [DEV, REVERSE_KL, REPEATED, DISTINCT]
    lines = []
    for kl in KINDS:
        for share in SHARES:
            row = f"{kl}_{share}"
            lines.append([results.titles[row], *(against(results, figure, row, kl) for figure in figures)])
    return grid(["own text − data alone", *(figure.head for figure in figures)], lines)


def answer(results: Results) -> str:
    """What the numbers say, in sentences."""
    sentences = []
    for figure, name, note in (
        (DEV, "Held-out loss", "lower is better"),
        (REVERSE_KL, "Divergence from the teacher on its own text", "lower is closer"),
        (REPEATED, "Repeated 4-grams", f"the data has {of_data(results, 'repeated'):.4f}"),
    ):
        parts = [f"with {results.titles[kl]} {against(results, figure, f'{kl}_0.5', kl)}" for kl in KINDS]
        sentences.append(f"**{name}** ({note}): {'; '.join(parts)}.")
    return "\n\n".join(sentences)


def draw(results: Results) -> plt.Figure:
    """Each row a point: held-out loss against the divergence on own text, and against repetition."""

    def mean(figure: Figure, row: str) -> float:
        return statistics.mean(figure.values(results.table[row]))

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for axis, shown in zip(axes, (REVERSE_KL, REPEATED)):
        for i, kl in enumerate(KINDS):
            rows = (kl, *(f"{kl}_{share}" for share in SHARES))
            losses = [mean(DEV, row) for row in rows]
            figures = [mean(shown, row) for row in rows]
            # the error of the difference from data alone, as that is what rows are compared with
            data_alone = DEV.values(results.table[kl])
            errors = [paired(DEV.values(results.table[row]), data_alone)[1] for row in rows]
            axis.errorbar(
                figures, losses, yerr=errors, color=f"C{i}", marker=MARKERS[i], capsize=3, label=results.titles[kl]
            )  # fmt: skip
            for share, x, y in zip(("0", *SHARES), figures, losses):
                axis.annotate(share, (x, y), textcoords="offset points", xytext=(6, 4), fontsize=8)
        for row, mark in (("ce", "x"), ("llama", "*"), ("control", "+")):
            axis.plot(mean(shown, row), mean(DEV, row), "k" + mark, markersize=9, label=results.titles[row])
        axis.set(xlabel=shown.head, ylabel="dev nats/token: less is better")
        axis.grid(alpha=0.3)
    axes[1].axvline(of_data(results, "repeated"), color="black", linewidth=0.8, linestyle=":", label="the data")
    axes[1].legend(fontsize=8)
    axes[0].legend(fontsize=8)
    return figure


def write_report(results: Results):
    """README.md and results.png, both of them in studies/onpolicy."""
    save(draw(results), HERE / "results.png")
    rows = list(results.table)
    fields = {
        "answer": answer(results),
        "n": len(results.seeds),
        "bound": bound(len(results.seeds)),
        "meta": results.meta,
        "samples": results.table["ce"][0].record["generation"]["samples"],
        "table": main_table(results),
        "differences": own_text_table(results),
        "continuing": difference_table(results, ["ce", *KINDS], ["control", "ce"], [DEV]),
        "seeds": seed_table(results, rows, [DEV, REVERSE_KL]),
        "jobs": results.about["jobs"],
        "runs": results.n_runs,
        "minutes": results.minutes,
    }
    write_page(HERE, fields)


if __name__ == "__main__":
    end_in_one_line()
    write_report(read_results(HERE / "logs"))
