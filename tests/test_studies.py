"""The engine of the studies: their data, the order of the runs, what becomes of them."""

import doctest
import importlib
import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from pretended import Pretending, knobs_of

from common.files import read_json
from studies.babyllama import __main__ as babyllama
from studies.babyllama.__main__ import ROWS
from studies.corpus import (
    END_OF_TEXT,
    MEDIUM,
    MEDIUM_TEST,
    MEDIUM_TEST_TEXT,
    MEDIUM_TEXT,
    cut_documents,
    documents,
    joined,
    passages,
    prepare_medium,
)
from studies.report import read_results
from studies.rows import Cache, Row, Score, Trained
from studies.runs import Study


@pytest.mark.parametrize("module", ["studies.corpus", "studies.stats"])
def test_examples_of_the_docstrings(module):
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted and not found.failed


def test_passages_are_whole_lines_spread_over_the_text():
    lines = [f"line {i:05} " + "x" * 91 + "\n" for i in range(4200)]  # 103 bytes; 40 make a passage: 105 of them
    kept = passages("".join(lines), 10).splitlines(keepends=True)
    numbers = [lines.index(line) // 40 for line in kept]
    assert sorted(set(numbers)) == list(range(5, 105, 10)) and len(kept) == 10 * 40
    assert passages("".join(lines), 1) == "".join(lines) and passages("short\n", 1) == ""


def test_documents_are_whole_lines_and_as_often_short_as_long():
    """On a logarithmic scale of 60 to 3,000 bytes: a quarter of them below each of three equal steps."""
    text = "".join(f"{i:06}\n" for i in range(200_000))
    found = documents(text)
    assert "".join(found) == text and all(document.endswith("\n") for document in found)
    sizes = np.array([len(document) for document in found[1:-1]])  # the first is a line, the last the rest
    assert sizes.min() >= 60 and sizes.max() < 3000 + 7
    for quarter in (1, 2, 3):
        edge = 60 * (3000 / 60) ** (quarter / 4)
        assert np.mean(sizes < edge) == pytest.approx(quarter / 4, abs=0.03)
    assert documents(text) == found  # the same each time: a study that continues cuts its data again
    assert joined(["a\n", "b\n"]) == f"a\n{END_OF_TEXT}b\n{END_OF_TEXT}"


def small_corpus(folder: Path, factor=1) -> Path:
    folder.mkdir()
    for domain in ("cbt", "wikipedia"):
        for split, n in (("train", 3000 * factor), ("dev", 800 * factor)):
            letters = np.random.default_rng(n).integers(97, 123, size=(n, 5, 6), dtype=np.uint8)
            text = "".join(" ".join(word.tobytes().decode() for word in line) + "\n" for line in letters)
            (folder / f"{domain}.{split}").write_text(text)
    return folder


def test_what_pages_report_is_no_text_that_trials_are_chosen_by(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = small_corpus(tmp_path / "corpus", factor=10)
    cut_documents(str(found))
    for name in ("cbt.dev", "wikipedia.dev"):
        lines = (found / name).read_text().splitlines()
        places = []
        for folder in (MEDIUM_TEXT, MEDIUM_TEST_TEXT):
            kept = (folder / name).read_text().replace(END_OF_TEXT, "").splitlines()
            assert 0.02 < len(kept) / len(lines) < 0.1
            places.append({lines.index(line) for line in kept})
        dev, test = places
        assert not dev & test
        # nor beside it
        assert not dev & {place + 1 for place in test} and not test & {place + 1 for place in dev}


@pytest.mark.slow
def test_what_pages_report_is_in_the_tokens_of_the_training_text(tmp_path, monkeypatch):
    monkeypatch.chdir(copy_of_the_repository(tmp_path))
    study = Study(rows={}, data=MEDIUM, out_dir="out", jobs=1)
    meta = prepare_medium(study, str(small_corpus(tmp_path / "corpus", factor=10)))
    study.data_lock.close()
    dev, test = (read_json(folder / "meta.json") for folder in (MEDIUM, MEDIUM_TEST))
    assert dev["tokenizer_hash"] == test["tokenizer_hash"] and dev["vocab_size"] == test["vocab_size"] == 2048
    assert dev["files"]["val.bin"]["sha256"] != test["files"]["val.bin"]["sha256"]
    assert meta["test_tokens"] == test["val_tokens"] > 1000 and meta["corpus"] == "corpus"
    # every document is one again: an end of text stands between them
    text = (MEDIUM_TEXT / "cbt.train").read_text() + (MEDIUM_TEXT / "wikipedia.train").read_text()
    tokens = np.fromfile(MEDIUM / "train.bin", "<u2")
    assert (tokens == dev["eot"]).sum() == text.count(END_OF_TEXT) > 20


def copy_of_the_repository(tmp_path) -> Path:
    """For what writes beside the scripts."""
    copy = tmp_path / "copy"
    if not copy.exists():
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "out", "data", "results", "tests", "shared"))
    return copy


