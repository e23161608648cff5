"""Token streams: raw ids on disk, and batches that are a pure function of (seed, step).

A data set is a folder with

train.bin or train_000.bin, …   the documents one after the other, each ended by the tokenizer's end-of-text id;
                                ids in uint16 or, beyond 65,536 ids, uint32
val.bin, val_<domain>.bin       held-out text, of all domains and perhaps of each
meta.json                       tokenizer, hash, vocab_size, eot, files, counts, source
"""

import hashlib
import json
import math
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from common.meta import COUNTS, read_meta
from common.number_file import NumberFile

# The public pretokenised sets (those of llm.c and modded-nanogpt) have a header, which begins with this int32.
MAGIC = 20240520
HEADER = 1024  # its size in bytes
# How many ids a pass over the whole stream reads at a time: the stream may be larger than memory.
SCAN = 1 << 24


# ---------------------------------------------------------------------------------------------
# files of ids


class Tokens:
    """The ids of several files as one stream, memory-mapped.

    A file is nothing but ids of `dtype`, or has the header of the public pretokenised sets: 256 int32, of which the
    first three are 20240520, 1 and the number of ids, uint16 each.
    """

    def __init__(self, paths: list[Path], dtype: str):
        little_endian = np.dtype(dtype).newbyteorder("<")
        self.files = [self.open(path, little_endian) for path in paths]
        # where in the stream each file ends
        self.ends = np.cumsum([len(file) for file in self.files])

    @staticmethod
    def open(path: Path, dtype: np.dtype) -> NumberFile:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there; run prepare_data.py with --out_dir={path.parent} again")
        size = path.stat().st_size
        first_numbers = np.fromfile(path, "<i4", 3)
        offset = 0
        if len(first_numbers) == 3 and first_numbers[0] == MAGIC:
            # a Python int: the bytes of 2**30 ids are more than an int32 holds
            n_ids = int(first_numbers[2])
            if first_numbers[1] != 1 or size != HEADER + 2 * n_ids or n_ids < 0:
                header_says = f"its header says {n_ids} ids"
                raise ValueError(f"{path}: {size} bytes, but {header_says}; it was cut, fetch it again")
            dtype = np.dtype("<u2")
            offset = HEADER
        elif size % dtype.itemsize:
            id_bytes = f"{dtype.itemsize}, the bytes of an id"
            raise ValueError(f"{path}: {size} bytes is no multiple of {id_bytes}; prepare it again")
        return NumberFile(path, dtype, start=offset)

    def __len__(self) -> int:
        if not self.files:
            return 0
        return int(self.ends[-1])

    def take(self, start: int, n: int) -> np.ndarray:
        """Ids start … start + n - 1, whichever files they lie in."""
        pieces = []
        # side="right": a file that ends at `start` does not hold it, and an empty file holds nothing.
        number = int(np.searchsorted(self.ends, start, side="right"))
        while n > 0:
            file = self.files[number]
            file_start = int(self.ends[number]) - len(file)
            piece = file.read(start - file_start, n)
            pieces.append(piece)
            start += len(piece)
            n -= len(piece)
            number += 1
        # Nearly always one piece: a view of the mapped file, which copies nothing.
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces)

    def blocks(self):
        """Yield (start in the stream, ids) of all files, at most SCAN ids at once."""
        file_start = 0
        for file in self.files:
            for first in range(0, len(file), SCAN):
                yield file_start + first, file.read(first, SCAN)
            file_start += len(file)

    def documents(self, eot: int) -> tuple[np.ndarray, np.ndarray]:
        """(start, length) of each document of two ids or more, its end-of-text id included."""
        ends = []
        for start, ids in self.blocks():
            ends.append(np.flatnonzero(ids == eot) + start + 1)
        # The last document may lack its end-of-text id, if the stream was cut from a longer one.
        ends.append([len(self)])
        ends = np.unique(np.concatenate(ends))
        starts = np.concatenate([[0], ends[:-1]])
        lengths = ends - starts
        # A row needs an input and a target.
        has_target = lengths >= 2
        return starts[has_target], lengths[has_target]


