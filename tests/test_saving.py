"""Checkpoints are written in the background, from a copy: what the run does meanwhile changes nothing of them."""

import threading

import pytest
import torch
from conftest import ROOT, TINY, run_python, run_script
from safetensors.torch import load_file

import common.checkpoint_writer
from common.checkpoint import checkpoints
from common.checkpoint_writer import CheckpointWriter
from common.tokenizer import ByteTokenizer
from model import GPT, GPTConfig


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=257, block_size=8, n_layer=1, n_head=2, n_embd=8))


def state_of(step: int, *tensors) -> dict:
    of_parameters = {i: {"exp_avg": tensor} for i, tensor in enumerate(tensors)}
    optimizer = {"state": of_parameters, "param_groups": [{"betas": (0.9, 0.95)}]}
    return {"step": step, "best": (1.0, step), "seconds": 0.0, "config": {}, "optimizers": [optimizer]}


@pytest.fixture
def slow_disk(monkeypatch):
    """An event: writing waits until it is set."""
    may_write = threading.Event()
    write = common.checkpoint_writer.write_checkpoint

    def write_later(*args):
        assert may_write.wait(timeout=30)
        write(*args)

    monkeypatch.setattr(common.checkpoint_writer, "write_checkpoint", write_later)
    return may_write


def test_the_run_goes_on_while_a_copy_is_written(model, tmp_path, slow_disk):
    moments = torch.ones(3)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    writer = CheckpointWriter(tmp_path)
    writer.save(model, ByteTokenizer(), state_of(7, moments))
    # as a step would, in place
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    moments += 1
    writer.check()
    assert checkpoints(tmp_path) == []
    slow_disk.set()
    writer.wait()
    (folder,) = checkpoints(tmp_path)
    stored = load_file(folder / "model.safetensors")
    assert torch.equal(stored["transformer.wte.weight"], before["wte.weight"])
    # of a weight that is stored transposed as well
    assert torch.equal(stored["transformer.h.0.mlp.c_fc.weight"], before["h.0.mlp.c_fc.weight"].T)
    (optimizer,) = torch.load(folder / "trainer.pt", weights_only=True)["optimizers"]
    assert torch.equal(optimizer["state"][0]["exp_avg"], torch.ones(3))
    assert optimizer["param_groups"] == [{"betas": (0.9, 0.95)}]


def test_one_is_written_at_a_time(model, tmp_path, slow_disk):
    """The second save waits until the first is on the disk."""
    writer = CheckpointWriter(tmp_path, keep=1)
    writer.save(model, ByteTokenizer(), state_of(1))
    second = threading.Thread(target=writer.save, args=(model, ByteTokenizer(), state_of(2)))
    second.start()
    second.join(timeout=0.3)
    assert second.is_alive()
    slow_disk.set()
    second.join(timeout=30)
    writer.wait()
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step_000002"]


def test_what_stops_the_writing_is_raised_in_the_run(model, tmp_path):
    (tmp_path / "file").write_text("in the place of the run's folder")
    writer = CheckpointWriter(tmp_path / "file")
    writer.save(model, ByteTokenizer(), state_of(1))
    writer.thread.join()
    with pytest.raises(OSError, match="file"):
        writer.check()
    # once is enough
    writer.wait()
    # or by the next save
    writer.save(model, ByteTokenizer(), state_of(2))
    with pytest.raises(OSError, match="file"):
        writer.save(model, ByteTokenizer(), state_of(3))


# stands for train.py, in whose process a write goes wrong
FAILING = """
import runpy, sys
sys.path.insert(0, {root!r})
import common.checkpoint_writer as checkpoint_writer
write = checkpoint_writer.write_checkpoint
def fail(out_dir, weights, shape, tokenizer, state):
    if state["step"] == 4:
        raise OSError("cannot write step 4, with 0 bytes free")
    write(out_dir, weights, shape, tokenizer, state)
checkpoint_writer.write_checkpoint = fail
runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("steps", [20, 4])
def test_a_failed_save_stops_the_run(dataset, tmp_path, steps):
    """At a later step, or where there is none at the end, which has no summary then."""
    script = str(ROOT / "train.py")
    failing = tmp_path / "failing.py"
    failing.write_text(FAILING.format(root=str(ROOT), script=script))
    keys = [*TINY, f"--dataset={dataset}", f"--out_dir={tmp_path / 'run'}", "--save_interval=2"]
    done = run_python(failing, *keys, f"--max_steps={steps}", ok=False)
    assert done.returncode == 2 and done.stderr == "failing.py: cannot write step 4, with 0 bytes free\n"
    assert [folder.name for folder in checkpoints(tmp_path / "run")] == ["step_000002"]
    assert not (tmp_path / "run/summary.json").exists()
    run_script("train.py", f"--out_dir={tmp_path / 'run'}", "--init_from=resume")
    assert checkpoints(tmp_path / "run")[-1].name == f"step_{steps:06d}"


BOTH_FAIL = """
import sys, time
sys.path.insert(0, {root!r})
from common.one_line import end_in_one_line
import common.checkpoint_writer as checkpoint_writer
from common.files import names_file
from common.tokenizer import ByteTokenizer
from model import GPT, GPTConfig
end_in_one_line()
def fail(out_dir, weights, shape, tokenizer, state):
    time.sleep(0.2)
    with names_file(out_dir):
        raise OSError(28, "No space left on device")
checkpoint_writer.write_checkpoint = fail
writer = checkpoint_writer.CheckpointWriter("run")
model = GPT(GPTConfig(vocab_size=64, block_size=8, n_layer=1, n_head=1, n_embd=8))
writer.save(model, ByteTokenizer(), dict(step=1))
raise {error}
"""


@pytest.mark.parametrize(
    "error, expected",
    [
        ('OSError(28, "No space left on device", "log.txt")', ["'log.txt'; [Errno 28] No space left on device: 'run'"]),
        # the same words twice say nothing more
        ('OSError(28, "No space left on device", "run")', ["No space left on device: 'run'"]),
        # a mistake of ours has its traceback first
        (
            'RuntimeError("a mistake")',
            ["RuntimeError: a mistake", "failing.py: [Errno 28] No space left on device: 'run'"],
        ),
    ],
)
def test_a_run_that_ends_by_an_error_tells_that_of_its_writer_on_the_same_line(error, expected, tmp_path):
    """Which may come after it, while the checkpoint is still being written."""
    failing = tmp_path / "failing.py"
    failing.write_text(BOTH_FAIL.format(root=str(ROOT), error=error))
    done = run_python(failing, ok=False, cwd=tmp_path)
    lines = done.stderr.splitlines()
    if "OSError" in error:
        assert done.returncode == 2 and len(lines) == 1
    for line, end in zip(lines[-len(expected) :], expected, strict=True):
        assert line.endswith(end)
