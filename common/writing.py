"""Token files on their way: written shard by shard in out_dir/preparing/, recorded, moved to their place at the end.

After a kill at any moment the record says what is on the disk; what came after it is cut off and made again.
"""

import fcntl
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.files import read_json, write_json
from common.tokenizer import FILES


@dataclass
class Split:
    """The token files of one split, written shard by shard; `tokens`, `bytes`, `documents` are what is in them."""

    folder: Path
    name: str
    dtype: str
    shard_tokens: int
    tokens: int = 0
    bytes: int = 0
    documents: int = 0
    open_bytes: int = 0  # of the document that is not at its end
    file: object = field(default=None, repr=False)

    def shard(self, i: int) -> Path:
        return self.folder / f"{self.name}_{i:03}.bin"

    def write(self, ids: np.ndarray, n_bytes: int, ends: bool, eot: int):
        self.open_bytes, self.bytes = self.open_bytes + n_bytes, self.bytes + n_bytes
        if ends and self.open_bytes:  # an empty document is none
            ids, self.documents, self.open_bytes = np.append(ids, np.uint32(eot)), self.documents + 1, 0
        while len(ids):
            if self.file is None:
                self.file = open(self.shard(self.tokens // self.shard_tokens), "ab")
            room = self.shard_tokens - self.tokens % self.shard_tokens
            self.file.write(ids[:room].astype(self.dtype).tobytes())
            self.tokens, ids = self.tokens + len(ids[:room]), ids[room:]
            if self.tokens % self.shard_tokens == 0:
                self.close()

    def close(self):
        if self.file:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            self.file = None

    def state(self) -> dict:
        self.close()
        return {k: getattr(self, k) for k in ("tokens", "bytes", "documents", "open_bytes")}

    def restore(self, state: dict):
        """Cut the files back to what a state says: what came after it was never recorded."""
        for key, value in state.items():
            setattr(self, key, value)
        last, size = divmod(self.tokens, self.shard_tokens)
        for path in self.folder.glob("*.bin"):
            name, number = split_and_number(path)
            if name != self.name:
                continue
            if number > last or (number == last and not size):
                path.unlink()
            elif number == last:
                os.truncate(path, size * np.dtype(self.dtype).itemsize)

    def shards(self) -> list[Path]:
        return [self.shard(i) for i in range(-(-self.tokens // self.shard_tokens))]

    def names(self) -> list[str]:
        """What its files will be called: a single shard is train.bin."""
        return [f"{self.name}.bin"] if len(self.shards()) == 1 else [path.name for path in self.shards()]


def split_and_number(path: Path) -> tuple[str, int]:
    """("val_cbt", 12) of val_cbt_012.bin, a token file on its way; numbers have three digits or more."""
    name, _, number = path.stem.rpartition("_")
    return name, int(number)


class Run:
    """What is done: preparing/state.json, beside the files that it speaks of.

    The folder is locked for as long as this process lives: two that write the same files would spoil them. ValueError
    for the second.
    """

    def __init__(self, folder: Path, settings: dict):
        self.folder, self.work, self.settings = folder, folder / "preparing", settings
        self.path, self.pieces, self.tokenizer, self.splits, self.domains = self.work / "state.json", 0, "", {}, {}
        self.lock = lock_folder(folder)
        old = read_json(self.path) if self.path.is_file() else {}
        if old.get("settings") != settings and not self.is_finished():
            if old.get("pieces"):
                print(f"{self.work} was left by a run with other settings or texts; starting anew", flush=True)
            shutil.rmtree(self.work, ignore_errors=True)
            old = {}
        self.work.mkdir(parents=True, exist_ok=True)
        self.pieces, self.tokenizer = old.get("pieces", 0), old.get("tokenizer", "")
        self.domains, self.recorded = old.get("domains", {}), old.get("splits", {})

    def is_finished(self) -> bool:
        """Whether all that is missing is to move the files."""
        meta = self.work / "meta.json"
        return meta.is_file() and read_json(meta).get("settings") == self.settings

    def split(self, name: str, dtype: str, shard_tokens: int) -> Split:
        if name not in self.splits:
            self.splits[name] = Split(self.work, name, dtype, shard_tokens)
        return self.splits[name]

    def restore(self, dtype: str, shard_tokens: int):
        """Cut the token files back to what is recorded, after a kill."""
        for path in self.work.glob("*.bin"):
            if split_and_number(path)[0] not in self.recorded:
                path.unlink()
        for name, state in self.recorded.items():
            self.split(name, dtype, shard_tokens).restore(state)
        if self.pieces:
            tokens = sum(s.tokens for s in self.splits.values())
            print(f"going on after {self.pieces:,} pieces, {tokens:,} tokens", flush=True)

    def save(self):
        """Everything so far is on the disk, then recorded."""
        state = {"settings": self.settings, "pieces": self.pieces, "tokenizer": self.tokenizer, "domains": self.domains}
        state["splits"] = {name: split.state() for name, split in self.splits.items()}
        write_json(self.path, state)

    def install(self):
        """Move the finished files over those of an earlier data set; meta.json comes last. Goes on after a kill."""
        meta = read_json(self.work / "meta.json")
        self.path.unlink(missing_ok=True)
        remove_data_set(self.folder)
        called = {
            f"{key[:-6]}_000.bin": f"{key[:-6]}.bin" for key in meta if key.endswith("_files") and len(meta[key]) == 1
        }
        for path in sorted(self.work.iterdir(), key=lambda p: p.name == "meta.json"):
            path.replace(self.folder / called.get(path.name, path.name))
        self.work.rmdir()


def lock_folder(folder: Path):
    """Lock a folder, made where it is not there, for as long as the returned file is open. ValueError if it is locked.

    The lock goes with the process, however that ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = open(folder / ".preparing.lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        what = f"{folder} is being prepared by another process"
        raise ValueError(f"{what}; wait for it, or choose another --out_dir") from None
    return lock


def check_replaceable(folder: Path, settings: dict, overwrite: bool):
    """ValueError where `folder` holds a data set of other settings, unless it may be overwritten.

    The same settings again are always fine, whether or not the source's files have changed since. A key that meta.json
    lacks came later: `document_separator` was "file" before there was another, of other keys nothing is known.
    """
    if folder.is_file():
        raise ValueError(f"{folder} is a file; out_dir is the folder that the data set goes to")
    path = folder / "meta.json"
    if overwrite or not path.is_file():
        return
    meta = read_json(path)
    before = {"source": meta.get("source")}  # all that is known of shards that are used as they are
    before |= {"document_separator": "file"} | meta["settings"] if "settings" in meta else {}
    changed = [key for key, value in before.items() if key in settings and value != settings[key]]
    if changed:
        shown = ", ".join(f"{key}={before[key]!r}, not {settings[key]!r}" for key in changed)
        raise ValueError(
            f"{folder} is a data set made with {shown}; choose another --out_dir, or replace it with --overwrite=true"
        )


def remove_data_set(folder: Path, keep=()):
    """Remove the data set in a folder, if any, but for the paths in `keep`.

    Of one whose shards are used as they are, whoever made them, only meta.json and the tokenizer.
    """
    path = folder / "meta.json"
    if not path.is_file():
        return
    meta = read_json(path)
    ours = meta.get("files", {}) if "settings" in meta else {}
    for file in (folder / name for name in [*ours, *FILES, "choices.jsonl"]):
        if file.parent == folder and file not in keep:
            file.unlink(missing_ok=True)
    path.unlink()
