"""The page of the study of on-policy learning: table, picture and verdicts, all from the files of its runs.

The text is in page.md, whose fields `write_report` fills in; sentences that depend on the numbers
are made here, by paired t-tests over the seeds.
"""

import statistics
from itertools import chain
from pathlib import Path

import matplotlib.pyplot as plt

from common.figures import MARKERS
from common.files import read_json, read_utf8
from studies.report import copy_logs, grid, save
from studies.stats import bound, difference, each_seed, mean_sd, measure_all, paired, significance

HERE = Path("studies/onpolicy")  # where it is written; the study runs in the repository's root
PAGE = Path(__file__).with_name("page.md")

KINDS = ("forward", "reverse", "js")
SHARES = ("0.25", "0.5")
# of generation.json, with the form that they are printed in
TEXT = {"reverse_kl": ".4f", "forward_kl": ".4f", "entropy": ".3f", "repeated": ".4f", "distinct_2": ".4f"}
HEADS = {
    "reverse_kl": "KL(student ‖ teacher), own text",
    "forward_kl": "KL(teacher ‖ student), own text",
    "entropy": "entropy, own text",
    "repeated": "repeated 4-grams",
    "distinct_2": "distinct 2-grams",
}


def read_text_figures(out_dir: Path, table: dict) -> dict[str, dict[str, list[float]]]:
    """{row: {figure: its value of each seed}} of generation.json."""
    figures = {}
    for row, runs in table.items():
        found = [read_json(out_dir / run.name / "generation.json") for run in runs]
        figures[row] = {name: [values[name] for values in found] for name in found[0]}
    return figures


def main_table(results: dict, text: dict, titles: dict) -> str:
    """What each row took and reached, means over seeds."""
    lines = []
    for row, runs in results.items():
        minutes = statistics.mean(each_seed(runs, "minutes"))
        cells = [titles[row], f"{runs[0].teraflop:.1f}", f"{minutes:.1f}", mean_sd(each_seed(runs, "dev"))]
        cells += [mean_sd(text[row][name], form) for name, form in TEXT.items()]
        lines.append(cells)
    of_data = ["the data's continuations", *[""] * 6]
    of_data += [f"{text['llama'][f'data_{name}'][0]:.4f}" for name in ("repeated", "distinct_2")]
    return grid(["", "TFLOP", "core minutes", "dev nats/token", *HEADS.values()], [*lines, of_data])


def difference_table(results: dict, text: dict, titles: dict) -> str:
    """What own text changes, against the same divergence on data alone."""
    lines = []
    for kl in KINDS:
        for share in SHARES:
            row = f"{kl}_{share}"
            dev, reference = each_seed(results[row], "dev"), each_seed(results[kl], "dev")
            cells = [titles[row], f"{difference(dev, reference)} ({significance(dev, reference)})"]
            for name in ("reverse_kl", "repeated", "distinct_2"):
                values, reference = text[row][name], text[kl][name]
                cells.append(f"{difference(values, reference)} ({significance(values, reference)})")
            lines.append(cells)
    head = ["own text − data alone", "dev nats/token", HEADS["reverse_kl"], HEADS["repeated"], HEADS["distinct_2"]]
    return grid(head, lines)


def continuing_table(results: dict, titles: dict) -> str:
    """What going on brings at all, against the start and against cross-entropy."""
    lines = []
    for row in ("ce", *KINDS):
        dev = each_seed(results[row], "dev")
        cells = [titles[row], difference(dev, each_seed(results["control"], "dev"))]
        cells.append("" if row == "ce" else difference(dev, each_seed(results["ce"], "dev")))
        lines.append(cells)
    return grid(["dev nats/token", "− the start", "− cross-entropy"], lines)


