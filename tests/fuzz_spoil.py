"""What spoils an input: draws of hypothesis that change bytes, lines, and values of JSON-like trees.

`draw` is hypothesis' function that draws from a strategy.
"""

import copy
import io
import json
import math
import zipfile

import torch
from hypothesis import strategies as st

NUMBERS = (0, 1, -1, 2, 3, 255, 2**16, 2**24, 2**31, 2**48, 2**63, 2**64, -(2**63), 10**30, 10**400, 0.0, 0.5, -0.0,
           1e-300, 1e300, -1e300, math.nan, math.inf, -math.inf)  # fmt: skip
TEXTS = ("", " ", "x", "é\u2028ü", "\x00", "a\nb", "\x1b[2J", "..", "../x", "/etc/passwd", "~", "C:\\x", "💾" * 3,
         "\ud800", "9" * 5000, "x" * 300, "x" * 100_000)  # fmt: skip
CONTAINERS = ([], {}, [[]], [None], {"": None}, {"x": {}}, [0] * 100)
VALUES = st.one_of(
    st.sampled_from((None, True, False, *NUMBERS)),
    st.sampled_from(TEXTS),
    st.sampled_from(CONTAINERS),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
)
SNIPPETS = (b"", b"\x00", b"\x00" * 64, b"\xff" * 8, b"\n", b"\r\n", b"\xef\xbb\xbf", b"\xff\xfe", b"[" * 100_000,
            b'{"a":' * 3000, b"9" * 5000, b"1e999", b"NaN", b"null", b"-1", b"../../x", b"\xc3", b"\xed\xa0\x80",
            b"PK\x03\x04", b"\x1f\x8b\x08\x00", b"\x28\xb5\x2f\xfd", b"PAR1", b"<html>",
            (20240520).to_bytes(4, "little"), (2**63).to_bytes(8, "little"), (2**31 - 1).to_bytes(4, "little"),
            b"version https://git-lfs.github.com/spec/v1\n")  # fmt: skip


def spoil_bytes(draw, content: bytes) -> bytes:
    """One change: a byte, a cut, a piece that is left out, doubled, put in or put over."""
    change = draw(st.sampled_from(("byte", "cut", "without", "doubled", "inserted", "overwritten", "instead")))
    start = draw(st.integers(0, len(content)))
    end = min(len(content), start + draw(st.integers(1, 200)))
    snippet = draw(st.one_of(st.sampled_from(SNIPPETS), st.binary(max_size=16)))
    if change == "byte" and start < len(content):
        return content[:start] + bytes([draw(st.integers(0, 255))]) + content[start + 1 :]
    if change == "cut":
        return content[:start]
    if change == "without":
        return content[:start] + content[end:]
    if change == "doubled":
        return content[:end] + content[start:]
    if change == "overwritten":
        return content[:start] + snippet + content[start + len(snippet) :]
    if change == "instead":
        return snippet
    return content[:start] + snippet + content[start:]


def spoil_lines(draw, content: bytes) -> bytes:
    """One line changed, left out, doubled, moved, or with another word."""
    lines = content.split(b"\n")
    at = draw(st.integers(0, len(lines) - 1))
    change = draw(st.sampled_from(("word", "without", "doubled", "moved", "joined")))
    if change == "word":
        words = lines[at].split(b" ")
        word = draw(VALUES.map(as_text))
        words[draw(st.integers(0, len(words) - 1))] = word.encode(errors="surrogatepass")
        lines[at] = b" ".join(words)
    elif change == "doubled":
        lines.insert(at, lines[at])
    elif change == "joined":
        lines[at : at + 2] = [b" ".join(lines[at : at + 2])]
    else:
        line = lines.pop(at)
        if change == "moved":
            lines.insert(draw(st.integers(0, len(lines))), line)
    return b"\n".join(lines)


def as_text(value) -> str:
    """A value as JSON or Python writes it, a text as it is. Python refuses to write integers of more digits."""
    if isinstance(value, str):
        return value
    return json.dumps(value)


