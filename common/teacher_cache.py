"""Cached teachers: their mixed distribution at each position of a corpus, stored once and read by distill.py.

A cache is a folder that cache_teacher.py makes. For each split ("train", "val") it has flat little-endian files, the
records of R rows of T positions one after the other, so that a row is one contiguous piece of each file:

    <split>_rows.bin       (R,)          int64             number in the corpus of each row, ascending
    <split>_ids.bin        (R, T, k)     uint16 or uint32  the k likeliest ids, likeliest first; uint32 where V > 65,536
    <split>_log_probs.bin  (R, T, k)     number_format     their log-probabilities
    <split>_log_tail.bin   (R, T)        float32           log of the probability of all other ids; -1e9 where it is 0
    <split>_draws.bin      (R, T, m)     as ids            m ids drawn from those others, with replacement
    <split>_entropy.bin    (R, T)        float32           of the whole distribution, in nats
    cache.json                                             which teachers, data and knobs it is of; written last

All is of p = softmax(logits / temperature) over the true vocabulary, V ids. top_k = 0: no ids and log_probs; draws = 0:
no draws. top_k = -1, the whole distribution: log_probs is (R, T, V), in the order of ids, and there are neither ids nor
log_tail nor draws.

Bytes a token, with 16-bit ids and float16: k ids of 2 + 2, log_tail 4, entropy 4, and 2 a draw:

    k = 4: 4 * 4 + 8 = 24      k = 16: 16 * 4 + 8 = 72      k = 64: 64 * 4 + 8 = 264
    the whole distribution at V = 16,000: 16,000 * 2 + 4 = 32,004

common/cache_writer.py writes it.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common.data import TokenData
from common.files import file_sha256, read_json
from common.meta import read_meta
from common.number_file import NumberFile
from common.runtime import to_device
from configurator import COMMAND_LINE
from losses import Stored, check_tail

FORMAT = 1
SPLITS = ("train", "val")
WHOLE = -1  # top_k: the distribution over all ids
NUMBER_FORMATS = ("float16", "float32")
MAKE_AGAIN = "make the cache again with cache_teacher.py, in another out_dir"
JOIN_PARTS = "first join the parts: the cache_teacher.py command again, with --part=join"


# ---------------------------------------------------------------------------------------------
# layout


@dataclass(frozen=True)
class Field:
    """One of a split's files: `width` numbers of a dtype for each position."""

    dtype: np.dtype
    width: int

    @property
    def bytes_per_token(self) -> int:
        return self.dtype.itemsize * self.width


def ids_dtype(vocab_size: int) -> str:
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def fields(vocab_size: int, top_k: int, draws: int, number_format: str) -> dict[str, Field]:
    """The files of a split by name, but for that of its rows' numbers."""
    ids = np.dtype(ids_dtype(vocab_size)).newbyteorder("<")
    number = np.dtype(number_format).newbyteorder("<")
    fp32 = np.dtype("<f4")
    entropy = {"entropy": Field(fp32, 1)}
    if top_k == WHOLE:
        return {"log_probs": Field(number, vocab_size)} | entropy
    layout = {
        "ids": Field(ids, top_k),
        "log_probs": Field(number, top_k),
        "log_tail": Field(fp32, 1),
        "draws": Field(ids, draws),
    }
    layout |= entropy
    return {name: field for name, field in layout.items() if field.width > 0}


def bytes_per_token(layout: dict[str, Field]) -> int:
    """
    >>> bytes_per_token(fields(vocab_size=16_000, top_k=16, draws=0, number_format="float16"))
    72
    """
    return sum(field.bytes_per_token for field in layout.values())


def has_parts(folder: Path) -> bool:
    """Whether a folder holds parts of a cache, which are to be joined."""
    return any(folder.glob("part_*of*/cache.json")) or any(folder.glob("part_*of*/unfinished.json"))


def layout_of(info: dict) -> dict[str, Field]:
    """The fields of the cache whose cache.json is `info`."""
    return fields(info["vocab_size"], info["top_k"], info["draws"], info["number_format"])