def answer(results: dict, text: dict, titles: dict) -> str:
    """What the numbers say, in sentences."""
    sentences = []
    of_data = text["llama"]["data_repeated"][0]
    for figure, what, note in (
        ("dev", "Held-out loss", "lower is better"),
        ("reverse_kl", "Divergence from the teacher on its own text", "lower is closer"),
        ("repeated", "Repeated 4-grams", f"the data has {of_data:.4f}"),
    ):
        parts = []
        for kl in KINDS:
            row = f"{kl}_0.5"
            if figure == "dev":
                values, reference = each_seed(results[row], "dev"), each_seed(results[kl], "dev")
            else:
                values, reference = text[row][figure], text[kl][figure]
            parts.append(f"{difference(values, reference)} with {titles[kl]} ({significance(values, reference)})")
        sentences.append(f"**{what}** ({note}): {'; '.join(parts)}.")
    return "\n\n".join(sentences)


def draw(results: dict, text: dict, titles: dict) -> plt.Figure:
    """Each row a point: held-out loss against the divergence on own text, and against repetition."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for axis, name in zip(axes, ("reverse_kl", "repeated")):
        for i, kl in enumerate(KINDS):
            rows = (kl, *(f"{kl}_{share}" for share in SHARES))
            losses = [statistics.mean(each_seed(results[row], "dev")) for row in rows]
            figures = [statistics.mean(text[row][name]) for row in rows]
            # the error of the difference to data alone, which is the comparison that is made
            errors = [paired(each_seed(results[row], "dev"), each_seed(results[kl], "dev"))[1] for row in rows]
            axis.errorbar(
                figures, losses, yerr=errors, color=f"C{i}", marker=MARKERS[i], capsize=3, label=titles[kl]
            )  # fmt: skip
            for share, x, y in zip(("0", *SHARES), figures, losses):
                axis.annotate(share, (x, y), textcoords="offset points", xytext=(6, 4), fontsize=8)
        for row, mark in (("ce", "x"), ("llama", "*"), ("control", "+")):
            loss = statistics.mean(each_seed(results[row], "dev"))
            axis.plot(statistics.mean(text[row][name]), loss, "k" + mark, markersize=9, label=titles[row])
        axis.set(xlabel=HEADS[name], ylabel="dev nats/token: less is better")
        axis.grid(alpha=0.3)
    axes[1].axvline(text["llama"]["data_repeated"][0], color="black", linewidth=0.8, linestyle=":", label="the data")
    axes[1].legend(fontsize=8)
    axes[0].legend(fontsize=8)
    return figure


def write_report(study, table: dict, meta: dict):
    """README.md, results.png and every log in logs/, all of them in studies/onpolicy.

    table: {row: its runs}. meta: meta.json of the data.
    """
    copy_logs(study, set(chain(*table.values())), HERE / "logs")
    results = measure_all(study.out, table)
    text = read_text_figures(study.out, table)
    titles = {row: declared.title for row, declared in study.rows.items()}
    save(draw(results, text, titles), HERE / "results.png")
    seeds = [run.seed for run in table["ce"]]
    page = read_utf8(PAGE).format(
        answer=answer(results, text, titles),
        n=len(seeds),
        bound=bound(len(seeds)),
        meta=meta,
        samples=text["ce"]["samples"][0],
        table=main_table(results, text, titles),
        differences=difference_table(results, text, titles),
        continuing=continuing_table(results, titles),
        seeds=seed_table(results, text, titles, seeds),
        jobs=study.jobs,
        runs=sum(len(runs) for runs in table.values()),
        minutes=study.seconds() / 60,
    )
    (HERE / "README.md").write_text(page, encoding="utf-8")
    print(f"{HERE / 'README.md'}, after {study.seconds() / 60:.0f} minutes")


def seed_table(results: dict, text: dict, titles: dict, seeds: list[int]) -> str:
    """Dev loss and divergence on own text of every row and seed: what the means are made of."""
    lines = []
    for row, runs in results.items():
        divergences = [f"{value:.4f}" for value in text[row]["reverse_kl"]]
        lines.append([titles[row], *(f"{run.dev:.4f}" for run in runs), *divergences])
    head = ["", *(f"dev, seed {seed}" for seed in seeds), *(f"KL(student ‖ teacher), seed {seed}" for seed in seeds)]
    return grid(head, lines)
