"""The study of on-policy learning: which runs, from where, and what its page makes of their numbers."""

import doctest
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from pretended import Pretending, knobs_of, named, pretend

from studies import generation
from studies.onpolicy import __main__ as study_onpolicy
from studies.onpolicy.__main__ import ROWS
from studies.onpolicy.report import write_report
from studies.report import read_results
from studies.runs import Study

# made-up dev losses of seed 0; each seed adds 0.01
DEV = {"control": 4.5, "ce": 4.4, "forward": 4.3, "forward_0.5": 4.35, "reverse": 4.45, "reverse_0.5": 4.45}
FIGURES = ("reverse_kl", "forward_kl", "entropy", "repeated", "distinct_2", "distinct_3")


class Pretended(Pretending, Study):
    def loss(self, run, split):
        return DEV.get(run.row, 4.42) + 0.01 * run.seed

    def printed(self, command, knobs):
        # a teacher that is not there yet cannot be compared with
        assert (Path(knobs["teacher"]) / "summary.json").exists()
        figures = dict.fromkeys(FIGURES, 0.5 if named(knobs["model"]).row.endswith("_0.5") else 0.7)
        data = {f"data_{name}": 0.1 for name in FIGURES}
        return figures | data | {"samples": 1000}


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """make() a study in one place, and follow it to its page; each call as a new process would."""
    return pretend(monkeypatch, tmp_path, study="onpolicy", main=study_onpolicy, study_class=Pretended, knobs={})


def test_every_student_goes_on_from_the_start_of_its_seed_for_as_many_flops(pretended):
    trained = pretended().trained()
    assert len(trained) == 3 * len(ROWS)
    for command in trained:
        knobs = knobs_of(command)
        row, rest = Path(knobs["out_dir"]).name.rsplit("_seed", 1)
        seed = rest[0]
        if row in ("llama", "control"):
            assert "init_from" not in knobs and knobs["epochs"] == "6.0"
            continue
        assert knobs["init_from"] == f"out/control_seed{seed}_lr0.003_epochs6" and knobs["learning_rate"] == "0.001"
        if row == "ce":
            assert "teacher" not in knobs and knobs["epochs"] == "2.0"
            continue
        assert knobs["teacher"] == f"out/llama_seed{seed}_lr0.001_epochs6"
        share = float(knobs["on_policy"])
        assert row == knobs["kl"] + (f"_{share:g}" if share else "")
        # three forward passes a step on data; a step that is written takes 0.84 of one more
        assert float(knobs["epochs"]) * (3 + 0.84 * share) == pytest.approx(2.0 * 3)
    assert {c[0] for c in pretended().commands} == {"prepare_data.py"}


def test_a_run_that_was_interrupted_begins_anew(pretended):
    pretended()
    folder = Path("out/reverse_0.25_seed1_lr0.001_epochs1.86916")
    (folder / "summary.json").unlink()
    (folder / "step_000100").mkdir()
    again = [c for c in pretended().commands if c[0] == "distill.py"]
    assert len(again) == 1 and not any(a.startswith("--init_from=resume") for a in again[0])
    assert not (folder / "step_000100").exists()


def test_the_page_has_the_means_and_errors_of_its_runs(pretended):
    pretended()
    page = Path("studies/onpolicy/README.md").read_text()
    assert "**Held-out loss** (lower is better): with forward KL +0.0500 ± 0.0000 (significant at 95 %)" in page
    assert "with reverse KL +0.0000 ± 0.0000 (not significant at 95 %)" in page
    assert "own text** (lower is closer): with forward KL -0.2000 ± 0.0000" in page
    assert "| forward KL, 50% own text | 2.0 | 1.0 | 4.3600 ± 0.0100 | 0.5000 ± 0.0000" in page
    assert "| forward KL | -0.2000 ± 0.0000 (significant at 95 %) | -0.1000 ± 0.0000 (significant at 95 %) |" in page
    logs = Path("studies/onpolicy/logs")
    assert len(list(logs.glob("*.txt"))) == 3 * len(ROWS) and len(list(logs.glob("*.json"))) == 3 * len(ROWS) + 1
    # the page is made of the logs alone
    shutil.rmtree("out")
    Path("studies/onpolicy/README.md").unlink()
    write_report(read_results(logs))
    assert Path("studies/onpolicy/README.md").read_text() == page
    assert Path("studies/onpolicy/results.png").stat().st_size > 10_000


def test_counts_by_hand():
    assert doctest.testmod(generation).failed == 0
    assert generation.repetition([1, 1, 1, 1, 1, 1]) == pytest.approx(1 - 1 / 3) and generation.repetition([1]) == 0
    # 12, 23, 12, 24: three different of four
    assert generation.distinct([[1, 2, 3], [1, 2, 4]], 2) == 3 / 4


@pytest.mark.slow
def test_a_model_that_is_its_teacher_does_not_differ_from_it(dataset, teacher):
    keys = [f"--model={teacher}", f"--teacher={teacher}", f"--dataset={dataset}", "--block_size=16"]
    keys += ["--prompt_tokens=4", "--response_tokens=12", "--samples=30", "--batch_size=20"]
    command = [sys.executable, "-m", "studies.generation", *keys]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    found = json.loads(done.stdout)
    assert found["samples"] == 30 and 30 * 6 < found["tokens"] <= 30 * 12 and found["agree"] == 1
    assert abs(found["reverse_kl"]) < 1e-6 and found["entropy"] == pytest.approx(found["teacher_entropy"])
    assert 0 < found["distinct_2"] <= found["distinct_3"] <= 1
