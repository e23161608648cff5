"""The study of cached teachers: which runs, from which cache, and what its page makes of their numbers."""

import doctest
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from pretended import Pretending, named, pretend

from common.data import TokenData
from common.pretrained import load_pretrained
from studies import calibration
from studies.cache import __main__ as study_cache
from studies.cache.__main__ import CACHES, ROWS
from studies.cache.report import write_report
from studies.report import read_results
from studies.runs import Study

# made-up dev losses of seed 0; each seed adds 0.01
DEV = {"control": 4.5, "live": 4.4, "whole": 4.4, "cell16": 4.41, "drop16": 4.44, "live_alone": 4.6}


def made_up_cache(knobs: dict) -> dict:
    """What cache_teacher.py would say of a cache with these knobs."""
    split = {"rows": 1, "n_rows": 1, "tokens": 128, "sha256": ["0"]}
    return {
        "format": 1,
        "teachers": knobs["teacher"].split(","),
        "teacher_sha256": ["0", "0"],
        "shares": [0.5, 0.5],
        "ensemble": "logits",
        "temperature": 2.0,
        "teacher_dtype": "float32",
        "dtype": "float32",
        "tokenizer_hash": "0",
        "vocab_size": 1500,
        "block_size": 128,
        "packing": "constant",
        "random_offset": False,
        "top_k": int(knobs["top_k"]),
        "draws": int(knobs.get("draws", 0)),
        "seed": 1337,
        "number_format": "float16",
        "ids_dtype": "uint16",
        "splits": {"train": split, "val": split},
    }


class Pretended(Pretending, Study):
    def loss(self, run, split):
        return DEV.get(run.row, 4.45) + 0.01 * run.seed

    def printed(self, command, knobs):
        return {"ece": 0.02 + 0.01 * named(knobs["model"]).seed}

    def fill_cache(self, folder, knobs):
        (folder / "cache.json").write_text(json.dumps(made_up_cache(knobs)))
        if knobs["top_k"] != "-1":
            np.full(128, np.log(0.25), "<f4").tofile(folder / "train_log_tail.bin")


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """make() a study in one place, and follow it to its page; each call as a new process would."""
    return pretend(monkeypatch, tmp_path, study="cache", main=study_cache, study_class=Pretended, knobs={})


def test_each_student_learns_from_the_cache_of_its_row_and_seed(pretended):
    commands = pretended().commands
    caches = [c for c in commands if c[0] == "cache_teacher.py"]
    assert len(caches) == 3 * len(CACHES)
    for command in caches:
        (out_dir,) = (a for a in command if a.startswith("--out_dir="))
        seed = out_dir[-1]
        teachers = [f"out/gpt_seed{seed}_lr0.0005_epochs6", f"out/llama_seed{seed}_lr0.001_epochs6"]
        assert f"--teacher={','.join(teachers)}" in command
        assert "--block_size=128" in command and "--eval_rows=64" in command
    students = [c for c in commands if c[0] == "distill.py"]
    assert len(students) == 3 * (len(ROWS) - 2)
    for command in students:
        (out_dir,) = (a for a in command if a.startswith("--out_dir="))
        row, rest = Path(out_dir.removeprefix("--out_dir=")).name.rsplit("_seed", 1)
        named = [a for a in command if a.startswith("--teacher=")]
        if ROWS[row].cache:
            assert named == [f"--teacher=out/caches/{ROWS[row].cache}_seed{rest[0]}"]
        else:
            assert len(named) == (row != "control")
        # what the row says of ids and draws is what its cache keeps
        kept = CACHES[ROWS[row].cache].arguments if ROWS[row].cache else ()
        for n_ids in ("64", "16", "4"):
            assert (f"--top_k={n_ids}" in kept) == ROWS[row].title.startswith(f"{n_ids} ids")
        # a row with draws or without a tail says so, and a cell is the default
        expected = {"draws": "--tail=draws", "drop": "--tail=drop"}.get(row.rstrip("0123456789").split("1")[0], "")
        assert not expected or expected in command, row

    # nothing is run twice, and what was done before has kept its time
    assert {c[0] for c in pretended().commands} == {"prepare_data.py", "cache_teacher.py"}


