"""The study of Baby Llama: which runs, in what order, with what settings, and what its page makes of them."""

import shutil
from pathlib import Path

import pytest
from conftest import ROOT, parameters
from pretended import Pretending, knobs_of, named, pretend

from configurator import read_config_file
from studies.babyllama import __main__ as babyllama
from studies.babyllama import larger
from studies.babyllama.__main__ import BOTH, ROWS
from studies.babyllama.report import write_report
from studies.report import read_results
from studies.runs import Study

QUALITY = {"gpt": 4.6, "llama": 4.4, "control": 4.5, "student": 4.3}  # made-up dev losses


class Pretended(Pretending, Study):
    def loss(self, run, split):
        val = QUALITY.get(run.row, 4.35) + 0.01 * run.seed * (run.row != "control")
        return val + abs(run.rate - 3e-3) + 0.01 * abs(run.epochs - 6)

    def printed(self, command, knobs):
        accuracy = {"acc": {"value": 0.6 + 0.01 * named(knobs["model"]).seed}}
        blimp = {"metrics": accuracy, "parts": {"field": {"syntax": [0.6, 0.01]}}, "data": ["/elsewhere/a.jsonl"]}
        return {"limit": int(knobs["limit"]), "results": [blimp]}


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """make() a study in one place, and follow it to its page; each call as a new process would."""
    monkeypatch.setattr(babyllama, "load_tasks", lambda *a: None)
    knobs = {"every_train": 1, "every_dev": 1, "eval_dir": "", "blimp_limit": 7, "only": ""}
    how = dict(study="babyllama", main=babyllama, study_class=Pretended, knobs=knobs)
    return pretend(monkeypatch, tmp_path, **how, meta={"domains": {"cbt": {}}})


@pytest.fixture
def pretended_larger(tmp_path, monkeypatch):
    """make() the study of the second size in the same place."""
    monkeypatch.setattr(larger, "load_tasks", lambda *a: None)
    knobs = {"eval_dir": "", "blimp_limit": 7, "out_dir": "out_larger", "only": ""}
    how = dict(study="babyllama", main=larger, study_class=Pretended, knobs=knobs)
    return pretend(monkeypatch, tmp_path, **how, meta={"domains": {"cbt": {}}})


