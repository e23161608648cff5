"""The fuzzer (tests/fuzz.py) on a few inputs of each kind, that it can find something, and what it has found so far."""

import json
import os
import sys
import time

import pytest
from fuzz import run_batch
from fuzz_kinds import KINDS, Kind, Material, write_files

from corpora.readers import File, pieces
from tasks.loading import load_tasks


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return Material(tmp_path_factory.mktemp("material"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_spoiled_inputs_are_read_or_refused_in_one_line(kind, material, tmp_path):
    """The same inputs each time; `python tests/fuzz.py --seconds=600` draws others."""
    result = run_batch(kind, material, number=0, examples=30, scratch=tmp_path / "scratch")
    assert result["finding"] == ""
    assert sum(result["counts"].values()) == 30 and result["counts"]["refused"] > 0


# ---------------------------------------------------------------------------------------------
# it would find something


def write_elsewhere(folder, out):
    (folder / "x").write_text("")


def crash(folder, out):
    os.abort()


def hang(folder, out):
    while True:
        pass


def sleep(folder, out):
    time.sleep(1000)


def take_memory(folder, out):
    bytearray(3 << 30)


def say_two_lines(folder, out):
    print("a note", file=sys.__stderr__)
    json.loads("{")


@pytest.mark.slow
@pytest.mark.parametrize(
    "read, finding",
    [
        (lambda folder, out: 1 / 0, "a traceback, of ZeroDivisionError"),
        # of a library: most likely our mistake
        (lambda folder, out: json.loads("{"), "a traceback, of JSONDecodeError"),
        (say_two_lines, "a traceback, of JSONDecodeError"),
        (write_elsewhere, "written outside of the folder for output: [('open', "),
        (crash, "the process was killed by SIGABRT"),
        (hang, "the process was killed by SIGPROF"),
        (sleep, "the process was killed by SIGALRM"),
        (take_memory, "a traceback, of MemoryError"),
    ],
)
def test_each_bad_end_is_a_finding(read, finding, material, tmp_path, monkeypatch):
    def only_if_spoiled(folder, out):
        if (folder / "a.txt").read_bytes() != b"a":
            read(folder, out)

    kind = Kind(lambda material: {"a.txt": b"a"}, lambda: [only_if_spoiled], KINDS["log"].spoil, write_files)
    monkeypatch.setitem(KINDS, "own", kind)
    monkeypatch.setattr("fuzz.SECONDS", 1)
    monkeypatch.setattr("fuzz.PATIENCE", 3)
    result = run_batch("own", material, number=0, examples=30, scratch=tmp_path / "scratch")
    assert finding in result["finding"]


# ---------------------------------------------------------------------------------------------
# what it has found: the smallest input of each


def test_a_zst_that_was_cut_is_no_shorter_text(tmp_path):
    """zstandard's own reader took it for one; and what is not zstd at all ended in a traceback."""
    zstandard = pytest.importorskip("zstandard")
    frames = [zstandard.compress(b'{"text": "a"}\n'), zstandard.compress(b'{"text": "b"}\n')]
    path = tmp_path / "x.jsonl.zst"
    path.write_bytes(b"".join(frames))
    assert [text for text, _ in pieces(File(path))] == ["a", "b"]
    for content in (frames[0] + frames[1][:-1], frames[0][:5], b"text", frames[0] + b"x"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x.jsonl.zst is damaged or was cut \(.*\); fetch it again"):
            list(pieces(File(path)))


def test_a_file_of_questions_that_begins_with_null(tmp_path):
    (tmp_path / "x.jsonl").write_text("null\n")
    with pytest.raises(ValueError, match=r"x.jsonl: its first row is not a JSON object; expected one with context"):
        load_tasks(str(tmp_path / "x.jsonl"), str(tmp_path))
