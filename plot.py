"""Curves of runs, or bars of results, as a PNG; and a table of the finished runs.

    python plot.py --runs=out/quickstart/alone,out/quickstart/forward_kl --out=loss.png
    python plot.py --runs=out/control,out/distilled --log10 --gpt2=0.2955
    python plot.py --runs=out/control,out/distilled --chain            # the second started from the first's weights
    python plot.py --runs=out/alone,out/distilled --curve=piqa --chance=0.5
    python plot.py --bars=alone.json,distilled.json --out=tasks.png    # of evaluate.py --json=true > alone.json

Reads what train.py and distill.py write: log.txt (lines `step label value`) and, for the table, summary.json. Bars are
of each task's first metric: shares of 1 on one axis; perplexities and bits, where less is better, on a logarithmic one.
"""

# before matplotlib and torch, so that Ctrl-C while they load ends in one line
from configurator import configure, nearest  # isort: split

import json
import math
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # a file, no window
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator

from common.log import eta

matplotlib.rcParams["text.parse_math"] = False  # a $ in a name is a $
STYLES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1))]  # told apart without colours
MARKERS = "osD^vP"  # one more than styles: 30 pairs differ
HATCHES = ["", "///", "...", "xxx", "\\\\\\", "---", "ooo"]
HOW = ("convention", "shots", "n", "data_sha256")  # of results that can be compared these are equal
NONE = ([], [])  # the curve of a label that a log has not


def read_log(run: str) -> dict[str, tuple[list, list]]:
    """{label: (steps, values)} of a run's log.txt; a value that is not finite is NaN, a gap in its curve."""
    path = Path(run) / "log.txt" if Path(run).is_dir() else Path(run)
    if not path.is_file():
        raise FileNotFoundError(f"no log.txt at {run!r}; runs are out_dirs of train.py and distill.py")
    curves = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):  # a kill cut it, perhaps within a number that would still be one
        lines.pop()
    for number, line in enumerate(lines, 1):
        try:
            step, label, value = line.split()
            step, value = int(float(int(step))), finite(float(value))  # a picture's numbers are floats
        except (ValueError, OverflowError):
            raise ValueError(
                f"{path}, line {number}: expected `step label value`, found {line.strip()[:40]!r}"
            ) from None
        steps, values = curves.setdefault(label, ([], []))
        steps.append(step)
        values.append(value)
    if not curves:
        raise ValueError(f"{path} is empty: the run has logged nothing yet; leave it out")
    return curves


def read_json(path: Path, remedy: str) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # ValueError: no JSON, or no UTF-8
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: expected one JSON object; {remedy}")
    return found


