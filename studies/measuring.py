"""What the runs of a study took and reached, and whether two rows of its table differ."""

import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from common.files import read_json
from plot import read_log

# Student's t, two-sided at 95 %, by the number of seeds (its degrees of freedom are one less).
# With few seeds it is far above the 1.96 of the normal distribution.
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}

# ---------------------------------------------------------------------------------------------
# runs


@dataclass
class Measured:
    """What one run took and reached."""

    parameters: int
    tokens: int  # trained on, each epoch counted
    teraflop: float  # of the run, its teachers' forward passes included
    minutes: float

    # nats per token of the whole dev split, at T = 1 whatever the run was trained with
    dev: float
    # bits per byte of the same text
    bits: float
    # {domain: nats per token}
    domains: dict[str, float]

    # % of pairs whose better sentence is the likelier; chance is 50
    blimp: float = math.nan
    # {field: the same as a share of 1}
    fields: dict[str, float] = field(default_factory=dict)

    # expected calibration error of the likeliest token, % (studies/calibration.py)
    ece: float = math.nan

    @property
    def speed(self) -> float:
        """Tokens a second while training."""
        return self.tokens / (60 * self.minutes)


def measure(folder: Path) -> Measured:
    """Read the files of a finished run."""
    run = read_json(folder / "summary.json")
    # the run's own evaluations are of a few rows; this one is of all
    dev = read_json(folder / "dev/summary.json")
    domains = {}
    for label, (_, losses) in read_log(str(folder / "dev")).items():
        if label.startswith("val/"):
            domains[label.removeprefix("val/")] = losses[0]
    measured = Measured(
        parameters=run["parameters"],
        tokens=run["tokens"],
        teraflop=run["flops"] / 1e12,
        minutes=run["seconds"] / 60,
        dev=dev["val"],
        bits=dev["bits_per_byte"],
        domains=domains,
    )
    if (folder / "calibration.json").exists():
        measured.ece = 100 * read_json(folder / "calibration.json")["ece"]
    # trials that were not chosen are not scored on BLiMP
    if (folder / "blimp.json").exists():
        (blimp,) = read_json(folder / "blimp.json")["results"]
        measured.blimp = 100 * blimp["metrics"]["acc"]["value"]
        # by name: the order of the file is that of the paradigms
        for name, (share, _) in sorted(blimp["parts"]["field"].items()):
            measured.fields[name] = share
    return measured


def measure_all(out_dir: Path, table: dict) -> dict[str, list[Measured]]:
    """{row: what each of its runs reached} of {row: its runs}."""
    results = {}
    for row, runs in table.items():
        results[row] = [measure(out_dir / run.name) for run in runs]
    return results


def each_seed(runs: list[Measured], name: str) -> list:
    """One figure of each seed's run, by the name of its field."""
    return [getattr(run, name) for run in runs]


# ---------------------------------------------------------------------------------------------
# statistics


def mean_sd(values: list[float], form=".4f") -> str:
    """Mean and standard deviation over seeds, as text."""
    return f"{statistics.mean(values):{form}} ± {statistics.stdev(values):{form}}"


def paired(a: list[float], b: list[float]) -> tuple[float, float]:
    """(mean of a - b, its standard error) over seeds.

    >>> [round(x, 4) for x in paired([1.0, 2.0, 4.0], [2.0, 2.0, 3.0])]
    [0.0, 0.5774]
    """
    # by seed, because what a seed does to both rows (its teachers, its batches) then cancels
    differences = [x - y for x, y in zip(a, b, strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.mean(differences), error


def difference(a: list[float], b: list[float], form="+.4f") -> str:
    """The mean of a - b and its standard error, as text.

    >>> difference([1.0, 2.0, 4.0], [2.0, 2.0, 3.0], "+.2f")
    '+0.00 ± 0.58'
    """
    mean, error = paired(a, b)
    return f"{mean:{form}} ± {error:{form.removeprefix('+')}}"


def bound(n: int) -> float:
    """Standard errors that a mean of n must be away from 0, by Student's t at 95 %."""
    # for more seeds than the table has its last value, which is larger and so on the safe side
    return T95[min(n, max(T95))]


def verdict(a: list[float], b: list[float]) -> str:
    """Whether a is "lower" or "higher" than b, or "not significant", by a paired t-test at 95 %.

    >>> verdict([1.0, 1.1, 1.0], [2.0, 2.2, 2.0])
    'lower'
    >>> verdict([1.0, 2.0, 4.0], [2.0, 2.0, 3.0])
    'not significant'
    """
    mean, error = paired(a, b)
    if abs(mean) <= bound(len(a)) * error:
        return "not significant"
    return "lower" if mean < 0 else "higher"


def significance(a: list[float], b: list[float]) -> str:
    """What the page says of a difference: "significant at 95 %" or "not significant at 95 %"."""
    if verdict(a, b) == "not significant":
        return "not significant at 95 %"
    return "significant at 95 %"
