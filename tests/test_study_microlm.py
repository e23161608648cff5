"""The study of MicroLM: which runs, from where, by which teacher, and what its page makes of their numbers."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, TINY, run_script
from pretended import Pretending, knobs_of, named, pretend

from common.meta import read_meta
from configurator import read_config_file
from studies.microlm import __main__ as study_microlm
from studies.microlm import report, trap
from studies.microlm.__main__ import EQUAL_FLOPS, ROWS
from studies.microlm.report import BASES
from studies.report import read_results

# made-up losses of seed 0; each seed adds 0.01. What is not here is at 4.1
LOSS = {"start": 4.2, "strong": 4.0, "ce": 4.15, "reverse": 4.4, "reverse_ce": 4.1, "reverse_other": 7.9, "other": 9.5}
REFUSAL = {"exit_code": 2, "message": "distill.py: the teacher was trained with tokenizer abc, but data has def"}


class Pretended(Pretending, trap.TrapStudy):
    def loss(self, run, split):
        # of the trials the lowest rate is the best one
        return LOSS.get(run.row, 4.1) + 0.01 * run.seed + 0.1 * (run.rate == 3e-3 and "tuned" in run.row)

    def printed(self, command, knobs):
        # cross-entropy on is less sure by half a nat than all others
        found = {"entropy": 4.5 if named(knobs["model"]).row == "ce" else 4.0, "samples": 200}
        names = "reverse_kl forward_kl agree ece accuracy confidence repeated distinct_2 data_repeated data_distinct_2"
        return dict.fromkeys(names.split(), 0.5) | found

    def keep_refusal(self, folder):
        (folder / "refusal.json").write_text(json.dumps(REFUSAL))


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """make() a study in one place, and follow it to its page; each call as a new process would."""
    monkeypatch.setattr(study_microlm, "prepare_other", lambda study: 265)
    monkeypatch.setattr(trap, "forge", lambda folder: None)
    how = dict(study="microlm", main=study_microlm, study_class=Pretended, knobs={"only": ""})
    return pretend(monkeypatch, tmp_path, **how, meta={"vocab_size": 2048})


def test_every_student_goes_on_from_the_start_of_its_seed(pretended):
    commands = pretended().trained()
    # three rates each on the first seed, of which the table has one
    assert len(commands) == 3 * len(ROWS) + 3 * 2
    for command in commands:
        knobs = knobs_of(command)
        row, seed = named(knobs["out_dir"]).row, named(knobs["out_dir"]).seed
        assert float(knobs["min_lr"]) == pytest.approx(float(knobs["learning_rate"]) / 10)
        if row in BASES:
            assert command[0] == "train.py" and "init_from" not in knobs and "teacher" not in knobs
            continue
        assert command[0] == "distill.py" and knobs["init_from"] == f"out/start_seed{seed}_lr0.003_epochs2"
        longer = EQUAL_FLOPS if row in ("ce_flops", "reverse_long") else 1
        assert float(knobs["epochs"]) == pytest.approx(0.2 * longer)
        if "tuned" not in row:
            assert float(knobs["learning_rate"]) == 3e-3  # the peak of the start, as published
        if row.startswith("ce"):
            assert "teacher" not in knobs and command[1].endswith("control.py")
            continue
        last = row.split("_")[-1]
        name = last if last in ("medium", "weak", "other") else "strong"
        taught_by = named(knobs["teacher"])
        assert (taught_by.row, taught_by.seed) == (name, seed)


def test_the_control_has_as_many_trials_as_the_students(pretended):
    tried = {}
    for command in pretended().trained():
        knobs = knobs_of(command)
        run = named(knobs["out_dir"])
        if "tuned" in run.row and run.seed == 0:
            tried.setdefault(run.row, set()).add(run.rate)
    assert set(tried) == {"ce_tuned", "reverse_tuned", "forward_tuned"}
    assert set(map(frozenset, tried.values())) == {frozenset((3e-3, 1e-3, 3e-4))}


def test_a_finished_study_runs_nothing_again(pretended):
    pretended()
    assert {c[0] for c in pretended().commands} == {"prepare_data.py"}


def test_equal_flops_by_hand():
    """Two FLOPs a weight of each matrix, and scores and values over (T + 1) / 2 positions."""

    def forward(layers, width, inner):
        block = 4 * width**2 + 3 * width * inner
        return 2 * (layers * block + 2048 * width) + 4 * layers * width * 129 / 2

    assert pytest.approx(1 + forward(6, 160, 448) / (3 * forward(4, 96, 256))) == EQUAL_FLOPS


def test_the_page_has_the_means_and_verdicts_of_its_runs(pretended):
    pretended()
    page = Path("studies/microlm/README.md").read_text()
    assert "No: more training alone makes it better" in page
    assert "it ends worse than its start (+0.2000 ± 0.0000 (significant at 95 %))" in page
    assert "worse than cross-entropy on the same tokens (+0.2500 ± 0.0000" in page
    assert "Significantly above the start by the test loss: *reverse KL (as published)* +0.2000" in page
    assert "Below it: *reverse KL, T = 2* -0.0500" in page and "*0.5 reverse KL + 0.5 CE* -0.0500" in page
    assert "exit code 2, in 3 of 3 seeds" in page and "its test loss is 9.51" in page
    assert "reverse KL ends at 7.91 nats per token (+3.7000 ± 0.0000" in page
    assert "It does, against cross-entropy on the same tokens. entropy − CE's: -0.500 ± 0.000" in page
    assert "| reverse KL (as published) | 6,000 | 2.0 | 1.0 | 4.4100 ± 0.0100 |" in page
    assert REFUSAL["message"] in page


def test_the_page_says_so_where_reverse_kl_does_not_hurt(pretended, monkeypatch):
    monkeypatch.setitem(LOSS, "reverse", 4.1)
    monkeypatch.setitem(LOSS, "reverse_other", 4.1)
    monkeypatch.setitem(LOSS, "ce", 4.3)
    pretended()
    page = Path("studies/microlm/README.md").read_text()
    assert "at the published rate more training alone makes it worse" in page
    assert "it ends better than its start (-0.1000 ± 0.0000 (significant at 95 %))" in page
    assert "Significantly above the start by the test loss: *CE on, same tokens* +0.1000" in page


def test_the_page_is_made_of_the_logs_alone(pretended):
    pretended()
    page = Path("studies/microlm/README.md")
    before = page.read_text()
    page.unlink()
    shutil.rmtree("out")
    report.write_report(read_results(Path("studies/microlm/logs")))
    assert page.read_text() == before and Path("studies/microlm/results.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["pretrain", "control", "reverse_kl", "forward_kl", "js", "on_policy"])
def test_a_small_config_has_the_published_loss_and_proportions(name):
    big = read_config_file(ROOT / f"config/microlm/{name}.py")
    small = read_config_file(ROOT / f"config/microlm_small/{name}.py")
    loss = "kl weight_ce weight_kl weight_decay beta1 beta2 temperature on_policy"
    for knob in loss.split():
        assert big.get(knob) == small.get(knob), knob
    assert small["learning_rate"] / small["min_lr"] == pytest.approx(big["learning_rate"] / big["min_lr"])
    # the second stage is a tenth of the first
    if name != "pretrain":
        first = read_config_file(ROOT / "config/microlm/pretrain.py")
        small_first = read_config_file(ROOT / "config/microlm_small/pretrain.py")
        assert small["epochs"] / small_first["epochs"] == pytest.approx(big["max_steps"] / first["max_steps"], rel=0.06)
        assert small["learning_rate"] / small_first["learning_rate"] == big["learning_rate"] / first["learning_rate"]
    if name == "on_policy":
        assert small["response_tokens"] / small["block_size"] == big["response_tokens"] / big["block_size"]


@pytest.mark.slow
def test_a_teacher_of_another_tokenizer_is_refused_until_it_is_forged(dataset, teacher, tmp_path, monkeypatch):
    """The refusal of distill.py goes by meta.json alone: with that of the data the same weights pass."""
    from common.files import by_step

    folder = tmp_path / "other"
    shutil.copytree(teacher, folder)
    meta = by_step(folder)[-1] / "meta.json"
    meta.write_text(meta.read_text().replace(read_meta(dataset)["tokenizer_hash"], "another"))
    learn = [*TINY, f"--dataset={dataset}", f"--teacher={folder}", "--max_steps=1"]
    refused = run_script("distill.py", *learn, f"--out_dir={tmp_path / 'a'}", ok=False)
    assert refused.returncode == 2 and "was trained with tokenizer another" in refused.stderr
    monkeypatch.setattr(trap, "MEDIUM", dataset)
    trap.forge(folder)
    run_script("distill.py", *learn, f"--out_dir={tmp_path / 'b'}")
