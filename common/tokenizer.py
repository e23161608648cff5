"""Tokenizers behind one small interface, from whatever files a folder holds.

    encode(text) -> list[int]     encode_batch(texts) -> list[list[int]], on all cores
    decode(ids) -> str            vocab_size, eot, bos, hash;  save(folder)

`hash` names the mapping from text to ids: it is over what decides the ids, not over the bytes of a file. It travels in
meta.json and in every checkpoint, as shapes can agree where meanings do not (GPT-2's and OLMo's padded heads are both
50,304 wide). Text that spells a special token is encoded as ordinary text; only prepare_data.py and sample.py write
`eot` and `bos`, which are the same id where a tokenizer has no token of its own for the beginning of a text.
"""

import hashlib
import io
import json
import os
import sys
from functools import cached_property
from pathlib import Path

import numpy as np
import sentencepiece
from tiktoken.load import read_file_cached

from common.bpe import BPETokenizer, byte_characters, spec_of_merges, write_tokenizer_json
from common.data import read_meta
from common.download import download_repo, is_repo
from common.files import by_step, read_json
from common.spm import SentencePieceFile, deciding_fields, inexpressible, spec_of_sentencepiece

FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")  # what `save` of any of them may write
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>")  # end-of-text tokens, for files that name none
GPT2 = {  # OpenAI's own files, as tiktoken has them: name, SHA-256
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}


class ByteTokenizer(BPETokenizer):
    """UTF-8 bytes 0 … 255, and 256 for end of text: a byte-level BPE without merges."""

    kind = "bytes"

    def __init__(self):
        super().__init__(spec_of_merges(byte_characters() | {ENDS[0]: 256}, []), eot=256)


class GPT2Tokenizer(BPETokenizer):
    """GPT-2's byte-level BPE: by tiktoken's download, kept in TIKTOKEN_CACHE_DIR (or its default), else the hub's."""

    kind = "gpt2"

    def __init__(self):
        base = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
        try:
            encoder, merges = (read_file_cached(base + name, sha).decode() for name, sha in GPT2.items())
            super().__init__(spec_of_merges(json.loads(encoder), read_merges(merges)), eot=50256)
        except OSError as error:
            try:
                other = load_tokenizer(download_repo("gpt2", weights=False))
            except OSError:
                raise OSError(
                    f"cannot download GPT-2's vocabulary, by tiktoken ({type(error).__name__}) or from the hub; name a "
                    "folder with vocab.json and merges.txt instead of gpt2, or copy tiktoken's cache from another "
                    "machine and set TIKTOKEN_CACHE_DIR"
                ) from None
            super().__init__(other.spec, eot=other.eot)


