"""Tokenizers behind one small interface (`Tokenizer`), from whatever files a folder holds."""

import hashlib
import io
import json
import os
import sys
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import sentencepiece
from tiktoken.load import read_file_cached

from common.bpe import (
    BPETokenizer,
    byte_characters,
    spec_of_merges,
    whole_characters,
    write_tokenizer_json,
)
from common.download import download_repo, is_repo
from common.files import by_step, read_json
from common.meta import read_meta
from common.spm import SentencePieceFile, deciding_fields, inexpressible, spec_of_sentencepiece

# What `save` of any tokenizer may write.
FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")

# End-of-text tokens, for folders that name none.
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>")

# OpenAI's own files, as tiktoken has them: {name: SHA-256}.
GPT2 = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}


class Tokenizer(Protocol):
    """What the tokenizers here have in common.

    Text that spells a special token is encoded as ordinary text. Only prepare_data.py and sample.py
    write `eot` and `bos`, which are the same id where a tokenizer has no token of its own for the
    beginning of a text.
    """

    kind: str  # "bytes", "gpt2", "bpe" (SentencePiece) or "byte_bpe"
    vocab_size: int
    eot: int  # end of text, after each document of a data set
    bos: int  # beginning of text
    # Over all that decides the ids of a text, not over the bytes of a file. meta.json and every
    # checkpoint carry it, as equal shapes do not mean equal ids: GPT-2's and OLMo's padded heads are
    # both 50,304 wide.
    hash: str
    # The contents of a tokenizer.json that gives the same ids; None where none does.
    spec: dict | None

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """On all cores."""

    def encode_arrays(self, texts: list[str], workers: int) -> list[np.ndarray]:
        """encode_batch into uint32 arrays, an eighth of the memory."""

    def decode(self, ids: list[int]) -> str: ...

    def byte_lengths(self) -> np.ndarray:
        """(vocab_size,): the bytes that each id stands for in a text; 0 for special ones."""

    def save(self, folder: Path):
        """Write the files that `load_tokenizer` reads, and a tokenizer.json for transformers."""


class ByteTokenizer(BPETokenizer):
    """UTF-8 bytes 0 … 255, and 256 for end of text: a byte-level BPE without merges."""

    kind = "bytes"

    def __init__(self):
        vocab = byte_characters() | {ENDS[0]: 256}
        super().__init__(spec_of_merges(vocab, merges=[]), eot=256)


class GPT2Tokenizer(BPETokenizer):
    """GPT-2's byte-level BPE, downloaded by tiktoken or else from the hub.

    tiktoken keeps its download in TIKTOKEN_CACHE_DIR.
    """

    kind = "gpt2"

    def __init__(self):
        # Some networks reach only one of the two servers.
        try:
            spec = gpt2_spec_of_tiktoken()
        except OSError as error:
            spec = gpt2_spec_of_hub(type(error).__name__)
        super().__init__(spec, eot=50256)


def gpt2_spec_of_tiktoken() -> dict:
    """From OpenAI's server, or tiktoken's cache of it. OSError without either."""
    base = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
    vocab_file = read_file_cached(base + "encoder.json", GPT2["encoder.json"])
    merges_file = read_file_cached(base + "vocab.bpe", GPT2["vocab.bpe"])
    return spec_of_merges(json.loads(vocab_file), read_merges(merges_file.decode()))


def gpt2_spec_of_hub(tiktoken_error: str) -> dict:
    try:
        return load_tokenizer(download_repo("gpt2", weights=False)).spec
    except OSError:
        raise OSError(
            f"cannot download GPT-2's vocabulary, by tiktoken ({tiktoken_error}) or from the hub; "
            "name a folder with vocab.json and merges.txt instead of gpt2, or copy tiktoken's cache "
            "from another machine and set TIKTOKEN_CACHE_DIR"
        ) from None


