"""Tables, pictures and text for the pages of all studies.

A study keeps its logs and records in its folder logs/ (Study.publish in studies/runs.py); its page is made from these
and nothing else.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt

from common.files import read_json, read_utf8
from studies.stats import Measured, difference, mean_sd, significance, verdict


@dataclass
class Results:
    """The results of a study: {row: the records of its runs} by group, and the contents of study.json."""

    logs: Path
    table: dict[str, list[Measured]]
    trials: dict[str, list[Measured]]
    points: dict[str, list[Measured]]
    about: dict

    @property
    def titles(self) -> dict[str, str]:
        """{row: its title}."""
        return self.about["titles"]

    @property
    def meta(self) -> dict:
        """meta.json of the data, with the name of the corpus that it was cut from."""
        return self.about["meta"]

    @property
    def seeds(self) -> list[int]:
        """The seeds, the same in every row of the table."""
        return [run.record["seed"] for run in next(iter(self.table.values()))]

    @property
    def n_runs(self) -> int:
        """The number of runs; a trial that was kept is in the table too, and counted once."""
        names = set()
        for group in ("table", "trials", "points"):
            for row in self.about[group].values():
                names.update(row)
        return len(names)

    @property
    def minutes(self) -> float:
        """How long the study took."""
        return self.about["seconds"] / 60

    def name(self, group: str, row: str, place: int) -> str:
        """The name of a run's log, without its suffix."""
        return self.about[group][row][place]


def read_results(logs: Path) -> Results:
    """The results of a study, from its folder of logs. Raises FileNotFoundError with the remedy."""
    if not (logs / "study.json").is_file():
        raise FileNotFoundError(f"{logs}/study.json is not there; first run: make study-{logs.parent.name}")
    about = read_json(logs / "study.json")
    groups = {}
    for group in ("table", "trials", "points"):
        groups[group] = {}
        for row, names in about[group].items():
            groups[group][row] = [Measured(read_json(logs / f"{name}.json")) for name in names]
    return Results(logs, **groups, about=about)


def write_page(folder: Path, fields: dict):
    """README.md of a study: its page.md with the fields filled in."""
    text = read_utf8(folder / "page.md").format(**fields)
    (folder / "README.md").write_text(text, encoding="utf-8")
    print(folder / "README.md")


def grid(head: list[str], rows: list[list]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def save(figure: plt.Figure, path: Path):
    """Write a picture, and free its memory."""
    figure.savefig(path, dpi=120)
    plt.close(figure)


# ---------------------------------------------------------------------------------------------
# tables and pictures of any figure (a number), which is given as a function of a run


@dataclass(frozen=True)
class Figure:
    """A number that a table shows of a run: its heading, its function of the run, and its format."""

    head: str
    of: Callable[[Measured], float]
    form: str = ".4f"

    def values(self, runs: list[Measured]) -> list[float]:
        """The figure of each run."""
        return [self.of(run) for run in runs]


def cost_columns() -> list[Figure]:
    """What a row's runs cost. Only the time depends on the seed."""
    return [
        Figure("tokens", lambda run: run.tokens, ",.0f"),
        Figure("TFLOP", lambda run: run.teraflop, ",.1f"),
        Figure("core minutes", lambda run: run.minutes, ".1f"),
    ]


def mean_table(results: Results, rows: list[str], figures: list[Figure], costs: list[Figure] = ()) -> str:
    """A line for each row: means of the costs, then mean ± standard deviation over seeds of the figures."""
    lines = []
    for row in rows:
        runs = results.table[row]
        cells = [f"{statistics.mean(cost.values(runs)):{cost.form}}" for cost in costs]
        cells += [mean_sd(figure.values(runs), figure.form) for figure in figures]
        lines.append([results.titles[row], *cells])
    return grid(["", *(figure.head for figure in (*costs, *figures))], lines)


def against(results: Results, figure: Figure, row: str, reference: str) -> str:
    """Row − reference, paired by seed, with the test's outcome: "-0.1900 ± 0.0058 (significant at 95 %)"."""
    a = figure.values(results.table[row])
    b = figure.values(results.table[reference])
    return f"{difference(a, b, '+' + figure.form)} ({significance(a, b)})"


def compared(results: Results, figure: Figure, row: str, reference: str) -> str:
    """Whether a row is "lower" or "higher" than the reference, or "not significant", paired by seed."""
    return verdict(figure.values(results.table[row]), figure.values(results.table[reference]))


def difference_table(results: Results, rows: list[str], references: list[str], figures: list[Figure]) -> str:
    """A line for each row, a column for each figure and reference: the row less the reference, paired by seed."""
    pairs = list(product(figures, references))
    lines = []
    for row in rows:
        cells = []
        for figure, reference in pairs:
            cells.append(against(results, figure, row, reference) if row != reference else "")
        lines.append([results.titles[row], *cells])
    return grid(["", *(f"{figure.head}, − {results.titles[other]}" for figure, other in pairs)], lines)


def seed_table(results: Results, rows: list[str], figures: list[Figure]) -> str:
    """Every seed's value of the figures: what means and differences are made of."""
    lines = []
    for row in rows:
        cells = []
        for figure in figures:
            cells += [f"{value:{figure.form}}" for value in figure.values(results.table[row])]
        lines.append([results.titles[row], *cells])
    return grid(["", *(f"{figure.head}, seed {seed}" for figure in figures for seed in results.seeds)], lines)


def trial_table(results: Results, figure: Figure) -> str:
    """The figure of every trial, a line for each row and learning rate; what was kept in bold."""
    lines = {}  # {(title, learning rate): {epochs: value}}
    for row, runs in results.trials.items():
        for place, run in enumerate(runs):
            shown = f"{figure.of(run):{figure.form}}"
            if results.about["trials"][row][place] == results.about["chosen"][row]:
                shown = f"**{shown}**"
            line = lines.setdefault((results.titles[row], f"{run.record['learning_rate']:g}"), {})
            line[f"{run.record['epochs']:g} epochs"] = shown
    # all rows were tried with the same epochs
    epochs = next(iter(lines.values()))
    rows = [[*line, *cells.values()] for line, cells in lines.items()]
    return grid([figure.head, "learning rate", *epochs], rows)


def draw_rows(results: Results, rows: list[str], figures: list[Figure], references: list[str]) -> plt.Figure:
    """An axis for each figure, a line for each row: a mark for each seed and a bar at their mean.

    Dotted and dashed lines stand at the means of the references.
    """
    size = (1.5 + 4.5 * len(figures), 0.8 + 0.32 * len(rows))  # inches
    drawing, axes = plt.subplots(1, len(figures), figsize=size, sharey=True, layout="constrained", squeeze=False)
    for axis, figure in zip(axes[0], figures):
        for place, row in enumerate(rows):
            values = figure.values(results.table[row])
            axis.plot(values, [place] * len(values), "o", color="black", markerfacecolor="none", markersize=6)
            # in addition to the seeds, as a mean alone would hide how far they scatter
            mean = statistics.mean(values)
            axis.plot([mean, mean], [place - 0.3, place + 0.3], color="C0", linewidth=2)
        for reference, style in zip(references, (":", "--", "-.")):
            mean = statistics.mean(figure.values(results.table[reference]))
            axis.axvline(mean, color="black", linewidth=0.8, linestyle=style, label=results.titles[reference])
        axis.grid(axis="x", alpha=0.3)
        axis.set(xlabel=figure.head)
    axes[0][0].set_yticks(range(len(rows)), [results.titles[row] for row in rows])
    axes[0][0].invert_yaxis()  # the first row on top, as in the table
    axes[0][-1].legend(fontsize=8)
    return drawing