def row_bytes(info: dict) -> dict[str, int]:
    """{file without its split: bytes of a row}."""
    sizes = {"rows.bin": 8}
    for name, field in layout_of(info).items():
        sizes[f"{name}.bin"] = info["block_size"] * field.bytes_per_token
    return sizes


def sizes_of(info: dict) -> dict[str, int]:
    """{file: bytes} of all splits."""
    sizes = {}
    for split in SPLITS:
        n_rows = info["splits"][split]["rows"]
        for name, bytes_per_row in row_bytes(info).items():
            sizes[f"{split}_{name}"] = n_rows * bytes_per_row
    return sizes


def token_files_sha256(data: TokenData) -> list[str]:
    """SHA-256 of each of a split's token files."""
    names = data.meta.get(f"{data.split}_files", [f"{data.split}.bin"])
    return [file_sha256(data.folder / name) for name in names]


# ---------------------------------------------------------------------------------------------
# cache.json


# key: (type, lowest, highest) of its number
NUMBERS = {
    "vocab_size": (int, 1, 1 << 24),
    "block_size": (int, 1, 1 << 24),
    "top_k": (int, WHOLE, 1 << 24),
    "draws": (int, 0, 1 << 24),
    "seed": (int, 0, 1 << 63),
    "temperature": (float, 1e-3, 1e300),
}
CHOICES = {
    "format": (FORMAT,),
    "packing": ("constant", "documents"),
    "random_offset": (False,),
    "ensemble": ("logits", "probs"),
    "number_format": NUMBER_FORMATS,
}
TEXTS = ("tokenizer_hash", "dtype", "teacher_dtype")
LISTS = {"teachers": str, "teacher_sha256": str, "shares": float}


def read_info(path: Path) -> dict:
    """The contents of a cache.json, checked. ValueError naming the key that is missing or out of range."""
    info = read_json(path)
    if "part" in info:
        raise ValueError(f"{path} is of part {info['part']} of a cache; {JOIN_PARTS}")
    # The file may come from somebody else, and its numbers become the sizes of mapped files.
    for key, (kind, low, high) in NUMBERS.items():
        number = info.get(key)
        # type(), not isinstance(): True is an int as well
        if type(number) is not kind or not low <= number <= high:
            raise ValueError(f"{path}: {key}={number!r} is out of range; {MAKE_AGAIN}")
    for key, choices in CHOICES.items():
        if info.get(key) not in choices or type(info[key]) is not type(choices[0]):
            listed = ", ".join(map(str, choices))
            raise ValueError(f"{path}: {key}={info.get(key)!r} is not one of {listed}; {MAKE_AGAIN}")
    for key in TEXTS:
        if not isinstance(info.get(key), str):
            raise ValueError(f"{path}: {key}={info.get(key)!r} is no text; {MAKE_AGAIN}")
    for key, kind in LISTS.items():
        if not is_list_of(info.get(key), kind):
            raise ValueError(f"{path}: {key}={info.get(key)!r} is no list of {kind.__name__}; {MAKE_AGAIN}")
    expected_ids = ids_dtype(info["vocab_size"])
    if info.get("ids_dtype") != expected_ids:
        problem = f"ids_dtype={info.get('ids_dtype')!r}, but {info['vocab_size']} ids are {expected_ids}"
        raise ValueError(f"{path}: {problem}; {MAKE_AGAIN}")
    if info["top_k"] > info["vocab_size"]:
        raise ValueError(f"{path}: top_k={info['top_k']} is over vocab_size={info['vocab_size']}; {MAKE_AGAIN}")
    check_splits(path, info.get("splits"))
    return info


def is_list_of(values, kind: type) -> bool:
    return isinstance(values, list) and len(values) > 0 and all(type(value) is kind for value in values)


