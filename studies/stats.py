"""Costs and results of a study's runs, and tests of whether two rows of its table differ."""

import math
import statistics
from dataclasses import dataclass

# Student's t, two-sided at 95 %, by the number of seeds (its degrees of freedom are one less).
# With few seeds it is far above the 1.96 of the normal distribution.
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}

# ---------------------------------------------------------------------------------------------
# runs


@dataclass
class Measured:
    """Costs and results of one run, from the record that its study kept (Study.record in studies/runs.py)."""

    record: dict

    @property
    def parameters(self) -> int:
        return self.record["parameters"]

    @property
    def tokens(self) -> int:
        """Tokens trained on, each epoch counted."""
        return self.record["tokens"]

    @property
    def teraflop(self) -> float:
        """Of the run, its teachers' forward passes included."""
        return self.record["flops"] / 1e12

    @property
    def minutes(self) -> float:
        """Of training, on one core."""
        return self.record["seconds"] / 60

    @property
    def speed(self) -> float:
        """Tokens a second while training."""
        return self.tokens / self.record["seconds"]

    @property
    def wall(self) -> float:
        """Seconds of the whole process; NaN where it was interrupted."""
        return self.record.get("wall", math.nan)

    @property
    def dev(self) -> float:
        """Nats per token of the whole dev split, at T = 1 whatever the run was trained with."""
        return self.record["dev"]["val"]

    @property
    def test(self) -> float:
        """The same on the test split, by which nothing was chosen."""
        return self.record["test"]["val"]

    @property
    def bits(self) -> float:
        """Bits per byte of the dev split."""
        return self.record["dev"]["bits_per_byte"]

    @property
    def domains(self) -> dict[str, float]:
        """{domain: nats per token} of the dev split."""
        return self.record["dev"]["domains"]

    @property
    def blimp(self) -> float:
        """% of pairs in which the better sentence is likelier; chance is 50. NaN if the run was not scored."""
        if "blimp" not in self.record:
            return math.nan
        return 100 * self.record["blimp"]["results"][0]["metrics"]["acc"]["value"]

    @property
    def fields(self) -> dict[str, float]:
        """{field of BLiMP: the same as a share of 1}."""
        by_field = self.record["blimp"]["results"][0]["parts"]["field"]
        # sorted by name, as the file has them in the order of the paradigms
        return {name: share for name, (share, _) in sorted(by_field.items())}

    @property
    def ece(self) -> float:
        """Expected calibration error of the likeliest token, % (studies/calibration.py)."""
        return 100 * self.record["calibration"]["ece"]

    def metric(self, task: str, name: str) -> float:
        """A metric of evaluate.py: metric("lambada", "word_ppl"). The record keeps its JSON under "tasks"."""
        (result,) = [result for result in self.record["tasks"]["results"] if result["task"] == task]
        return result["metrics"][name]["value"]


def each_seed(runs: list[Measured], name: str) -> list:
    """The property `name` of Measured for the run of each seed."""
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
    # by seed, as the effects of a seed on both rows (its teachers, its batches) then cancel
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
    """How many standard errors a mean of n must be from 0 to be significant, by Student's t at 95 %."""
    # for more seeds than the table has, its last value, which is larger and so on the safe side
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
    """The words for a difference on a page: "significant at 95 %" or "not significant at 95 %"."""
    if verdict(a, b) == "not significant":
        return "not significant at 95 %"
    return "significant at 95 %"
