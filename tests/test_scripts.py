"""prepare_data.py and sample.py as a user runs them."""

import json
import runpy
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, run_script

from common.pretrained import find_model
from common.tokenizer import SentencePieceTokenizer, load_tokenizer


def prepared(folder):
    """(tokenizer, meta, the text of the train split's documents, and of the val split's)."""
    tokenizer, meta = load_tokenizer(folder), json.loads((folder / "meta.json").read_text())
    splits = []
    for split in ("train", "val"):
        ids = np.fromfile(folder / f"{split}.bin", dtype="<u2").tolist()
        ends = [i for i, token in enumerate(ids) if token == tokenizer.eot]
        assert ids[-1] == tokenizer.eot and meta[f"{split}_tokens"] == len(ids)
        starts = [0, *(e + 1 for e in ends)]
        documents = [tokenizer.decode(ids[a:b]) for a, b in zip(starts, ends)]
        assert meta[f"{split}_documents"] == len(documents)
        assert meta[f"{split}_bytes"] == sum(len(d.encode()) for d in documents)
        splits.append(documents)
    return tokenizer, meta, *splits


@pytest.mark.slow
def test_folder_of_txt_and_jsonl(tmp_path):
    source = tmp_path / "texts"
    (source / "deep").mkdir(parents=True)
    texts = [f"file {i}\n\n  café {i * i}\n" for i in range(7)]
    for i, text in enumerate(texts[:4]):
        (source / f"{i}.txt").write_text(text)
    (source / "deep/z.jsonl").write_text("".join(json.dumps({"text": text, "id": 1}) + "\n" for text in texts[4:]))
    (source / "notes.md").write_text("not a source")
    args = [f"--source={source}", f"--out_dir={tmp_path / 'out'}", "--tokenizer=bytes", "--val_fraction=0.25"]
    run_script("prepare_data.py", *args)
    tokenizer, meta, train, val = prepared(tmp_path / "out")
    assert tokenizer.kind == "bytes" and meta["vocab_size"] == 257 and meta["source"] == str(source)
    assert train == [*texts[:3], *texts[4:]] and val == [texts[3]]  # every fourth document
    before = (tmp_path / "out/train.bin").read_bytes()
    run_script("prepare_data.py", *args)
    assert (tmp_path / "out/train.bin").read_bytes() == before


@pytest.mark.slow
def test_one_text_is_split_at_its_end_and_read_in_pieces(tmp_path):
    text = "".join(f"line {i} of a longer text, é\r\n" for i in range(60_000))  # 1.9 M characters: two pieces
    (tmp_path / "a.txt").write_bytes(text.encode())
    args = [f"--source={tmp_path / 'a.txt'}", f"--out_dir={tmp_path / 'out'}", "--vocab_size=310"]
    run_script("prepare_data.py", *args, "--val_fraction=0.1")
    tokenizer, _, train, val = prepared(tmp_path / "out")
    assert tokenizer.kind == "bpe" and tokenizer.vocab_size == 310
    assert len(train) == len(val) == 1 and train[0] + val[0] == text
    assert len(val[0]) == pytest.approx(0.1 * len(text), rel=1e-3)


