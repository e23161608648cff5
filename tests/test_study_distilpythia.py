"""The study of DistilPythia: which runs, from where and with what changed; what its page makes of their numbers."""

import math
import re
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from pretended import Pretending, knobs_of, named, pretend

from configurator import read_config_file
from studies.distilpythia import __main__ as study_distilpythia
from studies.distilpythia import fresh, masks, pretraining, report, updates
from studies.distilpythia.__main__ import ROWS
from studies.report import read_results

# made-up test losses and perplexities of seed 0; each seed adds to the former and multiplies the latter
LOSS = {"teacher": 4.0, "start": 4.3, "published": 4.4, "fixed": 4.2, "control": 4.25}
PERPLEXITY = {"start": 100.0, "published": 200.0, "float32": 90.0, "no_mask": 500.0, "rate_10": 350.0}
ACCURACY = {"all": 0.1}
SEED_PLUS = (0.0, 0.013, 0.021)
RATE_PLUS = {1e-3: 0.01}


class Pretended(Pretending, pretraining.PythiaStudy):
    def loss(self, run, split):
        # the dev split is another: a page that confused them would be found out
        return LOSS.get(run.row, 4.4) + SEED_PLUS[run.seed] + RATE_PLUS.get(run.rate, 0.0) + (split == "dev")

    def printed(self, command, knobs):
        if command[0] == "evaluate.py":
            run = named(knobs["model"])
            value = PERPLEXITY.get(run.row, 200.0) * math.exp(SEED_PLUS[run.seed])
            metrics = {"word_ppl": {"value": value}, "word_acc": {"value": ACCURACY["all"]}}
            return {"limit": 1000, "results": [{"task": "lambada", "metrics": metrics}]}
        if command[1] == "studies.distilpythia.updates":
            unchanged = 0.1 if "float32" in knobs["after"] else 0.6
            return {"unchanged": unchanged, "weight_rms": 0.1, "weight_median": 0.05, "change_rms": 0.01}
        return None


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """make() a study in one place, and follow it to its page; each call as a new process would."""
    knobs = {"eval_dir": "e", "lambada_limit": 1000, "only": ""}
    how = dict(study="distilpythia", main=study_distilpythia, study_class=Pretended, knobs=knobs)
    return pretend(monkeypatch, tmp_path, **how, meta={"vocab_size": 2048})


def test_every_student_goes_on_from_the_start_of_its_seed(pretended):
    commands = [c for c in pretended().trained() if c[0] != "train.py"]
    trials = [c for c in commands if "_tuned" in knobs_of(c)["out_dir"]]
    # three trials each of the best student and of the control, of which one is in the table; two seeds more
    for row in ("fixed_tuned", "control_tuned"):
        assert len([c for c in trials if f"/{row}_" in knobs_of(c)["out_dir"]]) == 3 + 2
    assert len(commands) == 3 * (len(ROWS) - 2) + 2 * 2
    for command in commands:
        knobs = knobs_of(command)
        row, seed = re.match(r"(.*)_seed(\d)", Path(knobs["out_dir"]).name).groups()
        assert knobs["init_from"] == f"out/start_seed{seed}_lr0.003_epochs2"
        if row == "no_teacher" or row.startswith("control"):
            assert "teacher" not in knobs
        else:
            assert knobs["teacher"] == f"out/teacher_seed{seed}_lr0.003_epochs2"
        # one thing is changed at a time
        changed = {"float32": {"weight_dtype"}, "warmup": {"warmup_steps"}, "token_mean": {"loss_mean"}}
        own = set(knobs) - {"out_dir", "seed", "learning_rate", "init_from", "teacher"}
        if row in changed:
            assert own == changed[row] and command[1].endswith("/student.py")
        if row in ("mask_by_id", "no_mask"):
            assert not own and command[0] == f"-mstudies.distilpythia.{row}"
    assert {c[0] for c in pretended().commands} == {"prepare_data.py"}


def test_pretrained_models_begin_with_weights_of_pythias_form(pretended):
    commands = pretended().commands
    made = [knobs_of(c) for c in commands if c[1] == "studies.distilpythia.fresh"]
    assert [(k["n_layer"], k["n_embd"]) for k in made].count(("6", "144")) == 3 and len(made) == 6
    trained = [knobs_of(c) for c in commands if c[0] == "train.py" and "--max_steps=0" not in c]
    assert {k["init_from"] for k in trained} == {k["out_dir"] for k in made}
    assert all(k["init_from"].endswith(f"_seed{k['seed']}") for k in trained)

    net = fresh.pythia(vocab_size=64, block_size=16, n_layer=1, n_head=4, n_embd=96)
    wanted = {"rotary_pct": 0.25, "parallel_residual": True, "exact_gelu": True, "tie_word_embeddings": False}
    assert wanted.items() <= vars(net.config).items()