def test_the_page_has_the_means_and_errors_of_its_runs(pretended):
    """live 4.40, 4.41, 4.42; each other row as far above in every seed."""
    pretended()
    page = Path("studies/cache/README.md").read_text()
    assert "Live teachers change the student's held-out loss by -0.1000 ± 0.0000 nats" in page
    assert "the tail as a cell, 72 bytes a token, by +0.0100 ± 0.0000 (significant at 95 %)" in page
    assert "with 16 +0.0400 ± 0.0000 (significant at 95 %)" in page and "90% to 90% with 16 ids" in page
    assert "| live teachers |  |  | 4.4100 ± 0.0100 |  | 3.00 ± 1.00 | +0.00 ± 0.00 | 100 |" in page
    assert "| 16 ids and 16 draws | 104 | 25.0% | 4.4600 ± 0.0100 | +0.0500" in page
    assert "| live teachers, KL alone | 4.6000 | 4.6100 | 4.6200 | 2.00 | 3.00 | 4.00 |" in page
    logs = Path("studies/cache/logs")
    assert len(list(logs.glob("*.txt"))) == 3 * len(ROWS) and len(list(logs.glob("*.json"))) == 3 * len(ROWS) + 1
    assert Path("studies/cache/results.png").stat().st_size > 10_000
    # the page is made of the logs alone
    Path("out").rename("elsewhere")
    Path("studies/cache/README.md").unlink()
    write_report(read_results(logs))
    assert Path("studies/cache/README.md").read_text() == page
    Path("elsewhere").rename("out")
    # the time of a run that was interrupted is not known, and not made up
    Path("out/live_seed0_lr0.003_epochs6/wall.json").unlink()
    pretended()
    race = Path("studies/cache/README.md").read_text().split("## Several epochs")[1].split("##")[0]
    assert "| 16 ids, tail as a cell | 0 s | 0 s | 0 s | unknown: interrupted | unknown: interrupted |" in race


def test_calibration_error_by_hand():
    assert doctest.testmod(calibration).failed == 0
    # two bins: 0.5 of which all are right, off by 0.5; 0.95 of which 3 of 4 are right, off by 0.2
    confidence = torch.tensor([0.5, 0.5, 0.95, 0.95, 0.95, 0.95])
    is_right = torch.tensor([True, True, True, True, True, False])
    expected = 2 / 6 * 0.5 + 4 / 6 * 0.2
    assert calibration.calibration_error(confidence, is_right) == pytest.approx(expected, abs=1e-7)
    # a model that is right as often as it says, and one that is sure and right
    rng = torch.Generator().manual_seed(0)
    confidence = torch.rand(200_000, generator=rng)
    is_right = torch.rand(200_000, generator=rng) < confidence
    assert calibration.calibration_error(confidence, is_right) < 0.01
    assert calibration.calibration_error(torch.ones(3), torch.tensor([True] * 3)) == 0


@pytest.mark.slow
def test_calibration_of_a_model_on_the_validation_split(dataset, teacher):
    """As one would write it: all positions at once, bin by bin; padding of the head is no token."""
    command = [sys.executable, "-m", "studies.calibration", f"--model={teacher}", f"--dataset={dataset}"]
    done = subprocess.run([*command, "--block_size=16"], capture_output=True, text=True, cwd=ROOT, timeout=120)
    found = json.loads(done.stdout)
    data = TokenData(dataset, "val", block_size=16, seed=0, batch_size=1, random_offset=False)
    x, y = data.corpus_rows(range(data.n_rows))
    with torch.no_grad():
        probabilities = load_pretrained(str(teacher))(x)[..., : data.vocab_size].softmax(-1).flatten(0, 1).double()
    confidence, likeliest = probabilities.max(dim=-1)
    is_right = likeliest == y.flatten()
    expected = 0.0
    for i in range(15):
        in_bin = (confidence >= i / 15) & (confidence < (i + 1) / 15)
        if in_bin.any():
            gap = is_right[in_bin].double().mean() - confidence[in_bin].mean()
            expected += in_bin.double().mean() * abs(gap)
    assert found["positions"] == y.numel()
    assert found["ece"] == pytest.approx(expected.item(), abs=1e-6)
    assert found["accuracy"] == pytest.approx(is_right.double().mean().item(), abs=1e-6)