def spoil_tree(draw, tree, values=VALUES):
    """A copy of nested lists and dicts with one to three places changed; `values`: what is put in."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        if not isinstance(tree, (dict, list)) or not tree:
            return copy.deepcopy(draw(values))
        container, key = draw_place(draw, tree)
        change = draw(st.sampled_from(("value", "value", "value", "without", "nested", "renamed", "swapped")))
        if change == "value":
            container[key] = copy.deepcopy(draw(values))  # the same object would be spoiled next time
        elif change == "nested":
            container[key] = draw(st.sampled_from(([container[key]], {"x": container[key]})))
        elif change == "swapped":
            # the value of another place: of a type that may well be right
            other, other_key = draw_place(draw, tree)
            container[key] = copy.deepcopy(other[other_key])
        else:
            value = container.pop(key)
            if change == "renamed" and isinstance(container, dict):
                container[draw(st.sampled_from(TEXTS))] = value
    return tree


def draw_place(draw, tree):
    """(container, key) of some place of a tree, the deeper the rarer."""
    container = tree
    while True:
        keys = list(container) if isinstance(container, dict) else range(len(container))
        key = keys[draw(st.integers(0, len(keys) - 1))]
        child = container[key]
        if not isinstance(child, (dict, list)) or not child or draw(st.booleans()):
            return container, key
        container = child


# ---------------------------------------------------------------------------------------------
# by the form of the file


def spoil_json(draw, content: bytes) -> bytes:
    return json.dumps(spoil_tree(draw, json.loads(content))).encode()


def spoil_json_lines(draw, content: bytes) -> bytes:
    rows = [json.loads(line) for line in content.splitlines()]
    rows = spoil_tree(draw, rows)
    if not isinstance(rows, list):
        rows = [rows]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def spoil_safetensors(draw, content: bytes) -> bytes:
    """The header: a length in 8 bytes, then JSON."""
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(spoil_tree(draw, json.loads(content[8 : 8 + length]))).encode()
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


TENSORS = (
    torch.zeros(()), torch.zeros(0), torch.zeros(3, 5), torch.full((2, 2), math.nan), torch.zeros(2, dtype=torch.int64),
    torch.zeros(1).expand(1 << 20, 1 << 20), torch.zeros(2, dtype=torch.complex64), torch.ones(2, 2).to_sparse(),
)  # fmt: skip


def spoil_torch(draw, content: bytes) -> bytes:
    """What torch.save wrote: plain values and tensors in lists and dicts."""
    tree = torch.load(io.BytesIO(content), weights_only=True)
    values = st.one_of(VALUES, st.sampled_from(TENSORS))
    stored = io.BytesIO()
    torch.save(spoil_tree(draw, tree, values), stored)
    return stored.getvalue()


MEMBERS = ("../x.train", "/tmp/x.train", "a/../../x.train", "babylm_10M/x.train", "babylm_10M/", "babylm_10M/.train",
           "babylm_10M/\x00.train", "babylm_10M/..train", "b" * 300 + ".train", "babylm_10M/é\u2028.train",
           "babylm_10M/x.train/y.train", "C:\\babylm_10M\\x.train")  # fmt: skip


def spoil_zip(draw, content: bytes) -> bytes:
    """Other names for its members, or one more."""
    names = st.sampled_from(MEMBERS)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            new.writestr(draw(st.one_of(st.just(member), names)), old.read(member))
        if draw(st.booleans()):
            size = draw(st.sampled_from((0, 5, 1 << 20)))
            new.writestr(draw(names), b"x" * size)
    return out.getvalue()


BY_SUFFIX = {
    ".json": spoil_json, ".jsonl": spoil_json_lines, ".safetensors": spoil_safetensors, ".pt": spoil_torch,
    ".zip": spoil_zip, ".txt": spoil_lines, ".py": spoil_lines, ".train": spoil_lines, ".dev": spoil_lines,
}  # fmt: skip


def spoil_file(draw, name: str, content: bytes) -> bytes:
    """A file by its form, or by its bytes."""
    by_form = BY_SUFFIX.get("." + name.rpartition(".")[2])
    if by_form and draw(st.integers(0, 3)):
        return by_form(draw, content)
    return spoil_bytes(draw, content)
