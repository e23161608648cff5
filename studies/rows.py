"""What a study declares: the rows of its table, caches of teachers, and scores of finished runs; and a single run."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """A row of the table: a script, its config, and overrides of it.

    tuned_as: the row whose trials choose its learning rate and epochs.
    teachers: the rows whose runs of the same seed are its teachers. cache: the cache that is its teacher instead.
    start: the row from whose run of the same seed it starts.
    """

    title: str
    script: str
    config: str
    tuned_as: str
    overrides: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    epochs_factor: float = 1.0
    start: str = ""
    cache: str = ""


@dataclass(frozen=True)
class Cache:
    """A cache of the teachers in these rows, of the same seed, and further arguments of cache_teacher.py."""

    teachers: tuple[str, ...]
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Score:
    """A score of a finished run, by a script that prints one JSON object, which is kept as <name>.json.

    command: (the study, the run) -> the script and its arguments. expected: settings in that object; if a kept one has
    others, the run is scored again.
    """

    name: str
    command: Callable
    expected: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """One run: a row, a seed, and its learning rate and epochs (0 epochs: the steps of its config)."""

    row: str
    seed: int
    rate: float
    epochs: float

    @property
    def name(self) -> str:
        """The name of its folder and of its log."""
        return f"{self.row}_seed{self.seed}_lr{self.rate:g}_epochs{self.epochs:g}"
