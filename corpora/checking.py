"""The check of a finished data set: its files are as meta.json says, and no document of val is in train as well."""

import hashlib
from pathlib import Path

import numpy as np

from common.data import Tokens
from common.files import file_sha256
from common.meta import read_meta
from common.tokenizer import load_tokenizer


def check_data(folder: Path):
    """ValueError unless every file is there with the size, hash and ids that meta.json says; prints a sample."""
    meta = read_meta(folder)
    tok = load_tokenizer(folder)
    check_hashes(folder, meta)
    train = check_ids(folder, meta, "train")
    val = check_ids(folder, meta, "val")
    beginning = val.take(0, min(100, len(val)))
    print(f"the first of val: {tok.decode(beginning.tolist())!r}")
    report_leaks(train, val, tok)


def check_hashes(folder: Path, meta: dict):
    """ValueError or FileNotFoundError unless the files have the bytes that meta.json was written for."""
    # meta.json of an earlier version has no list of files
    for name, recorded in meta.get("files", {}).items():
        path = folder / name
        remedy = "prepare the data again"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there, but meta.json names it; {remedy}")
        if not isinstance(recorded, dict):
            recorded = {}
        # the size first, so that a file that was cut is found without reading it
        if path.stat().st_size != recorded.get("bytes") or file_sha256(path) != recorded.get("sha256"):
            raise ValueError(f"{path}: its bytes are not those that meta.json was written for; {remedy}")


def check_ids(folder: Path, meta: dict, split: str) -> Tokens:
    """The ids of a split. ValueError unless there are as many as meta.json says, all within the vocabulary."""
    names = meta.get(f"{split}_files", [f"{split}.bin"])
    tokens = Tokens([folder / name for name in names], meta.get("dtype", "uint16"))
    largest = max((int(ids.max()) for _, ids in tokens.blocks()), default=-1)
    if len(tokens) != meta.get(f"{split}_tokens") or largest >= meta["vocab_size"]:
        counted = f"{len(tokens)} {split} tokens up to id {largest}"
        raise ValueError(f"{folder}: {counted}, which meta.json does not say")
    print(f"{split}: {len(tokens):,} tokens in {len(names)} files, ids to {largest:,}: as meta.json says")
    return tokens


def report_leaks(train: Tokens, val: Tokens, tok):
    """Print how many validation documents are training documents as well, id for id, and the first of them.

    A warning, not an error: short documents recur by nature (a licence, "Yes."), and a corpus with duplicates is still
    useful if one knows of them. Documents that differ in a single id are not found.
    """
    n_documents = len(val.documents(tok.eot)[0])
    leaked = leaked_documents(train, val, tok.eot)
    if not leaked:
        print(f"none of the {n_documents:,} validation documents is in train as well")
        return
    share = sum(length for _, length in leaked) / len(val)
    first_start, first_length = min(leaked)
    text = tok.decode(val.take(first_start, min(first_length, 50)).tolist())
    how_many = f"{len(leaked):,} of {n_documents:,} validation documents ({share:.1%} of its tokens)"
    print(f"warning: {how_many} are in train as well, the first: {text!r}")


def leaked_documents(train: Tokens, val: Tokens, eot: int) -> set[tuple[int, int]]:
    """(start in val, length) of the validation documents that are training documents as well."""
    val_starts, val_lengths = val.documents(eot)
    held_out = {}  # {hash of a document: its [(start, length)] in val}
    for start, length in zip(val_starts.tolist(), val_lengths.tolist()):
        key = document_hash(val, start, length, eot)
        held_out.setdefault(key, []).append((start, length))
    train_starts, train_lengths = train.documents(eot)
    # Hashing is slow in Python, so of the many training documents only those as long as a validation document.
    candidates = np.isin(train_lengths, np.unique(val_lengths))
    leaked = set()
    for start, length in zip(train_starts[candidates].tolist(), train_lengths[candidates].tolist()):
        key = document_hash(train, start, length, eot)
        leaked.update(held_out.get(key, ()))
    return leaked


def document_hash(tokens: Tokens, start: int, length: int, eot: int) -> bytes:
    """Hash of a document's ids, without its eot, which the last document of a split may lack."""
    ids = tokens.take(start, length)
    if ids[-1] == eot:
        ids = ids[:-1]
    return hashlib.blake2b(ids.astype("<u4").tobytes(), digest_size=16).digest()
