"""Curves of one or several runs as a PNG, and their results as a table.

    python plot.py --runs=out/quickstart/alone,out/quickstart/forward_kl --out=loss.png

Reads what train.py and distill.py write: log.txt (lines `step label value`) and, for the table, summary.json.
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # a file, no window
import matplotlib.pyplot as plt

from common.runtime import eta
from configurator import configure

runs = ""  # out_dirs or log.txt files, with commas between
labels = ""  # their names in picture and table, with commas between; "": the names of the folders
out = "loss.png"  # the picture
title = ""  # above it
chance = 0.25  # the line across the HellaSwag picture
config = configure(globals())

STYLES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1))]  # told apart without colours
MARKERS = "osD^v"


def read_log(run: str) -> dict[str, tuple[list, list]]:
    """{label: (steps, values)} of a run's log.txt."""
    path = Path(run) / "log.txt" if Path(run).is_dir() else Path(run)
    if not path.is_file():
        raise FileNotFoundError(f"no log.txt at {run!r}; runs are out_dirs of train.py and distill.py")
    curves = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            step, label, value = line.split()
            steps, values = curves.setdefault(label, ([], []))
            steps.append(int(step))
            values.append(float(value))
        except ValueError:
            raise ValueError(f"{path}, line {number}: expected `step label value`, found {line[:40]!r}") from None
    return curves


def smooth(values: list[float], width: int) -> list[float]:
    """The mean of each value and up to width - 1 before it."""
    return [sum(values[max(0, i + 1 - width) : i + 1]) / min(width, i + 1) for i in range(len(values))]


def draw(logs: dict[str, dict], path: str):
    """Losses on the left; HellaSwag on the right, if any run scored it."""
    hella = any("hella" in curves for curves in logs.values())
    figure, axes = plt.subplots(1, 1 + hella, figsize=(7 + 4.5 * hella, 4.5), squeeze=False, layout="constrained")
    left, right = axes[0][0], axes[0][-1]
    for i, (name, curves) in enumerate(logs.items()):
        look = {"color": f"C{i}", "linestyle": STYLES[i % len(STYLES)]}
        steps, values = curves.get("ce") or curves.get("train") or ([], [])  # ce: distill.py's train has other terms
        left.plot(steps, smooth(values, max(5, len(values) // 40)), **look, alpha=0.35, linewidth=1)
        if "val" in curves:
            left.plot(*curves["val"], **look, marker=MARKERS[i % len(MARKERS)], markersize=5, label=name)
        if "hella" in curves:
            right.plot(*curves["hella"], **look, marker=MARKERS[i % len(MARKERS)], markersize=5, label=name)
    shown = [v for curves in logs.values() for v in curves.get("val", ([], []))[1]]
    if len(shown) > 2 * len(logs):  # the fall of the first steps would flatten the rest
        late = [v for curves in logs.values() for v in curves.get("val", ([], []))[1][1:]]
        left.set_ylim(min(late) - 0.1 * (max(late) - min(late)), max(late) + 0.1 * (max(late) - min(late)))
    left.set(xlabel="step", ylabel="cross-entropy, nats per token", title="validation (marks), training (faint)")
    left.grid(alpha=0.3)
    left.legend()
    if hella:
        right.axhline(chance, color="black", linewidth=1, label="chance")
        right.set(xlabel="step", ylabel="acc_norm", title="multiple choice, HellaSwag's form")
        right.grid(alpha=0.3)
        right.legend()
    if title:
        figure.suptitle(title)
    figure.savefig(path, dpi=120)


def table(runs: dict[str, str]) -> str:
    """A row for each finished run, from its summary.json and log.txt."""
    rows = [("run", "parameters", "tokens", "val nats/token", "bits/byte", "acc_norm", "tokens/s", "wall time")]
    for name, run in runs.items():
        path = Path(run) / "summary.json"
        if path.is_file():
            s, hella = json.loads(path.read_text(encoding="utf-8")), read_log(run).get("hella", ([], []))[1]
            score, speed = f"{hella[-1]:.4f}" if hella else "-", f"{s['tokens'] / s['seconds']:,.0f}"
            losses = f"{s['val']:.4f}", f"{s['bits_per_byte']:.4f}"
            rows.append((name, f"{s['parameters']:,}", f"{s['tokens']:,}", *losses, score, speed, eta(s["seconds"])))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["| " + " | ".join(f"{cell:<{w}}" for cell, w in zip(row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


paths = [run.strip() for run in runs.split(",") if run.strip()]
if not paths:
    raise ValueError("runs is empty; name the out_dirs of runs, as in --runs=out/a,out/b")
names = [name.strip() for name in labels.split(",")] if labels else [Path(p).name for p in paths]
if len(names) != len(set(names)) or len(names) != len(paths):
    raise ValueError(f"{len(paths)} runs need as many different labels, not {', '.join(names)}; give --labels=a,b,…")
if not out.endswith(".png"):
    raise ValueError(f"out={out!r} must end in .png")
draw({name: read_log(path) for name, path in zip(names, paths)}, out)
print(table(dict(zip(names, paths))))
print(f"curves: {out}")
