"""What a run keeps, what it refuses, and what it does the same when it is resumed otherwise than it was started."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, environments, read_log, run_script, write_dataset
from safetensors.torch import load_file

from common.checkpoint import checkpoints
from common.data import TokenData
from common.log import Log, earlier_lines
from common.pretrained import find_model, load_pretrained


@pytest.fixture
def train(dataset, tmp_path):
    """train(name, *more): train.py with a tiny model into tmp_path/name; keywords as of run_script."""

    def go(name, *more, **how):
        keys = [*TINY, f"--dataset={dataset}", "--max_steps=10"]
        return run_script("train.py", *keys, f"--out_dir={tmp_path / name}", *more, **how)

    return go


@pytest.fixture
def resume(tmp_path):
    """resume(name, *more): nothing but out_dir and init_from, and more."""

    def go(name, *more, script="train.py", **how):
        return run_script(script, f"--out_dir={tmp_path / name}", "--init_from=resume", *more, **how)

    return go


def refusal(done) -> str:
    """The one line on stderr of a script that ended with exit code 2."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 2 and len(lines) == 1, done.stdout + done.stderr
    return lines[0]


def trainer_state(run) -> dict:
    return torch.load(find_model(run) / "trainer.pt", weights_only=True)


# ---------------------------------------------------------------------------------------------
# stored knobs, and those that change


@pytest.mark.slow
def test_out_dir_is_enough_to_resume(train, resume, tmp_path):
    """The knobs are the stored ones, not the script's defaults; a key of the command line changes one, and says so."""
    more = ["--schedule=linear", "--seed=3", "--learning_rate=0.01", "--eval_interval=5"]
    train("whole", *more)
    train("parts", *more, "--max_steps=5")
    # the schedule ends at max_steps, so that the first half of both is the same with a constant rate only
    train("constant", "--schedule=constant", "--seed=3", "--max_steps=5")
    done = resume("constant", "--max_steps=10")
    assert f"resume {tmp_path / 'constant/step_000005'} | max_steps 5 -> 10\n" in done.stdout
    train("constant_whole", "--schedule=constant", "--seed=3")
    assert (tmp_path / "constant/log.txt").read_text() == (tmp_path / "constant_whole/log.txt").read_text()
    done = resume("parts", "--max_steps=10", "--learning_rate=0.02")
    assert "| max_steps 5 -> 10" in done.stdout and "| learning_rate 0.01 -> 0.02" in done.stdout
    assert trainer_state(tmp_path / "parts")["config"]["schedule"] == "linear"


@pytest.mark.slow
def test_a_config_file_does_not_change_a_resumed_run_without_a_word(train, resume, tmp_path):
    train("run", "--max_steps=2", "--batch_size=2")
    config = tmp_path / "c.py"
    config.write_text("batch_size = 8\nmax_steps = 4\n")
    done = resume("run", config, "--max_steps=4")
    assert f"{config} says batch_size=8, but the run has 2, which stays; --batch_size=8 changes it" in done.stdout
    assert trainer_state(tmp_path / "run")["config"]["batch_size"] == 2


