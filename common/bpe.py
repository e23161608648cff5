"""Byte-level BPE: a Hugging Face tokenizer.json (GPT-2, GPT-NeoX, OLMo, Qwen2.5, Llama 3) run by tiktoken.

Such a file says how text is normalised, how a regular expression cuts it into pieces, and how the bytes of a piece
merge. tiktoken does the same with a rank for each token instead of a list of merges. The two agree where the ids of
merged tokens grow in the order of the merges, as in all of the above. Whatever else a file asks for is refused by name.
"""

import hashlib
import json
import os
import re
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tiktoken

# GPT-2's pattern, as the ByteLevel of a tokenizer.json has it built in; in tiktoken's form, which cannot backtrack far
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
NOT_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}  # GPT-NeoX has no tokens for these bytes
PLAIN = {"byte_fallback": False, "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
         "end_of_word_suffix": None, "fuse_unk": False}  # of a "BPE" model: what else would change its ids  # fmt: skip


def byte_characters() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level BPE files: {"!": 33, …, "Ġ": 32, …}.

    Bytes that are printable Latin-1 stand for themselves, the others for the code points from 256 on, in order.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def spec_of_merges(vocab: dict[str, int], merges: list[tuple[str, str]]) -> dict:
    """The contents of a tokenizer.json for GPT-2's older pair of files. Tokens that no merge makes become special."""
    made = {*byte_characters(), *(a + b for a, b in merges)}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": i, "content": t, **plain} for i, t in sorted((i, t) for t, i in vocab.items() if t not in made)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", **PLAIN, "vocab": vocab, "merges": [list(pair) for pair in merges]}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level, "model": model}  # fmt: skip


class BPETokenizer:
    """Byte-level BPE from the contents of a tokenizer.json; `where` is named in its errors.

    Text that spells a special token is encoded as text. Other added tokens (GPT-NeoX's runs of blanks) are found first,
    the leftmost and longest. eot, bos: ids of the end and the beginning of a text, set by who loads it.
    """

    kind = "byte_bpe"

    def __init__(self, spec: dict, where="tokenizer.json", eot=None, bos=None):
        self.spec = spec
        try:
            ranks, added = read_ranks(spec, where), spec.get("added_tokens") or []
            self.nfc, pattern = read_normalizer(spec.get("normalizer"), where), read_pattern(spec, where)
            plain, self.special = [t for t in added if not t["special"]], {t["id"] for t in added if t["special"]}
            self.ids = {t["content"]: t["id"] for t in added}
            made = set(ranks.values())
            unmade = {t: i for t, i in spec["model"]["vocab"].items() if i not in made} | self.ids  # only decoded
            self.raw = any_of(t["content"] for t in plain if not t["normalized"])  # found before the others
            names = (t["content"] for t in plain if t["normalized"])
            self.normalized = any_of(map(normalize, names) if self.nfc else names)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{where} is not a tokenizer.json of byte-level BPE ({error!r})") from None
        try:
            self.encoding = tiktoken.Encoding("", pat_str=pattern, mergeable_ranks=ranks, special_tokens=unmade)
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"{where} has a pattern or ids that are none ({error})") from None
        for token in plain:
            if not token["content"]:
                raise ValueError(f"{where} has an added token of no characters")
            if option := [k for k in ("lstrip", "rstrip", "single_word") if token.get(k)]:
                raise ValueError(f"{where}: {option[0]} of the added token {token['content']!r} is not implemented")
        self.ids |= {normalize(content): i for content, i in self.ids.items()}
        self.vocab_size = 1 + max([*ranks.values(), *unmade.values()])
        self.eot, self.bos = eot, eot if bos is None else bos
        self.hash = self.fingerprint(ranks, pattern, plain)

    def fingerprint(self, ranks, pattern, plain) -> str:
        """Of what decides the ids of a text: tokens, pattern, normaliser, added tokens that are not special."""
        settings = [pattern, self.nfc, sorted((t["content"], t["id"], t["normalized"]) for t in plain)]
        digest = hashlib.sha256(json.dumps(settings).encode())
        for token, i in sorted(ranks.items(), key=lambda item: item[1]):  # each as its id, its length and its bytes
            digest.update(i.to_bytes(4, "little") + len(token).to_bytes(4, "little") + token)
        return digest.hexdigest()[:16]

    def sections(self, text: str) -> list[str | int]:
        """The text cut at added tokens, which are their ids already."""
        parts = cut([text], self.raw, self.ids)
        if self.nfc:
            parts = [normalize(part) if isinstance(part, str) else part for part in parts]
        return cut(parts, self.normalized, self.ids)

    def encode(self, text: str) -> list[int]:
        # This call of tiktoken replaces lone surrogates itself.
        if not (self.nfc or self.raw or self.normalized):
            return self.encoding.encode_ordinary(text)
        ids = []
        for part in self.sections(whole_characters(text)):
            if isinstance(part, str):
                ids += self.encoding.encode_ordinary(part)
            else:
                ids.append(part)
        return ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # tiktoken works without Python's lock
            return list(pool.map(self.encode, texts))

    def encode_arrays(self, texts: list[str], workers: int) -> list[np.ndarray]:
        """encode_batch into uint32 arrays, an eighth of the memory."""
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(self.encode_array, texts))

    def encode_array(self, text: str) -> np.ndarray:
        if self.nfc or self.raw or self.normalized:
            return np.array(self.encode(text), dtype=np.uint32)
        # This call fails on lone surrogates. They are rare: only a text that has some is copied.
        try:
            return self.encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:
            return self.encoding.encode_to_numpy(whole_characters(text), disallowed_special=())

    def byte_lengths(self) -> np.ndarray:
        """The bytes that each id stands for in a text; 0 for special ones."""
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token in self.encoding.token_byte_values():
            lengths[self.encoding.encode_single_token(token)] = len(token)
        return lengths

    def decode(self, ids: list[int]) -> str:
        return self.encoding.decode([i for i in ids if i not in self.special and i != self.eot])

    def save(self, folder: Path):
        """Write tokenizer.json and tokenizer_config.json, which transformers and `load_tokenizer` read."""
        names = {i: content for content, i in self.ids.items()}
        eos, bos = names.get(self.eot), names.get(self.bos)
        write_tokenizer_json(folder, self.spec, eos_token=eos, bos_token=bos)


