"""A corpus divided over machines by its files: a part keeps the ids of its own files, the join makes a data set of all.

A document's split may depend on all files before its own, as every 20th document is held out, and so does the place of
its ids in the token files. A part leaves both open. In its folder, part_02of16, are

    ids_000.bin     the ids of its files' pieces, one after the other, in the type of the token files
    pieces.dat      file, ids, bytes, end and split of each piece: a record PIECE
    part.json       settings, files of the corpus, tokenizer, hashes; written last
    the tokenizer's files

The join reads the pieces in the order that a single run reads them in, and writes them with the same code.
"""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.files import file_sha256, read_json, write_json
from common.meta import TOKENIZER_KEYS, check_meta
from common.parts import Part, parts_in
from common.tokenizer import FILES
from corpora.readers import File
from corpora.splits import Piece
from corpora.stream import Stream
from corpora.writing import Preparation

IDS = "ids_000.bin"
PIECES = "pieces.dat"
PIECE = np.dtype([("file", "<u4"), ("ids", "<u4"), ("bytes", "<u4"), ("ends", "u1"), ("split", "u1")])
SPLITS = ("", "train", "val")  # by the number in PIECE's split; "" is left to the join
ONE_FILE = 1 << 62  # ids of a shard: more than any part has, so that there is only one
RECORDS = 1 << 16  # read from pieces.dat at a time


# ---------------------------------------------------------------------------------------------
# a part


@dataclass
class PartStream(Stream):
    """The pieces of one part's files, in a single run's order; their split is "" where it depends on other files."""

    part: Part = None

    def __post_init__(self):
        # Files of other parts may be missing here, and do not count for `done`.
        self.sizes = []
        for i, file in enumerate(self.files):
            self.sizes.append(file.path.stat().st_size if self.part.holds(i) else 0)

    def __iter__(self):
        decided, undivided = self.order()
        for i in decided:
            if self.part.holds(i):
                yield from self.decided_pieces(i)
        for i in undivided:
            if self.part.holds(i):
                yield from self.file_pieces(i)