def check_splits(path: Path, splits):
    """ValueError unless each split has its counts and the hashes of its token files."""
    for split in SPLITS:
        part = splits.get(split) if isinstance(splits, dict) else None
        if not isinstance(part, dict) or not is_list_of(part.get("sha256"), str):
            raise ValueError(f"{path} lacks the hashes of the token files of {split}; {MAKE_AGAIN}")
        stored = part.get("rows")
        in_corpus = part.get("n_rows")
        are_counts = type(stored) is int and type(in_corpus) is int and 1 <= stored <= in_corpus < 1 << 48
        if not are_counts:
            raise ValueError(f"{path}: {split} has rows={stored!r} of n_rows={in_corpus!r}; {MAKE_AGAIN}")


# ---------------------------------------------------------------------------------------------
# read


class TeacherCache:
    """A finished cache, memory-mapped. ValueError or FileNotFoundError, one line, if anything is wrong with it.

    `info` is cache.json: teachers, teacher_sha256, vocab_size, block_size, top_k, draws, temperature and so on.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        path = self.folder / "cache.json"
        if not path.is_file():
            if (self.folder / "unfinished.json").is_file():
                remedy = "run the cache_teacher.py command again, which continues it"
                raise ValueError(f"{self.folder} is an unfinished cache; {remedy}")
            if has_parts(self.folder):
                raise ValueError(f"{self.folder} holds parts of a cache; {JOIN_PARTS}")
            raise FileNotFoundError(f"{path} is not there; first run: python cache_teacher.py --out_dir={self.folder}")
        self.info = read_info(path)
        self.layout = layout_of(self.info)
        self.T = self.info["block_size"]
        self.vocab_size = self.info["vocab_size"]
        self.is_whole = self.info["top_k"] == WHOLE
        sizes = sizes_of(self.info)
        self.files = {}  # {split: {field: its file}}, the records of rows one after the other
        self.numbers = {}  # {split: (rows,)}: the number in the corpus of each stored row, ascending
        for split in SPLITS:
            n_rows = self.info["splits"][split]["rows"]
            self.numbers[split] = self.open(f"{split}_rows.bin", np.dtype("<i8"), sizes).read(0, n_rows)
            self.files[split] = {}
            for name, field in self.layout.items():
                self.files[split][name] = self.open(f"{split}_{name}.bin", field.dtype, sizes)

    @staticmethod
    def is_one(folder: str | Path) -> bool:
        """Whether a folder is a cache, finished or not, or holds parts of one."""
        folder = Path(folder)
        return (folder / "cache.json").is_file() or (folder / "unfinished.json").is_file() or has_parts(folder)

    def hashes(self) -> list[str]:
        """What tells this cache from one made anew: the hashes of its teachers' weights, and of its settings."""
        # not what the teachers were called
        settings = {key: value for key, value in self.info.items() if key != "teachers"}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return [*self.info["teacher_sha256"], digest]

    def open(self, name: str, dtype: np.dtype, sizes: dict[str, int]) -> NumberFile:
        path = self.folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there; {MAKE_AGAIN}")
        size = path.stat().st_size
        if size != sizes[name]:
            raise ValueError(f"{path}: {size:,} bytes, but cache.json says {sizes[name]:,}; {MAKE_AGAIN}")
        return NumberFile(path, dtype)

    # --- does it fit a run?

    def check(
        self,
        dataset: str | Path,
        *,
        block_size: int,
        packing: str,
        random_offset: bool,
        temperature: float,
        eval_rows: int = 0,  # as the loops' knob; 0: all
    ):
        """ValueError, with the remedy, unless the cache holds all that a run with these knobs will read."""
        tokenizer_hash = read_meta(dataset)["tokenizer_hash"]
        if tokenizer_hash != self.info["tokenizer_hash"]:
            self.refuse("tokenizer", tokenizer_hash, self.info["tokenizer_hash"], owner=f"of {dataset}")
        for key, value in (("block_size", block_size), ("packing", packing), ("temperature", temperature)):
            if value != self.info[key]:
                self.refuse(key, value, self.info[key])
        if random_offset and packing == "constant":
            raise ValueError(
                f"random_offset=True, but {self.folder} has rows cut at one offset alone; use --random_offset=False"
            )
        for split, n_wanted in (("train", 0), ("val", eval_rows)):
            data = TokenData(dataset, split, block_size, seed=0, batch_size=1, packing=packing, random_offset=False)
            self.check_split(data, n_wanted)

    def refuse(self, key: str, value, cached, owner=""):
        what = f"{key} {owner}".strip()
        remedy = f"use --{key}={cached}, or {MAKE_AGAIN}"
        if key == "tokenizer":
            remedy = f"use the data set it was made of, or {MAKE_AGAIN}"
        raise ValueError(f"{what} is {value}, but {self.folder} was made with {cached}; {remedy}")

    def check_split(self, data: TokenData, n_wanted: int):
        """ValueError unless the cache was made of this split's token files, and of all rows that a run visits."""
        part = self.info["splits"][data.split]
        if token_files_sha256(data) != part["sha256"]:
            problem = f"the {data.split} split of {data.folder} has other tokens than {self.folder} was made of"
            raise ValueError(f"{problem} (by SHA-256 of its files); {MAKE_AGAIN}")
        n_wanted = data.n_eval_rows(n_wanted)
        if part["rows"] < n_wanted:
            knob = "rows" if data.split == "train" else "eval_rows"
            problem = f"{self.folder} has {part['rows']:,} rows of {data.split}, but the run visits {n_wanted:,}"
            raise ValueError(f"{problem}; make a cache with --{knob}=0, which is all, in another out_dir")

    # --- rows

    def read(self, split: str, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """The records of rows by their numbers in the corpus, N = len(rows) * T positions one after the other.

        ids (N, k) int64, log_probs (N, k) fp32, log_tail (N,) fp32, draws (N, m) int64, entropy (N,) fp32; of whole
        distributions log_probs (N, V) and entropy alone.
        """
        places = self.places(split, rows)
        tensors = {}
        for name, field in self.layout.items():
            values = self.records(split, name, places)  # (rows, T, width)
            self.check_values(split, name, values, rows)
            target = np.float32 if field.dtype.kind == "f" else np.int64
            values = torch.from_numpy(values.astype(target)).flatten(0, 1)
            tensors[name] = values.squeeze(1) if name in ("log_tail", "entropy") else values
        if not self.is_whole:
            # a field of width 0 has no file
            N = len(rows) * self.T
            tensors.setdefault("ids", torch.empty(N, 0, dtype=torch.int64))
            tensors.setdefault("draws", torch.empty(N, 0, dtype=torch.int64))
            tensors.setdefault("log_probs", torch.empty(N, 0))
        if self.info["number_format"] == "float16":
            normalise(tensors)
        return tensors

    def records(self, split: str, name: str, places: np.ndarray) -> np.ndarray:
        """A field of the rows at these places in its file: (len(places), T, width)."""
        shape = (self.T, self.layout[name].width)
        size = math.prod(shape)
        file = self.files[split][name]
        return np.stack([file.read(place * size, size).reshape(shape) for place in places.tolist()])

    def places(self, split: str, rows: np.ndarray) -> np.ndarray:
        """The place of each row among the stored rows. ValueError for one that the cache does not have."""
        numbers = self.numbers[split]
        rows = np.asarray(rows, dtype=np.int64)
        places = np.searchsorted(numbers, rows).clip(max=len(numbers) - 1)
        is_missing = numbers[places] != rows
        if is_missing.any():
            missing = rows[is_missing][0]
            problem = f"{self.folder} has {len(numbers):,} rows of {split}, and row {missing} is not among them"
            raise ValueError(f"{problem}; {MAKE_AGAIN}")
        return places

    def check_values(self, split: str, name: str, values: np.ndarray, rows: np.ndarray):
        """ValueError for an id beyond the vocabulary, or a number that is not finite: a damaged file."""
        if values.dtype.kind == "f":
            is_wrong = ~np.isfinite(values)
        else:
            is_wrong = values >= self.vocab_size
        if not is_wrong.any():
            return
        row = int(rows[int(np.argmax(is_wrong.any(axis=(1, 2))))])
        value = values[is_wrong][0]
        raise ValueError(f"{self.folder}/{split}_{name}.bin: {value} in row {row}; the file is damaged, {MAKE_AGAIN}")

    def stored(self, split: str, rows: np.ndarray, device) -> Stored:
        """What `read` gives, in the form that losses.py takes, on a device."""
        tensors = {name: to_device(tensor, device) for name, tensor in self.read(split, rows).items()}
        if self.is_whole:
            return Stored(log_p=tensors["log_probs"])
        # the last cell is all other ids together
        log_p = torch.cat((tensors["log_probs"], tensors["log_tail"][:, None]), dim=1)  # (N, k + 1)
        return Stored(log_p, ids=tensors["ids"], draws=tensors["draws"], entropy=tensors["entropy"])


def normalise(tensors: dict[str, torch.Tensor]):
    """Shift the log-probabilities of each position, in place, so that its probabilities sum to 1 again.

    Rounded to float16 their sum is off by up to 3e-4, and a KL would be as well. After the shift its error is of second
    order: the KL of the stored from the exact distribution is 1e-7 nats with k = 16, and at most 2e-6 with all ids.
    """
    log_sum = tensors["log_probs"].logsumexp(-1)  # -inf where no ids are stored
    if "log_tail" in tensors:
        log_sum = torch.logaddexp(log_sum, tensors["log_tail"])
        tensors["log_tail"] -= log_sum
    tensors["log_probs"] -= log_sum[:, None]


def check_teachers_knobs(cache: TeacherCache, config: dict):
    """ValueError where a run asks for another ensemble or dtype of the teachers than its cache was made with."""
    given = getattr(config, "given", {})
    made_with = cache.info["ensemble"]
    if config["ensemble"] != made_with and len(cache.info["teachers"]) > 1:
        if "ensemble" in given:
            problem = f"{cache.folder} was made with ensemble={made_with!r}, not {config['ensemble']!r}"
            raise ValueError(f"{problem}; leave it out, or make another cache")
        # nobody asked for the default, so that the checkpoint records what the cache was made with
        config["ensemble"] = made_with
    # only on the command line: a config file may have it for the models that the cache replaces
    if given.get("teacher_dtype") == COMMAND_LINE:
        raise ValueError(f"teacher_dtype is for models; that of {cache.folder} was given to cache_teacher.py")


def open_cache(teacher_names: list[str], config: dict) -> TeacherCache | None:
    """The cache that a run of distill.py names as its teacher; None if its teachers are models.

    ValueError if the cache does not fit the run's knobs.
    """
    caches = [name for name in teacher_names if TeacherCache.is_one(name)]
    if not caches:
        # refused rather than ignored: otherwise the user would believe that it has an effect
        if teacher_names and config["tail"] != "cell":
            raise ValueError(f"tail={config['tail']!r} is for a cache of cache_teacher.py; leave it out")
        return None
    if len(teacher_names) > 1:
        remedy = "cache all of the teachers together: cache_teacher.py --teacher=a,b"
        raise ValueError(f"{caches[0]} is a cache, which is not mixed with other teachers; {remedy}")
    for key in ("weight_cos", "weight_mse"):
        if config[key]:
            raise ValueError(
                f"{key}={config[key]:g} compares hidden states, which {caches[0]} does not have; set it to 0"
            )
    if config["teacher_weights"]:
        raise ValueError(f"teacher_weights is for models; the weights of {caches[0]} were given to cache_teacher.py")
    cache = TeacherCache(caches[0])
    names = ("block_size", "packing", "random_offset", "temperature", "eval_rows")
    cache.check(config["dataset"], **{name: config[name] for name in names})
    check_teachers_knobs(cache, config)
    check_tail(config["tail"], config["kl"], cache.info["top_k"], cache.info["draws"])
    return cache
