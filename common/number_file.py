"""Files of numbers: token streams, and cached predictions of teachers."""

import os
from pathlib import Path

import numpy as np


class NumberFile:
    """A file of numbers of one type, memory-mapped.

    If a mapped file is truncated while a run reads it, the run reads zeros up to the end of the last page, and beyond
    that is killed by SIGBUS without a message. So each read checks the size first, which takes a microsecond. If the
    file is replaced by renaming another one, as prepare_data.py does, the run goes on with the old one.
    """

    def __init__(self, path: Path, dtype: np.dtype, start=0):
        self.path = path
        self.opened = os.stat(path)
        # mmap refuses an empty range, but an empty shard is a valid one
        if self.opened.st_size == start:
            self.numbers = np.empty(0, dtype)
        else:
            mapped = np.memmap(path, dtype, mode="r", offset=start)  # behind the bytes of a header
            # the same memory as a plain array: slicing a memmap takes a few microseconds more for each row
            self.numbers = np.asarray(mapped)

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, first: int, n: int) -> np.ndarray:
        """A view of numbers first … first + n - 1, fewer at the end. ValueError where the file was cut or grew."""
        try:
            now = os.stat(self.path)
        # deleted or renamed: the mapping keeps the old file
        except FileNotFoundError:
            now = self.opened
        is_same_file = (now.st_dev, now.st_ino) == (self.opened.st_dev, self.opened.st_ino)
        if is_same_file and now.st_size != self.opened.st_size:
            changed = f"had {self.opened.st_size:,} bytes when it was opened, and has {now.st_size:,} now"
            raise ValueError(f"{self.path} {changed}; make it again, without a run that reads it, then resume")
        return self.numbers[first : first + n]