def study_of(args, tmp_path, ok=True):
    """The study as a process of its own, in a copy of the repository."""
    copy = copy_of_the_repository(tmp_path)
    command = [sys.executable, "-m", "studies.babyllama", *args]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=120)
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return copy, done


@pytest.mark.slow
def test_the_data_is_cut_and_prepared_and_bad_input_is_told(tmp_path):
    corpus = small_corpus(tmp_path / "corpus")
    args = [f"--corpus={corpus}", "--every_train=5", "--every_dev=2", "--only=data"]
    copy, done = study_of(args, tmp_path)
    assert "tokens to learn from" in done.stdout
    train = (copy / "data/babylm_small_text/cbt.train").read_text()
    assert 0.1 < len(train) / (corpus / "cbt.train").stat().st_size < 0.3
    meta = json.loads((copy / "data/babylm_small/meta.json").read_text())
    assert set(meta["domains"]) == {"cbt", "wikipedia"} and meta["val_cbt_tokens"] > 0
    for more, message in [
        (["--every_dev=2000"], "cbt.dev gives no passage; corpus is a folder of"),
        (["--seeds=1"], "seeds='1': expected two or more"),
        (["--seeds=1,1"], "seeds='1,1': expected two or more"),
        (["--only=dat"], "only='dat' is not one of"),
        (["--corpus=nowhere"], "corpus='nowhere' is no folder"),
    ]:
        _, done = study_of([*args, *more], tmp_path, ok=False)
        assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (copy / "out").exists()


def test_a_study_that_fails_on_its_corpus_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "short").mkdir()
    for split in ("train", "dev"):
        (tmp_path / f"short/cbt.{split}").write_text("a line\n")
    knobs = {"every_train": 5, "every_dev": 2, "seeds": "0,1", "eval_dir": "", "blimp_limit": 1, "jobs": 1}
    for name, value in (knobs | {"out_dir": "out", "only": ""}).items():
        monkeypatch.setattr(babyllama, name, value, raising=False)
    for folder, message in (("empty", "has none of"), ("short", r"cbt\.\w+ gives no passage")):
        monkeypatch.setattr(babyllama, "corpus", folder, raising=False)
        with pytest.raises(ValueError, match=message):
            babyllama.main()
        left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_dir()}
        assert left <= {"empty", "short", "data"} and not (tmp_path / "out").exists()


class Small(Pretending, Study):
    """Rows that need one another, one run at a time; each finds what it needs finished."""

    def loss(self, run, split):
        return 4.35 + 0.01 * run.seed

    def printed(self, command, knobs):
        return {"half": 0.5, "of": knobs["of"]}

    def fill_cache(self, folder, knobs):
        (folder / "cache.json").write_text("{}")

    def call(self, command, log="unused"):
        knobs = knobs_of(command)
        needed = [*knobs.get("teacher", "").split(","), knobs.get("init_from", "")]
        for folder in needed:
            assert not folder or any((Path(folder) / name).exists() for name in ("summary.json", "cache.json"))
        super().call(command, log)

    def places(self) -> list[str]:
        """The names of the folders that were filled, but for evaluations."""
        folders = [Path(a.removeprefix("--out_dir=")) for c in self.commands for a in c if a.startswith("--out_dir=")]
        return [folder.name.split("_lr")[0] for folder in folders if folder.name not in self.splits]


def small_row(title: str, script="distill.py", **more) -> Row:
    return Row(title, script=script, config="config/babyllama_small/control.py", tuned_as="all", **more)


