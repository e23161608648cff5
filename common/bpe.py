"""Byte-level BPE: the tokenizer.json of GPT-2, GPT-NeoX, OLMo, Qwen2.5, Llama 3, run by tiktoken.

Such a file says how text is normalised, how a regular expression cuts it into pieces, and how the
bytes of a piece merge: ["t", "h"], then ["th", "e"]. tiktoken has a rank for each token instead,
{b"th": 256, b"the": 257}, and merges first the pair that makes the token of the lowest rank. The two
agree if the ids of merged tokens grow in the order of the merges, as in all of the above. Anything
else that a file asks for is refused by name.

`read_tokenizer_json` turns a file into `BPERules`; `BPETokenizer` runs and `hash_of_rules` names them.
"""

import hashlib
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

import numpy as np
import tiktoken

# What the ByteLevel of a tokenizer.json has built in. The possessive "++" is tiktoken's: it matches
# the same, and does not backtrack through a long run of letters.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# GPT-NeoX has no tokens for these bytes, and needs none.
NOT_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}

# Settings of a "BPE" model. Other values than these would change its ids.
MODEL_SETTINGS = {
    "byte_fallback": False,
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
}


@dataclass(frozen=True)
class AddedToken:
    """A token beside those of the merges. Unless it is special, it is looked for in each text."""

    content: str
    id: int
    special: bool
    normalized: bool  # looked for in the normalised text, not in the text as it is


@dataclass(frozen=True)
class BPERules:
    """What a tokenizer.json says of how text becomes ids, and ids text."""

    ranks: dict[bytes, int]  # the ids of all tokens that bytes and merges make
    pattern: str  # a regular expression whose matches are the pieces of a text
    nfc: bool  # whether text is brought to Unicode's NFC first
    added_tokens: tuple[AddedToken, ...]
    decode_only: dict[str, int]  # added tokens, and those of the vocabulary that no merge makes


def hash_of_rules(rules: BPERules) -> str:
    """Hash of all that decides the ids of a text: tokens, pattern, normaliser, added tokens that are not special.

    Data sets and checkpoints carry this hash, so nothing about it may change, nor the order of what it is over.
    """
    searched = [token for token in rules.added_tokens if not token.special]
    found_in_text = sorted((token.content, token.id, token.normalized) for token in searched)
    settings = [rules.pattern, rules.nfc, found_in_text]
    digest = hashlib.sha256(json.dumps(settings).encode())
    # Sorted by id, as files may list the same vocabulary in different orders. The length tells apart
    # tokens with the same bytes in a row: "ab" and "c", "a" and "bc".
    for token, i in sorted(rules.ranks.items(), key=lambda item: item[1]):
        digest.update(i.to_bytes(4, "little"))
        digest.update(len(token).to_bytes(4, "little"))
        digest.update(token)
    return digest.hexdigest()[:16]


# ---------------------------------------------------------------------------------------------
# running it


