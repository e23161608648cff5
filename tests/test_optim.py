"""Schedules and optimisers."""

import pytest
import torch

from common.muon import Muon
from common.optim import learning_rate_at, make_optimizers
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


@pytest.mark.parametrize("name, matrices_by", [("adamw", torch.optim.AdamW), ("muon", Muon)])
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
    with pytest.raises(ValueError, match="optimizer='sgd' is not one of adamw, muon"):
        make_optimizers(model, "sgd", 1e-3, 0.1, 0.9, 0.95, 1e-8)
