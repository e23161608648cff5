"""Three tokenizers behind one small interface.

    encode(text) -> list[int]     encode_batch(texts) -> list[list[int]], on all cores
    decode(ids) -> str            vocab_size, eot, hash;  save(folder)

`hash` names the mapping from text to ids. It travels in meta.json and in every checkpoint: shapes can
agree where meanings do not (GPT-2's and OLMo's padded heads are both 50,304 wide). Text that spells a
special token is encoded as ordinary text; only prepare_data.py and sample.py write `eot`.
"""

import hashlib
import io
import os
import shutil
from pathlib import Path

import sentencepiece
import tiktoken

from common.data import TOKENIZER_KEYS, read_meta


class ByteTokenizer:
    """UTF-8 bytes 0 … 255, and 256 for end of text."""

    kind, vocab_size, eot = "bytes", 257, 256
    hash = hashlib.sha256(b"utf-8 bytes, eot 256").hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", errors="replace"))

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")

    def save(self, folder: Path):
        """Nothing to save: the name says it all."""


class GPT2Tokenizer:
    """GPT-2's byte-level BPE from tiktoken, which downloads it once into TIKTOKEN_CACHE_DIR (or its default)."""

    kind = "gpt2"

    def __init__(self):
        try:
            self.encoding = tiktoken.get_encoding("gpt2")
        except OSError as error:
            raise OSError(
                f"tiktoken cannot download GPT-2's vocabulary ({type(error).__name__}); connect once, or copy "
                "its cache from another machine and set TIKTOKEN_CACHE_DIR"
            ) from None
        self.vocab_size, self.eot = self.encoding.n_vocab, self.encoding.eot_token
        digest = hashlib.sha256()
        for i in range(self.eot):  # ids in order, each as its length and bytes
            token = self.encoding.decode_single_token_bytes(i)
            digest.update(len(token).to_bytes(4, "little") + token)
        self.hash = digest.hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        return self.encoding.encode_ordinary(text)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return self.encoding.encode_ordinary_batch(texts, num_threads=os.cpu_count())

    def decode(self, ids: list[int]) -> str:
        return self.encoding.decode([i for i in ids if i < self.eot])

    def save(self, folder: Path):
        """Nothing to save: the name says it all."""


class SentencePieceTokenizer:
    """A SentencePiece model, from a file or trained here; `tokenizer.model` in a folder.

    Those trained here keep every character, line breaks and runs of blanks included, and fall back
    to bytes, so that decode(encode(text)) == text (but for U+2581, SentencePiece's own blank).
    """

    kind = "bpe"

    def __init__(self, model: bytes, where="tokenizer.model"):
        self.model = model
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise ValueError(f"{where} is not a SentencePiece model, or was cut") from None
        self.vocab_size, self.eot = self.processor.vocab_size(), self.processor.eos_id()
        self.hash = hashlib.sha256(model).hexdigest()[:16]

    @classmethod
    def train(cls, texts, vocab_size: int):
        """A byte-fallback BPE of `vocab_size` from an iterable of str. Deterministic: same texts, same bytes."""
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts), model_writer=model, model_type="bpe", vocab_size=vocab_size,
                byte_fallback=True, character_coverage=0.9999, split_digits=True,
                normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=True, max_sentence_length=1 << 24, num_threads=os.cpu_count(),
                minloglevel=2,
            )  # fmt: skip
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(f"vocab_size={vocab_size} does not suit this text: {reason}") from None
        return cls(model.getvalue())

    def encode(self, text: str) -> list[int]:
        return self.processor.encode(text)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return self.processor.encode(texts, num_threads=os.cpu_count())

    def decode(self, ids: list[int]) -> str:
        return self.processor.decode([i for i in ids if i != self.eot])

    def save(self, folder: Path):
        (Path(folder) / "tokenizer.model").write_bytes(self.model)


def load_tokenizer(folder: str | Path):
    """The tokenizer of a data set, a checkpoint or a Hugging Face folder with a tokenizer.model.

    Raises FileNotFoundError or ValueError when there is none, or not the one that meta.json names.
    """
    folder = Path(folder)
    if not (folder / "meta.json").is_file() and (folder / "tokenizer.model").is_file():
        return SentencePieceTokenizer((folder / "tokenizer.model").read_bytes(), folder / "tokenizer.model")
    meta = read_meta(folder)
    if meta["tokenizer"] == "bpe":
        if not (folder / "tokenizer.model").is_file():
            raise FileNotFoundError(f"{folder}/tokenizer.model is not there, but meta.json names a bpe tokenizer")
        tokenizer = SentencePieceTokenizer((folder / "tokenizer.model").read_bytes(), folder / "tokenizer.model")
    elif meta["tokenizer"] in ("bytes", "gpt2"):
        tokenizer = {"bytes": ByteTokenizer, "gpt2": GPT2Tokenizer}[meta["tokenizer"]]()
    else:
        raise ValueError(f"{folder}/meta.json: unknown tokenizer {meta['tokenizer']!r}; known: bytes, bpe, gpt2")
    if tokenizer.hash != meta["tokenizer_hash"]:
        raise ValueError(
            f"{folder}: its tokenizer has hash {tokenizer.hash}, but meta.json says {meta['tokenizer_hash']}; "
            "a file was exchanged, prepare the data again"
        )
    return tokenizer


def check_same_tokenizer(dataset: str | Path, model_folder: str | Path):
    """ValueError unless the model's tokenizer is that of the data, by hash: equal shapes prove nothing."""
    has_meta = (Path(model_folder) / "meta.json").is_file()
    theirs = read_meta(model_folder)["tokenizer_hash"] if has_meta else load_tokenizer(model_folder).hash
    ours = read_meta(dataset)["tokenizer_hash"]
    if theirs != ours:
        raise ValueError(
            f"{model_folder} was trained with tokenizer {theirs}, but {dataset} was made with {ours}; "
            "prepare the data with the model's own tokenizer"
        )


def tokenizer_meta(tokenizer) -> dict:
    """What meta.json says of a tokenizer."""
    return dict(zip(TOKENIZER_KEYS, (tokenizer.kind, tokenizer.hash, tokenizer.vocab_size, tokenizer.eot)))


def copy_tokenizer(dataset: str | Path, folder: Path):
    """Put the tokenizer of a data set beside a model: its file, if it has one (meta.json is the caller's)."""
    if (Path(dataset) / "tokenizer.model").is_file():
        shutil.copyfile(Path(dataset) / "tokenizer.model", folder / "tokenizer.model")
