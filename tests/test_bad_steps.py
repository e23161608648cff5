"""Steps that are left out as their loss or gradient is not finite, and the rows that made a loss jump."""

import numpy as np
import pytest
import torch
from conftest import TINY, read_log, run_script, write_dataset
from safetensors.torch import load_file, save_file

from common.bad_steps import first_bad_parameter
from common.pretrained import find_model
from model import GPT, GPTConfig

EMBEDDING = "transformer.wte.weight"
BAD = 200  # an id that the chain of write_dataset never has


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    """(a data set with BAD once, the out_dir of a model whose states overflow there under dropout)."""
    folder = tmp_path_factory.mktemp("poisoned")
    data = write_dataset(folder / "data", tokens=1000)
    ids = np.fromfile(data / "train.bin", "<u2")
    ids[500] = BAD
    ids.tofile(data / "train.bin")
    model = folder / "model"
    keys = [f"--dataset={data}", f"--out_dir={model}", "--max_steps=1", "--tie_word_embeddings=False", "--arch=gpt"]
    run_script("train.py", *TINY, *keys)
    file = find_model(model) / "model.safetensors"
    weights = load_file(file)
    weights[EMBEDDING][BAD] = 3e38  # divided by the share that dropout keeps it is infinite
    save_file(weights, file, metadata={"format": "pt"})
    return data, model


@pytest.fixture
def train(poisoned, tmp_path):
    """train(name, *more): 30 steps from the poisoned model, two epochs of 61 rows."""
    data, model = poisoned

    def go(name, *more, script="train.py", **how):
        keys = [*TINY, f"--dataset={data}", f"--out_dir={tmp_path / name}", f"--init_from={find_model(model)}"]
        return run_script(script, *keys, "--max_steps=30", "--random_offset=False", "--dropout=0.5", *more, **how)

    return go


def bad_steps(run) -> list[int]:
    return list(read_log(run, "bad_steps"))


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train.py", "distill.py"])
def test_bad_steps_are_left_out_and_counted(train, tmp_path, script):
    more = ["--weight_kl=0", "--weight_ce=1"] if script == "distill.py" else []
    done = train("run", "--max_bad_steps=2", "--save_interval=5", "--keep_checkpoints=0", *more, script=script)
    first, second = bad_steps(tmp_path / "run")
    assert read_log(tmp_path / "run", "bad_steps") == {first: 1, second: 2} and second - first >= 10
    # the log says so, and nothing of it came into the weights
    assert np.isnan(read_log(tmp_path / "run", "train")[first])
    said = [line for line in done.stdout.splitlines() if "left out" in line]
    assert "left out, 1 of 2" in said[0] and "the gradient is not finite first in lm_head.weight" in said[0]
    assert all(w.isfinite().all() for w in load_file(find_model(tmp_path / "run") / "model.safetensors").values())
    # the rows that it names hold the id
    rows = said[0].split("first in rows ")[1].split(",")[0]
    assert f"row {rows.split(' to ')[0]}:" in (tmp_path / f"run/bad_step_{first:06d}.txt").read_text()
    assert "�" in (tmp_path / f"run/bad_step_{first:06d}.txt").read_text()

    # the number goes on with a resumed run, to the same log
    whole = (tmp_path / "run/log.txt").read_text()
    train("parts", "--max_bad_steps=2", f"--max_steps={first + 2}", *more, script=script)
    run_script(script, f"--out_dir={tmp_path / 'parts'}", "--init_from=resume", "--max_steps=30")
    assert (tmp_path / "parts/log.txt").read_text() == whole


@pytest.mark.slow
def test_one_too_many_stops_the_run_before_its_update(train, tmp_path):
    done = train("run", "--max_bad_steps=1", ok=False)
    (line,) = done.stderr.splitlines()
    first, second = [*bad_steps(tmp_path / "run"), int(line.split("step ")[1].split(":")[0])]
    assert done.returncode == 2 and second > first
    assert "the loss is not finite first in rows" in line and "raise max_bad_steps" in line
    # by default the first is one too many
    assert train("none", ok=False).returncode == 2 and bad_steps(tmp_path / "none") == []