class SentencePieceTokenizer:
    """A SentencePiece model, from a file or trained here; `tokenizer.model` in a folder.

    Those trained here keep every character, line breaks and runs of blanks included, and fall back
    to bytes, so that decode(encode(text)) == text, except for U+2581, SentencePiece's own blank.
    """

    kind = "bpe"

    def __init__(self, model: bytes, where="tokenizer.model"):
        self.model = model
        if not model:
            raise ValueError(f"{where} is empty; copy or fetch it again")
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        # UnicodeDecodeError: the library fails to decode its own message, which quotes the file's bytes
        except (RuntimeError, UnicodeDecodeError):
            problem = "is not a SentencePiece model, or is incomplete; copy or fetch it again"
            raise ValueError(f"{where} {problem}") from None
        self.vocab_size = self.processor.vocab_size()
        self.eot = self.processor.eos_id()
        self.bos = self.processor.bos_id()
        # An id of -1: the model has no such token.
        if self.eot < 0:
            remedy = "train it with eos_id, as nothing would separate two documents"
            raise ValueError(f"{where} has no end-of-text id; {remedy}")
        if self.bos < 0:
            self.bos = self.eot
        self.hash = hashlib.sha256(b"".join(deciding_fields(model))).hexdigest()[:16]

    @classmethod
    def train(cls, texts, vocab_size: int, nfkc=False):
        """A byte-fallback BPE of `vocab_size` from an iterable of str.

        The same texts give the same file. Each digit is a token of its own; blanks and line ends merge
        like letters. nfkc: text is normalised first (as in Baby Llama); a text that this changes does
        not decode to itself.
        """
        source = TrainingTexts(texts)
        model = io.BytesIO()
        problem = None
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(source),
                model_writer=model,
                vocab_size=vocab_size,
                normalization_rule_name="nfkc" if nfkc else "identity",
                num_threads=os.cpu_count(),
                **TRAINER_SETTINGS,
            )
        except RuntimeError as error:
            # The lines before the last are the place in the trainer's source where it failed.
            reason = str(error).strip().splitlines()[-1]
            problem = f"vocab_size={vocab_size} does not suit this text: {reason}"
        if source.error:
            raise source.error
        if problem and source.is_empty:
            problem = "the training split has no text to train a tokenizer on"
        if problem:
            raise ValueError(problem)
        return cls(model.getvalue())

    def byte_lengths(self) -> np.ndarray:
        """(vocab_size,): the bytes of each id in normalised text; 0 for special ones."""
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for i in range(self.vocab_size):
            # A byte piece is spelled "<0x0A>"; the "▁" that stands for a blank is three bytes itself.
            if self.processor.is_byte(i):
                lengths[i] = 1
            elif not self.processor.is_control(i):
                piece = self.processor.id_to_piece(i).replace("\u2581", " ")
                lengths[i] = len(piece.encode())
        return lengths

    def encode(self, text: str) -> list[int]:
        return self.processor.encode(whole_characters(text))

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        texts = [whole_characters(text) for text in texts]
        return self.processor.encode(texts, num_threads=os.cpu_count())

    def encode_arrays(self, texts: list[str], workers: int) -> list[np.ndarray]:
        texts = [whole_characters(text) for text in texts]
        ids_of_texts = self.processor.encode(texts, num_threads=workers)
        return [np.array(ids, dtype=np.uint32) for ids in ids_of_texts]

    def decode(self, ids: list[int]) -> str:
        return self.processor.decode([i for i in ids if i != self.eot])

    # Cached, so that the note is printed once, not at every checkpoint.
    @cached_property
    def spec(self) -> dict | None:
        """A tokenizer.json that gives the same ids; None, and one line on stderr, where none does."""
        file = SentencePieceFile(self.model)
        reason = inexpressible(file)
        if reason:
            print(
                f"note: no tokenizer.json is written, as this tokenizer.model {reason}; "
                "transformers may give other ids for a text than those the model is trained on",
                file=sys.stderr,
            )
            return None
        return spec_of_sentencepiece(file)

    def save(self, folder: Path):
        """Write tokenizer.model, which `load_tokenizer` reads, and tokenizer.json for transformers."""
        (Path(folder) / "tokenizer.model").write_bytes(self.model)
        eos = self.processor.id_to_piece(self.eot)
        bos = self.processor.id_to_piece(self.bos)
        write_tokenizer_json(folder, self.spec, eos_token=eos, bos_token=bos)


# How `SentencePieceTokenizer.train` trains.
TRAINER_SETTINGS = {
    "model_type": "bpe",
    # Rare characters, one in 10,000, are spelled as bytes.
    "byte_fallback": True,
    "character_coverage": 0.9999,
    # "2024" as four tokens, as in Llama.
    "split_digits": True,
    # Blanks and line ends stay as they are.
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    # In bytes. Longer texts would be left out.
    "max_sentence_length": 1 << 24,
    # Errors only.
    "minloglevel": 2,
}


