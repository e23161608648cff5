"""The fuzzer (tests/fuzz.py) on a few inputs of each kind, that it can find something, and what it has found so far."""

import faulthandler
import json
import math
import os
import sys
import time

import pytest
import torch
from conftest import ROOT, write_dataset
from fuzz import run_batch
from fuzz_kinds import KINDS, Kind, Material, write_files

from common.checkpoint import load_trainer_state
from common.data import TokenData
from common.one_line import one_line
from common.spm import NORMAL, Piece, read_piece
from common.tokenizer import ByteTokenizer, load_tokenizer
from configurator import check
from corpora.checking import check_data
from corpora.readers import File, pieces
from corpora.writing import check_replaceable, remove_data_set
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
    # pytest would print a page of frames
    faulthandler.disable()
    os.abort()


def hang(folder, out):
    while True:
        pass


def sleep(folder, out):
    time.sleep(1000)


def take_memory(folder, out):
    bytearray(3 << 30)


@pytest.mark.slow
@pytest.mark.parametrize(
    "read, finding",
    [
        (lambda folder, out: 1 / 0, "a traceback, of ZeroDivisionError"),
        # of a library: most likely our mistake
        (lambda folder, out: json.loads("{"), "a traceback, of JSONDecodeError"),
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
    # on a busy machine a second of the processor takes many by the clock
    monkeypatch.setattr("fuzz.PATIENCE", 3 if read is sleep else 120)
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


def test_a_sentencepiece_file_with_a_piece_that_is_no_utf_8(tmp_path):
    """The library's message quotes the piece, and it is the message that fails to be decoded."""
    content = bytearray((ROOT / "tests/golden_tokenizer/tokenizer.model").read_bytes())
    content[1719] = 249
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer.model is not a SentencePiece model, or is incomplete"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_json_with_half_a_surrogate_pair_is_refused_before_it_must_be_saved(tmp_path):
    """In a part that we do not read; the first checkpoint would have ended in a traceback."""
    ByteTokenizer().save(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec | {"version": "\ud800"}))
    with pytest.raises(ValueError, match=r"tokenizer.json has half a surrogate pair, which is no character; copy"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec | {"version": "\ud83d\udcbe"}))
    load_tokenizer(tmp_path)


def test_a_score_that_is_no_float_is_skipped_as_sentencepiece_does():
    """Field 2 of a piece with two bytes: struct.error, where the library reads on."""
    assert read_piece(b"\x0a\x01a\x12\x02xy") == Piece("a", 0.0, NORMAL)
    assert read_piece(b"\x0a\x01a\x15\x00\x00\x80\x3f") == Piece("a", 1.0, NORMAL)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("train_files", [None], r"train_files=\[None\] is no list of files"),
        ("train_files", "train.bin", "train_files='train.bin' is no list of files"),
        ("train_files", [], r"train_files=\[\] is no list of files"),
        ("domains", [1], r"domains=\[1\] is no dict"),
        ("files", 1, "files=1 is no dict"),
        ("tokenizer", ["bytes"], r"tokenizer=\['bytes'\] is no str"),
        ("tokenizer_hash", 1, "tokenizer_hash=1 is no str"),
    ],
)
def test_a_meta_json_of_other_types(key, value, message, tmp_path):
    meta = json.loads((write_dataset(tmp_path) / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps(meta | {key: value}))
    with pytest.raises(ValueError, match=message):
        TokenData(tmp_path, "train", 16, 0, 1)


def test_a_data_set_of_other_types_is_replaced_or_refused(tmp_path):
    meta = json.loads((write_dataset(tmp_path) / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps(meta | {"files": {"train.bin": 3}}))
    with pytest.raises(ValueError, match=r"train.bin: its bytes are not those that meta.json was written for"):
        check_data(tmp_path)
    (tmp_path / "meta.json").write_text(json.dumps(meta | {"files": 3, "settings": 3}))
    check_replaceable(tmp_path, {"nfkc": True}, overwrite=False)
    remove_data_set(tmp_path)
    assert (tmp_path / "train.bin").is_file() and not (tmp_path / "meta.json").exists()


STATE = {"step": 4, "rows": 16, "seconds": 1.0, "config": {"seed": 1}, "optimizers": [], "best": (2.5, 4), "world": 1}


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"rows": None}, "rows is None"),
        ({"rows": -1}, "rows is -1"),
        ({"step": -1}, "step is -1"),
        ({"rows": 10**400}, "rows is 1000"),
        ({"seconds": math.nan}, "seconds is nan"),
        ({"world": "2"}, "world is '2'"),
        ({"best": (None, 4)}, r"best is \(None, 4\)"),
        ({"best": 3}, "cannot unpack non-iterable int object"),
        ({"config": {"seed": torch.zeros(2)}}, "its knob seed is Tensor"),
        ({"config": {7: 1}}, "its knob 7 is int"),
        ({"own": {"kl_own": None}}, "kl_own of own text is NoneType"),
    ],
)
def test_a_trainer_state_of_other_types(change, reason, tmp_path):
    torch.save(STATE, tmp_path / "trainer.pt")
    assert load_trainer_state(tmp_path) == STATE
    torch.save(STATE | change, tmp_path / "trainer.pt")
    with pytest.raises(ValueError, match=rf"trainer.pt is damaged or was cut \({reason}.*\); delete"):
        load_trainer_state(tmp_path)


def test_a_number_beyond_all_floats():
    with pytest.raises(ValueError, match=r"learning_rate=10+ is beyond 2"):
        check("config.py", "learning_rate", 10**400, {"learning_rate": 1e-3})
    assert check("config.py", "learning_rate", 10**20, {"learning_rate": 1e-3}) == 1e20


def test_a_line_that_repeats_a_file_is_cut_in_its_middle(capsys, monkeypatch):
    monkeypatch.setattr(sys, "__stderr__", sys.stderr)
    error = OSError(f"x.json: key={'9' * 100_000} is out of range; prepare the data again")
    with pytest.raises(SystemExit):
        one_line(OSError, error, None)
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line) < 2100 and " … 9" in line and line.endswith("9 is out of range; prepare the data again")