@pytest.mark.slow
def test_ranks_leave_out_the_same_step(train, tmp_path):
    """Two ranks of two rows: the same rows as one rank of four, whichever rank has the bad one."""
    train("one", "--max_bad_steps=2", "--batch_size=2", "--grad_accum_steps=2")
    done = train("two", "--max_bad_steps=2", "--batch_size=2", ranks=2)
    assert bad_steps(tmp_path / "two") == bad_steps(tmp_path / "one") != []
    step = bad_steps(tmp_path / "two")[0]
    texts = [(tmp_path / run / f"bad_step_{step:06d}.txt").read_text() for run in ("one", "two")]
    assert texts[0] == texts[1] and "�" in texts[0]
    assert sum("left out" in line for line in done.stdout.splitlines()) == 2


def test_the_first_parameter_that_went_wrong():
    model = GPT(GPTConfig(vocab_size=64, block_size=8, n_layer=2, n_head=2, n_embd=8))
    model(torch.zeros(1, 8, dtype=torch.long)).sum().backward()
    assert first_bad_parameter(model) == "all gradients of the model are finite"
    # as backward would leave it: all in front of the place
    for name, p in model.named_parameters():
        if name.startswith(("wte", "wpe", "h.0")):
            p.grad.fill_(float("inf"))
    assert first_bad_parameter(model) == "the gradient is not finite first in h.0.mlp.c_proj.bias"
    model.h[1].ln_1.weight.data[0] = float("nan")
    assert first_bad_parameter(model) == "the weights h.1.ln_1.weight are not finite themselves"


@pytest.mark.slow
def test_rows_that_made_a_loss_jump(tmp_path):
    """Letters at random within a chain of others: a step of them stands out, and they are shown."""
    data = write_dataset(tmp_path / "data", tokens=8000)
    ids = np.fromfile(data / "train.bin", "<u2")
    noise = np.random.default_rng(1).integers(97, 123, size=64)
    ids[5120:5184] = noise
    ids.tofile(data / "train.bin")
    keys = [*TINY, f"--dataset={data}", f"--out_dir={tmp_path / 'run'}", "--max_steps=120", "--save_interval=20"]
    run_script("train.py", *keys, "--learning_rate=0.01", "--schedule=constant", "--keep_checkpoints=0")
    losses = read_log(tmp_path / "run", "train")
    shown = run_script("rows.py", f"--out_dir={tmp_path / 'run'}", "--spikes=1", "--rows=1", "--device=cpu").stdout
    step = int(shown.split()[1].rstrip(":"))
    assert losses[step] > losses[step - 1] + 0.3
    # what it shows is the noise: letters that the chain hardly has
    (text,) = shown.split("of train\n")[1:]
    assert sum("a" <= c <= "z" for c in text[:16]) > 8

    # the rows of a step are those that the loop has read
    done = run_script("rows.py", f"--out_dir={tmp_path / 'run'}", "--steps=7", "--rows=0", "--device=cpu")
    assert "step 7: 4 rows" in done.stdout and all(f"--- row {row}:" in done.stdout for row in (28, 29, 30, 31))


@pytest.mark.slow
def test_the_loss_of_rows_is_that_of_their_step(tmp_path):
    """Over the targets of all rows, of which documents have more or fewer; by the weights before the step."""
    data = write_dataset(tmp_path / "data", tokens=8000)
    keys = [*TINY, f"--dataset={data}", f"--out_dir={tmp_path / 'run'}", "--max_steps=4", "--save_interval=1"]
    run_script("train.py", *keys, "--packing=documents", "--keep_checkpoints=0")
    losses = read_log(tmp_path / "run", "train")
    shown = run_script("rows.py", f"--out_dir={tmp_path / 'run'}", "--steps=3", "--rows=1", "--device=cpu").stdout
    assert float(shown.split(" rows, ")[1].split()[0]) == pytest.approx(losses[3], abs=2e-4)


def test_rows_of_what_is_no_run(tmp_path):
    done = run_script("rows.py", f"--out_dir={tmp_path}", ok=False)
    assert done.returncode == 2 and "has no checkpoint" in done.stderr and len(done.stderr.splitlines()) == 1
