"""What the pages of all studies are made with."""

import shutil
from pathlib import Path

import matplotlib.pyplot as plt


def grid(head: list[str], rows: list[list]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def save(figure: plt.Figure, path: Path):
    """Write a picture, and free its memory."""
    figure.savefig(path, dpi=120)
    plt.close(figure)


def copy_logs(study, runs: set, folder: Path):
    """Fill the folder with the logs of these runs and of no others."""
    # emptied first: a log of a run that is no longer in the table would look like evidence for it
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for run in runs:
        shutil.copy(study.out / run.name / "log.txt", folder / f"{run.name}.txt")
