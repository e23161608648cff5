"""Devices: what each allows. Apple's GPUs are not at hand: only what is decided about them is tested."""

import pytest
import torch
from conftest import run_script, write_dataset

from common import runtime
from common.runtime import Runtime, check_memory, device_memory
from model import GPT, GPTConfig, LLaMA, LLaMAConfig


def test_an_apple_gpu_computes_in_float32_and_uncompiled(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    run = Runtime("mps", keep_memory=False)
    module = torch.nn.Linear(2, 2)
    assert (run.device.type, run.dtype, run.cuda) == ("mps", torch.float32, False)
    assert run.compile(module, "auto") is module
    assert run.sum(0.1, torch.tensor(2), True) == [0.1, 2.0, 1.0]  # on the CPU: these GPUs have no float64
    for act, message in [
        (lambda: run.pick_dtype("bfloat16"), "dtype='bfloat16' is not for device mps"),
        (lambda: run.compile(module, "on"), "compile='on' is not for device mps"),
    ]:
        with pytest.raises(ValueError, match=message):
            act()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="runs in one process only"):
        Runtime("mps", keep_memory=False)


KNOBS = {
    "batch_size": 1, "block_size": 16, "shard": False, "optimizer": "adamw", "freeze": "", "eval_only": False,
}  # fmt: skip


def test_what_cannot_fit_into_memory_is_refused_and_what_may_fit_is_not():
    run = Runtime("cpu", keep_memory=False)
    shape = GPTConfig(64, 16, 2, 2, 16)
    per_token = 2 * (4 * 16 + 64) * 4  # layers * (4 n_embd + n_inner) * bytes of float32
    most = device_memory(run) // (16 * per_token)
    check_memory(run, shape, KNOBS | {"batch_size": most // 2})
    too_many = KNOBS | {"batch_size": most + 1}
    with pytest.raises(ValueError, match=r"a step needs at least .* GB; lower batch_size"):
        check_memory(run, shape, too_many)
    # without a step, or with frozen blocks, backward keeps less, and how much is not known
    check_memory(run, shape, too_many | {"eval_only": True})
    check_memory(run, shape, too_many | {"freeze": "h.0"})


@pytest.mark.parametrize(
    "shape",
    [
        GPTConfig(64, 16, 2, 2, 16),
        LLaMAConfig(64, 16, 2, 2, n_kv_head=1, n_embd=16),
        LLaMAConfig(64, 16, 2, 2, n_embd=16, head_dim=2, tie_word_embeddings=False),
    ],
)
@pytest.mark.parametrize(
    ("knobs", "bytes_per_weight"),
    [({}, 16), ({"optimizer": "headmuon"}, 12), ({"eval_only": True}, 4), ({"freeze": "wte"}, 4)],
)
def test_the_weights_that_are_counted_are_fewer_than_those_of_the_model(shape, knobs, bytes_per_weight, monkeypatch):
    """A bound from below, from the shape and the knobs alone: with all of the weights' bytes it passes."""
    run = Runtime("cpu", keep_memory=False)
    made = GPT(shape) if isinstance(shape, GPTConfig) else LLaMA(shape)
    least = []

    def memory(run):
        return least[-1]

    monkeypatch.setattr(runtime, "device_memory", memory)
    for share, fits in ((1.0, True), (0.5, False)):
        least.append(bytes_per_weight * made.n_params() * share)
        if fits:
            check_memory(run, shape, KNOBS | knobs | {"batch_size": 0})
        else:
            with pytest.raises(ValueError, match="GB; lower n_layer or n_embd, or divide the model"):
                check_memory(run, shape, KNOBS | knobs | {"batch_size": 0})


@pytest.mark.parametrize("script", ["train.py", "distill.py"])
def test_a_model_that_is_far_too_large_is_refused_before_it_is_made(script, tmp_path):
    """Made first, it would take all of the memory, and the system would end it without a word."""
    data = write_dataset(tmp_path / "data")
    arguments = [f"--dataset={data}", f"--out_dir={tmp_path / 'out'}", "--n_layer=100000", "--n_embd=12288"]
    if script == "distill.py":
        arguments += ["--weight_kl=0"]
    result = run_script(script, *arguments, ok=False)
    assert result.returncode == 2
    assert "GB; lower n_layer or n_embd" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list((tmp_path / "out").glob("step_*"))


def test_float32_is_no_tf32_and_what_bfloat16_leaves_in_fp32_may_be():
    for dtype, precision in (("bfloat16", "high"), ("float32", "highest")):
        Runtime("cpu", dtype, keep_memory=False)
        assert torch.get_float32_matmul_precision() == precision


def test_a_gpu_that_only_imitates_bfloat16_computes_in_float32(monkeypatch):
    """T4 and V100; torch says that they have it unless it is told not to count imitations."""

    def is_supported(including_emulation=True):
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    run = Runtime("cpu", keep_memory=False)
    run.cuda = True
    assert run.pick_dtype("auto") is torch.float32 and run.pick_dtype("bfloat16") is torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert run.pick_dtype("auto") is torch.bfloat16


def test_sums_of_numbers_alone_are_those_of_tensors():
    run = Runtime("cpu", keep_memory=False)
    numbers = [3, 0.1, True, 2**53]
    assert run.sum(*numbers) == run.sum(*numbers, torch.tensor(1.0))[:-1] == [3.0, 0.1, 1.0, 2.0**53]
    # in the order in which they are given
    assert run.sum(1, torch.tensor(2.0), 3, torch.tensor(4.0)) == [1.0, 2.0, 3.0, 4.0]
    assert all(isinstance(number, float) for number in run.sum(*numbers))


def test_attention_of_any_shape_on_a_gpu_is_not_by_cudnn():
    """Which plans for each new shape. Here it is only what is allowed that can be tested."""
    run = Runtime("cpu", keep_memory=False)
    with run.any_shape():
        assert torch.backends.cuda.cudnn_sdp_enabled()
    run.cuda = True
    with run.any_shape():
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled()
