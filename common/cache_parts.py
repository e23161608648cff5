"""Parts of a cache of teachers: which rows each has, and how they are joined.

A part is a cache of some of the rows (common/teacher_cache.py), whose cache.json has three more entries:

    part                       as in "3/16"
    splits[split].first_row    how many of the split's rows the earlier parts have
    files                      {file: SHA-256}

A part consists of whole blocks of the `batch_size` rows that go through the teachers together, as a matmul of another
shape may sum in another order. So the joined bytes are those of a single run on the same device.
"""

import hashlib
from pathlib import Path

import numpy as np

from common.cache_writer import CacheWriter, blocks_of, first_difference, is_finished
from common.files import read_json
from common.parts import Part, parts_in
from common.teacher_cache import SPLITS, row_bytes, sizes_of

BUFFER = 1 << 20  # bytes that are copied at a time


def part_rows(n_rows: dict[str, int], batch_size: int, part: Part) -> dict[str, range]:
    """Which of the n_rows rows of each split a part has.

    >>> part_rows({"train": 5, "val": 3}, batch_size=2, part=Part(2, 2))
    {'train': range(4, 5), 'val': range(0, 3)}
    """
    blocks = blocks_of(n_rows, batch_size)
    places = {split: range(0) for split in SPLITS}
    for block in part.share(len(blocks)):
        split, first, n = blocks[block]
        start = places[split].start if places[split] else first
        places[split] = range(start, first + n)
    return places


def part_settings(info: dict, part: Part) -> dict:
    """The contents of a part's cache.json, without the hashes; info: the settings of the whole cache."""
    n_rows = {split: info["splits"][split]["rows"] for split in SPLITS}
    splits = {}
    for split, places in part_rows(n_rows, info["batch_size"], part).items():
        n = len(places)
        splits[split] = info["splits"][split] | {
            "rows": n,
            "first_row": places.start,
            "tokens": n * info["block_size"],
        }
    # "part" comes first, so that first_difference names it before any other setting of a wrong part
    return {"part": str(part)} | info | {"splits": splits}


def automatic(out_dir: str | Path, keys: list[str]) -> dict:
    """The values of these settings in the parts in out_dir, or in the cache that they were joined to.

    For settings that "auto" leaves to the machine: the one that joins may have another device than the others.
    """
    folder = Path(out_dir)
    if not is_finished(folder):
        first = parts_in(out_dir)[0]
        folder = first.folder(out_dir)
        check_finished(folder, first)
    recorded = read_json(folder / "cache.json")
    return {key: recorded.get(key) for key in keys}


def check_finished(folder: Path, part: Part):
    if not is_finished(folder):
        raise ValueError(f"{folder} is not finished; run the same command with --part={part}, which continues it")


def check_parts(out_dir: str | Path, info: dict):
    """ValueError unless all parts in out_dir are finished, whole, and of these settings."""
    for part in parts_in(out_dir):
        folder = part.folder(out_dir)
        check_finished(folder, part)
        expected = part_settings(info, part)
        recorded = read_json(folder / "cache.json")
        difference = first_difference(recorded, expected, is_done=True)
        if difference:
            raise ValueError(f"{folder} holds a part of {difference}; {again(folder, part)}")
        hashes = recorded.get("files")
        for name, size in sizes_of(expected).items():
            path = folder / name
            if not isinstance(hashes, dict) or name not in hashes:
                raise ValueError(f"{folder}/cache.json lacks the hash of {name}; {again(folder, part)}")
            if not path.is_file() or path.stat().st_size != size:
                raise ValueError(f"{path} is not there or not of {size:,} bytes; {again(folder, part)}")


def again(folder: Path, part: Part) -> str:
    return f"copy it again, or delete {folder} and run the same command with --part={part}"


def join(writer: CacheWriter, parts: list[Part], row_numbers: dict[str, np.ndarray]):
    """Write the cache of all parts; after a kill it continues with the first part that is not recorded yet.

    row_numbers: of the whole cache, by split. ValueError for a part whose bytes have changed since it was finished.
    """
    writer.begin(row_numbers)
    for part in parts:
        blocks = part.share(len(writer.blocks))
        if set(blocks).isdisjoint(writer.remaining()):
            continue
        copy_part(writer, part)
        writer.mark(blocks)
        writer.flush()
    writer.finish()


def copy_part(writer: CacheWriter, part: Part):
    """Copy all files of a part to their places in the cache's files."""
    folder = part.folder(writer.folder)
    recorded = read_json(folder / "cache.json")
    for split, split_info in part_settings(writer.info, part)["splits"].items():
        for name, bytes_per_row in row_bytes(writer.info).items():
            file = f"{split}_{name}"
            position = split_info["first_row"] * bytes_per_row
            sha256 = copy_into(folder / file, writer.folder / file, at=position)
            if sha256 != recorded["files"][file]:
                raise ValueError(f"{folder / file} has other bytes than when it was finished; {again(folder, part)}")


def copy_into(source: Path, target: Path, at: int) -> str:
    """Copy a file into another one from position `at`. Returns the SHA-256 of what was copied."""
    digest = hashlib.sha256()
    with open(source, "rb") as file:
        while content := file.read(BUFFER):
            CacheWriter.write(target, content, at)
            digest.update(content)
            at += len(content)
    return digest.hexdigest()
