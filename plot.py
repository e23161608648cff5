"""Curves of runs, or bars of results, as a PNG; and a table of the finished runs.

    python plot.py --runs=out/quickstart/alone,out/quickstart/forward_kl --out=loss.png
    python plot.py --runs=out/control,out/distilled --log10 --gpt2=0.2955
    python plot.py --runs=out/control,out/distilled --chain            # the second started from the first's weights
    python plot.py --runs=out/alone,out/distilled --curve=piqa --chance=0.5
    python plot.py --bars=alone.json,distilled.json --out=tasks.png    # of evaluate.py --json=true > alone.json

Reads what train.py and distill.py write: log.txt (lines `step label value`) and, for the table, summary.json. Bars are
of each task's first metric: shares of 1 on one axis; perplexities and bits, where less is better, on a logarithmic one.
"""

# first, so that Ctrl-C while modules load ends in one line
from configurator import HELP, configure  # isort: split

import math
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

from common.files import read_json
from common.log import eta

HELLASWAG = ("hella", "hella_sum")  # its labels in log.txt
SETTINGS = ("convention", "shots", "seed", "n", "stride", "data_sha256")  # must agree for results to be comparable
# of train.py and distill.py: must agree for validation losses to be comparable
RUN_SETTINGS = ("dataset", "block_size", "packing", "eval_rows")


# ---------------------------------------------------------------------------------------------
# files


def read_log(run: str) -> dict[str, tuple[list, list]]:
    """{label: (steps, values)} of a run's log.txt; a value that is not finite is NaN, a gap in its curve."""
    path = Path(run)
    if path.is_dir():
        path = path / "log.txt"
    if not path.is_file():
        runs = "runs are out_dirs of train.py and distill.py"
        raise FileNotFoundError(f"no log.txt at {run!r}; {runs}")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    # A kill may have cut the last line within its number: half of 3.25 still reads as a number.
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    curves = {}
    for number, line in enumerate(lines, 1):
        try:
            step, label, value = read_line(line)
        except (ValueError, OverflowError):
            shown = line.strip()[:40]
            where = f"{path}, line {number}"
            raise ValueError(f"{where}: expected `step label value`, found {shown!r}") from None
        steps, values = curves.setdefault(label, ([], []))
        steps.append(step)
        values.append(value)
    if not curves:
        raise ValueError(f"{path} is empty: the run has logged nothing yet; leave it out")
    return curves


def read_line(line: str) -> tuple[int, str, float]:
    """The step, label and value of a line. ValueError or OverflowError for anything else."""
    step, label, value = line.split()
    # matplotlib computes in floats: a step of 400 digits must be an OverflowError here, not there
    step_in_range = int(float(int(step)))
    return step_in_range, label, finite(float(value))


def finite(value) -> float:
    """`value` if it is a number that can be drawn, NaN for anything else."""
    # type(), as isinstance() takes a bool for an int; 1e300, as axes with margins overflow near the largest float
    if type(value) in (int, float) and abs(value) < 1e300:
        return value
    return math.nan


def read_object(path: Path, remedy: str) -> dict:
    """The JSON object in a file; for anything else a ValueError that ends in `remedy`."""
    try:
        return read_json(path)
    except ValueError:
        raise ValueError(f"{path} is damaged: expected one JSON object; {remedy}") from None


@dataclass
class Results:
    """What evaluate.py --json=true printed of a model: the first metric of each task."""

    model: str
    # {(task, metric): (value, standard error or NaN)}
    scores: dict[tuple[str, str], tuple[float, float]]
    # {task: {"shots": 0, …}}, those of SETTINGS that the file has
    settings: dict[str, dict]


