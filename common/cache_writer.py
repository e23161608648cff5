"""Write a cache of teachers (common/teacher_cache.py): distributions to records, and records to files.

An unfinished cache has its files at their full size; unfinished.json, with the contents of cache.json to be; and
done.bin, a byte for each block of rows, 1 once the block's records are on the disk. So the same command continues after
a kill, and ends with the same bytes: a record does not depend on which process computes it, or when.
"""

import errno
import math
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from common.files import file_sha256, flush, read_json, write_json
from common.teacher_cache import SPLITS, WHOLE, Field, layout_of, sizes_of
from losses import FLOOR
from model import draw

# The lowest number that float16 holds; e**-65504 is 0 in any format.
FLOAT16_FLOOR = -65504.0
# Settings that may differ between a cache and the command that continues it: other names for the same bytes.
NAMES_ONLY = ("teachers", "dataset")


# ---------------------------------------------------------------------------------------------
# from a distribution to its record


def record(log_p: torch.Tensor, p: torch.Tensor, top_k: int, uniforms: torch.Tensor) -> dict[str, torch.Tensor]:
    """The fields that are kept of n distributions: (n, width) each, or (n,).

    log_p, p: (n, V) fp32, as `losses.mixture` returns them; log_p is overwritten. uniforms: (n, m) in 0 … 1, float64:
    the places of the m draws in the tail's cumulative distribution.
    """
    entropy = -(p * log_p).sum(-1)
    if top_k == WHOLE:
        return {"log_probs": log_p, "entropy": entropy}
    log_probs, ids = log_p.topk(top_k, dim=-1)
    # The tail's mass, summed up from its own logarithms: 1 - sum of the stored would lose all digits where it is small.
    tail = log_p.scatter_(1, ids, -math.inf)
    log_tail = tail.logsumexp(-1).clamp(min=FLOOR)
    parts = {"ids": ids, "log_probs": log_probs, "log_tail": log_tail, "entropy": entropy}
    if uniforms.shape[1]:
        parts["draws"] = draw(tail, uniforms)
    return parts


def uniforms_of(seed: int, number: int, block_size: int, draws: int) -> np.ndarray:
    """(block_size, draws) uniform numbers of a row, seeded by its number in the corpus: the same in any process."""
    return np.random.default_rng((seed, number)).random((block_size, draws))


def as_stored(values: torch.Tensor, field: Field) -> np.ndarray:
    """Numbers in the type of their file."""
    # converted on the device, so that fewer bytes are copied
    if field.dtype == np.float16:
        # lower ones would become -inf, which could not be told from damage
        values = values.clamp(min=FLOAT16_FLOOR).half()
    return values.cpu().numpy().astype(field.dtype)


# ---------------------------------------------------------------------------------------------
# write


def is_finished(folder: str | Path) -> bool:
    return (Path(folder) / "cache.json").is_file()


def unfinished_settings(folder: str | Path) -> dict:
    """The settings of an unfinished cache."""
    return read_json(Path(folder) / "unfinished.json")


def blocks_of(n_rows: dict[str, int], batch_size: int) -> list[tuple[str, int, int]]:
    """(split, first row, rows) of each block, those of "val" behind those of "train".

    >>> blocks_of({"train": 5, "val": 2}, batch_size=2)
    [('train', 0, 2), ('train', 2, 2), ('train', 4, 1), ('val', 0, 2)]
    """
    blocks = []
    for split in SPLITS:
        for first in range(0, n_rows[split], batch_size):
            blocks.append((split, first, min(batch_size, n_rows[split] - first)))
    return blocks


