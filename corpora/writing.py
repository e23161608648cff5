"""Unfinished token files: written shard by shard to out_dir/preparing/, and moved to their place at the end.

preparing/state.json records what is on the disk. A run that is started again after a kill truncates the files to the
last record and continues from there, so that the final bytes are the same.
"""

import math
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.files import lock, read_json, write_json
from common.tokenizer import FILES
from corpora.splits import Piece

RECORDED = ("tokens", "bytes", "documents", "open_bytes")  # of a split


@dataclass
class SplitWriter:
    """The token files of one split, written shard by shard; `tokens`, `bytes`, `documents` count what is in them."""

    folder: Path
    name: str
    dtype: str
    shard_tokens: int
    tokens: int = 0
    bytes: int = 0
    documents: int = 0
    # bytes of the document that has not ended yet
    open_bytes: int = 0
    # the last shard, while it is open
    file: object = field(default=None, repr=False)

    def shard(self, i: int) -> Path:
        return self.folder / f"{self.name}_{i:03}.bin"

    def write(self, ids: np.ndarray, n_bytes: int, ends: bool, eot: int):
        """Append the ids of a piece of n_bytes bytes, and end-of-text where its document ends."""
        self.open_bytes += n_bytes
        self.bytes += n_bytes
        # An empty document counts for nothing: it gets no end-of-text id.
        if ends and self.open_bytes:
            ids = np.append(ids, np.uint32(eot))
            self.documents += 1
            self.open_bytes = 0
        # A piece may fill one shard and begin the next, or several where shards are small.
        while len(ids):
            if self.file is None:
                self.file = open(self.shard(self.tokens // self.shard_tokens), "ab")
            room = self.shard_tokens - self.tokens % self.shard_tokens
            written = ids[:room]
            self.file.write(written.astype(self.dtype).tobytes())
            self.tokens += len(written)
            ids = ids[room:]
            if len(written) == room:
                self.close()

    def close(self):
        """Flush and close the last shard; the next write opens it again."""
        if self.file:
            # state.json may only record what survives a power cut
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            self.file = None

    def state(self) -> dict:
        """What is on the disk, as `restore` needs it."""
        self.close()
        return {key: getattr(self, key) for key in RECORDED}

    def restore(self, state: dict):
        """Truncate the files to a recorded state."""
        for key, value in state.items():
            setattr(self, key, value)
        last_shard, last_tokens = divmod(self.tokens, self.shard_tokens)
        for path in self.folder.glob("*.bin"):
            name, number = split_and_number(path)
            # val_cbt_000.bin belongs to val_cbt, not to val
            if name != self.name:
                continue
            if number > last_shard or (number == last_shard and last_tokens == 0):
                path.unlink()
            elif number == last_shard:
                os.truncate(path, last_tokens * np.dtype(self.dtype).itemsize)

    def shards(self) -> list[Path]:
        n_shards = math.ceil(self.tokens / self.shard_tokens)
        return [self.shard(i) for i in range(n_shards)]

    def final_names(self) -> list[str]:
        """The names that the files get in out_dir: those of shards, or train.bin for a single one."""
        shards = self.shards()
        if len(shards) == 1:
            return [f"{self.name}.bin"]
        return [path.name for path in shards]


def split_and_number(path: Path) -> tuple[str, int]:
    """The split and the number of a shard; numbers have three digits or more.

    >>> split_and_number(Path("val_cbt_012.bin"))
    ('val_cbt', 12)
    """
    name, _, number = path.stem.rpartition("_")
    return name, int(number)


class Preparation:
    """An unfinished data set: preparing/ with its token files, and state.json with what they hold.

    The folder is locked for as long as this process lives: two processes would spoil each other's files. The second
    gets a ValueError.
    """

    meta_name = "meta.json"  # written last, once all else is there

    def __init__(self, folder: Path, settings: dict):
        self.folder = folder
        self.settings = settings
        self.work = folder / "preparing"
        self.state_file = self.work / "state.json"
        self.splits = {}  # name: SplitWriter
        # locked before anything is read, as another process may change the state
        self.lock = lock_folder(folder)
        state = self.earlier_state()
        self.pieces = state.get("pieces", 0)  # how many of the stream are in the token files
        self.tokenizer_hash = state.get("tokenizer", "")  # "" until there is a tokenizer
        self.domains = state.get("domains", {})  # {name: [tokens, bytes]}
        self.recorded_splits = state.get("splits", {})  # {name: the state of its SplitWriter}

    def earlier_state(self) -> dict:
        """The state recorded by a killed run with the same settings, or {}; files of another run are removed."""
        state = {}
        if self.state_file.is_file():
            state = read_json(self.state_file)
        if state.get("settings") != self.settings and not self.is_finished():
            if state.get("pieces"):
                reason = "was left by a run with other settings or texts"
                print(f"{self.work} {reason}; starting anew", flush=True)
            shutil.rmtree(self.work, ignore_errors=True)
            state = {}
        self.work.mkdir(parents=True, exist_ok=True)
        return state

    def is_finished(self) -> bool:
        """Whether the files only remain to be moved."""
        meta = self.work / self.meta_name
        return meta.is_file() and read_json(meta).get("settings") == self.settings

    def add_split(self, name: str, dtype: str, shard_tokens: int) -> SplitWriter:
        """The split of that name, made on its first use."""
        if name not in self.splits:
            self.splits[name] = SplitWriter(self.work, name, dtype, shard_tokens)
        return self.splits[name]

    def restore(self, dtype: str, shard_tokens: int):
        """Truncate the token files to what is recorded, after a kill."""
        for path in self.work.glob("*.bin"):
            split, _ = split_and_number(path)
            # all of its tokens were written after the last record
            if split not in self.recorded_splits:
                path.unlink()
        for name, state in self.recorded_splits.items():
            self.add_split(name, dtype, shard_tokens).restore(state)
        if self.pieces:
            tokens = sum(split.tokens for split in self.splits.values())
            print(f"going on after {self.pieces:,} pieces, {tokens:,} tokens", flush=True)

    def write(self, piece: Piece, ids: np.ndarray, eot: int, dtype: str, shard_tokens: int):
        """Append a piece to the files of its split and, if it is held out of a domain, to those of the domain."""
        n_bytes = piece.n_bytes
        names = [piece.split]
        if piece.domain and piece.split == "val":
            names.append(f"val_{piece.domain}")
        for name in names:
            split = self.add_split(name, dtype, shard_tokens)
            split.write(ids, n_bytes, ends=piece.ends, eot=eot)
        if piece.domain:
            tokens_before, bytes_before = self.domains.get(piece.domain, (0, 0))
            self.domains[piece.domain] = [tokens_before + len(ids), bytes_before + n_bytes]

    def save(self):
        """Flush the token files, then record what they hold."""
        split_states = {name: split.state() for name, split in self.splits.items()}
        state = {
            "settings": self.settings,
            "pieces": self.pieces,
            "tokenizer": self.tokenizer_hash,
            "domains": self.domains,
            "splits": split_states,
        }
        write_json(self.state_file, state)

    def install(self):
        """Move the finished files over those of an earlier data set. After a kill it can be called again."""
        meta = read_json(self.work / self.meta_name)
        # without state.json, meta.json in preparing/ means that the files only remain to be moved
        self.state_file.unlink(missing_ok=True)
        remove_data_set(self.folder)
        final_names = {}
        for key, names in meta.items():
            if key.endswith("_files") and len(names) == 1:
                split = key.removesuffix("_files")
                final_names[f"{split}_000.bin"] = f"{split}.bin"
        # meta.json comes last, as a folder without it is not a data set yet
        for path in sorted(self.work.iterdir(), key=lambda path: path.name == self.meta_name):
            path.replace(self.folder / final_names.get(path.name, path.name))
        self.work.rmdir()


def lock_folder(folder: Path):
    """Lock a folder, made if need be, for as long as the returned file is open. ValueError if it is locked already.

    The lock is released when the process ends, however it ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # The file is never deleted: a lock on a deleted file would keep nobody out.
    lock_file = open(folder / ".preparing.lock", "w")
    try:
        lock(lock_file)
    except BlockingIOError:
        problem = f"{folder} is being prepared by another process"
        raise ValueError(f"{problem}; wait for it, or choose another --out_dir") from None
    return lock_file


def check_replaceable(folder: Path, settings: dict, overwrite: bool):
    """ValueError where `folder` holds a data set of other settings, unless it may be overwritten.

    The same settings again are always fine, whether or not the files of the source have changed since.
    """
    if folder.is_file():
        raise ValueError(f"{folder} is a file; out_dir is the folder that the data set goes to")
    meta_file = folder / "meta.json"
    if overwrite or not meta_file.is_file():
        return
    meta = read_json(meta_file)
    before = {"source": meta.get("source")}
    # Ready-made shards have no settings. A setting that meta.json lacks was added to the script later:
    # document_separator was always "file" before that; the values of the others are not known.
    if isinstance(meta.get("settings"), dict):
        before |= {"document_separator": "file"} | meta["settings"]
    changes = []
    for key, value in before.items():
        if key in settings and settings[key] != value:
            changes.append(f"{key}={value!r}, not {settings[key]!r}")
    if changes:
        problem = f"{folder} is a data set made with {', '.join(changes)}"
        raise ValueError(f"{problem}; choose another --out_dir, or replace it with --overwrite=true")


def remove_data_set(folder: Path, keep=()):
    """Remove the data set in a folder, if any, except the paths in `keep`.

    Of a data set of ready-made shards only meta.json and the tokenizer go: the shards are not ours.
    """
    meta_file = folder / "meta.json"
    if not meta_file.is_file():
        return
    meta = read_json(meta_file)
    names = [*FILES, "choices.jsonl"]
    if "settings" in meta and isinstance(meta.get("files"), dict):
        names += meta["files"]
    for name in names:
        path = folder / name
        # meta.json may not name files outside of the folder
        if path.parent == folder and path not in keep:
            path.unlink(missing_ok=True)
    meta_file.unlink()
