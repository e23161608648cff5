"""The page of the study of cached teachers: table, picture and verdicts, all from the files of logs/.

    python -m studies.cache.report

The text is in page.md, whose fields `write_report` fills in; sentences that depend on the numbers
are made here, by paired t-tests over the seeds.
"""

from common.one_line import end_in_one_line  # isort: split

import math
import statistics
from pathlib import Path

import matplotlib.pyplot as plt

from common.figures import MARKERS
from studies.report import Figure, Results, against, grid, read_results, save, seed_table, write_page
from studies.stats import bound, difference, each_seed, mean_sd, paired

HERE = Path("studies/cache")  # where it is written; the study runs in the repository's root

DEV = Figure("dev nats/token", lambda run: run.dev)
ECE = Figure("ECE, %", lambda run: run.ece, ".2f")

# the rows that learn from data and teachers, in the order of the table, and those of the teachers alone
MIXED = ("whole", "cell64", "cell16", "cell4", "draws16", "draws50", "drop64", "drop16", "drop4")
ALONE = ("cell16_alone", "draws16_alone", "drop16_alone")


def cache_figures(results: Results, row: str) -> dict:
    """What a row's cache keeps of a position, and how long it took (describe_cache in __main__.py)."""
    return results.about["caches"][results.about["cache_of"][row]]


def fidelity_table(results: Results, reference: str, rows: tuple) -> str:
    """What each row keeps of a position, and its results; `reference`: the row that differences are taken from."""
    lines = []
    for row in (reference, *rows):
        runs = results.table[row]
        kept = ["", ""]
        less_reference = ""
        if row != reference:
            cache = cache_figures(results, row)
            # the whole distribution has no tail
            kept = [cache["bytes"], f"{cache['tail']:.1%}" if "tail" in cache else ""]
            less_reference = against(results, DEV, row, reference)
        lines.append(
            [
                results.titles[row],
                *kept,
                mean_sd(DEV.values(runs)),
                less_reference,
                mean_sd(ECE.values(runs), ".2f"),
                difference(ECE.values(runs), ECE.values(results.table[reference]), "+.2f"),
                f"{statistics.median(each_seed(runs, 'speed')):,.0f}",
            ]
        )
    head = ["", "bytes/token", "tail", "dev nats/token", "− live", "ECE, %", "− live", "tokens/s"]
    return grid(head, lines)


def others_table(results: Results) -> str:
    """Teachers and control, to compare the students with."""
    lines = []
    for row in ("gpt", "llama", "control"):
        runs = results.table[row]
        dev = DEV.values(runs)
        lines.append(
            [
                results.titles[row],
                mean_sd(dev),
                difference(dev, DEV.values(results.table["live"])),
                mean_sd(ECE.values(runs), ".2f"),
                f"{statistics.median(each_seed(runs, 'speed')):,.0f}",
            ]
        )
    return grid(["", "dev nats/token", "− student of live teachers", "ECE, %", "tokens/s"], lines)


def answer(results: Results) -> str:
    """What the numbers say, in sentences."""
    n_bytes = cache_figures(results, "draws50")["bytes"]
    draws = against(results, DEV, "draws50", "live")
    return "\n\n".join(
        [
            is_it_as_good(results),
            what_a_dropped_tail_costs(results),
            f"**Are draws alone enough?** 50 of them, {n_bytes} bytes a token: {draws}.",
        ]
    )


def is_it_as_good(results: Results) -> str:
    """Caches against live teachers, and the share of these teachers' gain that they keep."""
    dev = {row: DEV.values(runs) for row, runs in results.table.items()}
    shares = []
    for n_ids in (64, 16, 4):
        kept = []  # of each seed
        for control, live, cell in zip(dev["control"], dev["live"], dev[f"cell{n_ids}"]):
            kept.append((control - cell) / (control - live))
        shares.append(f"{min(kept):.0%} to {max(kept):.0%} with {n_ids} ids")
    less_live = {row: against(results, DEV, row, "live") for row in ("whole", "cell16", "draws16")}
    return (
        "**Is a cache as good as the teachers?** Live teachers change the student's held-out loss by "
        f"{difference(dev['live'], dev['control'])} nats per token, against no teacher. Compared with them, the whole "
        f"distribution stored differs by {less_live['whole']}; 16 ids and the tail as a cell, "
        f"{cache_figures(results, 'cell16')['bytes']} bytes a token, by {less_live['cell16']}; 16 ids and 16 draws of "
        f"the tail by {less_live['draws16']}. Of the gain from live teachers the tail as a cell keeps, over the seeds, "
        f"{', '.join(shares)} (below 0: worse than no teacher)."
    )