class PartPreparation(Preparation):
    """An unfinished part, written like a data set with one split, "ids"."""

    meta_name = "part.json"

    def __init__(self, folder: Path, settings: dict):
        super().__init__(folder, settings)
        self.records = []  # of pieces that are not on the disk yet

    def restore(self, dtype: str, shard_tokens: int):
        super().restore(dtype, ONE_FILE)
        # even a part without text has these files
        for name in (IDS, PIECES):
            (self.work / name).touch()
        os.truncate(self.work / PIECES, self.pieces * PIECE.itemsize)

    def write(self, piece: Piece, ids: np.ndarray, eot: int, dtype: str, shard_tokens: int):
        """Append a piece, without an end-of-text id: the join adds those, as it knows where the document goes."""
        n_bytes = piece.n_bytes
        self.add_split("ids", dtype, ONE_FILE).write(ids, n_bytes, ends=False, eot=eot)
        self.records.append((piece.file, len(ids), n_bytes, piece.ends, SPLITS.index(piece.split)))

    def save(self):
        with open(self.work / PIECES, "ab") as file:
            file.write(np.array(self.records, dtype=PIECE).tobytes())
            file.flush()
            # state.json may only record what survives a power cut
            os.fsync(file.fileno())
        self.records = []
        super().save()

    def finish(self, corpus: list[list], tokenizer_meta: dict, dtype: str):
        """Write part.json, after which only `install` remains to be done. corpus: `stats_of` all files."""
        hashes = {}
        for name in (IDS, PIECES, *FILES):
            path = self.work / name
            if path.is_file():
                hashes[name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        content = {"settings": self.settings, "corpus": corpus, "tokenizer": tokenizer_meta, "dtype": dtype}
        write_json(self.work / self.meta_name, content | {"files": hashes})


def stats_of(files: list[File]) -> list[list]:
    """[path, bytes, time of the last change in ns] of each file; [path, None, None] of a missing one."""
    stats = []
    for file in files:
        size = time = None
        if file.path.is_file():
            stat = file.path.stat()
            size = stat.st_size
            time = stat.st_mtime_ns
        stats.append([str(file.path), size, time])
    return stats


def is_finished_part(folder: Path, settings: dict) -> bool:
    """Whether the part in a folder is finished. ValueError if it was made with other settings.

    If only its texts have changed since, it is not finished: it is made again, as a data set is.
    """
    if not (folder / PartPreparation.meta_name).is_file():
        return False
    recorded = read_json(folder / PartPreparation.meta_name).get("settings")
    changed = first_difference(recorded, settings, but="source_files")
    if changed:
        raise ValueError(f"{folder} is a part made with {changed}; delete it, or choose another --out_dir")
    return recorded == settings


def first_difference(recorded, settings: dict, but="") -> str:
    """The first setting, except `but`, whose recorded value differs, as text; "" for none."""
    if not isinstance(recorded, dict):
        return "settings that are unreadable"
    for key, value in settings.items():
        if key != but and recorded.get(key) != value:
            return f"{key}={recorded.get(key)!r}, not {value!r}"
    return ""


# ---------------------------------------------------------------------------------------------
# the join


@dataclass
class StoredPiece:
    """A piece whose ids a part has stored."""

    ids: np.ndarray
    n_bytes: int
    ends: bool
    split: str
    domain: str
    file: int

    def __len__(self) -> int:
        return len(self.ids)


class StoredPart:
    """A finished part, read from first to last. ValueError where its files are not as part.json says."""

    def __init__(self, folder: Path, part: Part):
        self.folder = folder
        self.part = part
        self.again = f"copy it again, or delete {folder} and run the same command with --part={part}"
        path = folder / PartPreparation.meta_name
        if not path.is_file():
            raise ValueError(f"{folder} is not finished; run the same command with --part={part}, which continues it")
        self.info = read_json(path)
        self.check_info(path)

    def check_info(self, path: Path):
        """ValueError unless part.json, which may come from another machine, has entries of the right types."""
        kinds = {"settings": dict, "corpus": list, "tokenizer": dict, "files": dict}
        for key, kind in kinds.items():
            if not isinstance(self.info.get(key), kind):
                raise ValueError(f"{path}: {key} is missing or no {kind.__name__}; {self.again}")
        for entry in self.info["corpus"]:
            if not isinstance(entry, list) or len(entry) != 3:
                raise ValueError(f"{path}: {entry!r} is no file of a corpus; {self.again}")
        tokenizer = self.info["tokenizer"]
        if not set(TOKENIZER_KEYS) <= set(tokenizer) or self.info.get("dtype") not in ("uint16", "uint32"):
            raise ValueError(f"{path} lacks its tokenizer or its dtype; {self.again}")
        check_meta(path, tokenizer)
        self.dtype = np.dtype(self.info["dtype"]).newbyteorder("<")

    def refuse(self, problem: str):
        raise ValueError(f"{self.folder} {problem}; {self.again}")

    def check(self, settings: dict, paths: list[str], first: "StoredPart"):
        """ValueError unless the part has these settings, this corpus, and the tokenizer of the first part."""
        expected = settings | {"part": str(self.part)}
        changed = first_difference(self.info["settings"], expected)
        if changed:
            self.refuse(f"is a part made with {changed}")
        recorded = [path for path, _, _ in self.info["corpus"]]
        if recorded != paths:
            others = sorted(set(map(str, recorded)) ^ set(paths))
            example = f", as {others[0]!r}" if others else ""
            self.refuse(f"is of a corpus with other files{example}")
        for i, (path, size, _) in enumerate(self.info["corpus"]):
            if self.part.holds(i) and size is None:
                self.refuse(f"has not read {path}")
            first_size = first.info["corpus"][i][1]
            if None not in (size, first_size) and size != first_size:
                self.refuse(f"has seen {path} with {size:,} bytes, part {first.part} with {first_size:,}")
        for key in ("tokenizer", "dtype"):
            if self.info[key] != first.info[key]:
                self.refuse(f"has another tokenizer than part {first.part}")

    def check_files(self):
        """ValueError unless the files are as they were when the part was finished."""
        for name in (IDS, PIECES, *FILES):
            recorded = self.info["files"].get(name)
            path = self.folder / name
            if recorded is None and name in FILES:
                continue
            if not path.is_file():
                self.refuse(f"lacks {name}")
            if recorded != {"bytes": path.stat().st_size, "sha256": file_sha256(path)}:
                self.refuse(f"has a {name} with other bytes than when it was finished")

    def open(self):
        """Start reading at the first piece."""
        self.ids = open(self.folder / IDS, "rb")
        self.records = self.read_records()
        self.waiting = next(self.records, None)  # the record of the next piece

    def read_records(self):
        with open(self.folder / PIECES, "rb") as file:
            while len(records := np.fromfile(file, PIECE, RECORDS)):
                if records["split"].max() >= len(SPLITS):
                    self.refuse(f"has a damaged {PIECES}")
                yield from records.tolist()

    def pieces(self, number: int, domain: str):
        """Yield the pieces of the corpus's file `number`; files must be asked for in the order in which they lie."""
        while self.waiting is not None and self.waiting[0] == number:
            _, n_ids, n_bytes, ends, split = self.waiting
            ids = np.fromfile(self.ids, self.dtype, n_ids)
            if len(ids) < n_ids:
                self.refuse(f"has fewer ids than {PIECES} says")
            yield StoredPiece(ids, n_bytes, bool(ends), SPLITS[split], domain, number)
            self.waiting = next(self.records, None)

    def close(self):
        """ValueError unless everything has been read."""
        if self.waiting is not None or self.ids.read(1):
            self.refuse("has pieces out of order")
        self.ids.close()


@dataclass
class JoinedStream(Stream):
    """The pieces of all parts, in a single run's order. `done` is the share of the ids that have been read."""

    parts: list[StoredPart] = field(default_factory=list)

    def __post_init__(self):
        self.bytes_of_ids = sum((part.folder / IDS).stat().st_size for part in self.parts)

    def __iter__(self):
        for part in self.parts:
            part.open()
        yield from super().__iter__()
        for part in self.parts:
            part.close()

    def file_pieces(self, i: int):
        (part,) = [part for part in self.parts if part.part.holds(i)]
        yield from part.pieces(i, self.files[i].domain)
        self.done = sum(part.ids.tell() for part in self.parts) / max(1, self.bytes_of_ids)

    def decided_pieces(self, i: int):
        # the part has already decided their splits
        return self.file_pieces(i)


def open_parts(out_dir: Path, settings: dict, files: list[File]) -> list[StoredPart]:
    """All parts in out_dir, in order. ValueError unless they are finished, undamaged, and parts of the same corpus."""
    parts = [StoredPart(part.folder(out_dir), part) for part in parts_in(out_dir)]
    paths = [str(file.path) for file in files]
    # checks that need not read the ids come first
    for part in parts:
        part.check(settings, paths, first=parts[0])
    for part in parts:
        part.check_files()
    return parts


def joined_stats(parts: list[StoredPart]) -> list[list]:
    """`stats_of` all files of the corpus, each from the part that has read it."""
    n_files = len(parts[0].info["corpus"])
    return [parts[i % len(parts)].info["corpus"][i] for i in range(n_files)]


def check_room(folder: Path, parts: list[StoredPart]):
    """ValueError where the disk has no room for the joined token files beside those of the parts."""
    in_all = sum((part.folder / IDS).stat().st_size for part in parts)
    # a join that was killed has written some of them
    written = sum(path.stat().st_size for path in (folder / "preparing").glob("*.bin"))
    needed = in_all - written
    free = shutil.disk_usage(folder).free
    if needed > free:
        problem = f"{folder} needs {needed:,} bytes more for the joined token files, but {free:,} are free"
        raise ValueError(f"{problem}; free some, then start again")


def copy_tokenizer(part: StoredPart, folder: Path):
    """The tokenizer's files, as `save` of the tokenizer wrote them."""
    for name in FILES:
        if name in part.info["files"]:
            shutil.copyfile(part.folder / name, folder / name)