def test_the_page_has_the_verdicts_of_its_numbers(pretended):
    pretended()
    page = Path("studies/distilpythia/README.md").read_text()
    assert "worse? Yes, it does** by LAMBADA: its perplexity is multiplied by 2.00 (published: 2.99)" in page
    assert "The test loss changes by +0.1000 ± 0.0000 (significant at 95 %) nats per token" in page
    assert "LAMBADA's accuracy changes by +0.00 ± 0.00 (not significant at 95 %) points from 10.00 %" in page
    assert "Changes that lower it against the published recipe: *float32 weights*; that raise it: *padding" in page
    assert "Single changes that remove this regression: *float32 weights*." in page
    # of the rates; one row at the published rate has five times the perplexity, and is none
    assert "by as much as published: *rate x 10*." in page
    assert "60.0 % of the weights are the number that they were; in float32, with all else the same, 10.0 %" in page
    assert "It ends at a rate of 0.0003 below it, -0.1000 ± 0.0000" in page
    assert "at the published rate better by the test loss, -0.0500 ± 0.0000 (significant at 95 %)" in page
    assert "each at the best of its own rates no different measurably by the test loss" in page
    assert "| fixed | 6,000 | 2.0 | 1.0 | 4.2113 ± 0.0106 |" in page
    # chosen by the dev loss, in which 1e-3 is the worst
    assert "| fixed, best rate | **5.4000** | 5.4000 | 5.4100 |" in page
    assert Path("studies/distilpythia/results.png").stat().st_size > 10_000


def test_the_page_is_made_again_from_its_logs_alone(pretended):
    study = pretended()
    before = Path("studies/distilpythia/README.md").read_text()
    Path("studies/distilpythia/README.md").unlink()
    study.out.rename("elsewhere")
    report.write_report(read_results(Path("studies/distilpythia/logs")))
    assert Path("studies/distilpythia/README.md").read_text() == before


def test_a_recipe_that_does_no_harm_is_called_so(pretended, monkeypatch):
    monkeypatch.setitem(PERPLEXITY, "published", 50.0)
    monkeypatch.setitem(LOSS, "published", 4.3)
    monkeypatch.setitem(LOSS, "fixed", 4.5)
    monkeypatch.setitem(ACCURACY, "all", 0.0)
    monkeypatch.setitem(RATE_PLUS, 1e-4, 0.01)
    pretended()
    page = Path("studies/distilpythia/README.md").read_text()
    assert "LAMBADA's accuracy is 0.00 % before: at this size its published fall cannot be seen." in page
    assert "worse? No: it ends better than it began** by LAMBADA" in page
    assert page.count("there is no regression here that a single change could remove.") == 1
    # the best rate is the published one: its rows are the same runs, and are named once
    assert "It ends at a rate of 0.0003, also the best of those tried, above it" in page
    assert "at the published rate, the best of those tried for both" in page and "best of its own" not in page


def test_masks():
    eot = 9
    y = torch.tensor([[3, 9, -1, -1]])
    by_id, none = y.clone(), y.clone()
    masks.mask_by_id(by_id, eot)
    masks.no_mask(none, eot)
    assert by_id.tolist() == [[3, -1, -1, -1]] and none.tolist() == [[3, 9, 9, 9]]


def test_an_update_that_bfloat16_loses_is_counted_as_none():
    first = torch.tensor([1.0, 1.0, 0.0, 0.1])
    second = torch.tensor([1.001, 1.01, 1e-6, 0.1])
    found = updates.compare(first, second)
    # 1.001 rounds to 1, and what did not move at all counts as well
    assert found["unchanged"] == 0.5
    assert found["change_rms"] == pytest.approx(math.sqrt((0.001**2 + 0.01**2) / 4), rel=1e-3)


@pytest.mark.parametrize("name", ["student", "student_constant", "student_fixed", "control"])
def test_small_configs_have_the_published_knobs(name):
    small = read_config_file(str(ROOT / f"config/distilpythia_small/{name}.py"))
    big = read_config_file(str(ROOT / f"config/distilpythia/{name}.py"))
    differ = {"out_dir", "init_from", "dataset", "block_size", "teacher", "batch_size", "tokens_per_step"}
    differ |= {"learning_rate", "eval_interval", "eval_rows", "save_interval", "keep_checkpoints", "log_interval"}
    for key, value in big.items():
        if key not in differ and not key.startswith("eval_tasks"):
            assert small[key] == value, key
    start = read_config_file(str(ROOT / "config/distilpythia_small/start.py"))
    # 1e-4 of Pythia-70M's 1e-3, and four of its batches a step
    assert small["learning_rate"] == pytest.approx(start["learning_rate"] / 10) == pytest.approx(start["min_lr"])
    assert small["tokens_per_step"] == 4 * start["batch_size"] * start["block_size"]