def read_results(path: str) -> Results:
    """The results in a file of evaluate.py's JSON. ValueError for any other file, and for a value that has no bar."""
    remedy = "write it again with evaluate.py --json=true"
    if not Path(path).is_file():
        command = f"python evaluate.py --json=true > {path}"
        raise FileNotFoundError(f"no results at {path!r}; write them with `{command}`")
    content = read_object(Path(path), remedy)
    scores = {}
    settings = {}
    try:
        for result in content["results"]:
            # the first is the one by which the task is usually reported
            metric, score = next(iter(result["metrics"].items()))
            task = str(result["task"])
            value = finite(score["value"])
            problem = ""
            if (task, metric) in scores:
                problem = "is there twice"
            elif math.isnan(value):
                problem = f"is {score['value']!r}, not a finite number"
            if problem:
                raise ValueError(f"{path}: {metric} of {task} {problem}; leave it out of the file")
            scores[task, metric] = (value, finite(score.get("stderr")))
            settings[task] = {name: result[name] for name in SETTINGS if name in result}
            # the seed draws the shots: without any it does not matter
            if not result.get("shots"):
                settings[task].pop("seed", None)
        if not scores:
            raise KeyError("results")
        return Results(str(content["model"]), scores, settings)
    # Something is missing or of another type: the file is JSON, but not evaluate.py's.
    except (KeyError, TypeError, AttributeError, StopIteration):
        result = '{"task": …, "metrics": {"acc": {"value": …, "stderr": …}}}'
        form = f'{{"model": …, "results": [{result}]}}'
        raise ValueError(f"{path}: expected {form}; {remedy}") from None


def incomparable(results: dict[str, Results]) -> list[str]:
    """A line for each task that was not scored the same way for all of {model: results}."""
    tasks = {}  # a dict keeps the order of the files
    for model_results in results.values():
        tasks |= model_results.settings
    lines = []
    for task in tasks:
        for name in SETTINGS:
            values = {}
            for model, model_results in results.items():
                settings = model_results.settings.get(task, {})
                if name in settings:
                    values[model] = str(settings[name])
            if len(set(values.values())) > 1:
                # 16 characters of a SHA-256 are enough to see that two differ
                each = ", ".join(f"{value[:16]} in {model}" for model, value in values.items())
                lines.append(f"{task}: its bars do not compare: {name} is {each}")
    return lines


def unlike_runs(runs: dict[str, str]) -> list[str]:
    """A line for each knob by which the finished ones of {name: out_dir} were not scored on the same rows."""
    configs = {}
    for name, run in runs.items():
        path = Path(run) / "summary.json"
        config = read_object(path, "delete it").get("config") if path.is_file() else None
        if isinstance(config, dict):
            configs[name] = config
    lines = []
    for knob in RUN_SETTINGS:
        values = {name: str(config[knob]) for name, config in configs.items() if knob in config}
        if len(set(values.values())) > 1:
            each = ", ".join(f"{value} in {name}" for name, value in values.items())
            lines.append(f"losses do not compare: {knob} is {each}")
    return lines


# ---------------------------------------------------------------------------------------------
# the table


def table(runs: dict[str, str], logs: dict[str, dict], curve="hella") -> str:
    """A row for each finished run, from its summary.json and log.txt; "-" for what they lack.

    curve: the label of log.txt that is drawn beside the losses; its last value has a column. "": none.
    """
    rows = []
    has_best = False
    for name, run in runs.items():
        # written when a run ends: one that is still going on has curves, but no row
        path = Path(run) / "summary.json"
        if path.is_file():
            summary = read_object(path, "delete it, and the run has no row in the table")
            has_best |= "best_val" in summary
            rows.append(table_row(name, summary, logs[name], curve))
    titles = ["run", "parameters", "tokens", "val nats/token"]
    titles.append("bits/byte")
    if curve:
        titles.append(score_title(curve))
    titles += ["tokens/s", "wall time"]
    # no empty column for runs that are older than best checkpoints are
    if has_best:
        titles.insert(4, "best val (step)")
    lines = [titles]
    for row in rows:
        lines.append([row[title] for title in titles])
    return lined_up(lines)


def score_title(curve: str) -> str:
    return "acc_norm" if curve == "hella" else curve