class BPETokenizer:
    """Byte-level BPE from the contents of a tokenizer.json; `where` is named in its errors.

    Text that spells a special token is encoded as text. Other added tokens (GPT-NeoX's runs of
    blanks) are found first, the leftmost and longest. eot, bos: ids of the end and the beginning of
    a text, set by who loads it.
    """

    kind = "byte_bpe"

    def __init__(self, spec: dict, where="tokenizer.json", eot=None, bos=None):
        rules = read_tokenizer_json(spec, where)
        self.spec = spec
        self.encoding = tiktoken_encoding(rules, where)
        self.hash = hash_of_rules(rules)
        self.nfc = rules.nfc
        self.special_ids = {token.id for token in rules.added_tokens if token.special}
        # In normalised text a token is spelt in NFC, even if the file spells it otherwise.
        self.added_ids = {token.content: token.id for token in rules.added_tokens}
        self.added_ids |= {normalize("NFC", content): i for content, i in self.added_ids.items()}
        # What finds added tokens in the text as it is, and in normalised text.
        self.raw, self.normalized = added_token_patterns(rules)
        # GPT-2 and most others: nothing is left to do before tiktoken.
        self.tiktoken_alone = not (self.nfc or self.raw or self.normalized)
        # Ids may have gaps, and a model has a row for each id up to the largest.
        self.vocab_size = 1 + max([*rules.ranks.values(), *rules.decode_only.values()])
        self.eot = eot
        self.bos = eot if bos is None else bos

    def encode(self, text: str) -> list[int]:
        # This call of tiktoken replaces lone surrogates itself.
        if self.tiktoken_alone:
            return self.encoding.encode_ordinary(text)
        ids = []
        for section in self.sections(whole_characters(text)):
            if isinstance(section, str):
                ids += self.encoding.encode_ordinary(section)
            else:
                ids.append(section)
        return ids

    def sections(self, text: str) -> list[str | int]:
        """The text cut at added tokens, which are their ids already.

        GPT-NeoX, whose id 50275 is three blanks: "a   b" -> ["a", 50275, "b"].
        """
        sections = []
        for section in cut(text, self.raw, self.added_ids):
            if isinstance(section, int):
                sections.append(section)
                continue
            if self.nfc:
                section = normalize("NFC", section)
            sections += cut(section, self.normalized, self.added_ids)
        return sections

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        # Threads are enough, as tiktoken works without Python's lock.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(self.encode, texts))

    def encode_arrays(self, texts: list[str], workers: int) -> list[np.ndarray]:
        """encode_batch into uint32 arrays, an eighth of the memory."""
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(self.encode_array, texts))

    def encode_array(self, text: str) -> np.ndarray:
        if not self.tiktoken_alone:
            return np.array(self.encode(text), dtype=np.uint32)
        # Straight from tiktoken's buffer, without a Python int for each id. This call fails on lone
        # surrogates. They are rare: only a text that has some is copied.
        try:
            return self.encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:
            return self.encoding.encode_to_numpy(whole_characters(text), disallowed_special=())

    def byte_lengths(self) -> np.ndarray:
        """(vocab_size,): the bytes that each id stands for in a text; 0 for special ones."""
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token in self.encoding.token_byte_values():
            lengths[self.encoding.encode_single_token(token)] = len(token)
        # tiktoken's list lacks those that are looked for in the text, as GPT-NeoX's runs of blanks.
        for content, i in self.added_ids.items():
            if i not in self.special_ids:
                lengths[i] = len(content.encode())
        return lengths

    def decode(self, ids: list[int]) -> str:
        return self.encoding.decode([i for i in ids if i not in self.special_ids and i != self.eot])

    def save(self, folder: Path):
        """Write tokenizer.json and tokenizer_config.json, for transformers and `load_tokenizer`."""
        names = {i: content for content, i in self.added_ids.items()}
        eos_token, bos_token = names.get(self.eot), names.get(self.bos)
        write_tokenizer_json(folder, self.spec, eos_token=eos_token, bos_token=bos_token)


def tiktoken_encoding(rules: BPERules, where) -> tiktoken.Encoding:
    # What tiktoken calls special can be decoded. None of our calls finds it in a text.
    tokens = {"mergeable_ranks": rules.ranks, "special_tokens": rules.decode_only}
    try:
        return tiktoken.Encoding(name="", pat_str=rules.pattern, **tokens)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{where}: tiktoken refuses its pattern or its ids ({error})") from None


def added_token_patterns(rules: BPERules) -> tuple[re.Pattern | None, re.Pattern | None]:
    """What finds the added tokens in the text as it is, and in normalised text."""
    searched = [token for token in rules.added_tokens if not token.special]
    raw = [token.content for token in searched if not token.normalized]
    normalized = [token.content for token in searched if token.normalized]
    # Text in NFC does not contain a token in another form.
    if rules.nfc:
        normalized = [normalize("NFC", content) for content in normalized]
    return any_of(raw), any_of(normalized)


def any_of(contents: list[str]) -> re.Pattern | None:
    """A group that matches any of the texts; None without any."""
    if not contents:
        return None
    # A regular expression takes the first alternative that fits, not the longest.
    longest_first = sorted(contents, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})")