@pytest.mark.slow
def test_the_page_is_made_of_the_logs_alone(pretended, tmp_path):
    pretended()
    page = (tmp_path / "studies/babyllama/README.md").read_bytes()
    shutil.rmtree(tmp_path / "out")
    for made in ("README.md", "results.png", "curves.png"):
        (tmp_path / "studies/babyllama" / made).unlink()
    write_report(read_results(Path("studies/babyllama/logs")))
    assert (tmp_path / "studies/babyllama/README.md").read_bytes() == page
    (tmp_path / "studies/babyllama/logs/study.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"study\.json is not there; first run: make study-babyllama"):
        read_results(Path("studies/babyllama/logs"))


@pytest.mark.slow
def test_the_second_size_learns_from_caches_and_the_page_compares_both(pretended, pretended_larger, tmp_path):
    page = tmp_path / "studies/babyllama/README.md"
    pretended()
    assert "Not run yet: `make study-babyllama-larger`." in page.read_text()
    study = pretended_larger()
    trained = study.trained()
    # of three trials of the control and two of the student one each is kept
    assert len(trained) == 3 * len(larger.ROWS) + 3
    caches = [c for c in study.commands if c[0] == "cache_teacher.py"]
    assert {c[-1] for c in caches} == {"--temperature=2"} and all("--top_k=-1" in c for c in caches)
    for command in trained:
        knobs = knobs_of(command)
        row = Path(knobs["out_dir"]).name.split("_seed")[0]
        if row in ("student", "published"):
            assert knobs["teacher"] == f"out_larger/caches/llama_seed{knobs['seed']}"
        else:
            assert "teacher" not in knobs
    # made-up: student 4.3315, 4.3415, 4.3515 with 3 epochs, control 4.53 thrice
    text = page.read_text()
    assert "| student ← LLaMA | 100 | 6,000 |" in text
    assert "and gains at the second (-0.1885 ± 0.0058)" in text
    assert "Points above 50, over seeds: control: no teacher +11.00 ± 0.58 (significant at 95 %)" in text


@pytest.mark.slow
def test_runs_are_chosen_trained_once_and_kept_apart(pretended, tmp_path):
    study = pretended()
    trained = study.trained()
    places = [next(a for a in c if a.startswith("--out_dir=")) for c in trained]
    assert len(places) == len(set(places)) == 4 * 3 + 3 * len(ROWS) + len(babyllama.POINTS)  # one trial is kept of 4
    assert {row: (run.rate, run.epochs) for row, run in study.chosen.items()} == dict.fromkeys(
        ("llama", "control", "student"), (3e-3, 6.0)
    ) | {"gpt": (1e-3, 6.0)}
    (command,) = (c for c in trained if any("/reverse_seed2" in a for a in c))
    assert "--kl=reverse" in command and "--seed=2" in command and "config/babyllama_small/student_fixed.py" in command
    teachers = ",".join(f"out/{t}_seed2_lr{study.chosen[t].rate:g}_epochs6" for t in BOTH)
    assert f"--teacher={teachers}" in command
    assert any("--epochs=9.0" in c for c in trained)

    again = pretended()
    assert [c[0] for c in again.commands] == ["prepare_data.py"]  # nothing is run twice
    shutil.rmtree(tmp_path / "out/reverse_seed1_lr0.003_epochs6")
    # trained, dev, blimp
    assert [c[0] for c in pretended().commands] == ["prepare_data.py", "distill.py", "train.py", "evaluate.py"]

    path = tmp_path / "out/published_seed0_lr0.003_epochs6/summary.json"
    path.write_text(path.read_text().replace('"seed": "0"', '"seed": "5"'))
    with pytest.raises(ValueError, match="is of a run with seed='5', not 0; delete it"):
        pretended()
    path.write_text(
        path.read_text().replace('"seed": "5"', '"seed": "0"').replace('"weight_decay": 0.1', '"weight_decay": 1')
    )
    with pytest.raises(ValueError, match=r"is of a run with weight_decay=1, not 0\.1"):
        pretended()


def test_other_pairs_of_blimp_are_scored_anew(pretended):
    pretended()
    assert {c[0] for c in pretended(blimp_limit=8).commands} == {"prepare_data.py", "evaluate.py"}


def test_the_report_has_the_means_and_errors_of_its_runs(pretended, tmp_path):
    """student 4.30, 4.31, 4.32; control 4.5 thrice: -0.19 ± 0.01/√3; teachers as far above in every seed."""
    pretended()
    page = (tmp_path / "studies/babyllama/README.md").read_text()
    assert "**Does it distil? Yes.**" in page and "**-0.1900 ± 0.0058**" in page
    assert "on BLiMP it is +0.00 ± 0.00 points (not significant at 95 %)" in page
    assert "The GPT: Yes, -0.3020 ± 0.0000, lower in 3 of 3 seeds; the control, which had no teacher, beats it" in page
    assert "The LLaMA: Yes, -0.1000 ± 0.0000, lower in 3 of 3 seeds" in page and "does not beat it (+0.0900" in page
    assert "| student ← both | 100 | 6,000 | 2.0 | 1.0 | 4.3100 ± 0.0100 | 2.0000 ± 0.0000 | 61.00 ± 1.00 |" in page
    assert "| student ← both | 4.3000 | 4.3100 | 4.3200 | 60.00 | 61.00 | 62.00 |" in page  # by seed
    assert "| LLaMA teacher | 0.001 | 4.4220 | 4.4020 |\n| LLaMA teacher | 0.003 | 4.4200 | **4.4000** |" in page
    logs = tmp_path / "studies/babyllama/logs"
    n_runs = 4 * 3 + 3 * len(ROWS) + len(babyllama.POINTS)
    assert len(list(logs.glob("*.txt"))) == n_runs and len(list(logs.glob("*.json"))) == n_runs + 1
    assert f"data, {n_runs} runs, scores" in page
    # records are published: of a file its name, and not where it lies
    record = (logs / "student_seed0_lr0.003_epochs6.json").read_text()
    assert '"a.jsonl"' in record and "elsewhere" not in record
    assert all((tmp_path / f"studies/babyllama/{name}.png").stat().st_size > 10_000 for name in ("results", "curves"))


def test_the_larger_twins_are_the_small_ones_at_four_times_the_size():
    read = {}
    for size in ("small", "larger"):
        for name in ("data", "llama", "student", "student_fixed", "control"):
            read[size, name] = read_config_file(str(ROOT / f"config/babyllama_{size}/{name}.py"))
    changed = {"out_dir", "dataset", "text_dir", "teacher", "n_layer", "n_head", "n_embd", "n_inner", "epochs"}
    changed |= {"warmup_steps", "eval_interval"}
    for (size, name), config in read.items():
        differing = {key for key in config if config[key] != read["small", name].get(key)}
        assert differing <= changed, (size, name)
        if name == "data":
            continue
        assert config["n_embd"] % config["n_head"] == 0
    sizes = {key: parameters(config, 1500) for key, config in read.items() if key[1] in ("llama", "student")}
    assert sizes["larger", "student"] > 4 * sizes["small", "student"]
    assert sizes["larger", "llama"] / sizes["larger", "student"] == pytest.approx(6.2, rel=0.08)
    assert read["larger", "llama"]["n_layer"] / read["larger", "llama"]["n_embd"] == pytest.approx(24 / 1024, rel=0.04)
    assert read["larger", "student"]["n_layer"] / read["larger", "student"]["n_embd"] == pytest.approx(
        16 / 512, rel=0.1
    )


def test_the_small_twins_keep_the_proportions():
    """Teachers of about 12 and 6 times the student, as deep for their widths as published; else the same settings."""
    sizes = {}
    for name in ("gpt", "llama", "student", "student_fixed", "control"):
        c = read_config_file(str(ROOT / f"config/babyllama_small/{name}.py"))
        assert c["block_size"] == 128 and not c["random_offset"] and c["n_embd"] % c["n_head"] == 0
        sizes[name] = parameters(c, 1500)
        published = {"gpt": 24 / 1536, "llama": 24 / 1024}.get(name, 16 / 512)
        assert c["n_layer"] / c["n_embd"] == pytest.approx(published, rel=0.03)
    assert sizes["gpt"] / sizes["student"] == pytest.approx(12.1, rel=0.03)
    assert sizes["llama"] / sizes["student"] == pytest.approx(6.2, rel=0.03)
    names = ("student", "student_fixed", "control")
    big = {n: read_config_file(str(ROOT / f"config/babyllama/{n}.py")) for n in names}
    small = {n: read_config_file(str(ROOT / f"config/babyllama_small/{n}.py")) for n in names}
    for name in names:  # what sets the three apart is the same at both sizes
        told = [k for k in big[name] if big[name][k] != big["student_fixed"].get(k) and k != "out_dir"]
        assert told == [k for k in small[name] if small[name][k] != small["student_fixed"].get(k) and k != "out_dir"]