class TrainingTexts:
    """An iterable of str that remembers its own error, and whether it is empty.

    The trainer turns any error of its source into a RuntimeError without the source's message.
    """

    def __init__(self, texts):
        self.texts = texts
        self.is_empty = True
        self.error = None

    def __iter__(self):
        try:
            for text in self.texts:
                self.is_empty = False
                yield text
        except (ValueError, OSError, KeyboardInterrupt) as error:
            self.error = error
            raise


# ---------------------------------------------------------------------------------------------
# folders


def load_tokenizer(where: str | Path) -> Tokenizer:
    """The tokenizer of a data set, a model's folder, a run's out_dir, or a hub repository by name.

    Raises FileNotFoundError or ValueError when there is none, or not the one that meta.json names.
    """
    folder = Path(where)
    # A folder of that name comes before the hub.
    if not folder.exists() and str(where) == "gpt2":
        return GPT2Tokenizer()
    if not folder.exists() and is_repo(str(where)):
        folder = download_repo(str(where), weights=False)
    # Neither a data set nor a model: a run's out_dir. Any of its checkpoints has the tokenizer.
    if not (folder / "meta.json").is_file() and not (folder / "config.json").is_file():
        checkpoints = by_step(folder)
        if checkpoints:
            folder = checkpoints[-1]
    tokenizer = from_files(folder)
    if (folder / "meta.json").is_file():
        return as_meta_says(tokenizer, folder)
    if tokenizer is None:
        raise FileNotFoundError(
            f"{folder} has no tokenizer: expected tokenizer.model, tokenizer.json, or vocab.json "
            "with merges.txt; put the files of the tokenizer it was trained with there"
        )
    return tokenizer


def as_meta_says(tokenizer: Tokenizer | None, folder: Path) -> Tokenizer:
    """The tokenizer of a folder with meta.json, which must agree with it.

    tokenizer: what the folder's files hold; None without any, as bytes and gpt2 need none.
    """
    meta_file = folder / "meta.json"
    meta = read_meta(folder)
    kind = meta["tokenizer"]
    if tokenizer is None:
        without_files = {"bytes": ByteTokenizer, "gpt2": GPT2Tokenizer}
        if kind not in without_files:
            problem = f"has a meta.json that names tokenizer {kind!r}, but not its files"
            raise FileNotFoundError(f"{folder} {problem}")
        tokenizer = without_files[kind]()
    if tokenizer.hash != meta["tokenizer_hash"]:
        expected = meta["tokenizer_hash"]
        hashes = f"its tokenizer has hash {tokenizer.hash}, but meta.json says {expected}"
        raise ValueError(f"{folder}: {hashes}; a file was exchanged, prepare the data again")
    # The hash of a byte-level BPE is not over its special tokens, as no text has their ids.
    if tokenizer.vocab_size != meta["vocab_size"]:
        sizes = f"vocab_size={meta['vocab_size']}, but its tokenizer has {tokenizer.vocab_size} ids"
        raise ValueError(f"{meta_file}: {sizes}")
    # Only meta.json knows whether a byte-level BPE is GPT-2's, and which end-of-text id the data has.
    tokenizer.kind = kind
    tokenizer.eot = meta["eot"]
    # Older data sets have no bos: the end of one text began the next.
    tokenizer.bos = meta.get("bos", meta["eot"])
    tokenizer.start = read_start(meta, meta_file)
    return tokenizer


def read_start(meta: dict, where: Path) -> list[int]:
    """The ids that a checkpoint's training texts began with; [] where meta.json does not say."""
    start = meta.get("start", [])
    problem = f"{where}: start={str(start)[:40]} is not a list of ids of its tokenizer"
    if not isinstance(start, list):
        raise ValueError(problem)
    for i in start:
        # Not isinstance, for which True is an int.
        if type(i) is not int or not 0 <= i < meta["vocab_size"]:
            raise ValueError(problem)
    return start