def table_row(name: str, summary: dict, curves: dict, curve: str) -> dict[str, str]:
    """{title: cell} of a run; "-" for what its files lack, or have as something other than a finite number."""

    def number(key) -> float:
        return finite(summary.get(key))

    tokens_per_second = number("tokens") / number("seconds") if number("seconds") else math.nan
    _, scores = curves.get(curve, ([], [math.nan]))
    row = {
        "run": name,
        "parameters": f"{number('parameters'):,}",
        "tokens": f"{number('tokens'):,}",
        "val nats/token": f"{number('val'):.4f}",
        "best val (step)": "nan",
        "bits/byte": f"{number('bits_per_byte'):.4f}",
        score_title(curve): f"{scores[-1]:.4f}",
        "tokens/s": f"{tokens_per_second:,.0f}",
        "wall time": "nan",
    }
    if not math.isnan(number("best_val") + number("best_step")):
        row["best val (step)"] = f"{number('best_val'):.4f} (step {number('best_step'):g})"
    if not math.isnan(number("seconds")):
        row["wall time"] = eta(number("seconds"))
    # every format above writes NaN as "nan"
    for title, cell in row.items():
        if cell == "nan":
            row[title] = "-"
    return row


def lined_up(rows: list[list[str]]) -> str:
    """A Markdown table of rows, of which the first has the titles, with columns that line up as plain text too."""
    # padded, as it is read in a terminal before anyone pastes it into a page
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths)]
        lines.append("| " + " | ".join(cells) + " |")
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


# ---------------------------------------------------------------------------------------------
# the figure and table that the knobs ask for


def main():
    paths = [path.strip() for path in (bars or runs).split(",") if path.strip()]
    if not paths or (runs and bars):
        forms = "--runs=out/a,out/b or --bars=a.json,b.json"
        raise ValueError(f"give either runs or bars to draw, as in {forms}")
    if not out.endswith(".png"):
        raise ValueError(f"out={out!r} must end in .png")
    figure = figure_of_bars(paths) if bars else figure_of_runs(paths)
    # matplotlib does not wrap a title, and cuts it off at the picture's edges
    if title:
        characters = int(9 * figure.get_figwidth())  # 9 of the title's characters are an inch
        figure.suptitle(textwrap.fill(title, characters))
    figure.savefig(out, dpi=120)
    print(f"{'bars' if bars else 'curves'}: {out}")


def figure_of_bars(paths: list[str]):
    from common.figures import draw_bars  # here, so that --help loads no matplotlib

    files = [read_results(path) for path in paths]
    names = names_from_labels([Path(results.model).name for results in files], "bars")
    figure = draw_bars({name: results.scores for name, results in zip(names, files)})
    # a note, not an error: only the reader knows whether the difference matters
    for line in incomparable(dict(zip(names, files))):
        print(line)
    return figure


def figure_of_runs(paths: list[str]):
    from common.figures import draw_curves  # here, so that --help loads no matplotlib

    files = [read_log(path) for path in paths]
    names = names_from_labels([Path(path).name for path in paths], "runs")
    logs = dict(zip(names, files))
    # Four endings make chance 0.25 for HellaSwag; of another task only the user knows.
    chance_height = chance
    if chance < 0 and curve in HELLASWAG:
        chance_height = 0.25
    lines = []
    for height, text in ((chance_height, "chance"), (gpt2, "GPT-2")):
        if height > 0:
            lines.append((height, f"{text} {height:g}"))
    figure = draw_curves(logs, curve=curve, log10=log10, chain=chain, lines=lines)
    folders = dict(zip(names, paths))
    print(table(folders, logs, curve))
    # a note, as for bars
    for line in unlike_runs(folders):
        print(line)
    return figure


def names_from_labels(names: list[str], kind: str) -> list[str]:
    """The knob `labels`, if given, else the names. ValueError unless there is a different one for each file."""
    n_files = len(names)
    # they must differ, as they are the keys of all that follows, and two folders may have the same name
    if labels:
        names = [label.strip() for label in labels.split(",")]
    if len(set(names)) != len(names) or len(names) != n_files:
        wanted = f"{n_files} {kind} need as many different labels"
        raise ValueError(f"{wanted}, not {', '.join(names)}; give --labels=a,b,…")
    return names


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
    # matplotlib takes a second: not for --help, and before configure(), so that Ctrl-C meanwhile ends in one line
    if set(HELP).isdisjoint(sys.argv[1:]):
        import common.figures  # noqa: F401
    config = configure(globals())
    main()
