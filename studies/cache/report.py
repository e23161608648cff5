"""The page of the study of cached teachers: table, picture and verdicts, all from the files of its runs.

The text is in page.md, whose fields `write_report` fills in; sentences that depend on the numbers
are made here, by paired t-tests over the seeds.
"""

import math
import statistics
from itertools import chain
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from common.figures import MARKERS
from common.files import read_json, read_utf8
from common.teacher_cache import bytes_per_token, layout_of, read_info
from studies.report import copy_logs, grid, save
from studies.stats import bound, difference, each_seed, mean_sd, measure_all, paired, significance

HERE = Path("studies/cache")  # where it is written; the study runs in the repository's root
PAGE = Path(__file__).with_name("page.md")

# the rows that learn from data and teachers, in the order of the table, and those of the teachers alone
MIXED = ("whole", "cell64", "cell16", "cell4", "draws16", "draws50", "drop64", "drop16", "drop4")
ALONE = ("cell16_alone", "draws16_alone", "drop16_alone")


def fidelity_table(results: dict, titles: dict, kept: dict, reference: str, rows: tuple) -> str:
    """What each row keeps of a position, {row: [bytes, tail]}, and reaches; `reference`: what differences are to."""
    lines = []
    for row in (reference, *rows):
        runs = results[row]
        against = ""
        if row != reference:
            against = difference(each_seed(runs, "dev"), each_seed(results[reference], "dev"))
            against += f" ({significance(each_seed(runs, 'dev'), each_seed(results[reference], 'dev'))})"
        lines.append(
            [
                titles[row],
                *kept.get(row, ("", "")),
                mean_sd(each_seed(runs, "dev")),
                against,
                mean_sd(each_seed(runs, "ece"), ".2f"),
                difference(each_seed(runs, "ece"), each_seed(results[reference], "ece"), "+.2f"),
                f"{statistics.median(each_seed(runs, 'speed')):,.0f}",
            ]
        )
    head = ["", "bytes/token", "tail", "dev nats/token", "− live", "ECE, %", "− live", "tokens/s"]
    return grid(head, lines)


def others_table(results: dict, titles: dict) -> str:
    """Teachers and control: what the students are to be seen beside."""
    lines = []
    for row in ("gpt", "llama", "control"):
        runs = results[row]
        dev = each_seed(runs, "dev")
        lines.append(
            [
                titles[row],
                mean_sd(dev),
                difference(dev, each_seed(results["live"], "dev")),
                mean_sd(each_seed(runs, "ece"), ".2f"),
                f"{statistics.median(each_seed(runs, 'speed')):,.0f}",
            ]
        )
    return grid(["", "dev nats/token", "− student of live teachers", "ECE, %", "tokens/s"], lines)


def seed_table(results: dict, titles: dict, seeds: list[int]) -> str:
    """Dev loss of every row and seed: what means, differences and errors are made of."""
    lines = []
    for row, runs in results.items():
        title = titles[row]
        # "live teachers" stands in the table twice
        if row.endswith("_alone"):
            title += ", KL alone"
        lines.append([title, *(f"{run.dev:.4f}" for run in runs), *(f"{run.ece:.2f}" for run in runs)])
    head = ["", *(f"dev, seed {seed}" for seed in seeds), *(f"ECE %, seed {seed}" for seed in seeds)]
    return grid(head, lines)


def answer(results: dict, bytes_of: dict) -> str:
    """What the numbers say, in sentences."""
    dev = {row: each_seed(runs, "dev") for row, runs in results.items()}
    return "\n\n".join(
        [
            is_it_as_good(dev, bytes_of),
            what_a_dropped_tail_costs(dev),
            f"**Are draws alone enough?** 50 of them, {bytes_of['draws50']} bytes a token: {against(dev, 'draws50')}.",
        ]
    )


def against(dev: dict, row: str, reference="live") -> str:
    """A row's difference to the one of live teachers, with what the test says of it."""
    return f"{difference(dev[row], dev[reference])} ({significance(dev[row], dev[reference])})"


def is_it_as_good(dev: dict, bytes_of: dict) -> str:
    """Caches against live teachers, and against what these bring."""
    shares = []
    for n_ids in (64, 16, 4):
        kept = []  # of each seed
        for control, live, cell in zip(dev["control"], dev["live"], dev[f"cell{n_ids}"]):
            kept.append((control - cell) / (control - live))
        shares.append(f"{min(kept):.0%} to {max(kept):.0%} with {n_ids} ids")
    return (
        "**Is a cache as good as the teachers?** Live teachers change the student's held-out loss by "
        f"{difference(dev['live'], dev['control'])} nats per token, against no teacher. Compared with them, the whole "
        f"distribution stored differs by {against(dev, 'whole')}; 16 ids and the tail as a cell, "
        f"{bytes_of['cell16']} bytes a token, by {against(dev, 'cell16')}; 16 ids and 16 draws of the tail by "
        f"{against(dev, 'draws16')}. Of the gain from live teachers the tail as a cell keeps, over the seeds, "
        f"{', '.join(shares)} (below 0: worse than no teacher)."
    )


def what_a_dropped_tail_costs(dev: dict) -> str:
    """The renormalised top-k that others use."""
    return (
        f"**What does dropping the tail cost?** With 64 ids {against(dev, 'drop64')}, with 16 "
        f"{against(dev, 'drop16')}, with 4 {against(dev, 'drop4')}. "
        "Learning from the teachers alone, without cross-entropy, 16 ids cost "
        f"{against(dev, 'drop16_alone', 'live_alone')} with the tail dropped and "
        f"{against(dev, 'cell16_alone', 'live_alone')} with the tail as a cell."
    )


