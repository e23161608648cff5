"""SentencePiece files: the fields that decide ids, and an equivalent tokenizer.json.

transformers reads a tokenizer.json as it is. From a tokenizer.model alone it takes the pieces, and
guesses the rest by the model_type in config.json: for a GPT, GPT-2's byte-level rules.
"""

import base64
import struct
from typing import NamedTuple

BLANK = "\u2581"  # "▁", which stands for a blank in a piece

# model_type
UNIGRAM = 1
BPE = 2

# Types of a piece.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

# Wire types of a protocol buffer: how a field is written.
VARINT, EIGHT_BYTES, WITH_LENGTH, FOUR_BYTES = 0, 1, 2, 5


class Piece(NamedTuple):
    text: str
    score: float  # the best are merged first
    type: int


class SentencePieceFile:
    """The rules by which a file turns text into ids. Fields and defaults: sentencepiece_model.proto."""

    def __init__(self, model: bytes):
        self.pieces = []  # by id
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


def read_piece(message: bytes) -> Piece:
    text = ""
    score = 0.0
    # The default of the format: most pieces have no type.
    piece_type = NORMAL
    for field, serialised, contents in proto_fields(message):
        if field == 1:
            text = contents.decode(errors="replace")
        # SentencePiece skips a score of another length, as it does unknown fields
        elif field == 2 and len(contents) == 4:
            (score,) = struct.unpack("<f", contents)
        elif field == 3:
            piece_type = number(serialised)
    return Piece(text, score, piece_type)


# ---------------------------------------------------------------------------------------------
# as a tokenizer.json


def inexpressible(file: SentencePieceFile) -> str:
    """Why no tokenizer.json can say the same as the file; "" where `spec_of_sentencepiece` does."""
    # A unigram model chooses among all ways to cut a text; a list of merges cannot.
    if file.model_type != BPE:
        return "is not a BPE model"
    # User-defined pieces are found before anything merges, unused ones never.
    types = {piece.type for piece in file.pieces}
    if USER_DEFINED in types or UNUSED in types:
        return "has user-defined or unused pieces"
    if file.blank_is_suffix or not file.escape_blanks:
        return "has other rules for blanks"
    # Merges start from single characters, so they reach no piece with a character that is none.
    normal_texts = {piece.text for piece in file.pieces if piece.type == NORMAL}
    characters = set("".join(normal_texts))
    if not characters <= normal_texts:
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
    added_tokens = []
    unknown = None
    for i, piece in enumerate(file.pieces):
        vocab[piece.text] = i
        # Without an added token, decoding would write <unk>, <s> and </s> into the text.
        if piece.type in (UNKNOWN, CONTROL):
            added_tokens.append({"id": i, "content": piece.text, **flags, "special": True})
        if piece.type == UNKNOWN:
            unknown = piece.text
    model = {
        "type": "BPE",
        "unk_token": unknown,
        # SentencePiece gives one id for a run of unknown characters.
        "fuse_unk": True,
        "byte_fallback": file.byte_fallback,
        "vocab": vocab,
        "merges": merges(file),
    }
    return {
        "version": "1.0",
        "added_tokens": added_tokens,
        "normalizer": normalizer(file),
        # Merges may cross blanks: the text is one piece.
        "pre_tokenizer": None,
        "decoder": decoder(file),
        "model": model,
    }


def merges(file: SentencePieceFile) -> list[list[str]]:
    """The pairs of pieces that together are a piece, the best score first.

    SentencePiece has no list of pairs: of all neighbours that together are a piece, it merges those
    whose piece has the best score.
    """
    scores = {piece.text: piece.score for piece in file.pieces if piece.type == NORMAL}
    pairs = []
    for text in sorted(scores, key=scores.get, reverse=True):
        for middle in range(1, len(text)):
            left = text[:middle]
            right = text[middle:]
            if left in scores and right in scores:
                pairs.append([left, right])
    return pairs


