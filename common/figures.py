"""Curves of runs and bars of results as matplotlib figures.

Imported only where something is drawn: matplotlib takes a second to load.
"""

import math
import textwrap

import matplotlib

matplotlib.use("Agg")  # a file, no window
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator

from configurator import nearest

matplotlib.rcParams["text.parse_math"] = False  # a $ in a run's name is a $

# No two of 30 curves look the same without colours: 5 styles and 6 markers have no common factor.
STYLES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1))]
MARKERS = "osD^vP"
HATCHES = ["", "///", "...", "xxx", "\\\\\\", "---", "ooo"]

LOSSES = ("val", "train", "ce")  # the labels of the left panel
ACCURACIES = {"hella": "acc_norm", "hella_sum": "acc"}  # labels of HellaSwag in log.txt: the metric
NO_CURVE = ([], [])  # of a label that a log lacks


# ---------------------------------------------------------------------------------------------
# curves


def smooth(values: list[float]) -> list[float]:
    """A running mean over a 40th of all values: fewer than 80 stay as they are.

    A longer one would lag behind: while a loss falls, the mean shows what it was, not what it is.
    """
    # over a value and those before it, as a run that is still going on has none after it
    width = max(1, len(values) // 40)
    means = []
    for end in range(1, len(values) + 1):
        window = values[max(0, end - width) : end]
        means.append(sum(window) / len(window))
    return means


def chained(logs: dict[str, dict]) -> dict[str, dict]:
    """The logs with the steps of each run counted on from the last step of the run before it."""
    start = 0
    moved_logs = {}
    for name, curves in logs.items():
        moved = {}
        last = 0
        for label, (steps, values) in curves.items():
            moved[label] = ([start + step for step in steps], values)
            last = max(last, *steps)
        moved_logs[name] = moved
        start += last
    return moved_logs


def draw_curves(logs: dict[str, dict], curve="hella", log10=False, chain=False, lines=()) -> plt.Figure:
    """Losses on the left; on the right `curve`, if any run has it.

    lines: [(height, text), …] across the right panel.
    """
    known_labels = set()
    for curves in logs.values():
        known_labels |= curves.keys()
    check_can_be_drawn(logs, curve, known_labels)
    if chain:
        logs = chained(logs)
    looks = []  # arguments of Line2D
    for i in range(len(logs)):
        looks.append({"color": f"C{i}", "ls": STYLES[i % 5], "marker": MARKERS[i % 6], "ms": 5})

    # no empty panel: a log may have only evaluations, or only losses
    has_losses = not known_labels.isdisjoint(LOSSES)
    has_curve = curve in known_labels
    n_panels = has_losses + has_curve
    size = (2.5 + 4.5 * n_panels, 4.8)  # inches
    figure, panels = plt.subplots(1, n_panels, figsize=size, squeeze=False, layout="constrained")
    axes = panels[0]
    if has_losses:
        draw_losses(axes[0], logs, looks, log10)
    if has_curve:
        draw_one_label(axes[-1], curve, logs, looks, lines)
    for axis in axes:
        axis.set_xlabel("step, each run counted on from the one before" if chain else "step")
        axis.grid(alpha=0.3)
    # made by hand, as a run's marks and its faint training curve are one entry
    handles = [Line2D([], [], **look) for look in looks]
    draw_legend(figure, handles, list(logs))
    return figure


def check_can_be_drawn(logs: dict[str, dict], curve: str, known_labels: set[str]):
    """ValueError unless some run has `curve`, and each run has a value to draw."""
    # "hella" is the default: a run without it just has one panel less
    if curve not in {"", "hella"} | known_labels:
        known = ", ".join(sorted(known_labels))
        suggestion = nearest(curve, known_labels)
        raise ValueError(f"no run has a curve {curve!r}{suggestion}; they have {known}")
    wanted = [*LOSSES, curve] if curve else LOSSES
    for name, curves in logs.items():
        values = []
        for label in wanted:
            values += curves.get(label, NO_CURVE)[1]
        if all(map(math.isnan, values)):
            labels = f"no finite {', '.join(wanted)}, only {', '.join(curves)}"
            raise ValueError(f"{name}: its log has {labels}; leave it out")


def marker_interval(steps: list) -> int:
    """The number of points from one marker to the next: more than 40 markers would hide their curve."""
    return 1 + len(steps) // 40


def draw_losses(axis, logs: dict[str, dict], looks: list[dict], log10: bool):
    """Validation losses with marks, and smoothed training losses.

    Without log10 the frame leaves out the fall of the first steps, as the curves differ after it.
    """
    late_values = []
    for look, (name, curves) in zip(looks, logs.items()):
        # distill.py's `train` has other terms beside the cross-entropy, which it logs as `ce`
        training = "ce" if "ce" in curves else "train"
        for label in (training, "val"):
            steps, values = curves.get(label, NO_CURVE)
            not_positive = [v for v in values if v <= 0]
            if log10 and not_positive:
                value = f"its {label} has {not_positive[0]:g}"
                raise ValueError(f"{name}: {value}, of which there is no log10; leave --log10 out")
            if label != "val":
                values = smooth(values)
            if log10:
                values = [math.log10(v) for v in values]
            style = dict(look)
            # training has too many points for marks, but a single point would be invisible without one
            if label != "val" and len(steps) != 1:
                style["marker"] = ""
            if label != "val" and "val" in curves:
                style |= {"alpha": 0.35, "lw": 1}
            axis.plot(steps, values, **style, markevery=marker_interval(steps))
            # the first quarter counts as the fall; in a short log, at least the first point
            fall = max(len(values) // 4, 1) if len(values) > 2 else 0
            late_values += values[fall:]
    late_values = [v for v in late_values if math.isfinite(v)]
    # log10 is there to show the fall
    if late_values and not log10:
        margin = 0.05 * (max(late_values) - min(late_values)) or 0.1
        axis.set_ylim(min(late_values) - margin, max(late_values) + margin)
    unit = "log10 of nats per token" if log10 else "nats per token"
    axis.set_ylabel(f"cross-entropy, {unit}")
    some_val = any("val" in curves for curves in logs.values())
    axis.set_title("validation (marks), training (faint)" if some_val else "training")


def draw_one_label(axis, label: str, logs: dict[str, dict], looks: list[dict], lines):
    """One label of each log, and lines [(height, text), …] across, named beside the frame."""
    for look, curves in zip(looks, logs.values()):
        steps, values = curves.get(label, NO_CURVE)
        axis.plot(steps, values, **look, markevery=marker_interval(steps))
    # Of two lines the lower has its name below it and the upper above: close ones do not overlap.
    sides = ["top", "bottom"] if len(lines) > 1 else ["center"]
    for (height, text), side in zip(sorted(lines), sides):
        axis.axhline(height, color="black", linewidth=1)
        # x in widths of the frame, y in values
        axis.text(1.01, height, text, transform=axis.get_yaxis_transform(), va=side)
    axis.set_ylabel(ACCURACIES.get(label, label))
    axis.set_title("multiple choice, HellaSwag's form" if label in ACCURACIES else label)


def draw_legend(figure, handles: list, names: list[str]):
    """Below the panels, where it hides no data, in as many columns as fit."""
    # matplotlib before 3.10 leaves out a name that begins with "_": none begins with " _"
    names = [" " + textwrap.fill(name, 60) for name in names]
    longest = max(len(line) for line in "\n".join(names).split("\n"))
    # 72 points an inch, 6 points a character, 60 for the handle and the gaps
    columns = int(72 * figure.get_figwidth() / (6 * longest + 60))
    figure.legend(handles, names, loc="outside lower center", ncols=max(1, columns), handlelength=4)


# ---------------------------------------------------------------------------------------------
# bars


def is_logarithmic(metric: str) -> bool:
    """Whether a metric is a perplexity or a number of bits, for which less is better."""
    return metric.startswith(("ppl", "bits")) or metric.endswith("_ppl")


def panels_of_bars(results: dict[str, dict]) -> tuple[dict, dict]:
    """Two panels, shares of 1 and the rest: {name of a group: [(value, standard error) by model]}."""
    shares = {}
    others = {}
    groups = {}  # a dict keeps the order of the files
    for scores in results.values():
        groups |= scores
    for task, metric in groups:
        bars = []
        for scores in results.values():
            # NaN draws nothing, but keeps the place of a model without this task
            bars.append(scores.get((task, metric), (math.nan, math.nan)))
        if is_logarithmic(metric):
            off_axis = [value for value, _ in bars if value <= 0]
            axis = "more than 0"
            panel = others
        else:
            off_axis = [value for value, _ in bars if value > 1]
            axis = "at most 1"
            panel = shares
        # a value that the metric cannot have is an error in the file
        if off_axis:
            score = f"{metric} of {off_axis[0]:g}"
            raise ValueError(f"{task}: {score} is not on its axis, of {axis}; leave the task out")
        panel[f"{textwrap.fill(task, 24)}\n{metric}"] = bars
    return shares, others


def draw_bars(results: dict[str, dict]) -> plt.Figure:
    """A group of bars a task, a bar a model; a second panel for what is no share of 1."""
    shares, others = panels_of_bars(results)
    panels = [panel for panel in (shares, others) if panel]
    # Widths follow the numbers of groups, so that bars of both panels are equally wide.
    sizes = [max(2, len(panel)) for panel in panels]  # a single group would be narrower than its title
    width = min(16, 4 + sum(sizes))  # inches
    shape = {"figsize": (width, 4.8), "width_ratios": sizes}
    figure, grid = plt.subplots(1, len(panels), squeeze=False, layout="constrained", **shape)
    looks = []  # arguments of Patch
    for i in range(len(results)):
        looks.append({"facecolor": (f"C{i}", 0.5), "hatch": HATCHES[i % 7], "edgecolor": "black"})

    names = "\n".join([*shares, *others])
    longest = max(len(line) for line in names.split("\n"))
    # in inches; the labels of each vertical axis take 1
    name_width = 0.085 * longest  # 0.085 a character
    group_width = (width - len(sizes)) / sum(sizes)
    is_crowded = name_width > group_width
    for axis, panel in zip(grid[0], panels):
        draw_panel_of_bars(axis, panel, looks)
        axis.set_xticks(range(len(panel)), panel, rotation=90 if is_crowded else 0)
        axis.set_ylabel("share of 1, ± standard error")
        axis.set_title("more is better")
        if panel is others:
            make_logarithmic(axis, panel)
    draw_legend(figure, [Patch(**look) for look in looks], list(results))
    return figure


def draw_panel_of_bars(axis, panel: dict[str, list], looks: list[dict]):
    """Group k stands around x = k, its bars side by side and 0.8 wide together."""
    bar_width = 0.8 / len(looks)
    # a model's bars in one call, as the legend knows them by one look
    for i, look in enumerate(looks):
        middle = 0.8 * ((i + 0.5) / len(looks) - 0.5)  # of bar i, from that of its group
        places = [k + middle for k in range(len(panel))]
        heights = [bars[i][0] for bars in panel.values()]
        errors = [bars[i][1] for bars in panel.values()]
        axis.bar(places, heights, bar_width, yerr=errors, capsize=2, **look)
    axis.set_xlim(-0.6, len(panel) - 0.4)


def make_logarithmic(axis, panel: dict[str, list]):
    heights = []
    for bars in panel.values():
        heights += [value for value, _ in bars if not math.isnan(value)]
    # A logarithmic axis has no 0 for bars to stand on: they stand on a quarter of the lowest.
    axis.set(yscale="log", ylim=(min(heights) / 4, max(heights) * 1.5))
    axis.set(ylabel="log axis, ± standard error", title="less is better")
    # numbers at 1, 2, 5, 10, …: an axis from 20 to 40 has no power of ten
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set(major_formatter="{x:g}", minor_formatter="")
