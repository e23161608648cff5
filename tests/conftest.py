"""Helpers of the tests: the repository on the path, scripts run as a user runs them, tiny data sets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"  # the models are tiny, and pytest runs as many tests at once as there are cores
TINY = ["--n_layer=2", "--n_head=2", "--n_embd=32", "--block_size=16", "--batch_size=4", "--eval_rows=8",
        "--eval_interval=0", "--log_interval=1", "--device=cpu"]  # fmt: skip


def run_script(script, *args, ok=True, torchrun=0, cwd=None):
    """Run a script of the project in a process of its own; returns it finished. ok: fail the test unless it exits 0."""
    return run_python(ROOT / script, *args, ok=ok, torchrun=torchrun, cwd=cwd)


def run_python(script, *args, ok=True, torchrun=0, cwd=None):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={torchrun}"] if torchrun else []
    command = [sys.executable, *launcher, str(script), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd or ROOT, timeout=120)
    assert not ok or done.returncode == 0, done.stdout + done.stderr
    return done


def read_log(out_dir, label):
    """{step: value} of the lines `step label value` in a run's log.txt."""
    lines = [line.split() for line in (Path(out_dir) / "log.txt").read_text().splitlines()]
    return {int(step): float(value) for step, name, value in lines if name == label}


def write_dataset(folder, tokens=4000, seed=0, **meta):
    """A data set of bytes with some structure: a Markov chain over 64 ids, so that a model can learn."""
    from common.tokenizer import ByteTokenizer, tokenizer_meta

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    following = rng.integers(32, 96, size=(256, 4))
    for split, n in (("train", tokens), ("val", tokens // 4)):
        ids = [40]
        for choice in rng.integers(4, size=n - 1):
            ids.append(int(following[ids[-1], choice]))
        np.array(ids, dtype="<u2").tofile(folder / f"{split}.bin")
    counts = {f"{s}_{what}": n for s, n in (("train", tokens), ("val", tokens // 4)) for what in ("tokens", "bytes")}
    (folder / "meta.json").write_text(json.dumps(tokenizer_meta(ByteTokenizer()) | counts | meta))
    return folder


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "chain")


@pytest.fixture(scope="session")
def teacher(dataset, tmp_path_factory):
    """The out_dir of a tiny trained GPT, wider than the students."""
    out = tmp_path_factory.mktemp("runs") / "teacher"
    run_script(
        "train.py", *TINY, "--arch=gpt", "--n_embd=48", f"--dataset={dataset}", f"--out_dir={out}", "--max_steps=12"
    )
    return out
