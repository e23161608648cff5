"""Token streams: raw uint16 ids on disk, and batches that are a pure function of (seed, step).

A data set is a folder of train.bin, val.bin (documents one after the other, each ended by the
tokenizer's end-of-text id) and meta.json (tokenizer, hash, vocab_size, eot, counts, source).
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

TOKENIZER_KEYS = ("tokenizer", "tokenizer_hash", "vocab_size", "eot")


def read_meta(folder: str | Path) -> dict:
    """meta.json of a data set or checkpoint. Raises FileNotFoundError or ValueError with the remedy."""
    path = Path(folder) / "meta.json"
    if not path.is_file():
        what = "has no meta.json" if path.parent.is_dir() else "is not there"
        raise FileNotFoundError(
            f"data set {folder} {what}; first run: python prepare_data.py --source=<file, folder or name> "
            f"--tokenizer=<bytes, bpe or gpt2> --out_dir={folder}"
        )
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); prepare the data again") from None
    missing = [k for k in TOKENIZER_KEYS if k not in meta] if isinstance(meta, dict) else TOKENIZER_KEYS
    if not missing and not (isinstance(meta["vocab_size"], int) and meta["vocab_size"] > 0):
        missing = ["a vocab_size over 0"]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; prepare the data again")
    return meta


def tokenizer_meta(tokenizer) -> dict:
    """What meta.json says of a tokenizer; `bos` only matters where it is not `eot`."""
    return dict(zip(TOKENIZER_KEYS, (tokenizer.kind, tokenizer.hash, tokenizer.vocab_size, tokenizer.eot))) | {
        "bos": tokenizer.bos
    }


class TokenData:
    """Rows of T + 1 tokens from one .bin file, in an endless order fixed by the seed.

    Epoch e draws one offset in 0 … T - 1 and one permutation of the T-token chunks behind it, so each
    token is seen once an epoch (but for less than 2T at the ends). A step takes the next
    batch_size * grad_accum_steps * world rows of that order, whatever number of ranks shares them:
    nothing is kept between steps, and resuming needs only the step.
    """

    def __init__(self, folder, split, block_size, seed, batch_size, grad_accum_steps=1, rank=0, world=1):
        self.path, self.T, self.seed = Path(folder) / f"{split}.bin", block_size, seed
        self.batch_size, self.accum, self.rank, self.world = batch_size, grad_accum_steps, rank, world
        self.meta = read_meta(folder)
        self.vocab_size = self.meta["vocab_size"]
        if not (self.meta.get(f"{split}_tokens") and self.meta.get(f"{split}_bytes")):
            raise ValueError(f"{folder}/meta.json lacks {split}_tokens or {split}_bytes; prepare the data again")
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} is not there; run prepare_data.py with --out_dir={folder} again")
        size = self.path.stat().st_size
        if size % 2:
            raise ValueError(f"{self.path}: {size} bytes is odd, but ids are 2 bytes each; prepare it again")
        n = size // 2
        if n < block_size + 1:
            raise ValueError(f"{self.path}: {n} tokens, but one row needs block_size + 1 = {block_size + 1}; lower it")
        self.tokens = np.memmap(self.path, dtype="<u2", mode="r")
        self.n_rows = max(1, (n - block_size) // block_size)  # rows an epoch, the same for every offset
        self.n_offsets = min(block_size, n - self.n_rows * block_size)
        self.epoch, self.order, self.offset = -1, None, 0

    def rows(self, first: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows first … first + n - 1 of the endless order: x (n, T) and y (n, T), int64, y one token ahead."""
        starts = []
        for row in range(first, first + n):
            epoch, place = divmod(row, self.n_rows)
            if epoch != self.epoch:
                rng = np.random.default_rng((self.seed, epoch))
                self.epoch, self.offset = epoch, int(rng.integers(self.n_offsets))
                self.order = rng.permutation(self.n_rows)
            starts.append(self.offset + int(self.order[place]) * self.T)
        rows = np.stack([self.tokens[s : s + self.T + 1] for s in starts]).astype(np.int64)
        if rows.max() >= self.vocab_size:
            at, column = np.argwhere(rows >= self.vocab_size)[0]
            raise ValueError(
                f"{self.path}: id {rows[at, column]} at token {starts[at] + column}, but meta.json says "
                f"vocab_size={self.vocab_size}; the file is damaged or of another tokenizer, prepare it again"
            )
        rows = torch.from_numpy(rows)
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    def steps(self, epochs: float) -> int:
        """The steps that `epochs` passes over the rows take."""
        return math.ceil(epochs * self.n_rows / (self.batch_size * self.accum * self.world))

    def bits_per_byte(self, nats_per_token: float) -> float:
        """A loss that compares across tokenizers, by the text's UTF-8 bytes per token of the whole split."""
        split = self.path.stem
        return nats_per_token / math.log(2) * self.meta[f"{split}_tokens"] / self.meta[f"{split}_bytes"]

    def batch(self, step: int, micro_step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """x, y (batch_size, T) of this rank in a micro-step of a step."""
        first = (step * self.accum + micro_step) * self.world + self.rank
        return self.rows(first * self.batch_size, self.batch_size)

    def eval_batches(self, eval_rows: int):
        """This rank's share of the first `eval_rows` rows of epoch 0 (0: all), in batches of one shape.

        The rows that fill up the last batch have y = -1.
        """
        n = min(eval_rows or self.n_rows, self.n_rows)
        for first in range(self.rank * self.batch_size, n, self.world * self.batch_size):
            k = min(self.batch_size, n - first)
            x, y = self.rows(first, k)
            padding = (0, 0, 0, self.batch_size - k)
            yield F.pad(x, padding), F.pad(y, padding, value=-1)