class SentencePieceTokenizer:
    """A SentencePiece model, from a file or trained here; `tokenizer.model` in a folder.

    Those trained here keep every character, line breaks and runs of blanks included, and fall back
    to bytes, so that decode(encode(text)) == text (but for U+2581, SentencePiece's own blank).
    """

    kind = "bpe"

    def __init__(self, model: bytes, where="tokenizer.model"):
        self.model = model
        if not model:
            raise ValueError(f"{where} is empty; copy or fetch it again")
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise ValueError(f"{where} is not a SentencePiece model, or was cut") from None
        self.vocab_size, self.eot, self.bos = (f() for f in (self.processor.vocab_size, self.processor.eos_id,
                                                             self.processor.bos_id))  # fmt: skip
        if self.eot < 0:
            raise ValueError(f"{where} has no end-of-text id; documents could not be told apart")
        self.bos = self.eot if self.bos < 0 else self.bos
        self.hash = hashlib.sha256(b"".join(deciding_fields(model))).hexdigest()[:16]

    @classmethod
    def train(cls, texts, vocab_size: int, nfkc=False):
        """A byte-fallback BPE of `vocab_size` from an iterable of str. Deterministic: same texts, same bytes.

        Digits are tokens of their own; blanks and line ends merge like letters. nfkc: text is normalised first (as in
        Baby Llama), so that it no longer decodes to itself where that changes it.
        """
        model, seen, failed = io.BytesIO(), [], []

        def text_by_text():
            try:
                for text in texts:
                    seen[:] = [True]
                    yield text
            except (ValueError, OSError, KeyboardInterrupt) as error:  # the trainer would report it as its own
                failed.append(error)
                raise

        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=text_by_text(), model_writer=model, model_type="bpe", vocab_size=vocab_size,
                byte_fallback=True, character_coverage=0.9999, split_digits=True, add_dummy_prefix=False,
                normalization_rule_name="nfkc" if nfkc else "identity", remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=True, max_sentence_length=1 << 24, num_threads=os.cpu_count(),
                minloglevel=2,
            )  # fmt: skip
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            reason = f"vocab_size={vocab_size} does not suit this text: {reason}"
            failed.append(ValueError(reason if seen else "the training split has no text to train a tokenizer on"))
        if failed:
            raise failed[0]
        return cls(model.getvalue())

    def byte_lengths(self) -> np.ndarray:
        """The bytes that each id stands for in a text, normalised as this tokenizer does; 0 for special ones."""
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for i in range(self.vocab_size):
            if self.processor.is_byte(i):
                lengths[i] = 1
            elif not self.processor.is_control(i):
                lengths[i] = len(self.processor.id_to_piece(i).replace("\u2581", " ").encode())
        return lengths

    def encode(self, text: str) -> list[int]:
        return self.processor.encode(whole_characters(text))

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return self.processor.encode([whole_characters(text) for text in texts], num_threads=os.cpu_count())

    def encode_arrays(self, texts: list[str], workers: int) -> list[np.ndarray]:
        texts = [whole_characters(text) for text in texts]
        return [np.array(ids, dtype=np.uint32) for ids in self.processor.encode(texts, num_threads=workers)]

    def decode(self, ids: list[int]) -> str:
        return self.processor.decode([i for i in ids if i != self.eot])

    @cached_property
    def spec(self) -> dict | None:
        """A tokenizer.json that gives the same ids; None, and one line on stderr, where none does."""
        file = SentencePieceFile(self.model)
        if reason := inexpressible(file):
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