# ---------------------------------------------------------------------------------------------
# rows and batches


class TokenData:
    """Rows of T + 1 tokens from one split, in an endless order fixed by the seed.

    packing="constant" cuts the stream into chunks of T = block_size tokens. Each epoch draws an offset in 0 … T - 1
    at which the first chunk begins (random_offset=False: 0), and a permutation of the chunks: their order. So each
    token is an input once an epoch, but for less than 2T at the ends. 17 tokens, T = 4, seed 4:

        token     0  1  2  3  4  5  6  7  8  9 10 11 12 13 14 15 16
        epoch 0        [ chunk 0 ] [ chunk 1 ] [ chunk 2 ]            offset 2, order 2 0 1
        epoch 1     [ chunk 0 ] [ chunk 1 ] [ chunk 2 ]               offset 1, order 1 2 0

        row 0, chunk 2 of epoch 0:  x = 10 11 12 13   y = 11 12 13 14
        row 1, chunk 0 of epoch 0:  x =  2  3  4  5   y =  3  4  5  6
        row 3, chunk 1 of epoch 1:  x =  5  6  7  8   y =  6  7  8  9

    packing="documents" makes a row of each document: cut after T + 1 tokens, or padded with eot, where y is -1 (no
    target). Each epoch draws a permutation of the documents. T = 4, a document of 3 tokens with its eot:

        x = 40 41 eot eot   y = 41 eot -1 -1

    A step takes the next batch_size * grad_accum_steps * world rows of that order, however many ranks share them.
    Nothing is kept between steps, so that resuming needs only the step.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,  # "train", "val" or "val_<domain>"
        block_size: int,
        seed: int,
        batch_size: int,  # rows per micro-step and rank
        grad_accum_steps=1,
        rank=0,
        world=1,  # ranks
        packing="constant",  # or "documents"
        random_offset=True,
    ):
        if packing not in ("constant", "documents"):
            raise ValueError(f"packing={packing!r} is not one of constant, documents")
        self.folder = Path(folder)
        self.split = split
        self.T = block_size
        self.seed = seed
        self.batch_size = batch_size
        self.grad_accum_steps = grad_accum_steps
        self.rank = rank
        self.world = world
        self.packing = packing
        self.meta = read_meta(folder)
        self.vocab_size = self.meta["vocab_size"]
        self.tokens = self.open_split()
        if packing == "documents":
            self.document_starts, self.document_lengths = self.tokens.documents(self.meta["eot"])
        self.n_rows, self.n_offsets = self.count_rows(random_offset)
        # The epoch that was drawn last; the next row is nearly always of the same one.
        self.epoch = -1
        self.offset = 0
        self.order = None  # (n_rows,): the chunk or document of each row of the epoch
        # Step first_step begins with row first_row of the endless order; see continue_at.
        self.first_step = 0
        self.first_row = 0

    def open_split(self) -> Tokens:
        """The split's ids. ValueError if meta.json counts others, or if they are too few for a row."""
        n_tokens = self.meta.get(f"{self.split}_tokens")
        if not n_tokens or not self.meta.get(f"{self.split}_bytes"):
            lacking = f"{self.split}_tokens or {self.split}_bytes"
            raise ValueError(f"{self.folder}/meta.json lacks {lacking}; prepare the data again")
        files = self.meta.get(f"{self.split}_files", [f"{self.split}.bin"])
        paths = [self.folder / name for name in files]
        tokens = Tokens(paths, self.meta.get("dtype", "uint16"))
        found = f"{paths[0]}: {len(tokens)} tokens"
        # A file cut off after a whole id looks like a shorter one. Only the count in meta.json shows it, which
        # prepare_data.py writes along with the list of files.
        if f"{self.split}_files" in self.meta and len(tokens) != n_tokens:
            raise ValueError(f"{found}, but meta.json says {n_tokens}; it was cut, prepare it again")
        # A document may be shorter than a row, but not than an input and a target.
        fewest = 2
        if self.packing == "constant":
            fewest = self.T + 1
        if len(tokens) < fewest:
            raise ValueError(f"{found}, but one row needs block_size + 1 = {self.T + 1}; lower it")
        return tokens

    def count_rows(self, random_offset: bool) -> tuple[int, int]:
        """(rows of an epoch, offsets that its first chunk may have)."""
        if self.packing == "documents":
            return len(self.document_starts), 1
        # As many rows as fit after the largest offset, T - 1, with one more token for the last target: so all epochs
        # are equally long. A stream too short for that has one row, and only the offsets that leave room for it.
        n_tokens = len(self.tokens)
        n_rows = max(1, (n_tokens - self.T) // self.T)
        n_offsets = min(self.T, n_tokens - n_rows * self.T)
        return n_rows, n_offsets if random_offset else 1

    @property
    def identity(self) -> str:
        """A hash that tells data sets apart, even under one name: of meta.json's counts and file hashes."""
        facts = {}
        for key, value in self.meta.items():
            # the files' hashes, which prepare_data.py writes, and the counts, which are always there
            if key in ("files", "tokenizer_hash") or key.endswith(COUNTS):
                facts[key] = value
        # without hashes two data sets may well have the same counts: only the folder tells them apart
        if "files" not in self.meta:
            facts["folder"] = str(self.folder)
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def domains(self) -> list[str]:
        """The domains whose held-out text, the split val_<domain>, is enough for a row."""
        names = self.meta.get("domains", {})
        return [name for name in names if self.meta.get(f"val_{name}_tokens", 0) > self.T]

    def ids(self, start: int, n: int) -> np.ndarray:
        """Ids start … start + n - 1 of the split. ValueError for one beyond the vocabulary."""
        ids = self.tokens.take(start, n)
        # An embedding would answer with an index error, or on CUDA with an assertion that names neither file nor id.
        if ids.max() >= self.vocab_size:
            place = start + int(np.argmax(ids >= self.vocab_size))
            raise ValueError(
                f"{self.folder}, {self.split}: id {ids.max()} at token {place}, but meta.json says "
                f"vocab_size={self.vocab_size}; a file is damaged or of another tokenizer, prepare it again"
            )
        return ids

    def draw_epoch(self, epoch: int):
        """Draw the offset and the order of an epoch.

        Seeded by the epoch, not continued from the one before: any row is found without drawing those before it. A new
        offset shows the model other contexts for the same tokens, and the same token at other positions.
        """
        if epoch == self.epoch:
            return
        rng = np.random.default_rng((self.seed, epoch))
        self.offset = int(rng.integers(self.n_offsets))
        self.order = rng.permutation(self.n_rows)
        self.epoch = epoch

    def corpus_row(self, row: int) -> int:
        """The number in the corpus of the chunk or document that is row `row` of the endless order. Draws its epoch."""
        epoch, place = divmod(row, self.n_rows)
        self.draw_epoch(epoch)
        return int(self.order[place])

    def chosen(self, first: int, n: int) -> np.ndarray:
        """`corpus_row` of rows first … first + n - 1 of the endless order: (n,).

        By these numbers, and with random_offset=False, a cache finds what it has stored for a row.
        """
        return np.array([self.corpus_row(row) for row in range(first, first + n)], dtype=np.int64)

    def span(self, number: int, offset: int) -> tuple[int, int]:
        """(start, length) in the stream of a chunk, where the first begins at `offset`, or of a document."""
        if self.packing == "documents":
            document_length = int(self.document_lengths[number])
            return int(self.document_starts[number]), min(document_length, self.T + 1)
        return offset + number * self.T, self.T + 1

    def row_span(self, row: int) -> tuple[int, int]:
        """(start, length) in the stream of row `row` of the endless order."""
        number = self.corpus_row(row)  # draws the epoch, and its offset
        return self.span(number, self.offset)

    def rows(self, first: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows first … first + n - 1 of the endless order: x, y (n, T), int64, y one token ahead of x or -1."""
        return self.read([self.row_span(row) for row in range(first, first + n)])

    def corpus_rows(self, numbers) -> tuple[torch.Tensor, torch.Tensor]:
        """The chunks (of offset 0) or documents with these numbers in the corpus: x, y as of `rows`."""
        return self.read([self.span(int(number), offset=0) for number in numbers])

    def read(self, spans: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows that lie at these (start, length) in the stream: x, y (len(spans), T)."""
        # The rest of a row stays eot: the model needs some id there, but is not scored on it.
        ids = np.full((len(spans), self.T + 1), self.meta["eot"], dtype=np.int64)
        lengths = np.empty(len(spans), dtype=np.int64)
        for i, (start, length) in enumerate(spans):
            ids[i, :length] = self.ids(start, length)
            lengths[i] = length
        # copies: x and y must be contiguous, and y is changed below
        x = ids[:, :-1].copy()
        y = ids[:, 1:].copy()
        # By length, not where the id is eot: the eot that ends a document is a target.
        is_padding = np.arange(1, self.T + 1) >= lengths[:, None]  # (n, T)
        y[is_padding] = -1
        return torch.from_numpy(x), torch.from_numpy(y)

    def batch(self, step: int, micro_step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """x, y (batch_size, T) of this rank in a micro-step of a step."""
        return self.rows(self.first_of_batch(step, micro_step), self.batch_size)

    def batch_rows(self, step: int, micro_step: int) -> np.ndarray:
        """(batch_size,): the number in the corpus of each row of `batch`."""
        return self.chosen(self.first_of_batch(step, micro_step), self.batch_size)

    def first_of_batch(self, step: int, micro_step: int) -> int:
        """The first row, in the endless order, of this rank's batch in a micro-step of a step."""
        micro_steps_done = (step - self.first_step) * self.grad_accum_steps + micro_step
        # Within a micro-step the ranks take consecutive batches: a step holds the same rows however they are divided.
        batches_before = micro_steps_done * self.world + self.rank
        return self.first_row + batches_before * self.batch_size

    def rows_of_step(self, step: int) -> tuple[int, int]:
        """(first row of the endless order, number of rows) of a step, those of all ranks."""
        n = self.batch_size * self.grad_accum_steps * self.world
        return self.first_row + (step - self.first_step) * n, n

    def eval_batches(self, eval_rows: int):
        """This rank's share of the first `eval_rows` rows of epoch 0 (0: all), in batches of one shape.

        For a given seed they are a fixed random subset. The rows that pad the last batch have y = -1.
        """
        for first, n_real in self.eval_ranges(eval_rows):
            x, y = self.rows(first, n_real)
            # Padded to one shape: torch.compile would compile once more for a smaller last batch.
            padding = (0, 0, 0, self.batch_size - n_real)
            yield F.pad(x, padding), F.pad(y, padding, value=-1)

    def eval_batch_rows(self, eval_rows: int):
        """(batch_size,) for each batch of `eval_batches`: the numbers of its rows in the corpus.

        The rows that pad it have the number of its first row, or in a batch of 0 rows that of the very first row: any
        row that a cache is sure to have will do.
        """
        for first, n_real in self.eval_ranges(eval_rows):
            numbers = np.full(self.batch_size, self.corpus_row(first if n_real else 0))
            numbers[:n_real] = self.chosen(first, n_real)
            yield numbers

    def eval_ranges(self, eval_rows: int):
        """(first row, rows) of each batch of this rank's share of the first `eval_rows` rows (0: all).

        All ranks have the same number of batches, the last perhaps of 0 rows: if they divide a model (shard), they must
        compute together.
        """
        n = self.n_eval_rows(eval_rows)
        for first_of_ranks in range(0, n, self.world * self.batch_size):
            first = first_of_ranks + self.rank * self.batch_size
            yield min(first, n), max(0, min(self.batch_size, n - first))

    def n_eval_rows(self, eval_rows: int) -> int:
        """How many rows the knob eval_rows (0: all) stands for."""
        return min(eval_rows or self.n_rows, self.n_rows)

    def continue_at(self, step: int, row: int):
        """From here on step `step` begins with row `row` of the endless order.

        A run resumed with the same number of rows a step would begin there anyway. With this, one with more or fewer
        repeats no row and skips none.
        """
        self.first_step = step
        self.first_row = row

    def steps(self, epochs: float) -> int:
        """The number of steps after which `epochs` passes over the rows are done."""
        rows_per_step = self.batch_size * self.grad_accum_steps * self.world
        # How many more rows a resumed run has taken than as many steps of this size would have.
        rows_ahead = self.first_row - self.first_step * rows_per_step
        return math.ceil((epochs * self.n_rows - rows_ahead) / rows_per_step)

    def start(self) -> list[int]:
        """The ids that an empty prompt stands for: what the rows have before the beginning of a text, its end-of-text.

        Where no row has one text after another, an id from the beginning of the first text instead.
        """
        if self.packing == "documents":
            # the eot is only ever the end of a row
            return self.tokens.take(int(self.document_starts[0]), 1).tolist()
        if self.meta.get(f"{self.split}_documents", 0) > 1:
            return [self.meta["eot"]]
        # The very first token is an input only in epochs of offset 0, but tokens T - 1 … n_rows * T - 1 are inputs in
        # all. So take the first id that also occurs among these, or among as many of them as are quickly read.
        n_inputs = min(self.n_rows * self.T - self.T + 1, SCAN)
        beginning = self.tokens.take(0, self.T)
        is_input = np.isin(beginning, self.tokens.take(self.T - 1, n_inputs))
        return beginning[is_input][:1].tolist()

    @property
    def share_used(self) -> float:
        """The share of the split's tokens that are in some row; 1.0 for packing="constant"."""
        return self.tokens_used() / len(self.tokens)

    def tokens_used(self) -> int:
        if self.packing == "constant":
            return len(self.tokens)
        return int(np.minimum(self.document_lengths, self.T + 1).sum())

    @property
    def packing_note(self) -> str:
        """What to tell a user whose rows leave out part of the split; "" if that is under 0.5 %."""
        if self.share_used > 0.995:
            return ""
        return (
            f'packing="documents": {self.n_rows:,} rows use {self.tokens_used():,} of the {len(self.tokens):,} tokens '
            f"of {self.split} ({self.share_used:.1%}), as a document is cut after block_size + 1 = {self.T + 1}; to "
            "use more, take --packing=constant, or shorter documents (prepare_data.py --document_separator)"
        )

    def bits_per_byte(self, nats_per_token: float) -> float:
        """A loss that can be compared across tokenizers: per UTF-8 byte of the text that the targets stand for.

        packing="constant": with the tokens per byte of the whole split. packing="documents": with those of the targets
        of all rows, as the beginnings of documents may be unlike the rest; NaN where no target stands for text.
        """
        if self.packing == "constant":
            n_targets = self.meta[f"{self.split}_tokens"]
            n_bytes = self.meta[f"{self.split}_bytes"]
        else:
            n_targets, n_bytes = self.targets_and_bytes
        if n_bytes == 0:
            return math.nan
        return nats_per_token / math.log(2) * n_targets / n_bytes

    @cached_property
    def targets_and_bytes(self) -> tuple[int, float]:
        """The targets of the rows of packing="documents", all of a row but its first token, and their UTF-8 bytes.

        Bytes of the text as it was: a tokenizer that normalises (NFKC) has ids of fewer or more bytes, and these count
        by the share that they have of all the split's.
        """
        # imported here, as that module reads meta.json through this one
        from common.tokenizer import load_tokenizer

        byte_lengths = load_tokenizer(self.folder).byte_lengths()
        n_targets = 0
        n_bytes = 0
        for start, length in zip(self.document_starts.tolist(), self.document_lengths.tolist()):
            row_length = min(length, self.T + 1)
            targets = self.ids(start + 1, row_length - 1)
            n_targets += len(targets)
            n_bytes += int(byte_lengths[targets].sum())
        # over the whole split, whose bytes before normalising meta.json has
        n_bytes_of_all = 0
        for start in range(0, len(self.tokens), SCAN):
            n = min(SCAN, len(self.tokens) - start)
            n_bytes_of_all += int(byte_lengths[self.ids(start, n)].sum())
        if n_bytes_of_all:
            n_bytes = n_bytes * self.meta[f"{self.split}_bytes"] / n_bytes_of_all
        return n_targets, n_bytes
