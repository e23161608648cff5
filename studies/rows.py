"""What a study declares: rows of its table, caches of teachers, scores of finished runs; and what one run is."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """A row of the table: a script, its config, and what is changed in it.

    tuned_as: the row whose trials choose its learning rate and epochs.
    teachers: the rows whose runs of the same seed teach it. cache: the cache that teaches it instead.
    start: the row whose run of the same seed it goes on from.
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
    """What the runs of these rows, of the same seed, say of the data: the arguments of cache_teacher.py."""

    teachers: tuple[str, ...]
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Score:
    """A figure of a finished run: a script that prints one JSON object, kept as <name>.json.

    command: (the study, the run) -> the script and its arguments. expected: what the object says of its settings, so
    that one of other settings is scored anew.
    """

    name: str
    command: Callable
    expected: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """One run: a row, a seed, and the learning rate and epochs it is given (0 epochs: its config's steps)."""

    row: str
    seed: int
    rate: float
    epochs: float

    @property
    def name(self) -> str:
        """The name of its folder and of its log."""
        return f"{self.row}_seed{self.seed}_lr{self.rate:g}_epochs{self.epochs:g}"
