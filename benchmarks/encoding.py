"""Text to ids, and training a BPE, by nanodistill and by others: `bench.py --part=tokenizer` and `--part=bpe`.

Each function that returns one gives a function without arguments, which is what is timed. Modules are imported where
they are used: bench.py measures the memory of its other parts without them.
"""

import json
import os
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np


def read_documents(source: str) -> list[str]:
    """The documents of a source of prepare_data.py: "stdlib", or files."""
    from corpora.readers import pieces
    from corpora.sources import find_files, stdlib

    if source == "stdlib":
        return [document for document, _ in stdlib()]
    documents = []
    for file in find_files(source, "", Path()):
        documents += [document for document, _ in pieces(file)]
    return documents


def encoding(version: str, documents: list[str], tokenizer: str) -> Callable:
    """Encodes all documents: "nanodistill" on all cores, "tiktoken" on one, "tokenizers" on all."""
    from common.tokenizer import load_tokenizer

    ours = load_tokenizer(tokenizer)
    if version == "nanodistill":
        return partial(ours.encode_arrays, documents, os.cpu_count())
    if version == "tiktoken":
        return lambda: list(map(ours.encoding.encode_ordinary, documents))
    # in requirements-dev.txt: the project itself does not need it
    import tokenizers

    theirs = tokenizers.Tokenizer.from_str(json.dumps(ours.spec))
    return partial(theirs.encode_batch_fast, documents, add_special_tokens=False)


def is_plain(tokenizer: str) -> bool:
    """Whether tiktoken by itself gives the tokenizer's ids: no text is normalised or cut before it."""
    from common.tokenizer import load_tokenizer

    ours = load_tokenizer(tokenizer)
    return not (ours.nfc or ours.raw or ours.normalized)


def checksum(encoded: list) -> int:
    """Of the ids of all documents."""
    arrays = []
    for document in encoded:
        # the library's Encoding has its ids as an attribute, the other versions give ids themselves
        ids = getattr(document, "ids", document)
        arrays.append(np.array(ids, dtype=np.uint32))
    return zlib.crc32(np.concatenate(arrays).tobytes())


def training(version: str, documents: list[str], vocab_size: int) -> Callable:
    """Trains a BPE of vocab_size ids."""
    if version == "nanodistill":
        from common.tokenizer import SentencePieceTokenizer

        return partial(SentencePieceTokenizer.train, documents, vocab_size)
    import tokenizers

    return partial(train_reference, tokenizers, documents, vocab_size)


def train_reference(tokenizers, documents: list[str], vocab_size: int):
    """A byte-level BPE by Hugging Face's library, which is the module given."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False)
    bpe.train_from_iterator(documents, trainer)
    return bpe
