"""meta.json: what a data set, or a checkpoint, says of its tokenizer, its files and their counts."""

import math
from pathlib import Path

from common.files import read_json
from configurator import made_by, nearest

TOKENIZER_KEYS = ("tokenizer", "tokenizer_hash", "vocab_size", "eot")
TYPES = {"tokenizer": str, "tokenizer_hash": str, "domains": dict, "files": dict}
COUNTS = ("_tokens", "_bytes", "_documents")  # endings of the keys that count something in a split, as in train_tokens


def read_meta(folder: str | Path) -> dict:
    """meta.json of a data set or checkpoint. Raises FileNotFoundError or ValueError with the remedy."""
    path = Path(folder) / "meta.json"
    if not path.is_file():
        raise FileNotFoundError(no_data_set(Path(folder)))
    meta = read_json(path)
    missing = [key for key in TOKENIZER_KEYS if key not in meta]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; prepare the data again")
    check_meta(path, meta)
    return meta


def check_meta(path: Path, meta: dict):
    """ValueError for an entry of meta.json that is out of range or of the wrong type."""
    for key, kind in TYPES.items():
        if not isinstance(meta.get(key, kind()), kind):
            raise ValueError(f"{path}: {key}={meta[key]!r} is no {kind.__name__}; prepare the data again")
    # The file may come from somebody else, and its vocab_size becomes the size of an embedding.
    check_number(path, meta, "vocab_size", low=1, high=1 << 24)
    for key in ("eot", "bos"):
        if key in meta:
            check_number(path, meta, key, low=0, high=meta["vocab_size"] - 1)
    for key in meta:
        if key.endswith(COUNTS):
            check_number(path, meta, key, low=0, high=math.inf)
        if key.endswith("_files") and not is_list_of_names(meta[key]):
            raise ValueError(f"{path}: {key}={meta[key]!r} is no list of files; prepare the data again")
    dtype = meta.get("dtype", "uint16")
    if dtype not in ("uint16", "uint32"):
        raise ValueError(f"{path}: dtype={dtype!r} is not one of uint16, uint32; prepare the data again")


def is_list_of_names(content) -> bool:
    return isinstance(content, list) and len(content) > 0 and all(isinstance(name, str) for name in content)


def check_number(path: Path, meta: dict, key: str, low: int, high: float):
    number = meta[key]
    if not isinstance(number, int) or not low <= number <= high:
        raise ValueError(f"{path}: {key}={number!r} is out of range; prepare the data again")


def no_data_set(folder: Path) -> str:
    """The message for a folder without meta.json: which data set was meant, or the command that makes it."""
    problem = f"data set {folder} has no meta.json"
    suggestion = ""
    if not folder.is_dir():
        problem = f"data set {folder} is not there"
        # A misspelt name is close to that of a data set beside it.
        neighbours = [str(meta.parent) for meta in folder.parent.glob("*/meta.json")]
        suggestion = nearest(str(folder), neighbours)
    # "stdlib" for "data/stdlib"
    in_data = Path("data") / folder
    if (in_data / "meta.json").is_file():
        suggestion = f"; did you mean {str(in_data)!r}?"
    if suggestion:
        return problem + suggestion
    command = made_by(folder)
    if not command:
        placeholders = "--source=<file, folder or name> --tokenizer=<bytes, bpe or gpt2>"
        command = f"python prepare_data.py {placeholders} --out_dir={folder}"
    return f"{problem}; first run: {command}"


def tokenizer_meta(tokenizer) -> dict:
    """The entries of meta.json for a tokenizer; `bos` only matters where it is not `eot`.

    `start`, in checkpoints only: the ids that an empty prompt stands for (TokenData.start).
    """
    meta = {
        "tokenizer": tokenizer.kind,
        "tokenizer_hash": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "eot": tokenizer.eot,
        "bos": tokenizer.bos,
    }
    # Only the loops set it, from the training data.
    start = getattr(tokenizer, "start", None)
    if start:
        meta["start"] = start
    return meta