def from_files(folder: Path) -> Tokenizer | None:
    """The tokenizer that the files of a folder hold, None without any."""
    # This comes first: a tokenizer.json beside it is only a translation of it, ours or somebody else's.
    model_file = folder / "tokenizer.model"
    if model_file.is_file():
        return SentencePieceTokenizer(model_file.read_bytes(), model_file)
    path, spec = read_spec(folder)
    if spec is None:
        return None
    check_is_text(spec, path)
    tokenizer = BPETokenizer(spec, path)
    tokenizer.eot = special_id(folder, "eos", tokenizer.added_ids)
    # GPT-2's older pair of files often comes without another one that names the token.
    if tokenizer.eot is None:
        known_ends = [token for token in ENDS if token in tokenizer.added_ids]
        if not known_ends:
            remedy = f"name its eos_token in {folder}/tokenizer_config.json"
            raise ValueError(f"{path} has no {', '.join(ENDS)}; {remedy}")
        tokenizer.eot = tokenizer.added_ids[known_ends[0]]
    tokenizer.bos = special_id(folder, "bos", tokenizer.added_ids)
    if tokenizer.bos is None:
        tokenizer.bos = tokenizer.eot
    return tokenizer


def check_is_text(spec: dict, path: Path):
    """ValueError for half a surrogate pair: JSON can hold it, but it could not be saved with a checkpoint."""
    try:
        json.dumps(spec, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        problem = "has half a surrogate pair, which is no character"
        raise ValueError(f"{path} {problem}; copy or fetch it again") from None


def read_spec(folder: Path) -> tuple[Path, dict | None]:
    """(file, contents of a tokenizer.json); made from GPT-2's older pair of files if need be."""
    path = folder / "tokenizer.json"
    if path.is_file():
        return path, read_json(path)
    # The hub's names for the pair, and OpenAI's own.
    for vocab_name, merges_name in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        vocab_file = folder / vocab_name
        merges_file = folder / merges_name
        if vocab_file.is_file() and merges_file.is_file():
            merges = read_merges(merges_file.read_text(encoding="utf-8"))
            return vocab_file, spec_of_merges(read_json(vocab_file), merges)
    return path, None


def read_merges(text: str) -> list[tuple[str, ...]]:
    """The pairs of a merges.txt or vocab.bpe: one a line, after a line with the version."""
    pairs = []
    # Not splitlines: a token may contain other characters that end a line.
    for line in text.split("\n"):
        line = line.rstrip("\r")
        if not line.strip() or line.startswith("#version"):
            continue
        if line.count(" ") != 1:
            expected = "two tokens a line, separated by a blank"
            raise ValueError(f"merges: expected {expected}, not {line!r}")
        pairs.append(tuple(line.split(" ")))
    return pairs


def special_id(folder: Path, name: str, ids: dict[str, int]) -> int | None:
    """The id of a folder's "eos" or "bos" token, as its files name it; None where they do not.

    ids: {token: id} of the tokens that may be named.
    """
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        names = read_if_there(folder / file)
        token = names.get(f"{name}_token")
        # null, as in Qwen3's files: no text begins with such a token, whatever id config.json names.
        if name == "bos" and "bos_token" in names and token is None:
            return None
        # Written as text, or as an object with options.
        if isinstance(token, dict):
            token = token.get("content")
        if isinstance(token, str) and token in ids:
            return ids[token]
    special = read_if_there(folder / "config.json").get(f"{name}_token_id")
    # A list for models that end their turn in several ways, as those tuned on instructions do.
    if isinstance(special, list) and special:
        special = special[0]
    if isinstance(special, int) and special in ids.values():
        return special
    return None


def read_if_there(path: Path) -> dict:
    if not path.is_file():
        return {}
    return read_json(path)


def check_same_tokenizer(dataset: str | Path, where: str | Path):
    """ValueError unless the model at `where` has the tokenizer of the data.

    By hash, as equal shapes prove nothing.
    """
    # A checkpoint's meta.json has the hash. Other models only have their tokenizer's files.
    if (Path(where) / "meta.json").is_file():
        model_hash = read_meta(where)["tokenizer_hash"]
    else:
        model_hash = load_tokenizer(where).hash
    data_hash = read_meta(dataset)["tokenizer_hash"]
    if model_hash != data_hash:
        raise ValueError(
            f"{where} was trained with tokenizer {model_hash}, but {dataset} was made with "
            f"{data_hash}; prepare the data with the model's own tokenizer: "
            f"python prepare_data.py --tokenizer={where}"
        )