# in the table students come before those they need
SMALL_ROWS = {
    "going_on": small_row("goes on from the student", start="student"),
    "student": small_row("learns from both", cache="both"),
    "second": small_row("learns from the first", teachers=("first",)),
    "first": small_row("first", script="train.py"),
}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A study of them; call it again for what a new process would do. `of`: what its score is to say of itself."""
    monkeypatch.chdir(ROOT)

    def make(of="1") -> Small:
        score = Score("half", lambda study, run: ["-m", "half", f"--of={of}"], {"of": of})
        caches = {"both": Cache(("first", "second"), ("--top_k=4",)), "unused": Cache(("first",), ())}
        splits = {"dev": tmp_path / "dev", "test": tmp_path / "test"}
        study = Small(
            rows=SMALL_ROWS,
            data=tmp_path / "data",
            out_dir=str(tmp_path / "out"),
            jobs=1,
            caches=caches,
            splits=splits,
            scores=(score,),
        )
        study.settle({"all": (3e-3, 6.0)})
        study.data_lock.close()
        return study

    return make


def test_what_a_row_needs_comes_first_and_each_cache_once(small):
    study = small()
    table = study.run_table(list(SMALL_ROWS), [0, 1])
    rows = ["first", "second", "both", "student", "going_on"]
    assert study.places() == [f"{row}_seed{seed}" for row in rows for seed in (0, 1)]
    assert list(table) == list(SMALL_ROWS) and [run.seed for run in table["first"]] == [0, 1]
    (command,) = [c for c in study.commands if c[0] == "cache_teacher.py" and "both_seed1" in c[3]]
    out, name = study.out, "seed1_lr0.003_epochs6"
    assert f"--teacher={out}/first_{name},{out}/second_{name}" in command and "--top_k=4" in command

    again = small()
    again.run_table(list(SMALL_ROWS), [0, 1])
    # finished caches are called, and say themselves that they are
    assert {c[0] for c in again.commands} == {"cache_teacher.py"}


def test_rows_that_wait_for_one_another_are_an_error(small):
    study = small()
    study.rows = {"a": small_row("a", teachers=("b",)), "b": small_row("b", start="a")}
    with pytest.raises(AssertionError, match="wait for one another"):
        study.run_table(["a", "b"], [0])


def test_a_run_that_goes_on_from_another_and_was_interrupted_begins_anew(small):
    """Resumed it would no longer say what it began from."""
    study = small()
    (run, _) = study.run_table(list(SMALL_ROWS), [0, 1])["going_on"]
    folder = study.out / run.name
    (folder / "summary.json").unlink()
    (folder / "step_000100").mkdir()
    again = small()
    again.run([run])
    (command,) = [c for c in again.commands if c[0] == "distill.py"]
    assert f"--init_from={study.out / 'student_seed0_lr0.003_epochs6'}" in command
    assert "--init_from=resume" not in command and not (folder / "step_000100").exists()


def test_a_score_of_other_settings_is_made_anew(small):
    runs = [Trained("first", 0, 3e-3, 6.0)]
    small().run(runs)
    same, other = small(), small(of="2")
    same.run(runs)
    other.run(runs)
    assert not hasattr(same, "commands") and [c[0] for c in other.commands] == ["-m"]


def test_what_learnt_from_a_run_that_is_another_now_is_refused(small):
    """The table would set it beside a teacher that never taught it."""
    (first, _) = small().run_table(list(SMALL_ROWS), [0, 1])["first"]
    study = small()
    log = study.out / first.name / "log.txt"
    log.write_text(log.read_text() + "10 train 4.0\n")
    second = study.settled("second", 0)
    with pytest.raises(ValueError, match=r"second_seed0.* is of a run with another first than there is now; delete it"):
        study.run([second])
    # one that learnt from its cache, too; the other seed has a teacher of its own
    with pytest.raises(ValueError, match=r"student_seed0.* with another first"):
        small().run([study.settled("student", 0)])
    small().run([study.settled("second", 1)])
    shutil.rmtree(study.out / second.name)
    again = small()
    again.run([second])
    assert [c[0] for c in again.commands][:1] == ["distill.py"]


def test_scores_on_other_files_are_not_set_side_by_side(small, tmp_path):
    study = small()
    runs = study.run_table(["first"], [0, 1])["first"]
    for run, digest in zip(runs, "ab"):
        result = {"task": "blimp", "data_sha256": digest}
        (study.out / run.name / "half.json").write_text(json.dumps({"results": [result], "of": "1"}))
    with pytest.raises(ValueError, match=r"blimp of .*first_seed1.* was scored on other files .*; delete .*half\.json"):
        study.publish(tmp_path / "logs", {"first": runs}, meta={})
    # before anything of an earlier publication is deleted
    assert not (tmp_path / "logs").exists()


def test_a_trial_that_diverged_is_not_chosen(small, monkeypatch):
    study = small()
    study.trial_rates = {"first": (1e-1, 1e-2, 1e-3)}
    study.trial_epochs = (6.0,)
    losses = {1e-1: math.nan, 1e-2: 4.2, 1e-3: 4.1}
    monkeypatch.setattr(study, "run", lambda runs, scored: None)
    monkeypatch.setattr(study, "dev_loss", lambda run: losses[run.rate])
    study.choose(["first"], seed=0)
    assert study.chosen["first"].rate == 1e-3
    losses.update({1e-2: math.nan, 1e-3: math.inf})
    with pytest.raises(ValueError, match="first: no trial has a finite dev loss"):
        study.choose(["first"], seed=0)


def test_what_is_published_is_read_again(small, tmp_path):
    study = small()
    table = study.run_table(["first", "second"], [0, 1])
    tried = Trained("first", 0, 1e-3, 6.0)
    study.run([tried], scored=False)
    trials = {"first": [tried, table["first"][0]]}
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "left.txt").touch()  # of a run that is no longer in the table
    study.publish(logs, table, {"train_tokens": 23}, trials=trials, kept={"both": 4})
    results = read_results(logs)
    assert results.seeds == [0, 1] and results.n_runs == 5 and results.titles["second"] == "learns from the first"
    assert results.meta == {"train_tokens": 23} and results.about["kept"] == {"both": 4}
    assert (
        [run.dev for run in results.table["first"]]
        == pytest.approx([4.35, 4.36])
        == [study.dev_loss(run) for run in table["first"]]
    )
    (first, _) = results.table["first"]
    assert (first.parameters, first.tokens, first.teraflop, first.minutes) == (100, 6000, 2.0, 1.0)
    assert first.test == first.dev and first.domains == {"cbt": first.dev} and first.wall >= 0
    assert first.record["half"] == {"half": 0.5, "of": "1"}
    # trials are not scored
    assert "half" not in results.trials["first"][0].record and "test" not in results.trials["first"][0].record
    assert results.name("trials", "first", 0) == "first_seed0_lr0.001_epochs6"
    log = logs / f"{results.name('table', 'second', 1)}.txt"
    assert log.read_bytes() == (study.out / table["second"][1].name / "log.txt").read_bytes()
    assert len(list(logs.iterdir())) == 2 * 5 + 1  # and nothing of other runs


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.parts[-3] for path in ROOT.glob("studies/*/logs/study.json")))
def test_the_committed_page_is_that_of_the_committed_logs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("studies") / name
    shutil.copytree(ROOT / folder, folder)
    page = (folder / "README.md").read_bytes()
    (folder / "README.md").unlink()
    importlib.import_module(f"studies.{name}.report").write_report(read_results(folder / "logs"))
    assert (folder / "README.md").read_bytes() == page


def bare_study(data, out_dir):
    """A study of the real rows, two runs at a time."""
    return Study(
        rows=ROWS,
        trial_rates=babyllama.TRIAL_RATES,
        trial_epochs=babyllama.TRIAL_EPOCHS,
        data=data,
        out_dir=str(out_dir),
        jobs=2,
    )


@pytest.mark.slow
def test_a_run_that_fails_stops_the_study_and_says_why(tmp_path, monkeypatch):
    """A real train.py, which finds no data; the other job, a long one, is told to stop."""
    monkeypatch.chdir(ROOT)
    study = bare_study(tmp_path / "none", tmp_path / "out")
    study.command = lambda run, folder: (
        ["train.py", f"--dataset={tmp_path}/none", f"--out_dir={folder}"]
        if run.seed
        else ["-c", "import time\ntime.sleep(60)"]
    )
    started = time.perf_counter()
    with pytest.raises(ValueError, match=r"train.py --dataset=.*none.* is not there; first run: python prepare"):
        study.run([Trained("gpt", seed, 1e-3, 1.0) for seed in (0, 1)], scored=False)
    assert time.perf_counter() - started < 50 and not study.children
    assert not list((tmp_path / "out").iterdir())  # neither wrote anything
    with pytest.raises(OSError, match="is in use by another study, or by a run it left behind"):
        bare_study(tmp_path / "none", tmp_path / "out")


def test_a_run_left_behind_holds_the_study(tmp_path, monkeypatch):
    """What a study started keeps its lock although the study is gone."""
    monkeypatch.chdir(tmp_path)
    study = bare_study(tmp_path / "data", tmp_path)
    left = subprocess.Popen(["sleep", "60"], pass_fds=[study.data_lock.fileno()])
    study.data_lock.close()
    with pytest.raises(OSError, match="by a run it left behind"):
        bare_study(tmp_path / "data", tmp_path)
    left.kill()
    left.wait()
    bare_study(tmp_path / "data", tmp_path).data_lock.close()
