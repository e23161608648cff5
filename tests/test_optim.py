"""Schedules and optimisers."""

import pytest
import torch

from common.muon import HeadMuon, Muon, NorMuon
from common.optim import learning_rate_at, make_optimizers, round_to_bfloat16, stored_tensors
from model import GPT, GPTConfig


def test_schedules_by_hand():
    def rates(schedule, steps=(0, 8, 9, 59, 108, 109)):
        return [learning_rate_at(s, schedule, 1.0, 0.1, warmup_steps=9, max_steps=109) for s in steps]

    assert rates("cosine") == pytest.approx([0.1, 0.9, 1.0, 0.55, 0.1002, 0.1], abs=1e-4)
    assert rates("linear") == pytest.approx([0.1, 0.9, 1.0, 0.55, 0.109, 0.1])
    assert rates("constant") == pytest.approx([0.1, 0.9, 1.0, 1.0, 1.0, 1.0])
    assert rates("wsd", (9, 88, 98, 109)) == pytest.approx([1.0, 1.0, 1 - 0.9 * 10 / 21, 0.1])
    with pytest.raises(ValueError, match="schedule='step' is not one of cosine, linear, constant, wsd"):
        rates("step")


OPTIMIZERS = {"adamw": torch.optim.AdamW, "muon": Muon, "normuon": NorMuon, "headmuon": HeadMuon}


@pytest.mark.parametrize("name, matrices_by", OPTIMIZERS.items())
def test_every_parameter_has_one_optimiser_and_vectors_do_not_decay(name, matrices_by):
    model, extra = GPT(GPTConfig(64, 16, 2, 2, 16)), torch.nn.Linear(16, 8, bias=False)
    optimizers = make_optimizers(model, name, 1e-3, 0.1, 0.9, 0.95, 1e-8, extra)
    groups = [(o, g, p) for o in optimizers for g in o.param_groups for p in g["params"]]
    assert len(groups) == len({id(p) for _, _, p in groups}) == len([*model.parameters(), *extra.parameters()])
    for _, group, p in groups:
        assert group["weight_decay"] == (0.1 if p.dim() == 2 else 0.0)
    by = {id(p): type(o) for o, _, p in groups}
    assert by[id(model.h[0].attn.c_attn.weight)] is matrices_by
    assert by[id(model.wte.weight)] is by[id(extra.weight)] is torch.optim.AdamW
    with pytest.raises(ValueError, match="optimizer='sgd' is not one of adamw, muon, normuon, headmuon"):
        make_optimizers(model, "sgd", 1e-3, 0.1, 0.9, 0.95, 1e-8)


@pytest.mark.parametrize("clip", [0.0, 0.3])
def test_rounding_gives_the_numbers_of_a_bfloat16_model(clip):
    """Weights and moments are bit for bit those of torch's AdamW on bfloat16 parameters, over ten steps."""
    torch.manual_seed(0)
    knobs = {"lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 0.1, "fused": True}
    true = torch.nn.Parameter((0.02 * torch.randn(64, 48)).bfloat16())
    ours = torch.nn.Parameter(true.detach().float())
    kept = ours.detach().clone()
    optimizers = [torch.optim.AdamW([p], **knobs) for p in (true, ours)]
    for _ in range(10):
        gradient = 0.01 * torch.randn(64, 48)
        true.grad = gradient.bfloat16()
        ours.grad = gradient.clone()
        round_to_bfloat16([ours.grad])
        if clip:
            norm = torch.nn.utils.get_total_norm([ours.grad])
            assert norm > clip
            for p in (true, ours):
                torch.nn.utils.clip_grads_with_norm_([p], clip, norm)
            # as the loops do: what is multiplied is rounded again
            round_to_bfloat16([ours.grad])
        for optimizer in optimizers:
            optimizer.step()
        round_to_bfloat16(stored_tensors([ours], optimizers[1:]))
        for moment in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizers[0].state[true][moment].float(), optimizers[1].state[ours][moment])
        assert torch.equal(true.float(), ours)
    assert optimizers[1].state[ours]["step"] == 10 and not torch.equal(ours, kept)


def test_small_updates_are_lost_in_bfloat16():
    """An update of 1e-5 leaves 0.0198 where it is, however often; of the float32 weight it is 1e-3 after 100 steps."""
    for rounds, moved in ((False, 1e-3), (True, 0.0)):
        weight = torch.full((4,), 0.0198).bfloat16().float()
        start = weight.clone()
        for _ in range(100):
            weight -= 1e-5
            if rounds:
                round_to_bfloat16([weight])
        assert (start - weight).max().item() == pytest.approx(moved, abs=1e-6)
