"""distill.py with a cached teacher, as a user runs it: against the live one, resumed, split otherwise, and refused."""

import json

import numpy as np
import pytest
import torch
from conftest import TINY, read_log, run_script
from safetensors.torch import load_file

COMMON = ["--random_offset=False", "--eval_interval=5", "--weight_ce=0.5", "--weight_kl=0.5", "--dropout=0.1"]


@pytest.fixture(scope="module")
def caches(dataset, teacher, tmp_path_factory):
    """caches(name, *keys): a cache of the tiny teacher, made once."""
    folder = tmp_path_factory.mktemp("caches")

    def make(name, *keys):
        if not (folder / name).exists():
            own = [f"--teacher={teacher}", f"--dataset={dataset}", f"--out_dir={folder / name}", "--device=cpu"]
            run_script("cache_teacher.py", *own, "--block_size=16", "--eval_rows=8", *keys)
        return folder / name

    return make


@pytest.fixture
def distil(dataset, tmp_path):
    def run(name, teacher, *keys, **more):
        own = [f"--dataset={dataset}", f"--teacher={teacher}", f"--out_dir={tmp_path / name}", "--max_steps=20"]
        return run_script("distill.py", *TINY, *COMMON, *own, *keys, **more)

    return run


def same_logs(a, b, labels, **tolerance):
    for label in labels:
        left, right = read_log(a, label), read_log(b, label)
        assert list(left) == list(right) and len(left) > 1, label
        np.testing.assert_allclose(list(left.values()), list(right.values()), err_msg=label, **tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("kl", ["forward", "reverse", "js"])
@pytest.mark.parametrize("number_format, tolerance", [("float32", 1e-6), ("float16", 1e-3)])
def test_the_whole_distribution_gives_the_losses_of_the_live_teacher(
    kl, number_format, tolerance, caches, distil, teacher, tmp_path
):
    """20 steps; what float16 rounds is within 1e-3 of the KL, and is not nothing."""
    whole = caches(f"whole_{number_format}", "--top_k=-1", f"--number_format={number_format}")
    distil("live", teacher, f"--kl={kl}")
    out = distil("cached", whole, f"--kl={kl}").stdout
    same_logs(tmp_path / "live", tmp_path / "cached", ("train", "ce", "kl", "val", "norm"), rtol=tolerance, atol=1e-6)
    assert "teacher" not in out.split("step 0/")[0].replace(str(whole), "") and "kl to the cached teacher" in out
    assert len(read_log(tmp_path / "cached", "val_kl")) == 5
    if number_format == "float16":
        assert read_log(tmp_path / "live", "kl") != read_log(tmp_path / "cached", "kl")


@pytest.mark.slow
def test_an_entire_top_k_is_the_whole_distribution_but_for_rounding(caches, distil, tmp_path):
    """k = 256 of 257 ids and a tail of one: the cells are the ids."""
    some = caches("k256", "--top_k=256", "--number_format=float32")
    whole = caches("whole_float32", "--top_k=-1", "--number_format=float32")
    for name, cache in (("some", some), ("whole", whole)):
        distil(name, cache)
    same_logs(tmp_path / "some", tmp_path / "whole", ("train", "kl", "val_kl"), rtol=1e-5, atol=1e-6)


KINDS = {
    "cell": ["--top_k=4"],
    "draws": ["--top_k=4", "--draws=6"],
    "sampled": ["--top_k=0", "--draws=10"],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_losses_do_not_depend_on_the_split_of_the_batch_and_resuming_is_exact(kind, caches, distil, tmp_path):
    cache = caches(kind, *KINDS[kind])
    keys = [f"--tail={'cell' if kind == 'cell' else 'draws'}", "--dropout=0"]
    for name, batch_size, micro_steps in (("8x4", 8, 4), ("16x2", 16, 2), ("32x1", 32, 1)):
        distil(name, cache, *keys, f"--batch_size={batch_size}", f"--grad_accum_steps={micro_steps}", "--max_steps=10")
    distil("ranks", cache, *keys, "--batch_size=8", "--grad_accum_steps=2", "--max_steps=10", ranks=2)
    for other in ("16x2", "32x1", "ranks"):
        same_logs(tmp_path / "8x4", tmp_path / other, ("train", "ce"), rtol=1e-6, atol=1e-8)
        # A KL of 0.005 is made of log-probabilities of about 5, whose last digit in fp32 is 5e-7: matmuls of other
        # shapes round it otherwise, which shows on some CPUs in a loss of few sampled ids.
        same_logs(tmp_path / "8x4", tmp_path / other, ("kl",), rtol=1e-6, atol=1e-7)
        same_logs(tmp_path / "8x4", tmp_path / other, ("norm",), rtol=2e-5)
    # 10 = 5 + resume + 5
    keys[-1] = "--dropout=0.1"
    distil("whole", cache, *keys, "--max_steps=10")
    distil("parts", cache, *keys, "--max_steps=5")
    distil("parts", cache, *keys, "--max_steps=10", "--init_from=resume")
    assert (tmp_path / "whole/log.txt").read_text() == (tmp_path / "parts/log.txt").read_text()
    a, b = (load_file(tmp_path / run / "step_000010/model.safetensors") for run in ("whole", "parts"))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_the_student_learns_from_a_cache(caches, distil, tmp_path):
    """Without the data's labels: the divergence on held-out rows falls."""
    distil("run", caches("cell", *KINDS["cell"]), "--weight_ce=0", "--weight_kl=1", "--max_steps=60", "--dropout=0")
    held_out = read_log(tmp_path / "run", "val_kl")
    assert held_out[60] < 0.7 * held_out[0]
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    tokens = summary["tokens"]
    # no teacher computes
    assert summary["flops"] / tokens < 1e6


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys, message",
    [
        (["--random_offset=True"], "use --random_offset=False"),
        (["--weight_cos=0.1"], "weight_cos=0.1 compares hidden states, which"),
        (["--weight_mse=0.1"], "weight_mse=0.1 compares hidden states, which"),
        (["--temperature=1"], "temperature is 1.0, but"),
        (["--block_size=8"], "block_size is 8, but"),
        (["--packing=documents"], "packing is documents, but"),
        (["--tail=draws"], "the cache has none; take --tail=cell"),
        (["--tail=drop", "--kl=reverse"], "tail='drop' is for kl='forward'"),
        (["--eval_rows=16"], "--eval_rows=0"),
        (["--teacher_weights=1"], "teacher_weights is for models"),
        (["--teacher_dtype=bfloat16"], "teacher_dtype is for models; that of "),
    ],
)
def test_what_does_not_go_with_a_cache_is_refused(keys, message, caches, distil, tmp_path):
    done = distil("no", caches("cell", *KINDS["cell"]), *keys, ok=False)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.slow
def test_a_cache_of_several_teachers_says_how_they_were_mixed(caches, distil, teacher, tmp_path):
    both = caches("both", "--top_k=4", f"--teacher={teacher},{teacher}", "--ensemble=probs")
    done = distil("no", both, "--ensemble=logits", ok=False)
    assert done.returncode == 2 and "was made with ensemble='probs', not 'logits'" in done.stderr
    # what nobody asked for is put right, so that the run's record is true
    distil("run", both, "--max_steps=2")
    assert json.loads((tmp_path / "run/summary.json").read_text())["config"]["ensemble"] == "probs"
    run_script("distill.py", f"--out_dir={tmp_path / 'run'}", "--init_from=resume", "--max_steps=3")


@pytest.mark.slow
def test_a_tail_without_a_cache_is_refused(distil, teacher):
    done = distil("no", teacher, "--tail=drop", ok=False)
    assert done.returncode == 2 and "tail='drop' is for a cache of cache_teacher.py; leave it out" in done.stderr


@pytest.mark.slow
def test_a_cache_beside_a_model_is_refused(caches, distil, teacher):
    done = distil("no", f"{caches('cell', *KINDS['cell'])},{teacher}", ok=False)
    assert done.returncode == 2 and "is a cache, which is not mixed with other teachers" in done.stderr