def cut(text: str, pattern: re.Pattern | None, ids: dict[str, int]) -> list[str | int]:
    """The text cut at the matches of `pattern`, which become ids."""
    if pattern is None:
        return [text]
    # As the pattern is one group, text and matches take turns. Text comes first, even if "".
    parts = pattern.split(text)
    parts[1::2] = [ids[match] for match in parts[1::2]]
    return [part for part in parts if part != ""]


def whole_characters(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair, which UTF-8 cannot write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


# ---------------------------------------------------------------------------------------------
# reading a tokenizer.json


def read_tokenizer_json(spec: dict, where) -> BPERules:
    """What the contents of a tokenizer.json say. ValueError for what we do not implement."""
    try:
        model = spec["model"]
        check_model(model)
        added_tokens = read_added_tokens(spec.get("added_tokens") or [])
        ranks = read_ranks(model, added_tokens)
        mergeable_ids = set(ranks.values())
        decode_only = {token: i for token, i in model["vocab"].items() if i not in mergeable_ids}
        decode_only |= {token.content: token.id for token in added_tokens}
        return BPERules(
            ranks=ranks,
            pattern=read_pattern(spec["pre_tokenizer"]),
            nfc=read_normalizer(spec.get("normalizer")),
            added_tokens=added_tokens,
            decode_only=decode_only,
        )
    # A key is missing, or holds something of another type, in any of the places above.
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where} is not a tokenizer.json of byte-level BPE ({error!r})") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def check_model(model: dict):
    # Older files are all BPE and do not say so.
    kind = model.get("type", "BPE")
    if kind != "BPE":
        raise ValueError(f"model type {kind!r} is not implemented, only byte-level BPE")
    for key, value in MODEL_SETTINGS.items():
        # Some writers leave out what is not set, others write null or "".
        if model.get(key) in (value, None, ""):
            continue
        problem = f"{key}={model[key]!r} is not implemented, only {value!r}"
        # Such a file was converted from SentencePiece, which we read.
        if key == "byte_fallback":
            problem += "; put the tokenizer.model that it was made from beside it"
        raise ValueError(problem)


def read_added_tokens(entries: list[dict]) -> tuple[AddedToken, ...]:
    added_tokens = []
    for entry in entries:
        content = entry["content"]
        special = entry["special"]
        # A special token is not looked for in texts, so it does not matter in which form.
        normalized = not special and entry["normalized"]
        added_tokens.append(AddedToken(content, entry["id"], special, normalized))
        if special:
            continue
        # It would be found everywhere.
        if not content:
            raise ValueError("it has an empty added token")
        for option in ("lstrip", "rstrip", "single_word"):
            if entry.get(option):
                raise ValueError(f"{option} of the added token {content!r} is not implemented")
    return tuple(added_tokens)


def read_ranks(model: dict, added_tokens: tuple[AddedToken, ...]) -> dict[bytes, int]:
    """{the bytes of a token: its id} for all bytes and all that merges make of them."""
    vocab = model["vocab"]
    ids = ids_of_bytes(vocab) | ids_of_merges(model["merges"], vocab)
    # Llama 3: a piece that is a token stays whole, though no merges lead to it. tiktoken does so
    # with every token that has a rank.
    if model.get("ignore_merges"):
        added_contents = {token.content for token in added_tokens}
        ids |= {token: i for token, i in vocab.items() if token not in added_contents}
    if len(set(ids.values())) < len(ids):
        raise ValueError("it has two tokens with the same id")
    bytes_of_characters = byte_characters()
    ranks = {}
    for token, i in ids.items():
        try:
            token_bytes = bytes([bytes_of_characters[character] for character in token])
        except KeyError as error:
            raise ValueError(f"a token has the character {error}, which stands for no byte") from None
        ranks[token_bytes] = i
    return ranks


def ids_of_bytes(vocab: dict[str, int]) -> dict[str, int]:
    characters = byte_characters()
    missing = {byte for character, byte in characters.items() if character not in vocab}
    missing -= NOT_IN_UTF8
    if missing:
        raise ValueError(f"it has no token for the byte {min(missing)}, so it is not byte-level BPE")
    return {character: vocab[character] for character in characters if character in vocab}


