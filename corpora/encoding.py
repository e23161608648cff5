"""Text to ids: the tokenizer of a data set, and batches that are encoded while the next one is read."""

import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from common.tokenizer import ByteTokenizer, SentencePieceTokenizer, load_tokenizer
from configurator import nearest
from corpora.stream import Stream

# Bytes of text that a BPE is trained on, as the trainer holds them in memory.
BPE_SAMPLE = 1 << 26
KINDS = ("bytes", "bpe", "gpt2")
# nanoGPT has a tokenizer of characters, so users ask for one; there is none here.
CHARACTERS = ("char", "chars", "character", "characters")


def make_tokenizer(kind: str, vocab_size: int, nfkc: bool, stream: Stream):
    """The tokenizer of one of KINDS, or that of the folder or hub repository `kind`.

    "bpe" is trained on the training split of the stream. ValueError or OSError with the remedy.
    """
    if kind == "bytes":
        return ByteTokenizer()
    if kind == "bpe":
        return train_bpe(vocab_size, nfkc, stream)
    # A folder may have that name.
    if kind in CHARACTERS and not Path(kind).exists():
        nearest_kind = "--tokenizer=bytes is the nearest, 257 ids"
        raise ValueError(f"tokenizer={kind!r}: there is none of characters; {nearest_kind}")
    try:
        return load_tokenizer(kind)
    except OSError as error:
        # the name is right, so it was the download that failed, and the error says so
        if kind in KINDS:
            raise
        suggestion = nearest(kind.lower(), KINDS)
        problem = f"tokenizer={kind!r} is not one of {', '.join(KINDS)}{suggestion}"
        raise type(error)(f"{problem}; and {error}") from None


def train_bpe(vocab_size: int, nfkc: bool, stream: Stream) -> SentencePieceTokenizer:
    """A BPE trained on the training split of the stream, or on a sample of about BPE_SAMPLE bytes spread over it."""
    if not 300 <= vocab_size <= 65536:
        bounds = "a bpe needs 300 to 65,536 (bytes come first, ids are uint16)"
        raise ValueError(f"vocab_size={vocab_size}: {bounds}")
    # The sizes are those on the disk; the sample of compressed files is larger.
    every = max(1, math.ceil(sum(stream.sizes) / BPE_SAMPLE))
    sample = "the training split"
    if every > 1:
        sample = f"one in {every} pieces of the training split"
    print(f"training a BPE of {vocab_size:,} on {sample} …", flush=True)
    # Validation text must not influence the vocabulary.
    training_texts = (piece.text for piece in stream if piece.split == "train")
    return SentencePieceTokenizer.train(islice(training_texts, 0, None, every), vocab_size, nfkc)


def encode_ahead(batches, tok, workers: int):
    """Yield (batch, the ids of each of its pieces) for each of the batches, in order.

    The tokenizer releases Python's lock: while other cores encode a batch, this one reads and cleans the next.
    """
    # at most two (batch, future): one that is being encoded, and one that waits for it
    in_progress = deque()
    with ThreadPoolExecutor(1) as pool:
        for batch in batches:
            texts = [piece.text for piece in batch]
            in_progress.append((batch, pool.submit(tok.encode_arrays, texts, workers)))
            if len(in_progress) > 1:
                earlier, ids = in_progress.popleft()
                yield earlier, ids.result()
        while in_progress:
            earlier, ids = in_progress.popleft()
            yield earlier, ids.result()
