"""The check of a finished data set: its files as meta.json says, and no validation document among the training ones."""

import hashlib
from pathlib import Path

import numpy as np

from common.data import Tokens, read_meta
from common.files import file_sha256
from common.tokenizer import load_tokenizer


def check_data(folder: Path):
    """ValueError unless every file is there with the size, hash and ids that meta.json says; prints a sample."""
    meta, tok = read_meta(folder), load_tokenizer(folder)
    for name, said in meta.get("files", {}).items():
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there, but meta.json names it; prepare the data again")
        if path.stat().st_size != said["bytes"] or file_sha256(path) != said["sha256"]:
            raise ValueError(f"{path}: its bytes are not those that meta.json was written for; prepare the data again")
    splits = {}
    for name in ("train", "val"):
        files = meta.get(f"{name}_files", [f"{name}.bin"])
        tokens = Tokens([folder / file for file in files], meta.get("dtype", "uint16"))
        largest = -1
        for ids in tokens.maps:
            for first in range(0, len(ids), 1 << 24):  # a part at a time: the stream may be larger than memory
                largest = max(largest, int(ids[first : first + (1 << 24)].max()))
        if len(tokens) != meta.get(f"{name}_tokens") or largest >= meta["vocab_size"]:
            raise ValueError(f"{folder}: {len(tokens)} {name} tokens up to id {largest}, which meta.json does not say")
        print(f"{name}: {len(tokens):,} tokens in {len(tokens.maps)} files, ids to {largest:,}: as meta.json says")
        splits[name] = tokens
    print(f"the first of val: {tok.decode(splits['val'].take(0, min(100, len(splits['val']))).tolist())!r}")
    check_leaks(splits["train"], splits["val"], tok)


def check_leaks(train: Tokens, val: Tokens, tok):
    """Print how many validation documents are training documents as well, to the last id, and the first of them.

    A warning and no error: short documents recur by nature (a licence, "Yes."), and a corpus that holds some twice is
    still of use, as long as one knows. Documents that differ in a single id are not found.
    """
    held_out = {}  # hash of a document's ids: where it begins in val, and its length
    starts, lengths = val.documents(tok.eot)
    for start, length in zip(starts.tolist(), lengths.tolist()):
        held_out.setdefault(document_hash(val, start, length, tok.eot), []).append((start, length))
    sizes = np.unique(lengths)
    leaked = set()
    train_starts, train_lengths = train.documents(tok.eot)
    same_length = np.isin(train_lengths, sizes)
    for start, length in zip(train_starts[same_length].tolist(), train_lengths[same_length].tolist()):
        leaked.update(held_out.get(document_hash(train, start, length, tok.eot), ()))
    if not leaked:
        print(f"none of the {len(starts):,} validation documents is in train as well")
        return
    start, length = min(leaked)
    share = sum(n for _, n in leaked) / len(val)
    text = tok.decode(val.take(start, min(length, 50)).tolist())
    print(
        f"warning: {len(leaked):,} of {len(starts):,} validation documents ({share:.1%} of its tokens) are in train as "
        f"well, the first: {text!r}"
    )


def document_hash(tokens: Tokens, start: int, length: int, eot: int) -> bytes:
    """Of the ids of a document. The last document of a split may lack its eot, which therefore does not count."""
    ids = tokens.take(start, length)
    ids = ids[:-1] if ids[-1] == eot else ids
    return hashlib.blake2b(ids.astype("<u4").tobytes(), digest_size=16).digest()
