"""Data sets whose files are tokens already: public shards of GPT-2's ids, used as they are."""

from pathlib import Path

import numpy as np

from common.data import Tokens
from common.files import file_sha256, write_json
from common.meta import tokenizer_meta
from common.tokenizer import load_tokenizer
from corpora.readers import File
from corpora.writing import lock_folder, remove_data_set


def use_shards(files: list[File], folder: Path, source: str):
    """Make files of GPT-2's ids with headers a data set: only meta.json is written, and the tokenizer."""
    tok = load_tokenizer("gpt2")
    lock = lock_folder(folder)
    meta = tokenizer_meta(tok) | {"source": source, "dtype": "uint16", "domains": {}, "files": {}}
    # Everything is checked and counted before an earlier data set in the folder is removed.
    for split in ("train", "val"):
        paths = [file.path for file in files if file.split == split]
        tokens = Tokens(paths, "uint16")
        if not len(tokens):
            expected = f"expected <name>_{split}_000000.bin"
            raise ValueError(f"source {source!r}: no file with {split} in its name; {expected}")
        n_documents, n_bytes = count(tokens, tok)
        names = [name_from(folder, path) for path in paths]
        meta[f"{split}_tokens"] = len(tokens)
        meta[f"{split}_bytes"] = n_bytes
        meta[f"{split}_documents"] = n_documents
        meta[f"{split}_files"] = names
        for name, path in zip(names, paths):
            meta["files"][name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    # The shards may lie in the folder, downloaded for an earlier data set of the same source.
    remove_data_set(folder, keep=[file.path for file in files])
    tok.save(folder)
    write_json(folder / "meta.json", meta)
    lock.close()


def count(tokens: Tokens, tok) -> tuple[int, int]:
    """(documents, bytes of text) of a stream of uint16 ids."""
    # An id beyond the vocabulary counts as no bytes here; --check finds it.
    beyond = np.zeros(1 << 16, dtype=np.int64)
    bytes_of_id = np.append(tok.byte_lengths(), beyond)
    n_documents = 0
    n_bytes = 0
    for _, ids in tokens.blocks():
        n_documents += int((ids == tok.eot).sum())
        n_bytes += int(bytes_of_id[ids].sum())
    return n_documents, n_bytes


def name_from(folder: Path, path: Path) -> str:
    """How meta.json in `folder` names a shard: by its path relative to the folder if it lies there, else absolute."""
    if path.is_relative_to(folder):
        return str(path.relative_to(folder))
    return str(path.resolve())