def write_tokenizer_json(folder: Path, spec: dict | None, *, eos_token, bos_token):
    """Write tokenizer.json and tokenizer_config.json such that transformers gives our ids for a text.

    Nothing is added to a text or cut off, whatever the spec says: the models trained here see no
    beginning-of-text id. Text that spells a special token stays text. spec: None for no
    tokenizer.json. *_token: str, or None without any.
    """
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # takes the file as it is, whatever the model_type
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        "model_input_names": ["input_ids", "attention_mask"],  # a GPT-2 embeds token_type_ids
        "eos_token": eos_token,
        "bos_token": bos_token,
    }
    files = {"tokenizer_config.json": config}
    if spec is not None:
        files["tokenizer.json"] = spec | {"truncation": None, "padding": None, "post_processor": None}
    for name, content in files.items():
        (Path(folder) / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


# ---------------------------------------------------------------------------------------------
# what a tokenizer.json says, or ValueError naming what we do not implement


def read_ranks(spec: dict, where) -> dict[bytes, int]:
    """{the bytes of a token: its id} for all bytes and all that merges make of them."""
    model, characters = spec["model"], byte_characters()
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"{where}: model type {model['type']!r} is not implemented, only byte-level BPE")
    for key, value in PLAIN.items():
        if model.get(key) not in (value, None, ""):
            remedy = ""
            if key == "byte_fallback":
                remedy = "; put the tokenizer.model that it was made from beside it"
            raise ValueError(f"{where}: {key}={model[key]!r} is not implemented, only {value!r}{remedy}")
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    vocab, last = model["vocab"], -1
    ids = {character: vocab[character] for character in characters if character in vocab}
    if missing := {characters[c] for c in characters if c not in ids} - NOT_IN_UTF8:
        raise ValueError(f"{where} has no token for the byte {min(missing)}; it is not byte-level BPE")
    for a, b in pairs:
        if vocab[a + b] <= last:
            raise ValueError(f"{where}: the merge {a!r} {b!r} makes id {vocab[a + b]} after id {last}; not implemented")
        last = ids[a + b] = vocab[a + b]
    if model.get("ignore_merges"):  # a piece that is a token is not merged: tiktoken's own way
        added = {t["content"] for t in spec.get("added_tokens") or []}
        ids |= {token: i for token, i in vocab.items() if token not in added}
    if len(set(ids.values())) < len(ids):
        raise ValueError(f"{where} has two tokens of one id")
    try:
        return {bytes(characters[c] for c in token): i for token, i in ids.items()}
    except KeyError as error:
        raise ValueError(f"{where}: a token has the character {error}, which stands for no byte") from None


def read_normalizer(normalizer: dict | None, where) -> bool:
    """Whether text is brought to NFC; anything but that and nothing is refused."""
    steps = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer]
    for step in steps:
        if step and step["type"] != "NFC":
            raise ValueError(f"{where}: normalizer {step['type']!r} is not implemented, only NFC")
    return any(steps)


def read_pattern(spec: dict, where) -> str:
    """The regular expression whose matches are the pieces of a text."""
    outer, pattern = spec["pre_tokenizer"], None
    steps = outer["pretokenizers"] if outer["type"] == "Sequence" else [outer]
    for step in steps:
        if step["type"] == "ByteLevel":
            if step.get("add_prefix_space"):
                raise ValueError(f"{where}: add_prefix_space of its pre-tokenizer is not implemented")
            found = GPT2_PATTERN if step.get("use_regex", True) else None
        elif step["type"] == "Split" and "Regex" in step["pattern"]:
            kept = (step["behavior"], step.get("invert", False))
            if kept not in (("Isolated", False), ("Removed", True)):
                raise ValueError(f"{where}: behavior {step['behavior']!r} of Split is not implemented, only 'Isolated'")
            found = step["pattern"]["Regex"]
            if kept[0] == "Isolated":  # what lies between two matches is a piece as well
                found = f"{found}|(?:(?!{found})[\\s\\S])+"
        else:
            raise ValueError(f"{where}: pre-tokenizer {step['type']!r} is not implemented, only Split and ByteLevel")
        if found and pattern:
            raise ValueError(f"{where}: several pre-tokenizers in a row that split are not implemented")
        pattern = found or pattern
    if not any(step["type"] == "ByteLevel" for step in steps):
        raise ValueError(f"{where}: its pre-tokenizer has no ByteLevel; only byte-level BPE is implemented")
    return pattern or r"[\s\S]+"


# ---------------------------------------------------------------------------------------------
# small parts


def normalize(text: str) -> str:
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


def whole_characters(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair, which UTF-8 cannot write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def any_of(contents) -> re.Pattern | None:
    """Matches any of the texts, the longest first; None without any."""
    longest = sorted(contents, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest))})") if longest else None


def cut(parts: list, pattern: re.Pattern | None, ids: dict[str, int]) -> list:
    """The strings among `parts` cut at what `pattern` matches, which become ids."""
    if pattern is None:
        return parts
    new = []
    for part in parts:
        pieces = pattern.split(part) if isinstance(part, str) else [part]
        new += [ids[piece] if i % 2 else piece for i, piece in enumerate(pieces) if piece != ""]
    return new
