"""SentencePiece files: what in them decides ids, and a tokenizer.json that says the same.

transformers reads a tokenizer.json as it is. From a tokenizer.model alone it takes the pieces, and
guesses the rest by the model_type beside it: for a GPT, GPT-2's byte-level rules.
"""

import base64
import struct

BLANK = "\u2581"  # "▁", what a blank is in a piece
UNIGRAM, BPE = 1, 2  # model_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of a piece


class SentencePieceFile:
    """What a file says of how text becomes ids. Fields and defaults: sentencepiece_model.proto."""

    def __init__(self, model: bytes):
        self.pieces = []  # (text, score, type) by id
        self.model_type = UNIGRAM
        self.byte_fallback = False
        self.blank_is_suffix = False
        self.normalization = ""  # the name of its rules
        self.charsmap = b""  # the rules, compiled
        self.dummy_prefix = True  # a blank in front of every text
        self.remove_extra_blanks = True
        self.escape_blanks = True
        for field, _, contents in proto_fields(model):
            if field == 1:
                self.pieces.append(read_piece(contents))
            elif field == 2:
                self.read_trainer_spec(contents)
            elif field == 3:
                self.read_normalizer_spec(contents)

    def read_trainer_spec(self, message: bytes):
        for field, serialised, _ in proto_fields(message):
            if field == 3:
                self.model_type = number(serialised)
            elif field == 24:
                self.blank_is_suffix = bool(number(serialised))
            elif field == 35:
                self.byte_fallback = bool(number(serialised))

    def read_normalizer_spec(self, message: bytes):
        for field, serialised, contents in proto_fields(message):
            if field == 1:
                self.normalization = contents.decode(errors="replace")
            elif field == 2:
                self.charsmap = contents
            elif field == 3:
                self.dummy_prefix = bool(number(serialised))
            elif field == 4:
                self.remove_extra_blanks = bool(number(serialised))
            elif field == 5:
                self.escape_blanks = bool(number(serialised))


def read_piece(message: bytes) -> tuple[str, float, int]:
    text = ""
    score = 0.0
    kind = NORMAL
    for field, serialised, contents in proto_fields(message):
        if field == 1:
            text = contents.decode(errors="replace")
        elif field == 2:
            (score,) = struct.unpack("<f", contents)
        elif field == 3:
            kind = number(serialised)
    return text, score, kind


# ---------------------------------------------------------------------------------------------
# as a tokenizer.json


def inexpressible(file: SentencePieceFile) -> str:
    """Why `spec_of_sentencepiece` cannot say the same as the file; "" where it can."""
    pieces = {text for text, _, kind in file.pieces if kind == NORMAL}
    characters = {character for text in pieces for character in text}
    kinds = {kind for _, _, kind in file.pieces}
    if file.model_type != BPE:
        return "is not a BPE model"
    if USER_DEFINED in kinds or UNUSED in kinds:
        return "has user-defined or unused pieces"
    if file.blank_is_suffix or not file.escape_blanks:
        return "has other rules for blanks"
    if not characters <= pieces:
        return "has pieces with characters that are not pieces themselves"
    return ""


def spec_of_sentencepiece(file: SentencePieceFile) -> dict:
    """The contents of a tokenizer.json with SentencePiece's ids for a text, and its text for ids.

    Two exceptions. NFKC (nfkc=True in prepare_data.py): where a letter has several combining marks,
    or a ligature has one, SentencePiece leaves what Unicode reorders or composes. Decoding: where
    byte pieces are not UTF-8, as no text gives them, all bytes of their run become U+FFFD.
    """
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    vocab = {}
    added = []
    unknown = None
    for i, (text, _, kind) in enumerate(file.pieces):
        vocab[text] = i
        if kind in (UNKNOWN, CONTROL):
            added.append({"id": i, "content": text, **flags, "special": True})
        if kind == UNKNOWN:
            unknown = text
    model = {
        "type": "BPE",
        "unk_token": unknown,
        "fuse_unk": True,
        "byte_fallback": file.byte_fallback,
        "vocab": vocab,
        "merges": merges(file),
    }
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": normalizer(file),
        "pre_tokenizer": None,
        "decoder": decoder(file),
        "model": model,
    }


def merges(file: SentencePieceFile) -> list[list[str]]:
    """The pairs of pieces that together are a piece, the best score first.

    SentencePiece has no list of pairs: of all neighbours that together are a piece, it merges those
    whose piece has the best score.
    """
    scores = {text: score for text, score, kind in file.pieces if kind == NORMAL}
    pairs = []
    for text in sorted(scores, key=scores.get, reverse=True):
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in scores and right in scores:
                pairs.append([left, right])
    return pairs


def normalizer(file: SentencePieceFile) -> dict:
    steps = []
    # Precompiled maps one character at a time, so NFKC has to compose what is several; NFKC alone
    # would lack the characters that are newer than its tables
    if "nfkc" in file.normalization:
        steps.append({"type": "NFKC"})
    if file.charsmap:
        charsmap = base64.b64encode(file.charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if file.remove_extra_blanks:
        steps.append(replace({"Regex": r"\A +| +(?= )"}, ""))
    if file.dummy_prefix:
        steps.append({"type": "Prepend", "prepend": BLANK})
    steps.append(replace({"String": " "}, BLANK))
    if file.remove_extra_blanks:
        steps.append(replace({"Regex": rf"{BLANK}+\z"}, ""))
    return {"type": "Sequence", "normalizers": steps}


def decoder(file: SentencePieceFile) -> dict:
    steps = [replace({"String": BLANK}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if file.dummy_prefix or file.remove_extra_blanks:
        most = 1 << 20 if file.remove_extra_blanks else 1  # blanks taken off the front
        steps.append({"type": "Strip", "content": " ", "start": most, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def replace(pattern: dict, content: str) -> dict:
    return {"type": "Replace", "pattern": pattern, "content": content}


# ---------------------------------------------------------------------------------------------
# protocol buffers


def deciding_fields(model: bytes):
    """The top-level fields of a SentencePiece file that decide ids, serialised: all but how it was trained and tested.

    Field 2 is trainer_spec (paths of files, thread counts), 4 self_test_data; of trainer_spec, byte_fallback (35),
    model_type (3) and treat_whitespace_as_suffix (24) are used for encoding.
    """
    for field, _, contents in proto_fields(model):
        if field == 2:
            yield from (whole for n, whole, _ in proto_fields(contents) if n in (3, 24, 35))
        elif field != 4:
            yield bytes([field]) + contents


def proto_fields(message: bytes):
    """(number, serialised, contents) of each field of a protocol buffer message that a SentencePiece file is."""
    at = 0
    while at < len(message):
        start = at
        key, at = varint(message, at)
        size = {1: 8, 5: 4}.get(key & 7, 0)
        if key & 7 == 2:
            size, at = varint(message, at)
        elif key & 7 == 0:
            _, at = varint(message, at)
        contents, at = message[at : at + size], at + size
        yield key >> 3, message[start:at], contents


def varint(message: bytes, at: int) -> tuple[int, int]:
    """A number in base 128, low digits first, of which all but the last have the top bit; and where it ends."""
    value, shift = 0, 0
    while True:
        byte = message[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


def number(serialised: bytes) -> int:
    """The value of a serialised field that holds a varint."""
    _, start = varint(serialised, 0)
    value, _ = varint(serialised, start)
    return value