def normalizer(file: SentencePieceFile) -> dict:
    steps = []
    # Precompiled maps single characters, so NFKC has to compose sequences of several first. NFKC
    # alone would lack the characters that are newer than its tables.
    if "nfkc" in file.normalization:
        steps.append({"type": "NFKC"})
    if file.charsmap:
        charsmap = base64.b64encode(file.charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    # Remove blanks at the start, and all but the last of a run. Those at the end follow below.
    if file.remove_extra_blanks:
        steps.append(replace({"Regex": r"\A +| +(?= )"}, ""))
    # A text of "" gets no prefix, here and in SentencePiece.
    if file.dummy_prefix:
        steps.append({"type": "Prepend", "prepend": BLANK})
    steps.append(replace({"String": " "}, BLANK))
    # After blanks have become "▁", so that a "▁" at the end of the text itself is removed too.
    if file.remove_extra_blanks:
        steps.append(replace({"Regex": rf"{BLANK}+\z"}, ""))
    return {"type": "Sequence", "normalizers": steps}


def decoder(file: SentencePieceFile) -> dict:
    # ByteFallback joins bytes into characters. Fuse joins the tokens into one text, as only the
    # front of the whole loses its blanks.
    steps = [replace({"String": BLANK}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if file.remove_extra_blanks:
        steps.append(strip_front(1 << 20))
    elif file.dummy_prefix:
        steps.append(strip_front(1))
    return {"type": "Sequence", "decoders": steps}


def strip_front(max_blanks: int) -> dict:
    return {"type": "Strip", "content": " ", "start": max_blanks, "stop": 0}


def replace(pattern: dict, content: str) -> dict:
    return {"type": "Replace", "pattern": pattern, "content": content}


# ---------------------------------------------------------------------------------------------
# protocol buffers


def deciding_fields(model: bytes):
    """The top-level fields of a SentencePiece file that decide ids, serialised.

    A tokenizer's hash is over them. How it was trained and tested is left out: the same text under
    another path does not make another tokenizer.
    """
    for field, _, contents in proto_fields(model):
        # trainer_spec has paths of files and thread counts. Encoding uses only its model_type (3),
        # treat_whitespace_as_suffix (24) and byte_fallback (35).
        if field == 2:
            for trainer_field, serialised, _ in proto_fields(contents):
                if trainer_field in (3, 24, 35):
                    yield serialised
        # 4 is self_test_data.
        elif field != 4:
            yield bytes([field]) + contents


def proto_fields(message: bytes):
    """(number, serialised, contents) of each field of a message of a SentencePiece file.

    b"\\x08\\x96\\x01" is field 1 with the varint 150: (1, b"\\x08\\x96\\x01", b""). `contents` is what
    follows the key of other fields, without its length.
    """
    end = 0
    while end < len(message):
        start = end
        key, end = varint(message, start)
        # The low three bits of the key say how the field is written.
        wire_type = key & 7
        size = 0
        if wire_type == VARINT:
            _, end = varint(message, end)
        elif wire_type == WITH_LENGTH:
            size, end = varint(message, end)
        elif wire_type == EIGHT_BYTES:
            size = 8
        elif wire_type == FOUR_BYTES:
            size = 4
        contents = message[end : end + size]
        end += size
        yield key >> 3, message[start:end], contents


def varint(message: bytes, start: int) -> tuple[int, int]:
    """A number in base 128, low digits first, and where it ends.

    All bytes but the last have the top bit set: b"\\x96\\x01" is 22 + 1 * 128 = 150.
    """
    value = 0
    shift = 0
    position = start
    while True:
        byte = message[position]
        value |= (byte & 127) << shift
        shift += 7
        position += 1
        if byte < 128:
            return value, position


def number(serialised: bytes) -> int:
    """The value of a serialised field that holds a varint."""
    # The key comes first.
    _, start = varint(serialised, 0)
    value, _ = varint(serialised, start)
    return value