@pytest.mark.slow
def test_stdlib_is_the_default_and_deterministic(tmp_path):
    for name in ("a", "b"):
        run_script("prepare_data.py", f"--out_dir={tmp_path / name}", "--tokenizer=bytes")
    for file in ("train.bin", "val.bin", "meta.json", "choices.jsonl"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    _, meta, train, val = prepared(tmp_path / "a")
    assert meta["train_bytes"] > 2_000_000 and "Python 3" in meta["source"]
    assert len({*train, *val}) == len(train) + len(val)  # no document twice
    assert any("class JSONDecoder" in d for d in train + val)
    rows = [json.loads(line) for line in (tmp_path / "a/choices.jsonl").read_text().splitlines()]
    held_out = "\n".join(val)
    assert len(rows) > 50
    assert all(len(set(r["endings"])) == 4 and r["endings"][r["label"]] in held_out for r in rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    "args, message",
    [
        (["--source=nowhere"], "source 'nowhere' is not there; expected a file or a folder of them, or one of stdlib"),
        (["--source={}"], "files has none of .txt, .train"),
        (["--source={}/a.csv"], "a.csv is not one of .txt"),
        (["--source={}/a.jsonl"], 'a.jsonl, line 2: expected JSON with a "text"'),
        (["--source={}/a.txt", "--vocab_size=70000"], "vocab_size=70000: a bpe needs 300 to 65,536"),
        (["--source={}/a.txt", "--vocab_size=5000"], "vocab_size=5000 does not suit this text"),
        (["--source={}/b.jsonl"], "b.jsonl, line 1: expected JSON with a"),
        (["--source={}/empty.txt"], "has no text"),
        (["--tokenizer=byte"], "tokenizer='byte' is not one of bytes, bpe, gpt2; did you mean 'bytes'?"),
        (["--tokenizer=char"], "there is none of characters; --tokenizer=bytes is the nearest, 257 ids"),
        (["--source="], "source is empty; expected a file or a folder, or one of stdlib, shakespeare"),
        (["--text_dir={}"], "source='stdlib' is not one that has files; for texts of your own give --source="),
        (["--source=babyllm", "--text_dir={}"], "source='babyllm' is not one that has files; did you mean 'babylm'?"),
        (
            ["--source={}/a.txt", "--out_dir={}/a.txt"],
            "a.txt is a file; out_dir is the folder that the data set goes to",
        ),
        (["--document_separator=lines"], "is not one of file, line, blank, eot; did you mean 'line'?"),
        (["--document_separator=eot"], "'eot' is for .txt, .train, .dev files, and source 'stdlib of Python"),
        (["--val_fraction=0"], "val_fraction=0.0 is not in 0 … 0.5"),
        (["--source={}/three", "--tokenizer=bytes"], "the val split is empty"),
    ],
)
def test_bad_sources_end_in_one_line(args, message, tmp_path):
    (tmp_path / "files" / "three").mkdir(parents=True)
    if args != ["--source={}"]:
        (tmp_path / "files/a.txt").write_text("some text\n" * 50)
        (tmp_path / "files/a.csv").write_text("1,2")
        (tmp_path / "files/a.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n')
        (tmp_path / "files/b.jsonl").write_text('{"text": 5}')
        (tmp_path / "files/empty.txt").touch()
        for name in "abc":
            (tmp_path / f"files/three/{name}.txt").write_text(name)
    args = [a.format(tmp_path / "files") for a in args]
    done = run_script("prepare_data.py", f"--out_dir={tmp_path / 'out'}", *args, ok=False)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "out/meta.json").exists()


@pytest.mark.slow
def test_gpt2_that_cannot_be_downloaded_is_said_as_that(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    done = run_script("prepare_data.py", "--tokenizer=gpt2", f"--out_dir={tmp_path / 'o'}", ok=False)
    assert done.returncode == 2 and "is not one of" not in done.stderr
    assert done.stderr.startswith("prepare_data.py: cannot download GPT-2's vocabulary"), done.stderr


@pytest.mark.slow
def test_ctrl_c_while_a_bpe_trains(tmp_path):
    """The trainer must not report it as a vocabulary that does not suit the text; it is fed for half a second here."""
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "some words and {i}"}}\n' for i in range(200_000)))
    args = [f"--source={tmp_path / 'a.jsonl'}", f"--out_dir={tmp_path / 'o'}"]
    command = [sys.executable, str(ROOT / "prepare_data.py"), *args]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "training a BPE" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and errors.strip() == "prepare_data.py: interrupted"

    def interrupted():
        yield "some words"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SentencePieceTokenizer.train(interrupted(), 300)


@pytest.mark.slow
def test_sample_writes_text_and_the_same_for_the_same_seed(teacher):
    args = [f"--model={teacher}", "--prompt=abc", "--max_tokens=30", "--num_samples=2"]
    first, again, other = (run_script("sample.py", *args, f"--seed={s}").stdout for s in (1, 1, 2))
    assert first == again != other and first.startswith("abc") and first.count("-" * 80) == 1
    done = run_script("sample.py", "--model=nowhere", ok=False)
    assert done.returncode == 2 and "no folder 'nowhere' here, and from the hub" in done.stderr


@pytest.fixture
def sample(monkeypatch, capsys):
    """sample(*args) runs sample.py in this process, as that command line would; returns what it writes."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["sample.py", "--device=cpu", *args])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # configure() sets another
        runpy.run_path(str(ROOT / "sample.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    "temperature, message",
    [
        ("1e-40", "=1e-40 is too small; it must be at least 0.001"),
        ("1e999", "=inf is out of range; it must be a finite"),
    ],
)
def test_sample_refuses_a_temperature_that_overflows(temperature, message, sample):
    with pytest.raises(ValueError, match=f"temperature{message}"):
        sample("--model=nowhere", f"--temperature={temperature}")


@pytest.mark.slow
def test_an_empty_prompt_starts_as_the_checkpoint_says(teacher, sample, tmp_path):
    """Where its meta.json has no `start`, with the beginning-of-text id; a start beyond the vocabulary is refused."""
    model = tmp_path / "model"
    shutil.copytree(find_model(teacher), model)
    meta = json.loads((model / "meta.json").read_text())
    meta.pop("start", None)

    def write_start(**start):
        (model / "meta.json").write_text(json.dumps(meta | start))

    args = [f"--model={model}", "--max_tokens=8", "--temperature=0"]
    write_start()
    from_bos = sample(*args)
    write_start(start=[meta["bos"]])
    assert sample(*args) == from_bos
    write_start(start=[40, 65, 66])
    from_text = sample(*args)
    assert from_text == sample(*args, "--prompt=(AB") != from_bos and from_text.startswith("(AB")
    for start in ([meta["vocab_size"]], [-1], [1.5], ["a"], 7):
        write_start(start=start)
        with pytest.raises(ValueError, match=r"meta\.json: start=.* is not a list of ids of its tokenizer"):
            sample(*args)