def whole_characters(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair, which UTF-8 cannot write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


# ---------------------------------------------------------------------------------------------
# folders


def load_tokenizer(where: str | Path):
    """The tokenizer of a data set, a model folder, a run's out_dir, or a hub repository by name ("gpt2": GPT-2's).

    Raises FileNotFoundError or ValueError when there is none, or not the one that meta.json names.
    """
    folder = Path(where)
    if not folder.exists() and str(where) == "gpt2":
        return GPT2Tokenizer()
    if not folder.exists() and is_repo(str(where)):
        folder = download_repo(str(where), weights=False)
    if not (folder / "meta.json").is_file() and not (folder / "config.json").is_file():
        folder = [folder, *by_step(folder)][-1]
    tokenizer, meta_file = from_files(folder), folder / "meta.json"
    if not meta_file.is_file():
        if tokenizer is None:
            raise FileNotFoundError(
                f"{folder} has no tokenizer: expected tokenizer.model, tokenizer.json, or vocab.json with merges.txt; "
                "put the files of the tokenizer it was trained with there"
            )
        return tokenizer
    meta, named = read_meta(folder), {"bytes": ByteTokenizer, "gpt2": GPT2Tokenizer}
    if tokenizer is None and meta["tokenizer"] not in named:
        raise FileNotFoundError(
            f"{folder} has a meta.json that names tokenizer {meta['tokenizer']!r}, but not its files"
        )
    tokenizer = tokenizer or named[meta["tokenizer"]]()
    if tokenizer.hash != meta["tokenizer_hash"]:
        raise ValueError(
            f"{folder}: its tokenizer has hash {tokenizer.hash}, but meta.json says {meta['tokenizer_hash']}; "
            "a file was exchanged, prepare the data again"
        )
    if tokenizer.vocab_size != meta["vocab_size"]:
        raise ValueError(
            f"{meta_file}: vocab_size={meta['vocab_size']}, but its tokenizer has {tokenizer.vocab_size} ids"
        )
    tokenizer.kind, tokenizer.eot, tokenizer.bos = meta["tokenizer"], meta["eot"], meta.get("bos", meta["eot"])
    tokenizer.start = read_start(meta, meta_file)
    return tokenizer


def read_start(meta: dict, where: Path) -> list[int]:
    """The ids that the training texts of a checkpoint began with; [] where its meta.json does not say."""
    start = meta.get("start", [])
    is_ids = isinstance(start, list) and all(type(i) is int and 0 <= i < meta["vocab_size"] for i in start)
    if not is_ids:
        raise ValueError(f"{where}: start={str(start)[:40]} is not a list of ids of its tokenizer")
    return start


def from_files(folder: Path):
    """The tokenizer that the files of a folder hold, None without any."""
    if (path := folder / "tokenizer.model").is_file():
        return SentencePieceTokenizer(path.read_bytes(), path)
    if (path := folder / "tokenizer.json").is_file():
        tokenizer = BPETokenizer(read_json(path), path)
    else:
        for vocab, merges in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
            if (folder / vocab).is_file() and (folder / merges).is_file():
                path = folder / vocab
                pairs = read_merges((folder / merges).read_text(encoding="utf-8"))
                tokenizer = BPETokenizer(spec_of_merges(read_json(path), pairs), path)
                break
        else:
            return None
    tokenizer.eot = special_id(folder, "eos", tokenizer.ids, ENDS)
    tokenizer.bos = special_id(folder, "bos", tokenizer.ids, ())
    if tokenizer.eot is None:
        raise ValueError(f"{path} has no {', '.join(ENDS)}; name its eos_token in {folder}/tokenizer_config.json")
    tokenizer.bos = tokenizer.eot if tokenizer.bos is None else tokenizer.bos
    return tokenizer


def read_merges(text: str) -> list[tuple[str, ...]]:
    """The pairs of a merges.txt or vocab.bpe: one a line, after a line with the version."""
    lines = [line.rstrip("\r") for line in text.split("\n") if line.strip() and not line.startswith("#version")]
    if wrong := [line for line in lines if line.count(" ") != 1]:
        raise ValueError(f"merges: expected two tokens a line with a blank between, not {wrong[0]!r}")
    return [tuple(line.split(" ")) for line in lines]


def special_id(folder: Path, name: str, ids: dict[str, int], known: tuple) -> int | None:
    """The id of the folder's "eos" or "bos" token, of `ids`: as its files say, else the first of `known` there."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        token = read_json(folder / file).get(f"{name}_token") if (folder / file).is_file() else None
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and token in ids:
            return ids[token]
    said = read_json(folder / "config.json").get(f"{name}_token_id") if (folder / "config.json").is_file() else None
    said = said[0] if isinstance(said, list) and said else said  # instruction-tuned models end a turn in several ways
    if isinstance(said, int) and said in ids.values():
        return said
    return next((ids[token] for token in known if token in ids), None)


def check_same_tokenizer(dataset: str | Path, where: str | Path):
    """ValueError unless the model at `where` has the tokenizer of the data, by hash: equal shapes prove nothing."""
    has_meta = (Path(where) / "meta.json").is_file()
    theirs = read_meta(where)["tokenizer_hash"] if has_meta else load_tokenizer(where).hash
    ours = read_meta(dataset)["tokenizer_hash"]
    if theirs != ours:
        raise ValueError(
            f"{where} was trained with tokenizer {theirs}, but {dataset} was made with {ours}; prepare the data with "
            f"the model's own tokenizer: python prepare_data.py --tokenizer={where}"
        )