def ids_of_merges(merges: list, vocab: dict[str, int]) -> dict[str, int]:
    ids = {}
    last_id = -1
    for merge in merges:
        # ["t", "h"], or "t h" in older files.
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if len(pair) != 2:
            raise ValueError(f"the merge {merge!r} is not a pair of tokens")
        left, right = pair
        merged_id = vocab[left + right]
        # As tiktoken merges in the order of ids. Several pairs may make one token, as in Llama 3's file.
        if merged_id < last_id:
            order = f"makes id {merged_id} after id {last_id}"
            raise ValueError(f"the merge {left!r} {right!r} {order}; not implemented")
        ids[left + right] = merged_id
        last_id = merged_id
    return ids


def read_normalizer(normalizer: dict | None) -> bool:
    """Whether text is brought to NFC."""
    steps = [normalizer]
    if normalizer and normalizer["type"] == "Sequence":
        steps = normalizer["normalizers"]
    for step in steps:
        if step and step["type"] != "NFC":
            raise ValueError(f"normalizer {step['type']!r} is not implemented, only NFC")
    return any(steps)


def read_pattern(pre_tokenizer: dict) -> str:
    """The regular expression whose matches are the pieces of a text."""
    steps = [pre_tokenizer]
    if pre_tokenizer["type"] == "Sequence":
        steps = pre_tokenizer["pretokenizers"]
    patterns = list(filter(None, map(pattern_of_step, steps)))
    # The second would cut the pieces of the first, which no single expression does.
    if len(patterns) > 1:
        raise ValueError("several pre-tokenizers in a row that split are not implemented")
    # It is ByteLevel that makes bytes of characters.
    if not any(step["type"] == "ByteLevel" for step in steps):
        raise ValueError("its pre-tokenizer has no ByteLevel; only byte-level BPE is implemented")
    # Without a pattern, a text is one piece.
    return patterns[0] if patterns else r"[\s\S]+"


def pattern_of_step(step: dict) -> str | None:
    """The regular expression of one pre-tokenizer; None for a ByteLevel that does not split."""
    kind = step["type"]
    if kind == "ByteLevel":
        if step.get("add_prefix_space"):
            raise ValueError("add_prefix_space of its pre-tokenizer is not implemented")
        return GPT2_PATTERN if step.get("use_regex", True) else None
    if kind != "Split":
        raise ValueError(f"pre-tokenizer {kind!r} is not implemented, only Split and ByteLevel")
    if "Regex" not in step["pattern"]:
        raise ValueError(f"Split by {step['pattern']} is not implemented, only by a Regex")
    pattern = step["pattern"]["Regex"]
    behavior = step["behavior"]
    invert = step.get("invert")
    # Every match is a piece, and so is what lies between two matches.
    if behavior == "Isolated" and not invert:
        return f"{pattern}|(?:(?!{pattern})[\\s\\S])+"
    # Inverted, what is removed is what lies between two matches.
    if behavior == "Removed" and invert:
        return pattern
    only = "only 'Isolated', or 'Removed' with invert"
    raise ValueError(f"behavior {behavior!r} of Split is not implemented, {only}")


# ---------------------------------------------------------------------------------------------
# writing a tokenizer.json


def byte_characters() -> dict[str, int]:
    """The printable character that stands for each byte in the files: {"!": 33, …, "Ġ": 32, …}.

    Bytes that are printable Latin-1 stand for themselves, the others for the code points from 256
    on, in order.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def spec_of_merges(vocab: dict[str, int], merges: list[tuple[str, str]]) -> dict:
    """The contents of a tokenizer.json for GPT-2's older pair of files.

    The pair does not mark special tokens: they are those that no merge makes.
    """
    mergeable = set(byte_characters())
    mergeable.update(left + right for left, right in merges)
    special = sorted((i, token) for token, i in vocab.items() if token not in mergeable)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added_tokens = [{"id": i, "content": t, **flags, "special": True} for i, t in special]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    pairs = [list(pair) for pair in merges]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", **MODEL_SETTINGS, "vocab": vocab, "merges": pairs},
    }


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
