"""Devices: what each allows. Apple's GPUs are not at hand: only what is decided about them is tested."""

import pytest
import torch

from common.runtime import Runtime, check_memory, device_memory
from model import GPT, GPTConfig


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


def test_what_cannot_fit_into_memory_is_refused_and_what_may_fit_is_not():
    run = Runtime("cpu", keep_memory=False)
    model = GPT(GPTConfig(64, 16, 2, 2, 16))
    per_token = 2 * (4 * 16 + 64) * 4  # layers * (4 n_embd + n_inner) * bytes of float32
    most = device_memory(run) // (16 * per_token)
    check_memory(run, model, batch_size=most // 2, block_size=16)
    with pytest.raises(ValueError, match=r"a step needs at least .* GB; lower batch_size"):
        check_memory(run, model, batch_size=most + 1, block_size=16)