class CacheWriter:
    """An unfinished cache, or an unfinished part of one (common/cache_parts.py).

    One rank calls `begin`, then all write blocks, then one calls `finish`. A block holds the records of batch_size rows
    of a split; the blocks of "val" follow those of "train".
    ValueError where the folder holds a cache, or the beginning of one, of other settings.
    """

    def __init__(self, folder: str | Path, info: dict):
        self.folder = Path(folder)
        self.info = info
        self.layout = layout_of(info)
        self.cache_file = self.folder / "cache.json"
        self.settings_file = self.folder / "unfinished.json"
        self.done_file = self.folder / "done.bin"
        counts = {split: info["splits"][split]["rows"] for split in SPLITS}
        self.blocks = blocks_of(counts, info["batch_size"])
        self.unrecorded = []  # blocks that are written, but not yet recorded in done.bin

    def is_finished(self) -> bool:
        return is_finished(self.folder)

    def check_settings(self):
        """ValueError if the folder holds a cache, finished or not, that was made with other settings."""
        for path, is_done in ((self.cache_file, True), (self.settings_file, False)):
            if not path.is_file():
                continue
            difference = first_difference(read_json(path), self.info, is_done)
            if difference:
                state = "a finished cache" if is_done else "an unfinished cache"
                remedy = f"choose another --out_dir, or delete {self.folder}"
                raise ValueError(f"{self.folder} holds {state} of {difference}; {remedy}")
            # left by a kill at the very end of `finish`
            if is_done:
                self.done_file.unlink(missing_ok=True)
            return

    def missing_bytes(self) -> int:
        """The bytes that the disk must still have room for."""
        missing = 0
        for name, size in sizes_of(self.info).items():
            path = self.folder / name
            # by blocks, not by the file's size: it may be sparse
            allocated = 512 * path.stat().st_blocks if path.is_file() else 0
            missing += max(0, size - allocated)
        return missing

    def begin(self, row_numbers: dict[str, np.ndarray]):
        """Make the files at their full size, so that a full disk is an error now, and write the rows' numbers."""
        write_json(self.settings_file, self.info)
        paths = {self.folder / name: size for name, size in sizes_of(self.info).items()}
        # A kill while they were made, or somebody who deleted one, leaves no block that can be relied on.
        if not all(path.is_file() and path.stat().st_size == size for path, size in paths.items()):
            self.done_file.unlink(missing_ok=True)
        for path, size in paths.items():
            allocate(path, size)
        for split, numbers in row_numbers.items():
            self.write(self.folder / f"{split}_rows.bin", numbers.astype("<i8").tobytes(), at=0)
        allocate(self.done_file, len(self.blocks))

    def remaining(self) -> list[int]:
        """The blocks that are not recorded as done."""
        done = self.done_file.read_bytes()
        return [block for block in range(len(self.blocks)) if done[block] == 0]

    def write_block(self, block: int, parts: dict[str, np.ndarray]):
        """The records of a block's rows, by field."""
        split, first, n = self.blocks[block]
        T = self.info["block_size"]
        for name, field in self.layout.items():
            path = self.folder / f"{split}_{name}.bin"
            bytes_per_row = T * field.bytes_per_token
            content = parts[name].tobytes()
            assert len(content) == n * bytes_per_row, f"{name} of another size"
            self.write(path, content, at=first * bytes_per_row)
        self.mark([block])

    def mark(self, blocks: Iterable[int]):
        """Note that the records of these blocks are in all files; `flush` then brings them to the disk."""
        self.unrecorded += blocks

    def flush(self):
        """Bring what was written to the disk, then record it as done."""
        if not self.unrecorded:
            return
        # done.bin may only count blocks that survive a power cut.
        for split in {self.blocks[block][0] for block in self.unrecorded}:
            for name in self.layout:
                flush(self.folder / f"{split}_{name}.bin")
        for block in self.unrecorded:
            self.write(self.done_file, b"\1", at=block)
        self.unrecorded = []

    def finish(self):
        """With all blocks done, give the cache its cache.json."""
        assert not self.remaining(), "blocks are missing"
        for name in sizes_of(self.info):
            flush(self.folder / name)
        if "part" in self.info:
            # hashes, as parts are copied from machine to machine before they are joined
            hashes = {name: file_sha256(self.folder / name) for name in sizes_of(self.info)}
            write_json(self.settings_file, self.info | {"files": hashes})
        # renaming works even on a full disk
        self.settings_file.replace(self.cache_file)
        flush(self.folder)
        self.done_file.unlink()

    @staticmethod
    def write(path: Path, content: bytes, at: int):
        """Write bytes into a file from position `at`. An OSError, as on a full disk, has the file's name."""
        try:
            with open(path, "r+b", buffering=0) as file:
                file.seek(at)
                remaining = memoryview(content)
                while remaining:
                    remaining = remaining[file.write(remaining) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None


def allocate(path: Path, size: int):
    """Make a file of `size` bytes and reserve room for them; its contents so far stay. An OSError has its name."""
    try:
        with open(path, "ab") as file:
            # posix_fallocate refuses a size of 0, which a part's file may have
            if hasattr(os, "posix_fallocate") and size > 0:
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
    except OSError as error:
        remedy = "; free some, then start again" if error.errno == errno.ENOSPC else ""
        raise OSError(error.errno, error.strerror + remedy, str(path)) from None


def first_difference(old: dict, new: dict, is_done: bool) -> str:
    """The first setting in which a cache in a folder differs from the one to be made, as text; "" for none."""
    # Blocks do not matter to a finished cache, except to a part, which is joined by them.
    has_blocks = not is_done or "part" in new
    for key, value in new.items():
        if key in NAMES_ONLY or (key == "batch_size" and not has_blocks):
            continue
        # a cache from before this was kept
        if key == "teacher_config_sha256" and key not in old:
            continue
        if old.get(key) != value:
            # hashes and counts of files would fill the screen
            if key == "splits":
                return "other token files, rows or eval_rows"
            if key == "teacher_sha256":
                return "other teachers, by the hashes of their weights"
            if key == "teacher_config_sha256":
                return "teachers whose config.json was another"
            return f"{key}={old.get(key)!r}, this run has {value!r}"
    return ""