def what_a_dropped_tail_costs(results: Results) -> str:
    """Dropped tails: the renormalised top-k that others use."""
    less_live = {row: against(results, DEV, row, "live") for row in ("drop64", "drop16", "drop4")}
    return (
        f"**What does dropping the tail cost?** With 64 ids {less_live['drop64']}, with 16 "
        f"{less_live['drop16']}, with 4 {less_live['drop4']}. "
        "Learning from the teachers alone, without cross-entropy, 16 ids cost "
        f"{against(results, DEV, 'drop16_alone', 'live_alone')} with the tail dropped and "
        f"{against(results, DEV, 'cell16_alone', 'live_alone')} with the tail as a cell."
    )


GROUPS = {
    "whole distribution": ("whole",),
    "tail as a cell": ("cell64", "cell16", "cell4"),
    "ids and draws": ("draws16",),
    "draws alone": ("draws50",),
    "tail dropped": ("drop64", "drop16", "drop4"),
}


def draw(results: Results) -> plt.Figure:
    """Dev loss, less that with live teachers, by bytes a token: left rows that keep the tail, right all rows."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    live = DEV.values(results.table["live"])
    control, _ = paired(DEV.values(results.table["control"]), live)
    for axis in (left, right):
        for i, (label, rows) in enumerate(GROUPS.items()):
            # its losses would flatten all other curves
            if axis is left and label == "tail dropped":
                continue
            means, errors = zip(*(paired(DEV.values(results.table[row]), live) for row in rows))
            sizes = [cache_figures(results, row)["bytes"] for row in rows]
            axis.errorbar(sizes, means, yerr=errors, label=label, color=f"C{i}", marker=MARKERS[i], capsize=3)
        axis.axhline(control, color="black", linewidth=0.8, linestyle="--", label="no teacher")
        axis.axhline(0, color="black", linewidth=0.8, linestyle=":", label="live teachers")
        axis.set_xscale("log")
        # ticks at the sizes, as powers of ten would be far from some marks
        axis.set_xticks([24, 72, 264, 3004], ["24", "72", "264", "3,004"])
        axis.minorticks_off()
        axis.set(xlabel="bytes a token", ylabel="dev nats/token, − live teachers: less is better")
        axis.grid(alpha=0.3)
    left.set_title("the tail kept")
    right.set_title("all, the tail dropped too")
    right.legend(fontsize=8)
    return figure


def mean_or_unknown(values: list[float], form: str, unit: str) -> str:
    """The mean with its unit; "unknown: interrupted" for times that are not known."""
    mean = statistics.mean(values)
    if math.isnan(mean):
        return "unknown: interrupted"
    return f"{mean:{form}} {unit}"


def race(results: Results) -> str:
    """Wall time of a run with live teachers, of one from a cache, and of writing that cache."""
    lines = []
    live = each_seed(results.table["live"], "wall")
    for row in ("cell16", "draws16", "whole"):
        cached = each_seed(results.table[row], "wall")
        writing = [math.nan if seconds is None else seconds for seconds in cache_figures(results, row)["wall"]]
        both = [a + b for a, b in zip(writing, cached)]
        ratios = [a / b for a, b in zip(live, both)]
        cells = [mean_or_unknown(seconds, ".0f", "s") for seconds in (writing, cached, both, live)]
        lines.append([results.titles[row], *cells, mean_or_unknown(ratios, ".2f", "×")])
    return grid(["", "writing the cache", "run", "both", "run with live teachers", "live / both"], lines)


def write_report(results: Results):
    """README.md and results.png, both of them in studies/cache."""
    save(draw(results), HERE / "results.png")
    fields = {
        "answer": answer(results),
        "n": len(results.seeds),
        "bound": bound(len(results.seeds)),
        "meta": results.meta,
        "table": fidelity_table(results, "live", MIXED),
        "alone": fidelity_table(results, "live_alone", ALONE),
        "others": others_table(results),
        "seeds": seed_table(results, list(results.table), [DEV, ECE]),
        "race": race(results),
        "steps": round(results.table["live"][0].tokens / 1024),
        "jobs": results.about["jobs"],
        "runs": results.n_runs,
        "minutes": results.minutes,
    }
    write_page(HERE, fields)


if __name__ == "__main__":
    end_in_one_line()
    write_report(read_results(HERE / "logs"))