GROUPS = {
    "whole distribution": ("whole",),
    "tail as a cell": ("cell64", "cell16", "cell4"),
    "ids and draws": ("draws16",),
    "draws alone": ("draws50",),
    "tail dropped": ("drop64", "drop16", "drop4"),
}


def draw(results: dict, bytes_of: dict) -> plt.Figure:
    """Dev loss, less that of live teachers, by bytes a token: left with the tail kept, right all rows."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    live = each_seed(results["live"], "dev")
    control, _ = paired(each_seed(results["control"], "dev"), live)
    for axis in (left, right):
        for i, (label, rows) in enumerate(GROUPS.items()):
            # it would flatten all others
            if axis is left and label == "tail dropped":
                continue
            means, errors = zip(*(paired(each_seed(results[row], "dev"), live) for row in rows))
            sizes = [bytes_of[row] for row in rows]
            axis.errorbar(sizes, means, yerr=errors, label=label, color=f"C{i}", marker=MARKERS[i], capsize=3)
        axis.axhline(control, color="black", linewidth=0.8, linestyle="--", label="no teacher")
        axis.axhline(0, color="black", linewidth=0.8, linestyle=":", label="live teachers")
        axis.set_xscale("log")
        # sizes as they are: of some marks the powers of ten would be far away
        axis.set_xticks([24, 72, 264, 3004], ["24", "72", "264", "3,004"])
        axis.minorticks_off()
        axis.set(xlabel="bytes a token", ylabel="dev nats/token, − live teachers: less is better")
        axis.grid(alpha=0.3)
    left.set_title("the tail kept")
    right.set_title("all, the tail dropped too")
    right.legend(fontsize=8)
    return figure


def wall(folders: list[Path]) -> list[float]:
    """Seconds of the processes that filled these folders; NaN where one was interrupted."""
    found = []
    for folder in folders:
        path = folder / "wall.json"
        found.append(read_json(path)["seconds"] if path.exists() else math.nan)
    return found


def mean_or_unknown(values: list[float], form: str, unit: str) -> str:
    """The mean with its unit; of a time that is not known, that."""
    mean = statistics.mean(values)
    if math.isnan(mean):
        return "unknown: interrupted"
    return f"{mean:{form}} {unit}"


def race(study, table: dict) -> str:
    """Wall time of a run with live teachers, of one from a cache, and of writing that cache."""
    lines = []
    live = wall([study.out / run.name for run in table["live"]])
    for row, name in (("cell16", "k16"), ("draws16", "k16_draws16"), ("whole", "whole")):
        cached = wall([study.out / run.name for run in table[row]])
        writing = wall([study.cache(name, run.seed) for run in table[row]])
        both = [a + b for a, b in zip(writing, cached)]
        ratios = [a / b for a, b in zip(live, both)]
        cells = [mean_or_unknown(seconds, ".0f", "s") for seconds in (writing, cached, both, live)]
        lines.append([study.rows[row].title, *cells, mean_or_unknown(ratios, ".2f", "×")])
    return grid(["", "writing the cache", "run", "both", "run with live teachers", "live / both"], lines)


def cache_bytes(study, cache_of: dict, seed: int) -> dict[str, int]:
    """{row: the bytes that its cache keeps of a position}."""
    found = {}
    for row, name in cache_of.items():
        info = read_info(study.cache(name, seed) / "cache.json")
        found[row] = bytes_per_token(layout_of(info))
    return found


def tail_masses(study, cache_of: dict, seeds: list[int]) -> dict[str, str]:
    """{row: the teachers' probability beyond the ids that its cache stores, mean over the training text and seeds}."""
    found = {}
    for row, name in cache_of.items():
        files = [study.cache(name, seed) / "train_log_tail.bin" for seed in seeds]
        # of the whole distribution nothing is beyond
        if all(file.exists() for file in files):
            masses = [np.exp(np.fromfile(file, "<f4").astype(np.float64)).mean() for file in files]
            found[row] = f"{statistics.mean(masses):.1%}"
    return found


def write_report(study, table: dict, cache_of: dict, meta: dict):
    """README.md, results.png and every log in logs/, all of them in studies/cache.

    table: {row: its runs}. cache_of: {row: the name of its cache}. meta: meta.json of the data.
    """
    copy_logs(study, set(chain(*table.values())), HERE / "logs")
    results = measure_all(study.out, table)
    seeds = [run.seed for run in table["live"]]
    bytes_of = cache_bytes(study, cache_of, seeds[0])
    tails = tail_masses(study, cache_of, seeds)
    kept = {row: (bytes_of[row], tails.get(row, "")) for row in cache_of}
    titles = {row: declared.title for row, declared in study.rows.items()}
    save(draw(results, bytes_of), HERE / "results.png")
    page = read_utf8(PAGE).format(
        answer=answer(results, bytes_of),
        n=len(seeds),
        bound=bound(len(seeds)),
        meta=meta,
        table=fidelity_table(results, titles, kept, "live", MIXED),
        alone=fidelity_table(results, titles, kept, "live_alone", ALONE),
        others=others_table(results, titles),
        seeds=seed_table(results, titles, seeds),
        race=race(study, table),
        steps=round(results["live"][0].tokens / 1024),
        jobs=study.jobs,
        runs=sum(len(runs) for runs in table.values()),
        minutes=study.seconds() / 60,
    )
    (HERE / "README.md").write_text(page, encoding="utf-8")
    print(f"{HERE / 'README.md'}, after {study.seconds() / 60:.0f} minutes")