@pytest.mark.slow
def test_a_run_stored_with_the_older_knobs_goes_on_with_hellaswag(train, resume, tmp_path):
    """Before it was one of eval_tasks it had three knobs of its own."""
    row = {"ctx": "ab", "endings": ["c", "de", "f", "cd"], "label": 0}
    (tmp_path / "choices.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    train("run", "--max_steps=2")
    file = find_model(tmp_path / "run") / "trainer.pt"
    state = torch.load(file, weights_only=True)
    older = {"hellaswag_interval": 3, "hellaswag_data": str(tmp_path / "choices.jsonl"), "hellaswag_limit": 2}
    torch.save(state | {"config": state["config"] | older}, file)
    resume("run", "--max_steps=4")
    assert list(read_log(tmp_path / "run", "choices.jsonl")) == [3, 4]
    assert trainer_state(tmp_path / "run")["config"]["eval_tasks_limit"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_optimiser_knobs_of_a_resumed_run_are_in_force(optimizer, train, resume, tmp_path):
    """load_state_dict brings the old ones back; the checkpoint would record the new ones."""
    constant = ["--schedule=constant", "--warmup_steps=0"]
    train("run", *constant, f"--optimizer={optimizer}", "--max_steps=3", "--weight_decay=0.1")
    shutil.copytree(tmp_path / "run", tmp_path / "as_before")
    changed = ["--beta1=0.8", "--beta2=0.7", "--eps=1e-4", "--learning_rate=0.1", "--max_steps=4"]
    resume("run", "--weight_decay=0.5", *changed)
    resume("as_before", *changed)
    state = trainer_state(tmp_path / "run")
    *muon, adamw = state["optimizers"]
    assert [group["weight_decay"] for group in adamw["param_groups"]] == [0.5, 0.0]
    assert all((group["betas"], group["eps"]) == ((0.8, 0.7), 1e-4) for group in adamw["param_groups"])
    assert [group["weight_decay"] for o in muon for group in o["param_groups"]] == [0.5] * len(muon)
    assert state["config"]["weight_decay"] == 0.5 and len(muon) == (optimizer == "muon")

    # the decay really acts: learning rate * (0.5 - 0.1) of each weight more than with the stored one
    name = "model.embed_tokens.weight"
    start = load_file(tmp_path / "run/step_000003/model.safetensors")[name]
    strong, weak = (load_file(find_model(tmp_path / run) / "model.safetensors")[name] for run in ("run", "as_before"))
    torch.testing.assert_close(weak - strong, 0.1 * (0.5 - 0.1) * start, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_what_may_not_change_is_refused(train, resume, tmp_path):
    train("run", "--max_steps=2")
    for key, message in [
        ("--n_layer=3", "n_layer=3, but"),
        ("--optimizer=muon", "has optimizer='adamw'; a resumed run keeps it"),
        ("--freeze=wte", "has freeze=''; a resumed run keeps it"),
        ("--init_layers=0", "has init_layers=''; a resumed run keeps it"),
        ("--max_steps=1", "is at step 2 already; raise it to go on"),
    ]:
        assert message in refusal(resume("run", key, ok=False))


@pytest.mark.slow
def test_a_run_of_the_other_script_is_refused(train, resume, tmp_path, teacher):
    train("run", "--max_steps=2")
    more = [f"--teacher={teacher}", "--max_steps=4"]
    assert "trainer.pt is of other optimisers or teachers" in refusal(
        resume("run", *more, script="distill.py", ok=False)
    )


@pytest.mark.slow
def test_a_run_of_distill_is_not_resumed_without_its_teacher(dataset, resume, tmp_path, teacher):
    keys = [*TINY, f"--dataset={dataset}", f"--teacher={teacher}", "--max_steps=2", f"--out_dir={tmp_path / 'run'}"]
    run_script("distill.py", *keys)
    line = refusal(resume("run", "--max_steps=4", ok=False))
    assert f"{tmp_path}/run/step_000002 is of a run of distill.py; resume it with that script" in line
    # its loss alone does not depend on the teacher
    resume("run", "--eval_only=True")


@pytest.mark.slow
def test_a_teacher_that_has_trained_on_is_said(dataset, resume, tmp_path, teacher):
    """A run's out_dir names its newest checkpoint, and a cache may be made anew under its name."""
    live = shutil.copytree(teacher, tmp_path / "teacher")
    cache = [f"--teacher={teacher}", f"--dataset={dataset}", "--block_size=16", "--eval_rows=8", "--device=cpu"]
    cache += [f"--out_dir={tmp_path / 'cache'}", "--batch_size=4"]
    run_script("cache_teacher.py", *cache, "--temperature=2")
    keys = [*TINY, f"--dataset={dataset}", "--random_offset=False", "--max_steps=2"]
    for name, taught_by in (("live", live), ("cached", tmp_path / "cache")):
        run_script("distill.py", *keys, f"--teacher={taught_by}", f"--out_dir={tmp_path / name}")
        assert "other weights" not in resume(name, "--max_steps=3", script="distill.py").stdout
    run_script("train.py", f"--out_dir={live}", "--init_from=resume", "--max_steps=13")
    done = resume("live", "--max_steps=4", script="distill.py")
    assert f"| max_steps 3 -> 4 | teacher {live} has other weights than before" in done.stdout
    assert "other weights" not in resume("live", "--max_steps=5", script="distill.py").stdout
    shutil.rmtree(tmp_path / "cache")
    run_script("cache_teacher.py", *cache, "--temperature=2", "--top_k=4")
    done = resume("cached", "--max_steps=4", script="distill.py")
    assert f"| teacher {tmp_path / 'cache'} has other weights than before" in done.stdout


@pytest.mark.slow
def test_teachers_keep_their_places_when_projections_belong_to_them(dataset, teacher, tmp_path, resume):
    """Projections are by place: with two teachers swapped each would learn from the other's."""
    run_script(
        "train.py", *TINY, "--n_embd=48", f"--dataset={dataset}", f"--out_dir={tmp_path / 'other'}", "--max_steps=2"
    )
    both = f"{teacher},{tmp_path / 'other'}"
    swapped = f"{tmp_path / 'other'},{teacher}"
    keys = [*TINY, f"--dataset={dataset}", f"--teacher={both}", "--max_steps=2"]
    for name, weight in (("cos", "--weight_cos=1"), ("kl", "--weight_cos=0")):
        run_script("distill.py", *keys, weight, f"--out_dir={tmp_path / name}")
    resume("cos", "--max_steps=3", script="distill.py")
    line = refusal(resume("cos", f"--teacher={swapped}", "--max_steps=4", script="distill.py", ok=False))
    assert "in that order; leave teacher out when resuming, or keep the order" in line
    resume("kl", f"--teacher={swapped}", "--max_steps=3", script="distill.py")  # the mean of both is the same


# ---------------------------------------------------------------------------------------------
# the batch and the ranks


@pytest.mark.slow
def test_a_run_resumed_on_one_rank_takes_the_steps_of_two(train, resume, tmp_path):
    """The tokens of a step stay: two ranks become two micro-steps, and the losses are those of a run on one rank."""
    more = ["--schedule=constant", "--eval_interval=5"]
    train("one", *more, "--batch_size=4", "--grad_accum_steps=2")
    train("two", *more, "--batch_size=4", "--max_steps=5", ranks=2)
    done = resume("two", "--max_steps=10")
    assert "| grad_accum_steps 1 -> 2" in done.stdout and "| ranks 2 -> 1" in done.stdout
    for label, n in (("train", 10), ("val", 3)):
        one, two = (list(read_log(tmp_path / run, label).values()) for run in ("one", "two"))
        assert len(one) == len(two) == n
        np.testing.assert_allclose(two, one, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_more_ranks_than_a_step_has_micro_steps_are_refused_with_the_remedy(train, resume, tmp_path):
    train("run", "--batch_size=4", "--max_steps=2")
    done = resume("run", "--max_steps=4", torchrun=2, ok=False)
    assert "tokens_per_step=64 is no multiple of 128 (batch_size 4 * block_size 16 * 2 ranks)" in done.stderr
    resume("run", "--max_steps=4", "--batch_size=2", ranks=2)
    assert trainer_state(tmp_path / "run")["rows"] == 4 * 4


@pytest.mark.slow
def test_tokens_per_step_makes_the_same_run_whatever_the_batch(train, tmp_path):
    train("four", "--batch_size=4", "--tokens_per_step=128")
    train("two", "--batch_size=2", "--tokens_per_step=128")
    four, two = (trainer_state(tmp_path / name) for name in ("four", "two"))
    assert (four["config"]["grad_accum_steps"], two["config"]["grad_accum_steps"]) == (2, 4)
    assert four["rows"] == two["rows"] == 80
    losses = [list(read_log(tmp_path / name, "train").values()) for name in ("four", "two")]
    np.testing.assert_allclose(*losses, atol=1e-5, rtol=0)
    line = refusal(train("no", "--batch_size=4", "--tokens_per_step=100", ok=False))
    assert "tokens_per_step=100 is no multiple of 64 (batch_size 4 * block_size 16 * 1 ranks)" in line
    line = refusal(train("no", "--tokens_per_step=128", "--grad_accum_steps=3", ok=False))
    assert "grad_accum_steps=3, but tokens_per_step=128 makes 2; give one of the two" in line


def test_another_size_of_step_continues_with_the_next_row(dataset):
    """Neither a row twice nor one left out, and `epochs` still counts rows."""
    data = TokenData(dataset, "train", block_size=16, seed=1, batch_size=4)
    seen = [data.batch(step, 0)[0] for step in range(3)]
    doubled = TokenData(dataset, "train", block_size=16, seed=1, batch_size=4, grad_accum_steps=2)
    doubled.continue_at(step=3, row=12)
    seen += [doubled.batch(step, micro_step)[0] for step in (3, 4) for micro_step in (0, 1)]
    assert torch.equal(torch.cat(seen), data.rows(0, 28)[0])
    assert doubled.steps(1) == 3 + -(-(data.n_rows - 12) // 8) and data.steps(1) == -(-data.n_rows // 4)


@pytest.mark.slow
def test_max_steps_by_hand_counts_although_the_config_says_epochs(train, tmp_path):
    config = tmp_path / "c.py"
    config.write_text("epochs = 1.0\n")
    train("run", config, "--max_steps=3")
    assert trainer_state(tmp_path / "run")["step"] == 3
    assert trainer_state(tmp_path / "run")["config"]["epochs"] == 0


# ---------------------------------------------------------------------------------------------
# the shape of a model that was loaded


@pytest.mark.slow
def test_a_fine_tuned_run_records_the_shape_that_it_has(train, resume, tmp_path, dataset, teacher):
    line = refusal(train("run", f"--init_from={teacher}", "--n_layer=99", ok=False))
    assert "command line: n_layer=99, but" in line and "has n_layer=2" in line and "leave n_layer out" in line
    data = json.loads((find_model(teacher) / "config.json").read_text())
    assert data["n_embd"] == 48
    sizes = ["--block_size=16", "--batch_size=4", "--max_steps=2", "--eval_rows=8"]
    places = [f"--dataset={dataset}", f"--init_from={teacher}", f"--out_dir={tmp_path / 'tuned'}"]
    run_script("train.py", *places, *sizes)
    knobs = json.loads((tmp_path / "tuned/summary.json").read_text())["config"]
    shape = {key: knobs[key] for key in ("arch", "n_layer", "n_head", "n_embd", "n_inner")}
    assert shape == {"arch": "gpt", "n_layer": 2, "n_head": 2, "n_embd": 48, "n_inner": 192}
    resume("tuned", "--max_steps=3")
    assert "n_kv_head=1 is not for arch=gpt" in refusal(train("no", "--arch=gpt", "--n_kv_head=1", ok=False))


# ---------------------------------------------------------------------------------------------
# one run in a folder, and its best checkpoint


@pytest.mark.slow
def test_one_run_at_a_time_in_a_folder(dataset, tmp_path, train, resume):
    """The second is told, also when it resumes; reading goes on; a killed process holds nothing."""
    keys = [*TINY, f"--dataset={dataset}", f"--out_dir={tmp_path / 'run'}", "--max_steps=100000", "--save_interval=5"]
    first = subprocess.Popen([sys.executable, ROOT / "train.py", *keys], stdout=subprocess.DEVNULL)
    try:
        deadline = time.time() + 60
        while not checkpoints(tmp_path / "run"):
            assert first.poll() is None and time.time() < deadline
            time.sleep(0.01)
        for done in (train("run", ok=False), resume("run", ok=False)):
            assert f"run is in use by another run (process {first.pid}); wait for it" in refusal(done)
        run_script("sample.py", f"--model={tmp_path / 'run'}", "--max_tokens=2", "--device=cpu")
        log_before = len((tmp_path / "run/log.txt").read_text())
        assert log_before > 0 and first.poll() is None
    finally:
        first.kill()
        first.wait()
    step = trainer_state(tmp_path / "run")["step"]
    resume("run", f"--max_steps={step + 1}")
    assert (tmp_path / "run/summary.json").is_file()


@pytest.mark.slow
def test_a_run_that_fails_before_it_writes_leaves_no_folder(train, tmp_path):
    refusal(train("deep/inside", "--schedule=none", ok=False))
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("x")
    assert "is a file; name a folder for the run" in refusal(train("file", ok=False))


@pytest.mark.slow
def test_the_best_checkpoint_stays_beside_the_newest(train, resume, tmp_path):
    """Ten good steps, then some with a learning rate that ruins the model."""
    more = ["--keep_checkpoints=1", "--eval_interval=5", "--learning_rate=0.01", "--schedule=constant"]
    train("run", *more)
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["step_000010"]
    done = resume("run", "--max_steps=20", "--learning_rate=3")
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    val = read_log(tmp_path / "run", "val")
    assert summary["best_step"] == 10 and summary["best_val"] == pytest.approx(val[10]) and val[20] > val[10]
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["step_000010", "step_000020"]
    assert find_model(tmp_path / "run/best") == tmp_path / "run/step_000010"
    assert f"| best val {val[10]:.4f} at step 10: {tmp_path / 'run/step_000010'}" in done.stdout
    resume("run", "--max_steps=21", "--keep_best=False")
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["step_000021"]
    with pytest.raises(FileNotFoundError, match="has no checkpoint of its best step"):
        find_model(tmp_path / "run/best")
    # another selection of rows has another loss: what was best before is not compared with it
    done = resume("run", "--max_steps=22", "--eval_rows=4")
    assert "best val " in done.stdout and "at step 10" not in done.stdout


@pytest.mark.slow
def test_a_data_set_made_anew_is_said_and_has_a_best_of_its_own(train, resume, tmp_path):
    data = write_dataset(tmp_path / "data", seed=1, files={"train.bin": {"sha256": "1"}})
    more = ["--schedule=constant", "--eval_interval=5", f"--dataset={data}"]
    train("run", *more)
    best = trainer_state(tmp_path / "run")["best"]
    # the same tokens by another path are the same data set, of which nothing has to be said but the path
    moved = data.rename(tmp_path / "moved")
    done = resume("run", "--max_steps=11", "--eval_interval=0", "--learning_rate=0", f"--dataset={moved}")
    assert "other tokens" not in done.stdout and f"| dataset '{data}' -> '{moved}'" in done.stdout
    assert trainer_state(tmp_path / "run")["best"] == best
    # other tokens by the same path are another one
    write_dataset(moved, seed=2, files={"train.bin": {"sha256": "2"}})
    done = resume("run", "--max_steps=12")
    assert f"| {moved} has other tokens than before" in done.stdout
    assert trainer_state(tmp_path / "run")["best"][1] == 12


def test_without_hashes_data_sets_of_the_same_counts_are_told_apart_by_their_folders(tmp_path):
    folders = [write_dataset(tmp_path / "one"), write_dataset(tmp_path / "other")]
    one, other = (TokenData(folder, "train", 16, seed=0, batch_size=2).identity for folder in folders)
    assert one != other


# ---------------------------------------------------------------------------------------------
# what a run says and writes


@pytest.mark.slow
def test_the_last_words_name_what_comes_next(train, tmp_path):
    out = tmp_path / "run"
    lines = train("run").stdout.splitlines()[-4:]
    assert lines[0].startswith(f"saved {out / 'step_000010'} | best val ")
    assert f"python sample.py --model={out}" in lines[1]
    assert f"python evaluate.py --model={out} --tasks=hellaswag" in lines[2]
    assert f"python train.py --out_dir={out} --init_from=resume --max_steps=<more>" in lines[3]


@pytest.mark.slow
def test_ctrl_c_says_what_comes_next_too(dataset, tmp_path):
    keys = [*TINY, f"--dataset={dataset}", f"--out_dir={tmp_path / 'run'}", "--max_steps=100000"]
    run = subprocess.Popen([sys.executable, ROOT / "train.py", *keys], stdout=subprocess.PIPE, text=True)
    deadline = time.time() + 60
    while not (tmp_path / "run/log.txt").is_file() or not read_log(tmp_path / "run", "train"):
        assert run.poll() is None and time.time() < deadline
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    out, _ = run.communicate(timeout=60)
    assert run.returncode == 130 and "\nsaved " in out and "--init_from=resume\n" in out


@pytest.mark.slow
def test_eval_only_scores_and_writes_nothing(train, resume, tmp_path):
    train("run", "--eval_interval=10")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    done = resume("run", "--eval_only=True")
    val = read_log(tmp_path / "run", "val")[10]
    assert f"step 10/10 | val {val:.4f} nats/token" in done.stdout
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    run_script(
        "train.py", f"--dataset={trainer_state(tmp_path / 'run')['config']['dataset']}", "--eval_rows=8",
        f"--init_from={tmp_path / 'run'}", f"--out_dir={tmp_path / 'none'}", "--eval_only=True", "--block_size=16",
    )  # fmt: skip
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_samples_are_written_and_change_nothing(train, tmp_path):
    """An empty prompt starts from what the training text began with; dropout's numbers are not disturbed."""
    train("with", "--sample_interval=5", "--dropout=0.1", "--sample_prompt=(((")
    train("without", "--dropout=0.1")
    assert (tmp_path / "with/log.txt").read_text() == (tmp_path / "without/log.txt").read_text()
    names = sorted(p.name for p in (tmp_path / "with").glob("sample_*"))
    assert names == ["sample_000000.txt", "sample_000005.txt", "sample_000010.txt"]
    assert (tmp_path / "with" / names[-1]).read_text().startswith("(((")


@pytest.mark.slow
def test_an_empty_prompt_starts_from_what_the_model_has_seen(tmp_path):
    """One document: no text follows an end-of-text id, so that the model knows nothing of it. Many: it does."""
    one = write_dataset(tmp_path / "one")
    many = write_dataset(tmp_path / "many", train_documents=7)
    assert TokenData(one, "train", block_size=16, seed=0, batch_size=1).start() == [40]
    many_rows = TokenData(many, "train", block_size=16, seed=0, batch_size=1)
    assert many_rows.start() == [many_rows.meta["eot"]]
    run_script("train.py", *TINY, f"--dataset={one}", f"--out_dir={tmp_path / 'run'}", "--max_steps=2")
    meta = json.loads((find_model(tmp_path / "run") / "meta.json").read_text())
    assert meta["start"] == [40]
    done = run_script("sample.py", f"--model={tmp_path / 'run'}", "--max_tokens=3", "--device=cpu")
    assert done.stdout.startswith("(")  # id 40


@pytest.mark.slow
def test_weights_and_biases_has_what_the_log_has(train, resume, tmp_path, monkeypatch):
    """Offline, with the real package: its files are in out_dir, and a resumed run is the same run."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train("run", "--wandb_project=tests", "--max_steps=3")
    resume("run", "--max_steps=5")
    runs = sorted((tmp_path / "run/wandb").glob("offline-run-*"))
    names = {run.name.rpartition("-")[2] for run in runs}
    assert names == {(tmp_path / "run/wandb_id.txt").read_text().strip()}
    content = b"".join(file.read_bytes() for file in (tmp_path / "run/wandb").rglob("*.wandb"))
    for label in ("train", "val", "norm"):
        for value in read_log(tmp_path / "run", label).values():
            assert f"{value:.4g}"[:4].encode() in content, (label, value)


@pytest.mark.slow
def test_without_wandb_the_way_to_install_it_is_said(train, tmp_path, monkeypatch):
    (tmp_path / "hide/wandb").mkdir(parents=True)  # an empty folder of that name imports as a module
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hide"))
    (tmp_path / "hide/wandb/__init__.py").write_text("raise ImportError\n")
    assert "wandb is not installed: pip install wandb" in refusal(train("run", "--wandb_project=x", ok=False))


def test_a_log_that_a_kill_cut_anywhere(tmp_path):
    """ "12" of "1234 train 5.1" is no line of step 12."""
    path = tmp_path / "log.txt"
    whole = "10 train 5.5\n11 train 5.4\n12 val 5.3\n"
    for end in range(len(whole) + 1):
        path.write_text(whole[:end])
        kept = earlier_lines(path, first_step=12)
        assert whole.startswith(kept) and kept.count("\n") == min(2, whole[:end].count("\n"))
    assert earlier_lines(path, first_step=0) == ""


def test_a_cache_is_no_model(tmp_path):
    (tmp_path / "cache.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="it is a cache, which has predictions and no weights"):
        find_model(tmp_path)


def test_the_log_is_replaced_as_a_whole(tmp_path, monkeypatch):
    """A kill while it is written again must not leave half of it."""
    path = tmp_path / "log.txt"
    path.write_text("0 train 5\n1 train 4\n2 train 3\n")
    seen = []
    replace = Path.replace

    def look_and_replace(unfinished, target):
        seen.append((path.read_text(), unfinished.read_text()))
        return replace(unfinished, target)

    monkeypatch.setattr(Path, "replace", look_and_replace)
    Log(tmp_path, first_step=2, writes=True).close()
    assert seen == [("0 train 5\n1 train 4\n2 train 3\n", "0 train 5\n1 train 4\n")]
    assert path.read_text() == "0 train 5\n1 train 4\n"


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train.py", "distill.py"])
def test_a_finished_run_that_goes_on(script, train, resume, teacher, dataset, tmp_path):
    """It has no summary until it is finished again, and then the log of a run that was never stopped."""
    keys = [*TINY, f"--dataset={dataset}", f"--out_dir={tmp_path / 'run'}", "--max_steps=5", "--eval_interval=3"]
    if script == "distill.py":
        keys.append(f"--teacher={teacher}")
    run_script(script, *keys)
    # one step more is made and saved; the next would have a gradient of NaN
    resume("run", "--max_steps=10", "--learning_rate=1e38", "--warmup_steps=0", script=script, ok=False)
    assert not (tmp_path / "run/summary.json").exists()
    shutil.rmtree(tmp_path / "run/step_000006", ignore_errors=True)
    resume("run", "--max_steps=10", script=script)
    assert list(read_log(tmp_path / "run", "val")) == [0, 3, 6, 9, 10]
    assert json.loads((tmp_path / "run/summary.json").read_text())["steps"] == 10


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train.py", "distill.py"])
def test_tokens_flops_and_epochs_where_rows_become_shorter(script, resume, teacher, dataset, tmp_path):
    keys = [*TINY, f"--dataset={dataset}", f"--out_dir={tmp_path / 'run'}"]
    if script == "distill.py":
        keys.append(f"--teacher={teacher}")
    run_script(script, *keys, "--max_steps=5")
    before = json.loads((tmp_path / "run/summary.json").read_text())
    resume("run", "--max_steps=10", "--block_size=8", script=script)
    after = json.loads((tmp_path / "run/summary.json").read_text())
    assert after["tokens"] == 2 * before["tokens"] == 2 * 5 * 64
    # shorter rows have less attention, and nothing else
    student = load_pretrained(tmp_path / "run")
    models = [student] + ([load_pretrained(teacher)] if script == "distill.py" else [])
    less = 0
    for model, factor in zip(models, (3, 1)):
        less += factor * (model.flops_per_token(16) - model.flops_per_token(8))
    assert after["flops"] == pytest.approx(2 * before["flops"] - 5 * 64 * less) and less > 0
    # as many passes over the data as were asked for, the 5 steps at another length counted
    resume("run", "--epochs=2", script=script)
    tokens = json.loads((tmp_path / "run/summary.json").read_text())["tokens"]
    n_rows = {length: TokenData(str(dataset), "train", length, 0, 4).n_rows for length in (16, 8)}
    share = 5 * 64 / (16 * n_rows[16])
    assert tokens == pytest.approx(5 * 64 + (2 - share) * 8 * n_rows[8], abs=64)


@pytest.mark.slow
def test_rows_of_a_run_that_was_resumed_with_other_knobs(train, resume, dataset, tmp_path):
    """rows.py shows those that each step has read, whatever the newest checkpoint's knobs are."""
    train("run", "--max_steps=5")
    resume("run", "--max_steps=10", "--grad_accum_steps=2", "--seed=5", "--keep_checkpoints=1")
    assert len(checkpoints(tmp_path / "run")) == 1
    for step, seed, first, n in ((3, 1337, 12, 4), (7, 5, 20 + 2 * 8, 8)):
        done = run_script("rows.py", f"--out_dir={tmp_path / 'run'}", f"--steps={step}", "--rows=0", "--device=cpu")
        data = TokenData(str(dataset), "train", 16, seed, 4)
        for row in range(first, first + n):
            start, _ = data.row_span(row)
            assert f"--- row {row}: tokens {start} to " in done.stdout
        assert done.stdout.count("--- row") == n
    done = run_script("rows.py", f"--out_dir={tmp_path / 'run'}", "--steps=10", "--device=cpu", ok=False)
    assert done.returncode == 2 and "has made 10 steps, of which 10 is none" in done.stderr


@pytest.mark.slow
def test_the_best_loss_starts_anew_where_it_is_of_other_rows(train, resume, tmp_path):
    """Rows of validation are cut at an offset of their own with random_offset."""
    train("run", "--max_steps=5")
    resume("run", "--max_steps=5", "--random_offset=False")
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["best_val"] == summary["val"]


# ---------------------------------------------------------------------------------------------
# bad input


@pytest.mark.slow
def test_what_cannot_be_is_refused_at_once(train, tmp_path, monkeypatch):
    for key, message in [
        ("--eps=0", "eps=0.0 is out of range; expected 1e-30 to 1"),
        ("--device=mps", "device='mps', but torch finds no Apple GPU"),
        ("--batch_size=10000000", "a step needs at least"),
        ("--dataset=mine", "data set mine is not there"),
    ]:
        assert message in refusal(train("run", key, ok=False))
    line = refusal(train("run", "--batch_size=10000000", ok=False))
    assert "batch_size=10000000 rows of block_size=16" in line and "lower batch_size" in line


@pytest.mark.slow
def test_a_data_set_by_half_its_path(dataset, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine").symlink_to(dataset)
    keys = [*TINY, f"--out_dir={tmp_path / 'run'}"]
    line = refusal(run_script("train.py", *keys, "--dataset=mine", cwd=tmp_path, ok=False))
    assert "data set mine is not there; did you mean 'data/mine'?" in line
    line = refusal(run_script("train.py", *keys, "--dataset=data/mime", cwd=tmp_path, ok=False))
    assert "data set data/mime is not there; did you mean 'data/mine'?" in line


@pytest.mark.slow
def test_a_typing_error_in_a_teacher_is_not_a_network_problem(dataset, teacher, tmp_path):
    keys = [*TINY, f"--dataset={dataset}", "--out_dir=run"]
    (tmp_path / "out").symlink_to(teacher.parent)
    line = refusal(run_script("distill.py", *keys, "--teacher=out/techer", cwd=tmp_path, ok=False))
    assert "no model at 'out/techer'; did you mean 'out/teacher'?" in line
    # a run that a config makes is named with the config, before anything is downloaded
    line = refusal(run_script("distill.py", *keys, "--init_from=out/pretrain_124m", cwd=tmp_path, ok=False))
    assert "no model at 'out/pretrain_124m' yet; first run: python train.py config/pretrain_124m.py" in line


@pytest.mark.slow
def test_teacher_weights_may_stay_on_a_control(dataset, teacher, tmp_path):
    keys = [*TINY, f"--dataset={dataset}", f"--out_dir={tmp_path / 'run'}", "--max_steps=1"]
    both = [f"--teacher={teacher},{teacher}", "--teacher_weights=2,1"]
    run_script("distill.py", *keys, *both, "--weight_kl=0")
    assert (tmp_path / "run/summary.json").is_file()


# ---------------------------------------------------------------------------------------------
# one command that starts a run and continues it; saving when asked


@pytest.mark.slow
def test_the_same_command_starts_a_run_and_continues_it(train, dataset, tmp_path):
    """The last checkpoint is lost, and the command given again: the bits of a run that was not disturbed."""
    train("whole", "--seed=3")
    command = ["--init_from=auto", "--seed=3", "--save_interval=5"]
    assert f"resume {tmp_path}" not in train("run", *command).stdout
    shutil.rmtree(tmp_path / "run/step_000010")
    assert f"resume {tmp_path / 'run/step_000005'} \n" in train("run", *command).stdout
    expected, weights = (load_file(find_model(tmp_path / name) / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(expected[key], weights[key]) for key in expected)
    assert (tmp_path / "run/log.txt").read_text() == (tmp_path / "whole/log.txt").read_text()
    # once more: it is finished, and stays so
    assert f"resume {tmp_path / 'run/step_000010'} \n" in train("run", *command).stdout


@pytest.mark.slow
def test_auto_starts_from_the_model_that_a_config_file_names(train, tmp_path):
    train("first", "--max_steps=3", "--eval_interval=10")
    config = tmp_path / "c.py"
    config.write_text(f"init_from = {str(tmp_path / 'first')!r}\n")
    train("next", config, "--init_from=auto", "--max_steps=2", "--eval_interval=10")
    val = read_log(tmp_path / "next", "val")[0]
    assert val == pytest.approx(read_log(tmp_path / "first", "val")[3], rel=1e-6)
    assert trainer_state(tmp_path / "next")["config"]["init_from"] == str(tmp_path / "first")
    config.write_text('init_from = "auto"\n')
    assert f"resume {tmp_path}" not in train("new", config, "--max_steps=2").stdout
    assert trainer_state(tmp_path / "new")["config"]["init_from"] == "scratch"
    assert "did you mean 'auto'?" in refusal(train("new", "--init_from=Auto", ok=False))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no SIGUSR1")
def test_sigusr1_saves_and_the_run_goes_on(dataset, train, tmp_path):
    steps = ["--max_steps=60", "--save_interval=0", "--keep_best=False", "--keep_checkpoints=0", "--eval_interval=0"]
    train("undisturbed", *steps)
    keys = [*TINY, f"--dataset={dataset}", f"--out_dir={tmp_path / 'run'}", *steps]
    run = subprocess.Popen([sys.executable, ROOT / "train.py", *keys], stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 60
    while not (tmp_path / "run/log.txt").is_file() or not read_log(tmp_path / "run", "train"):
        assert run.poll() is None and time.time() < deadline
        time.sleep(0.001)
    run.send_signal(signal.SIGUSR1)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 0 and err.count("SIGUSR1: saving after this step, then going on") == 1
    saved = [folder.name for folder in checkpoints(tmp_path / "run")]
    assert len(saved) == 2 and saved[1] == "step_000060"
    assert trainer_state(tmp_path / "run" / saved[0])["step"] == int(saved[0].removeprefix("step_")) < 60
    assert (tmp_path / "run/log.txt").read_text() == (tmp_path / "undisturbed/log.txt").read_text()


@pytest.mark.slow
def test_signals_that_are_ignored_stay_ignored_and_a_save_is_not_the_end_of_a_run_that_loads(dataset, tmp_path):
    """A shell's background commands ignore Ctrl-C, which is sent to them as well."""
    steps = ["--max_steps=400", "--save_interval=0", "--keep_best=False"]
    keys = [*TINY, f"--dataset={dataset}", f"--out_dir={tmp_path / 'run'}", *steps]
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, str(ROOT / "train.py"), *keys]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 60
    # the lock is taken before anything is loaded, and the log begun after
    while not (tmp_path / "run/.lock").is_file():
        assert run.poll() is None and time.time() < deadline
        time.sleep(0.001)
    assert not (tmp_path / "run/log.txt").is_file()
    run.send_signal(signal.SIGUSR1)
    while not (tmp_path / "run/log.txt").is_file() or not read_log(tmp_path / "run", "train"):
        assert run.poll() is None and time.time() < deadline
        time.sleep(0.001)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 0 and not err
    assert [folder.name for folder in checkpoints(tmp_path / "run")] == ["step_000400"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no SIGUSR1")
def test_sigusr1_to_any_rank_saves_once_and_all_go_on(dataset, teacher, tmp_path):
    """The signal goes to the second rank, which writes nothing itself; in distill.py, whose ranks exchange more."""
    steps = ["--max_steps=60", "--save_interval=0", "--keep_best=False", "--keep_checkpoints=0", "--eval_interval=0"]
    keys = [*TINY, f"--dataset={dataset}", f"--teacher={teacher}", f"--out_dir={tmp_path / 'run'}", *steps]
    ranks = []
    for environment in environments(ranks=2):
        command = [sys.executable, ROOT / "distill.py", *keys]
        ranks.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    deadline = time.time() + 120
    while not (tmp_path / "run/log.txt").is_file() or not read_log(tmp_path / "run", "train"):
        assert all(rank.poll() is None for rank in ranks) and time.time() < deadline
        time.sleep(0.001)
    ranks[1].send_signal(signal.SIGUSR1)
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    first, last = checkpoints(tmp_path / "run")
    assert trainer_state(first)["step"] < 60 and last.name == "step_000060"
    assert max(read_log(tmp_path / "run", "train")) == 59
