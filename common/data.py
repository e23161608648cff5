"""Token streams: raw ids on disk, and batches that are a pure function of (seed, step).

A data set is a folder of train.bin and val.bin, or shards train_000.bin, … (documents one after the other, each ended
by the tokenizer's end-of-text id, in uint16 or, beyond 65,536 ids, uint32), perhaps val_<domain>.bin, and meta.json
(tokenizer, hash, vocab_size, eot, files, counts, source).
"""

import math
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from common.files import read_json
from configurator import made_by, nearest

MAGIC, HEADER = 20240520, 1024  # the first int32 of a file with a header, and its bytes
TOKENIZER_KEYS = ("tokenizer", "tokenizer_hash", "vocab_size", "eot")


def read_meta(folder: str | Path) -> dict:
    """meta.json of a data set or checkpoint. Raises FileNotFoundError or ValueError with the remedy."""
    path = Path(folder) / "meta.json"
    if not path.is_file():
        raise FileNotFoundError(no_data_set(Path(folder)))
    meta = read_json(path)
    if missing := [k for k in TOKENIZER_KEYS if k not in meta]:
        raise ValueError(f"{path} lacks {', '.join(missing)}; prepare the data again")
    numbers = {k: meta[k] for k in ("vocab_size", "eot", "bos") if k in meta}
    numbers |= {k: v for k, v in meta.items() if k.endswith(("_tokens", "_bytes", "_documents"))}
    for key, value in numbers.items():
        if not isinstance(value, int) or value < 0 or (key in ("eot", "bos") and value >= numbers["vocab_size"]):
            raise ValueError(f"{path}: {key}={value!r} is not a number that it can be; prepare the data again")
    if not 0 < meta["vocab_size"] <= 1 << 24 or meta.get("dtype", "uint16") not in ("uint16", "uint32"):
        raise ValueError(f"{path}: vocab_size={meta['vocab_size']} or dtype is none; prepare the data again")
    return meta


def no_data_set(folder: Path) -> str:
    """What to tell about a folder without meta.json: the data set that was meant, or the command that makes it."""
    what = "has no meta.json" if folder.is_dir() else "is not there"
    elsewhere = Path("data") / folder
    if (elsewhere / "meta.json").is_file():
        return f"data set {folder} {what}; did you mean {str(elsewhere)!r}?"
    beside = [str(path.parent) for path in folder.parent.glob("*/meta.json")]
    suggestion = "" if folder.is_dir() else nearest(str(folder), beside)
    if suggestion:
        return f"data set {folder} {what}{suggestion}"
    general = (
        f"python prepare_data.py --source=<file, folder or name> --tokenizer=<bytes, bpe or gpt2> --out_dir={folder}"
    )
    return f"data set {folder} {what}; first run: {made_by(folder) or general}"


def tokenizer_meta(tokenizer) -> dict:
    """What meta.json says of a tokenizer; `bos` only matters where it is not `eot`.

    `start`, in checkpoints: the ids that their training texts begin with, for an empty prompt.
    """
    meta = {
        "tokenizer": tokenizer.kind,
        "tokenizer_hash": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "eot": tokenizer.eot,
        "bos": tokenizer.bos,
    }
    start = getattr(tokenizer, "start", None)
    return meta | {"start": start} if start else meta


class Tokens:
    """The ids of several files as one stream, memory-mapped.

    A file is nothing but ids of `dtype`, or has the header of the public pretokenised sets: 256 int32, of which the
    first three are 20240520, 1 and the number of ids, uint16 each.
    """

    def __init__(self, paths: list[Path], dtype: str):
        self.maps = [self.open(path, np.dtype(dtype).newbyteorder("<")) for path in paths]
        self.ends = np.cumsum([len(ids) for ids in self.maps])

    @staticmethod
    def open(path: Path, dtype: np.dtype) -> np.ndarray:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there; run prepare_data.py with --out_dir={path.parent} again")
        size = path.stat().st_size
        header = np.fromfile(path, "<i4", 3)
        if len(header) == 3 and header[0] == MAGIC:
            n_ids = int(header[2])  # twice as many bytes may be beyond an int32
            if header[1] != 1 or size != HEADER + 2 * n_ids or n_ids < 0:
                raise ValueError(f"{path}: {size} bytes, but its header says {n_ids} ids; it was cut, fetch it again")
            return np.memmap(path, "<u2", mode="r", offset=HEADER) if n_ids else np.empty(0, "<u2")
        if size % dtype.itemsize:
            raise ValueError(
                f"{path}: {size} bytes is no multiple of {dtype.itemsize}, the bytes of an id; prepare it again"
            )
        return np.memmap(path, dtype, mode="r") if size else np.empty(0, dtype)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def take(self, start: int, n: int) -> np.ndarray:
        """Ids start … start + n - 1, whichever files they lie in."""
        parts, file = [], int(np.searchsorted(self.ends, start, side="right"))
        while n > 0:
            first = start - (int(self.ends[file - 1]) if file else 0)
            parts.append(self.maps[file][first : first + n])
            start, n, file = start + len(parts[-1]), n - len(parts[-1]), file + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def documents(self, eot: int) -> tuple[np.ndarray, np.ndarray]:
        """(start, length) of each document of two ids or more, its end-of-text id included."""
        ends, offset = [], 0
        for ids in self.maps:
            for first in range(0, len(ids), 1 << 24):  # a part at a time: the stream may be larger than memory
                ends.append(np.flatnonzero(ids[first : first + (1 << 24)] == eot) + (offset + first + 1))
            offset += len(ids)
        ends = np.unique(np.concatenate([*ends, [len(self)]]))  # the last document may lack its end
        starts = np.concatenate([[0], ends[:-1]])
        kept = ends - starts >= 2
        return starts[kept], (ends - starts)[kept]


