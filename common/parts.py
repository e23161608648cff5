"""A job divided over machines: each does one part (--part=3/16), and --part=join puts the parts together.

A part has its own folder in out_dir, part_03of16. Machines without a shared file system write these folders to their
own disks, and the user copies them into one out_dir before they are joined.
"""

import re
from dataclasses import dataclass
from pathlib import Path

JOIN = "join"  # as in --part=join
MOST_PARTS = 9999


@dataclass(frozen=True)
class Part:
    """Part `number` of `n`, counted from 1.

    >>> print(Part(3, 16), Part(3, 16).folder("cache/gpt2").as_posix())
    3/16 cache/gpt2/part_03of16
    """

    number: int
    n: int

    def __str__(self) -> str:
        return f"{self.number}/{self.n}"

    def folder(self, out_dir: str | Path) -> Path:
        # as many digits as n has, so that they are listed in order
        width = len(str(self.n))
        return Path(out_dir) / f"part_{self.number:0{width}}of{self.n}"

    def share(self, total: int) -> range:
        """This part's range of the numbers 0 … total - 1; the lengths of all parts' ranges differ by one at most.

        >>> [list(Part(number, 3).share(5)) for number in (1, 2, 3)]
        [[0], [1, 2], [3, 4]]
        """
        first = total * (self.number - 1) // self.n
        stop = total * self.number // self.n
        return range(first, stop)

    def holds(self, i: int) -> bool:
        """Whether item i, counted from 0, is this part's when items are dealt out in turn, the first to part 1.

        >>> [i for i in range(7) if Part(1, 3).holds(i)]
        [0, 3, 6]
        """
        return i % self.n == self.number - 1


def parse_part(text: str) -> Part | None:
    """The part that the knob `part` names; None for "", the whole, and for "join". ValueError for anything else."""
    if text in ("", JOIN):
        return None
    numbers = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text)
    if not numbers:
        raise ValueError(f"part={text!r}: expected one like 3/16, of at most {MOST_PARTS:,}, or {JOIN}")
    part = Part(int(numbers[1]), int(numbers[2]))
    if not 1 <= part.number <= part.n:
        raise ValueError(f"part={text!r} is out of range; of {part.n} parts the first is 1/{part.n}")
    return part


def parts_in(out_dir: str | Path) -> list[Part]:
    """The parts whose folders lie in out_dir, from 1 to n, finished or not.

    ValueError where there are none, where one is missing, or where they have different n.
    """
    parts = []
    for path in Path(out_dir).glob("part_*of*"):
        numbers = re.fullmatch(r"part_(\d{1,4})of(\d{1,4})", path.name)
        if not numbers or not path.is_dir():
            continue
        part = Part(int(numbers[1]), int(numbers[2]))
        # part_3of16 is not ours, which would be part_03of16
        if part.folder(out_dir) == path and 1 <= part.number <= part.n:
            parts.append(part)
    if not parts:
        raise ValueError(f"{out_dir} holds no parts; first run the same command with --part=1/2 and with --part=2/2")
    divisions = sorted({part.n for part in parts})
    if len(divisions) > 1:
        listed = " and ".join(f"part_…of{n}" for n in divisions)
        raise ValueError(f"{out_dir} holds {listed}, which do not go together; delete those that are not meant")
    n = divisions[0]
    numbers_there = {part.number for part in parts}
    missing = [str(Part(number, n)) for number in range(1, n + 1) if number not in numbers_there]
    if missing:
        first = missing[0]
        raise ValueError(f"{out_dir} lacks {len(missing)} of {n} parts: {shown(missing)}; run --part={first} first")
    return sorted(parts, key=lambda part: part.number)


def shown(names: list[str], most: int = 5) -> str:
    """A list of names as text, of which only the first `most` are shown.

    >>> shown(["1/9", "2/9", "3/9"], most=2)
    '1/9, 2/9, …'
    """
    listed = ", ".join(names[:most])
    return f"{listed}, …" if len(names) > most else listed
