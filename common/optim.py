"""The optimisers of both loops, and the learning rate of each step."""

import math

import torch

from common.muon import HeadMuon, Muon, NorMuon
from common.sharding import share_of

# for the matrices of the blocks, beside AdamW for the rest
MATRIX_OPTIMIZERS = {"muon": Muon, "normuon": NorMuon, "headmuon": HeadMuon}
SCHEDULES = ("cosine", "linear", "constant", "wsd")

# Moments that are not of the parameter's shape, and whole on every rank also where the ranks divide the parameter.
WHOLE_MOMENTS = ("step", "row_squares")
# What each optimiser keeps for a parameter between steps, by torch's names.
MOMENTS = {
    torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"},
    Muon: {"momentum_buffer"},
    NorMuon: {"momentum_buffer", "row_squares"},
    HeadMuon: {"momentum_buffer", "row_squares"},
}


# ---------------------------------------------------------------------------------------------
# learning rate


def learning_rate_at(step, schedule, learning_rate, min_lr, warmup_steps, max_steps) -> float:
    """The rate of step 0 … max_steps - 1: linear warm-up over warmup_steps, then the schedule down to min_lr.

    "cosine", "linear", "constant" (min_lr unused), and "wsd" (constant, then linear over the last
    fifth of max_steps; MiniCPM, arXiv:2404.06395, section 4).
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r} is not one of {', '.join(SCHEDULES)}")
    if schedule != "constant" and min_lr > learning_rate:
        remedy = f"lower it too, as in --min_lr={learning_rate / 10:g}"
        raise ValueError(f"min_lr={min_lr:g} is over learning_rate={learning_rate:g}: the rate would rise; {remedy}")
    # step + 1: the rate of step 0 is not 0. warmup_steps + 1: the first step after the warm-up has the peak.
    if step < warmup_steps:
        return learning_rate * (step + 1) / (warmup_steps + 1)

    decay_start = warmup_steps
    if schedule == "wsd":
        decay_start = max(warmup_steps, max_steps - max_steps // 5)
    decay_steps = max(1, max_steps - decay_start)
    # The share of the decay that is done, 0 to 1; it would be 1, and the rate min_lr, at step max_steps.
    progress = (step - decay_start) / decay_steps
    progress = min(1.0, max(0.0, progress))
    if schedule == "cosine":
        return min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (learning_rate - min_lr)
    if schedule in ("linear", "wsd"):
        return learning_rate + progress * (min_lr - learning_rate)
    return learning_rate


# ---------------------------------------------------------------------------------------------
# optimisers


def make_optimizers(model, optimizer, learning_rate, weight_decay, beta1, beta2, eps, extra=None) -> list:
    """[AdamW] for "adamw"; [Muon, AdamW] for "muon", with Muon on the matrices of the blocks; others likewise.

    Frozen parameters are left out. Matrices and embeddings have weight decay, vectors (biases and norms) have none.
    `extra`: a module trained beside the model. Raises ValueError for an optimiser that is unknown, and for beta1, beta2
    or eps out of range.
    """
    check_knobs(optimizer, beta1, beta2, eps)
    adamw_params = trained_parameters(model)
    if extra:
        adamw_params += trained_parameters(extra)
    muon_params = []
    if optimizer in MATRIX_OPTIMIZERS:
        # As Muon's author advises, embedding and head stay with AdamW although they are matrices.
        muon_params = [p for p in trained_parameters(model.h) if p.dim() == 2]
        # by identity, as == compares the numbers of two tensors
        muon_ids = {id(p) for p in muon_params}
        adamw_params = [p for p in adamw_params if id(p) not in muon_ids]

    # Decay would pull the gain of a norm to 0, where 1 is neutral.
    matrices = [p for p in adamw_params if p.dim() >= 2]
    vectors = [p for p in adamw_params if p.dim() < 2]
    # With all else frozen one of them may be empty, or both: torch refuses an optimiser without parameters.
    groups = []
    if matrices:
        groups.append({"params": matrices, "weight_decay": weight_decay})
    if vectors:
        groups.append({"params": vectors, "weight_decay": 0.0})

    optimizers = []
    if muon_params:
        muon_class = MATRIX_OPTIMIZERS[optimizer]
        muon_groups = by_heads(model.h, muon_params) if muon_class is HeadMuon else muon_params
        optimizers.append(muon_class(muon_groups, lr=learning_rate, weight_decay=weight_decay))
    if groups:
        adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=(beta1, beta2), eps=eps, fused=True)
        optimizers.append(adamw)
    return optimizers


def by_heads(blocks, matrices: list) -> list[dict]:
    """The parameter groups of HeadMuon: the matrices of the blocks, by where the heads lie in them."""
    head_dim = blocks[0].attn.hs
    # by identity, as == compares the numbers of two tensors
    wanted = {id(p) for p in matrices}
    groups = {"rows": [], "columns": [], "": []}
    for block in blocks:
        attention_ids = {id(p) for p in block.attn.parameters()}
        for p in block.parameters():
            if id(p) not in wanted:
                continue
            heads = ""
            # queries, keys and values write the heads side by side, which the output reads
            if p is block.attn.c_proj.weight:
                heads = "columns"
            elif id(p) in attention_ids:
                heads = "rows"
            groups[heads].append(p)
    # torch refuses a group without parameters
    filled = {heads: params for heads, params in groups.items() if params}
    return [{"params": params, "heads": heads, "head_dim": head_dim} for heads, params in filled.items()]


def moment_shape(name: str, p: torch.Tensor) -> tuple:
    """The shape of a moment of p by its name in MOMENTS."""
    # AdamW's count of steps; NorMuon's mean squares of rows
    if name == "step":
        return ()
    if name == "row_squares":
        return (len(p), 1)
    return p.shape


def check_knobs(optimizer: str, beta1: float, beta2: float, eps: float):
    known = ("adamw", *MATRIX_OPTIMIZERS)
    if optimizer not in known:
        raise ValueError(f"optimizer={optimizer!r} is not one of {', '.join(known)}")
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1):
        raise ValueError(f"beta1={beta1} and beta2={beta2} must be at least 0 and under 1")
    # With gradients of 0 so far, a parameter is updated by 0 / (0 + eps): eps must not be 0.
    if not 1e-30 <= eps <= 1:
        raise ValueError(f"eps={eps} is out of range; expected 1e-30 to 1, as in eps=1e-8")


def trained_parameters(module) -> list:
    """The parameters that are not frozen; a tied head and its embedding are one, as parameters() skips repetitions."""
    return [p for p in module.parameters() if p.requires_grad]


def load_optimizer_state(optimizer, state: dict):
    """Load the moments of a state_dict, whole tensors, but keep the knobs that the optimiser was made with.

    If the ranks divide a parameter, each takes its share. Raises ValueError when the moments do not fit the
    parameters, or another of torch's errors.
    """
    # torch's load_state_dict would bring back the old weight_decay, betas and eps, and a resumed run would announce
    # new ones and ignore them.
    knobs_of_groups = []
    for group in optimizer.param_groups:
        knobs = dict(group)
        del knobs["params"]
        knobs_of_groups.append(knobs)
    # divided before torch moves them to the device, which may not hold all of them
    params = [p for group in optimizer.param_groups for p in group["params"]]
    shares = {number: shares_of(moments, params[number]) for number, moments in state["state"].items()}
    optimizer.load_state_dict(state | {"state": shares})
    for group, knobs in zip(optimizer.param_groups, knobs_of_groups):
        group.update(knobs)
    # torch does not compare shapes, and the fused AdamW would read beyond the end of moments that are too short.
    for p, moments in optimizer.state.items():
        fits = set(moments) == MOMENTS[type(optimizer)]
        for name, moment in moments.items():
            fits = fits and moment.shape == moment_shape(name, p)
        if not fits:
            raise ValueError("the optimiser's moments are those of another model")


def shares_of(moments: dict, p: torch.Tensor) -> dict:
    """The moments of p by their names, divided as p is."""
    shares = {}
    for name, moment in moments.items():
        # a copy, as the shares are, so that nothing keeps a mapped file open
        shares[name] = moment.clone() if name in WHOLE_MOMENTS else share_of(moment, p)
    return shares


# ---------------------------------------------------------------------------------------------
# weights kept in bfloat16


@torch.no_grad()
def round_to_bfloat16(tensors):
    """Round float32 tensors in place to what bfloat16 can hold: 8 bits, or 1/256 of a value.

    With gradients rounded after each backward, and `stored_tensors` after each step, a run has, on any device, the
    numbers of one whose weights, gradients and moments are bfloat16 tensors: there torch's fused AdamW computes in
    float32 and rounds what it stores. The memory is that of float32.
    """
    for tensor in tensors:
        tensor.copy_(tensor.bfloat16())


def stored_tensors(params, optimizers) -> list:
    """The parameters and their moments: all that lives from one step to the next, but for the count of steps."""
    tensors = list(params)
    for optimizer in optimizers:
        for moments in optimizer.state.values():
            # torch counts steps in float32, whatever the parameter is
            tensors += [moment for name, moment in moments.items() if name != "step"]
    return tensors