class TokenData:
    """Rows of T + 1 tokens from one split, in an endless order fixed by the seed.

    packing="constant": epoch e draws one offset in 0 … T - 1 (random_offset=False: 0) and one permutation of the
    T-token chunks behind it, so each token is seen once an epoch (but for less than 2T at the ends).
    packing="documents": epoch e draws a permutation of the documents, of which each makes a row, cut after T + 1
    tokens or filled up with eot; what is filled up has no target, by length, so that the document's own eot has one.
    `share_used` is the share of the split's tokens that the rows of an epoch hold, and `packing_note` says it.
    A step takes the next batch_size * grad_accum_steps * world rows of that order, whatever number of ranks shares
    them: nothing is kept between steps, and resuming needs only the step.
    """

    def __init__(
        self, folder, split, block_size, seed, batch_size, grad_accum_steps=1, rank=0, world=1, packing="constant",
        random_offset=True,
    ):  # fmt: skip
        self.folder, self.split, self.T, self.seed = Path(folder), split, block_size, seed
        self.batch_size, self.accum, self.rank, self.world = batch_size, grad_accum_steps, rank, world
        self.meta = read_meta(folder)
        self.vocab_size, self.packing = self.meta["vocab_size"], packing
        # those whose held-out text makes a row: val_<domain> is a split as well
        self.domains = [d for d in self.meta.get("domains", {}) if self.meta.get(f"val_{d}_tokens", 0) > block_size]
        if not (self.meta.get(f"{split}_tokens") and self.meta.get(f"{split}_bytes")):
            raise ValueError(f"{folder}/meta.json lacks {split}_tokens or {split}_bytes; prepare the data again")
        files = self.meta.get(f"{split}_files", [f"{split}.bin"])
        self.tokens = Tokens([self.folder / name for name in files], self.meta.get("dtype", "uint16"))
        n = len(self.tokens)
        if f"{split}_files" in self.meta and n != self.meta[f"{split}_tokens"]:
            said = self.meta[f"{split}_tokens"]
            raise ValueError(
                f"{self.folder / files[0]}: {n} tokens, but meta.json says {said}; it was cut, prepare it again"
            )
        if n < (block_size + 1 if packing == "constant" else 2):
            raise ValueError(
                f"{self.folder / files[0]}: {n} tokens, but one row needs block_size + 1 = {block_size + 1}; lower it"
            )
        if packing == "documents":
            self.starts, self.lengths = self.tokens.documents(self.meta["eot"])
            self.n_rows, self.n_offsets = len(self.starts), 1
        elif packing == "constant":
            self.n_rows = max(1, (n - block_size) // block_size)  # rows an epoch, the same for every offset
            self.n_offsets = min(block_size, n - self.n_rows * block_size) if random_offset else 1
        else:
            raise ValueError(f"packing={packing!r} is not one of constant, documents")
        self.epoch, self.order, self.offset = -1, None, 0
        self.first_step, self.first_row = 0, 0

    def ids(self, start: int, n: int) -> np.ndarray:
        """Ids start … start + n - 1 of the split. ValueError for one beyond the vocabulary."""
        ids = self.tokens.take(start, n)
        if ids.max() >= self.vocab_size:
            at = start + int(np.argmax(ids >= self.vocab_size))
            raise ValueError(
                f"{self.folder}, {self.split}: id {ids.max()} at token {at}, but meta.json says vocab_size="
                f"{self.vocab_size}; a file is damaged or of another tokenizer, prepare it again"
            )
        return ids

    def rows(self, first: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows first … first + n - 1 of the endless order: x, y (n, T), int64, y one token ahead or -1."""
        rows, lengths = np.full((n, self.T + 1), self.meta["eot"], dtype=np.int64), np.full(n, self.T + 1)
        for i, row in enumerate(range(first, first + n)):
            epoch, place = divmod(row, self.n_rows)
            if epoch != self.epoch:
                rng = np.random.default_rng((self.seed, epoch))
                self.epoch, self.offset = epoch, int(rng.integers(self.n_offsets))
                self.order = rng.permutation(self.n_rows)
            chosen = int(self.order[place])
            start = self.offset + chosen * self.T
            if self.packing == "documents":
                start, lengths[i] = int(self.starts[chosen]), min(int(self.lengths[chosen]), self.T + 1)
            rows[i, : lengths[i]] = self.ids(start, int(lengths[i]))
        y = rows[:, 1:].copy()
        y[np.arange(1, self.T + 1) >= lengths[:, None]] = -1
        return torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(y)

    def continue_at(self, step: int, row: int):
        """From here on step `step` begins with row `row` of the endless order.

        Of a run resumed with as many rows a step as before that is where it begins anyway; of one with more or fewer,
        no row is repeated and none left out.
        """
        self.first_step, self.first_row = step, row

    def steps(self, epochs: float) -> int:
        """The steps at whose end `epochs` passes over the rows are done."""
        rows_per_step = self.batch_size * self.accum * self.world
        rows_ahead = self.first_row - self.first_step * rows_per_step  # of where this size of step would be
        return math.ceil((epochs * self.n_rows - rows_ahead) / rows_per_step)

    def start(self) -> list[int]:
        """What a text begins with in the rows: end-of-text, or where no text follows one, the first id of the split."""
        eot = self.meta["eot"]
        follows_another = self.packing == "constant" and self.meta.get(f"{self.split}_documents", 0) > 1
        return [eot] if follows_another else self.tokens.take(0, 1).tolist()

    @property
    def share_used(self) -> float:
        """The share of the split's tokens that are in some row; 1.0 for packing="constant"."""
        return self.tokens_used() / len(self.tokens)

    def tokens_used(self) -> int:
        if self.packing == "constant":
            return len(self.tokens)
        return int(np.minimum(self.lengths, self.T + 1).sum())

    @property
    def packing_note(self) -> str:
        """What to tell a user whose rows leave out a part of the split; "" where they leave out nothing to speak of."""
        if self.share_used > 0.995:
            return ""
        return (
            f'packing="documents": {self.n_rows:,} rows use {self.tokens_used():,} of the {len(self.tokens):,} tokens '
            f"of {self.split} ({self.share_used:.1%}), as a document is cut after block_size + 1 = {self.T + 1}; to "
            "use more, take --packing=constant, or shorter documents (prepare_data.py --document_separator)"
        )

    def bits_per_byte(self, nats_per_token: float) -> float:
        """A loss that compares across tokenizers, by the UTF-8 bytes of the text that a target stands for on average.

        packing="constant": the average over the whole split. packing="documents": over the targets of all rows, as
        the beginnings of documents may be unlike the rest; NaN where none of them stands for text.
        """
        if self.packing == "constant":
            n_targets, n_bytes = self.meta[f"{self.split}_tokens"], self.meta[f"{self.split}_bytes"]
        else:
            n_targets, n_bytes = self.targets_and_bytes
        return nats_per_token / math.log(2) * n_targets / n_bytes if n_bytes else math.nan

    @cached_property
    def targets_and_bytes(self) -> tuple[int, int]:
        """The targets of the rows of packing="documents", all of a row but its first token, and their UTF-8 bytes."""
        from common.tokenizer import load_tokenizer  # here, as that module reads meta.json through this one

        byte_lengths = load_tokenizer(self.folder).byte_lengths()
        n_targets, n_bytes = 0, 0
        for start, length in zip(self.starts.tolist(), self.lengths.tolist()):
            targets = self.ids(start + 1, min(length, self.T + 1) - 1)
            n_targets += len(targets)
            n_bytes += int(byte_lengths[targets].sum())
        return n_targets, n_bytes

    def batch(self, step: int, micro_step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """x, y (batch_size, T) of this rank in a micro-step of a step."""
        micro_steps_done = (step - self.first_step) * self.accum + micro_step
        first = (micro_steps_done * self.world + self.rank) * self.batch_size
        return self.rows(self.first_row + first, self.batch_size)

    def eval_batches(self, eval_rows: int):
        """This rank's share of the first `eval_rows` rows of epoch 0 (0: all), in batches of one shape.

        With one seed a fixed random subset. The rows that fill up the last batch have y = -1.
        """
        n = min(eval_rows or self.n_rows, self.n_rows)
        for first in range(self.rank * self.batch_size, n, self.world * self.batch_size):
            k = min(self.batch_size, n - first)
            x, y = self.rows(first, k)
            padding = (0, 0, 0, self.batch_size - k)
            yield F.pad(x, padding), F.pad(y, padding, value=-1)
