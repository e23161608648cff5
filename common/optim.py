"""The optimisers of both loops, and the learning rate of each step."""

import math

import torch

from common.muon import Muon

SCHEDULES = ("cosine", "linear", "constant", "wsd")


def learning_rate_at(step, schedule, learning_rate, min_lr, warmup_steps, max_steps) -> float:
    """The rate of step 0 … max_steps - 1: linear warm-up over warmup_steps, then the schedule down to min_lr.

    "cosine", "linear", "constant" (min_lr unused), and "wsd" (constant, then linear over the last
    fifth of max_steps; MiniCPM, arXiv:2404.06395, section 4).
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r} is not one of {', '.join(SCHEDULES)}")
    if step < warmup_steps:
        return learning_rate * (step + 1) / (warmup_steps + 1)
    start = warmup_steps if schedule != "wsd" else max(warmup_steps, max_steps - max_steps // 5)
    done = min(1.0, max(0.0, (step - start) / max(1, max_steps - start)))
    if schedule == "cosine":
        return min_lr + 0.5 * (1 + math.cos(math.pi * done)) * (learning_rate - min_lr)
    if schedule in ("linear", "wsd"):
        return learning_rate + done * (min_lr - learning_rate)
    return learning_rate


def make_optimizers(model, optimizer, learning_rate, weight_decay, beta1, beta2, eps, extra=None) -> list:
    """[AdamW] for "adamw"; [Muon, AdamW] for "muon", with Muon on the matrices of the blocks.

    Frozen parameters are left out. Weight decay on matrices and embeddings, none on vectors (biases and norms).
    `extra`: a module trained beside the model. Raises ValueError for an optimiser that is unknown, and for beta1, beta2
    or eps out of range.
    """
    if optimizer not in ("adamw", "muon"):
        raise ValueError(f"optimizer={optimizer!r} is not one of adamw, muon")
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1):
        raise ValueError(f"beta1={beta1} and beta2={beta2} must be at least 0 and under 1")
    if not 1e-30 <= eps <= 1:  # a parameter without a gradient so far would be updated by 0 / 0
        raise ValueError(f"eps={eps} is out of range; expected 1e-30 to 1, as in eps=1e-8")

    # a tied head is one parameter under two names, hence a dict by identity
    trained = {}
    for module in (model, extra):
        for p in module.parameters() if module else ():
            if p.requires_grad:
                trained[id(p)] = p

    muon = []
    if optimizer == "muon":
        muon = [p for p in model.h.parameters() if p.dim() == 2 and p.requires_grad]
        for p in muon:
            del trained[id(p)]

    matrices = [p for p in trained.values() if p.dim() >= 2]
    vectors = [p for p in trained.values() if p.dim() < 2]
    groups = []
    if matrices:
        groups.append({"params": matrices, "weight_decay": weight_decay})
    if vectors:
        groups.append({"params": vectors, "weight_decay": 0.0})

    optimizers = []
    if muon:
        optimizers.append(Muon(muon, learning_rate, weight_decay))
    if groups:
        optimizers.append(torch.optim.AdamW(groups, learning_rate, (beta1, beta2), eps, fused=True))
    return optimizers


def load_optimizer_state(optimizer, state: dict):
    """Load the moments of a state_dict, and keep the knobs that the optimiser was made with.

    torch's load_state_dict brings the old weight_decay, betas and eps back, so that changing them when resuming would
    be announced and ignored. Raises ValueError when the moments do not fit the parameters: the fused AdamW would read
    beyond those that are too short.
    """
    knobs = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, knobs):
        group.update(own)
    expected = MOMENTS[type(optimizer)]
    for p, moments in optimizer.state.items():
        if set(moments) != expected or any(m.shape not in (p.shape, ()) for m in moments.values()):
            raise ValueError("the optimiser's moments are those of another model")


MOMENTS = {torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}, Muon: {"momentum_buffer"}}