def read_results(path: str) -> tuple[str, dict[tuple[str, str], tuple[float, float]], dict[str, dict]]:
    """(model, {(task, its first metric): (value, standard error or NaN)}, {task: how it was scored}).

    Of what evaluate.py --json=true printed.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no results at {path!r}; write them with `python evaluate.py --json=true > {path}`")
    found, bars, how = read_json(Path(path), "write it again with evaluate.py --json=true"), {}, {}
    try:
        for result in found["results"]:
            metric, score = next(iter(result["metrics"].items()))
            key, value = (str(result["task"]), metric), finite(score["value"])
            if key in bars or math.isnan(value):
                trouble = "is there twice" if key in bars else f"is {score['value']!r}, not a finite number"
                raise ValueError(f"{path}: {metric} of {key[0]} {trouble}; leave it out of the file")
            bars[key] = value, finite(score.get("stderr"))
            how[key[0]] = {name: result[name] for name in HOW if name in result}
        if not bars:
            raise KeyError("results")
        return str(found["model"]), bars, how
    except (KeyError, TypeError, AttributeError, StopIteration):
        form = '{"model": …, "results": [{"task": …, "metrics": {"acc": {"value": …, "stderr": …}}}]}'
        raise ValueError(f"{path}: expected {form}; write it again with evaluate.py --json=true") from None


def scored_otherwise(how: dict[str, dict[str, dict]]) -> list[str]:
    """A line for each task whose bars do not compare, of {model: {task: how it was scored}}."""
    lines = []
    for task in dict.fromkeys(task for tasks in how.values() for task in tasks):
        for name in HOW:
            values = {model: tasks[task][name] for model, tasks in how.items() if name in tasks.get(task, {})}
            if len(set(map(str, values.values()))) > 1:
                each = ", ".join(f"{str(value)[:16]} in {model}" for model, value in values.items())
                lines.append(f"{task}: its bars do not compare: {name} is {each}")
    return lines


def finite(value) -> float:
    """A number that fits a picture as it is, anything else as NaN."""
    return value if type(value) in (int, float) and abs(value) < 1e300 else math.nan


def smooth(values: list[float]) -> list[float]:
    """The mean of each value and those before it, over a 40th of all: fewer than 80 stay as they are.

    A longer mean would lag behind: of a loss that falls it shows what it was, not what it is.
    """
    width = max(1, len(values) // 40)
    means = []
    for end in range(1, len(values) + 1):
        window = values[max(0, end - width) : end]
        means.append(sum(window) / len(window))
    return means


def chained(logs: dict[str, dict]) -> dict[str, dict]:
    """The logs with the steps of each run counted on from the last step of the run before it."""
    start, moved = 0, {}
    for name, curves in logs.items():
        moved[name] = {label: ([start + s for s in steps], values) for label, (steps, values) in curves.items()}
        start += max(max(steps) for steps, _ in curves.values())
    return moved


def draw_curves(logs: dict[str, dict], curve="hella", log10=False, chain=False, lines=()) -> plt.Figure:
    """Losses on the left; on the right `curve`, if any run has it, with lines [(height, text), …] across."""
    known = {label for curves in logs.values() for label in curves}
    if curve not in {"", "hella"} | known:
        raise ValueError(f"no run has a curve {curve!r}{nearest(curve, known)}; they have {', '.join(sorted(known))}")
    wanted = ("val", "train", "ce", *filter(None, [curve]))
    for name, curves in logs.items():
        if all(math.isnan(v) for label in wanted for v in curves.get(label, NONE)[1]):
            raise ValueError(
                f"{name}: its log has no finite {', '.join(wanted)}, only {', '.join(curves)}; leave it out"
            )
    logs, left = chained(logs) if chain else logs, not known.isdisjoint(("val", "train", "ce"))
    looks = [{"color": f"C{i}", "ls": STYLES[i % 5], "marker": MARKERS[i % 6], "ms": 5} for i in range(len(logs))]
    panels = left + (curve in known)
    figure, (axes,) = plt.subplots(1, panels, figsize=(2.5 + 4.5 * panels, 4.8), squeeze=False, layout="constrained")
    if left:
        draw_losses(axes[0], logs, looks, log10)
    if curve in known:
        for look, curves in zip(looks, logs.values()):
            axes[-1].plot(*curves.get(curve, NONE), **look, markevery=1 + len(curves.get(curve, NONE)[0]) // 40)
        for (height, text), side in zip(sorted(lines), ["top", "bottom"] if len(lines) > 1 else ["center"]):
            axes[-1].axhline(height, color="black", linewidth=1)
            axes[-1].text(1.01, height, text, transform=axes[-1].get_yaxis_transform(), va=side)  # beside the frame
        metric = {"hella": "acc_norm", "hella_sum": "acc"}.get(curve)
        axes[-1].set(ylabel=metric or curve, title="multiple choice, HellaSwag's form" if metric else curve)
    for axis in axes:
        axis.set(xlabel="step, each run counted on from the one before" if chain else "step")
        axis.grid(alpha=0.3)
    legend(figure, [Line2D([], [], **look) for look in looks], list(logs))
    return figure


def draw_losses(axis, logs: dict[str, dict], looks: list[dict], log10: bool):
    """Validation with marks, smoothed training; without log10, the fall of the first steps is left out of the frame."""
    late = []
    for look, (name, curves) in zip(looks, logs.items()):
        for label in ("ce" if "ce" in curves else "train", "val"):  # distill.py's train has terms beside the ce
            steps, values = curves.get(label, NONE)
            if bad := [v for v in values if log10 and v <= 0]:
                raise ValueError(f"{name}: its {label} has {bad[0]:g}, of which there is no log10; leave --log10 out")
            marks, faint = label == "val" or len(steps) == 1, label != "val" and "val" in curves
            values = values if label == "val" else smooth(values)
            values = [math.log10(v) for v in values] if log10 else values
            style = {"marker": look["marker"] * marks, "alpha": 0.35 if faint else 1, "lw": 1 if faint else 1.5}
            axis.plot(steps, values, **look | style, markevery=1 + len(steps) // 40)
            late += values[len(values) // 4 or len(values) > 2 :]
    late = [v for v in late if math.isfinite(v)]
    if late and not log10:  # which is there to show that fall
        margin = 0.05 * (max(late) - min(late)) or 0.1
        axis.set_ylim(min(late) - margin, max(late) + margin)
    title = "validation (marks), training (faint)" if any("val" in curves for curves in logs.values()) else "training"
    axis.set(ylabel=f"cross-entropy, {'log10 of ' * log10}nats per token", title=title)


def draw_bars(results: dict[str, dict]) -> plt.Figure:
    """A group of bars a task, a bar a model, with standard errors; what is no share of 1 on a log axis beside."""
    shares, others = {}, {}
    for task, metric in dict.fromkeys(key for bars in results.values() for key in bars):
        values, errors = zip(*(bars.get((task, metric), (math.nan, math.nan)) for bars in results.values()))
        large = metric.startswith(("ppl", "bits")) or metric.endswith("_ppl")
        if bad := [v for v in values if (v <= 0 if large else v > 1)]:
            fits = "more than 0" if large else "at most 1"
            raise ValueError(f"{task}: {metric} of {bad[0]:g} is not on its axis, of {fits}; leave the task out")
        (others if large else shares)[f"{textwrap.fill(task, 24)}\n{metric}"] = values, errors
    panels = [panel for panel in (shares, others) if panel]
    sizes = [max(2, len(panel)) for panel in panels]
    width, longest = min(16, 4 + sum(sizes)), max(len(s) for panel in panels for tick in panel for s in tick.split())
    crowded = 0.085 * longest > (width - len(sizes)) / sum(sizes)  # inches: a character; a group, after 1 for each axis
    shape = {"figsize": (width, 4.8), "width_ratios": sizes, "squeeze": False, "layout": "constrained"}
    figure, (axes,) = plt.subplots(1, len(sizes), **shape)
    looks = [{"facecolor": (f"C{i}", 0.5), "hatch": HATCHES[i % 7], "edgecolor": "black"} for i in range(len(results))]
    for axis, panel in zip(axes, panels):
        values, errors = (list(zip(*rows)) for rows in zip(*panel.values()))  # model by model
        for i, look in enumerate(looks):
            places = [k + 0.8 * ((i + 0.5) / len(looks) - 0.5) for k in range(len(panel))]
            axis.bar(places, values[i], 0.8 / len(looks), yerr=errors[i], capsize=2, **look)
        axis.set_xticks(range(len(panel)), panel, rotation=90 * crowded)
        axis.set(xlim=(-0.6, len(panel) - 0.4), ylabel="share of 1, ± standard error", title="more is better")
        if panel is others:
            known = [v for row in values for v in row if v == v]
            axis.set(yscale="log", ylim=(min(known) / 4, max(known) * 1.5), ylabel="log axis, ± standard error")
            axis.set(title="less is better")
            axis.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_formatter="")
    legend(figure, [Patch(**look) for look in looks], list(results))
    return figure


def legend(figure, handles: list, names: list[str]):
    """Below the panels, where it hides no data, in as many columns as fit."""
    names = [" " + textwrap.fill(name, 60) for name in names]  # matplotlib before 3.10 leaves out what begins with _
    longest = max(len(line) for name in names for line in name.split("\n"))
    columns = max(1, int(72 * figure.get_figwidth() / (6 * longest + 60)))  # 6 points a character
    figure.legend(handles, names, loc="outside lower center", ncols=columns, handlelength=4)


def table(runs: dict[str, str], logs: dict[str, dict]) -> str:
    """A row for each finished run, from its summary.json and log.txt; "-" for what they lack."""
    summaries = {}
    for name, run in runs.items():
        path = Path(run) / "summary.json"
        if path.is_file():
            summaries[name] = read_json(path, "delete it, and the run has no row in the table")
    has_best = any("best_val" in summary for summary in summaries.values())
    rows = []
    for name, summary in summaries.items():
        keys = ("parameters", "tokens", "seconds", "val", "bits_per_byte", "best_val", "best_step")
        parameters, tokens, seconds, val, bits, best, best_step = (finite(summary.get(key)) for key in keys)
        hella = logs[name].get("hella", ([], [math.nan]))[1][-1]
        speed = tokens / seconds if seconds else math.nan
        row = {
            "run": name,
            "parameters": f"{parameters:,}",
            "tokens": f"{tokens:,}",
            "val nats/token": f"{val:.4f}",
            "best val (step)": "nan" if math.isnan(best + best_step) else f"{best:.4f} (step {best_step:g})",
            "bits/byte": f"{bits:.4f}",
            "acc_norm": f"{hella:.4f}",
            "tokens/s": f"{speed:,.0f}",
            "wall time": "nan" if math.isnan(seconds) else eta(seconds),
        }
        rows.append({title: "-" if cell == "nan" else cell for title, cell in row.items()})
    titles = ["run", "parameters", "tokens", "val nats/token", "bits/byte", "acc_norm", "tokens/s", "wall time"]
    if has_best:
        titles.insert(4, "best val (step)")
    return lined_up([titles, *([row[title] for title in titles] for row in rows)])


def lined_up(rows: list[list[str]]) -> str:
    """A Markdown table of rows, the first of them its titles, whose columns line up as plain text too."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths)]
        lines.append("| " + " | ".join(cells) + " |")
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def main():
    paths = [path.strip() for path in (bars or runs).split(",") if path.strip()]
    if not paths or (runs and bars):
        raise ValueError("give either runs or bars to draw, as in --runs=out/a,out/b or --bars=a.json,b.json")
    if not out.endswith(".png"):
        raise ValueError(f"out={out!r} must end in .png")
    found = [(read_results if bars else read_log)(path) for path in paths]
    names = [Path(model).name for model, *_ in found] if bars else [Path(path).name for path in paths]
    names = [name.strip() for name in labels.split(",")] if labels else names
    if len(names) != len(set(names)) or len(names) != len(paths):
        kind = f"{len(paths)} {'bars' if bars else 'runs'}"
        raise ValueError(f"{kind} need as many different labels, not {', '.join(names)}; give --labels=a,b,…")
    if bars:
        figure = draw_bars({name: results for name, (_, results, _) in zip(names, found)})
        for line in scored_otherwise({name: how for name, (_, _, how) in zip(names, found)}):
            print(line)
    else:
        guess = 0.25 if chance < 0 and curve in ("hella", "hella_sum") else chance
        lines = [(height, f"{text} {height:g}") for height, text in ((guess, "chance"), (gpt2, "GPT-2")) if height > 0]
        logs = dict(zip(names, found))
        figure = draw_curves(logs, curve, log10, chain, lines)
        print(table(dict(zip(names, paths)), logs))
    if title:
        figure.suptitle(textwrap.fill(title, int(9 * figure.get_figwidth())))  # at 9 characters an inch
    figure.savefig(out, dpi=120)
    print(f"{'bars' if bars else 'curves'}: {out}")


if __name__ == "__main__":
    runs = ""  # out_dirs or log.txt files, with commas between
    bars = ""  # instead of runs: files of results as evaluate.py --json=true prints them, with commas between
    labels = ""  # names of the runs or models, with commas between; "": the names of the folders
    out = "loss.png"  # the picture
    title = ""  # above it
    curve = "hella"  # what is drawn beside the losses: a label of log.txt, such as piqa; "": nothing
    chance = -1.0  # a line across that; -1: at 0.25 with HellaSwag, none with another curve; 0: none
    gpt2 = 0.0  # one more, named GPT-2; 0: none; its smallest, 124M, has an acc_norm of 0.2955 on HellaSwag
    log10 = False  # the losses as log10 of them, from the first step on
    chain = False  # each run starts at the last step of the one before it
    config = configure(globals())
    main()
