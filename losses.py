"""What a student learns from: every objective as a formula, and beside it the gradient in closed form.

p is the teacher, q the student, both softmax(logits / T); sums run over the vocabulary; all values
are nats per token, in float32. The loss of a step is

    weight_ce * CE + weight_kl * T**2 * KL + weight_cos * cos + weight_mse * mse

where each term is summed over its tokens and divided by the tokens of the *whole step*, all
micro-steps and ranks, so that the loss does not depend on how the batch was split.

The gradient. With z the student's logits and g = dD/dq, the chain rule through q = softmax(z / T) gives

    dD/dz_i = (q_i g_i - q_i sum_j q_j g_j) / T

for every divergence D. A constant added to all g cancels, as the q sum to 1: each g below is shifted
to be 0 where p = q, so that it loses no digits there. A divergence is a function of (log p, log q, p, q)
that returns its value and q * g, the "slope". head.py applies these to all tokens of a step, chunk
by chunk.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch.nn import functional as F

FLOOR = -1e9  # stands for log 0, so that 0 * log 0 is 0 and not NaN


# ---------------------------------------------------------------------------------------------
# divergences: log p, log q, p, q, (N, V) each -> value (N,), slope q * g (N, V)
#
# Where D sums x log(x / y), y - x is added to each summand. As both sum to 1, it adds 0 but for rounding,
# and that cancels the rounding error of the two normalisers. Near p = q this matters: there the value is
# of second order, while the error would be of first.


def forward_terms(log_p, log_q, p, q):
    """D = sum p log(p / q);  dD/dq = -p / q;  g = 1 - p / q."""
    slope = q - p
    value = (p * (log_p - log_q) + slope).sum(-1)
    return value, slope


def reverse_terms(log_p, log_q, p, q):
    """D = sum q log(q / p);  dD/dq = log(q / p) + 1;  g = log(q / p)."""
    slope = q * (log_q - log_p)
    value = (slope + p - q).sum(-1)
    return value, slope


def js_terms(log_p, log_q, p, q, beta):
    """D = beta sum p log(p / m) + (1 - beta) sum q log(q / m), m = beta p + (1 - beta) q.

    dD/dq = (1 - beta) (log(q / m) + 1) - (1 - beta) sum of (beta p + (1 - beta) q) / m, which is 1;
    g = (1 - beta) log(q / m).
    """
    # q * g is also q's part of the value, so it is computed once
    slope = log_ratio_to_mixture(log_q, log_p, beta) * q * (1 - beta)
    value_p = log_ratio_to_mixture(log_p, log_q, 1 - beta) * p * beta
    value = (value_p + slope).sum(-1)
    return value, slope


def skew_forward_terms(log_p, log_q, p, q, lam):
    """D = sum p log(p / m), m = lam p + (1 - lam) q;  dD/dq = -(1 - lam) p / m.

    g = (1 - lam) (1 - p / m).
    """
    # the mixture is q itself: log_ratio_to_mixture with share 1 would be infinite where q is far below p
    if lam == 0:
        return forward_terms(log_p, log_q, p, q)
    log_ratio = log_ratio_to_mixture(log_p, log_q, 1 - lam)  # log(p / m)
    value = (p * log_ratio + (1 - lam) * (q - p)).sum(-1)
    # expm1, as p / m - 1 would lose the digits where p = m
    slope = log_ratio.expm1() * q * (lam - 1)
    return value, slope


def skew_reverse_terms(log_p, log_q, p, q, lam):
    """D = sum q log(q / m), m = (1 - lam) p + lam q;  dD/dq = log(q / m) + 1 - lam q / m.

    g = log(q / m) + lam (1 - q / m).
    """
    if lam == 0:
        return reverse_terms(log_p, log_q, p, q)
    log_ratio = log_ratio_to_mixture(log_q, log_p, 1 - lam)  # log(q / m)
    value = (q * log_ratio + (1 - lam) * (p - q)).sum(-1)
    slope = (log_ratio - lam * log_ratio.expm1()) * q
    return value, slope


def total_variation_terms(log_p, log_q, p, q):
    """D = 1/2 sum |p - q|;  g = 1/2 sign(q - p)."""
    difference = q - p
    value = 0.5 * difference.abs().sum(-1)
    slope = difference.sign() * q * 0.5
    return value, slope


def log_ratio_to_mixture(log_x, log_y, share):
    """log(x / ((1 - share) x + share y)) = -log(1 + share (y / x - 1)): exactly 0 where x = y."""
    # Clamped to stay finite where x underflows: y / x > e**80 means x < 1e-34, so the clamp changes no
    # product with x.
    log_ratio = (log_y - log_x).clamp(max=80)
    return -(share * log_ratio.expm1()).log1p()


def chain_rule(q, slope):
    """T * dD/dz (N, V) = slope - q * sum(slope), in the place of slope."""
    # The result must sum to 0. Where q is near one-hot the result is small beside g, and most of its error
    # is what rounding left of that sum. Removed a second time, the error shrinks as the result does.
    # In place: 0.7 ns a logit less, 2 % of a step at V = 50,257 (bench.py).
    for _ in range(2):
        slope.addcmul_(q, slope.sum(-1, keepdim=True), value=-1)
    return slope


@dataclass(frozen=True)
class Parameter:
    """A number that a divergence depends on, set by the knob kl_<name>: low < number < high."""

    default: float
    low: float
    high: float


# {value of the knob `kl`: (function, its own parameters)}. A low of -1e-9 admits 0, at which a skew divergence
# is the plain one.
DIVERGENCES = {
    "forward": (forward_terms, {}),
    "reverse": (reverse_terms, {}),
    "js": (js_terms, {"beta": Parameter(0.5, low=0, high=1)}),
    "skew_forward": (skew_forward_terms, {"lam": Parameter(0.1, low=-1e-9, high=1)}),
    "skew_reverse": (skew_reverse_terms, {"lam": Parameter(0.1, low=-1e-9, high=1)}),
    "tv": (total_variation_terms, {}),
}
PARAMETERS = {}  # of all divergences, by name
for _, own_parameters in DIVERGENCES.values():
    PARAMETERS |= own_parameters


def divergence(kl: str, **numbers):
    """The terms function of the knob `kl`, with its parameters as given, else their defaults.

    Raises ValueError for an unknown name, and for a number that is out of range, whichever divergence
    it is for.
    """
    if kl not in DIVERGENCES:
        raise ValueError(f"kl={kl!r} is not one of {', '.join(DIVERGENCES)}")
    # also those that this run does not use: a wrong knob should not go unnoticed
    for name, number in numbers.items():
        parameter = PARAMETERS[name]
        if not parameter.low < number < parameter.high:
            lowest = "at least 0" if -1e-6 < parameter.low < 0 else f"over {parameter.low:g}"
            raise ValueError(f"kl_{name}={number} is out of range; it must be {lowest} and under {parameter.high:g}")
    terms, own_parameters = DIVERGENCES[kl]
    if not own_parameters:
        return terms
    settings = {name: numbers.get(name, parameter.default) for name, parameter in own_parameters.items()}
    return partial(terms, **settings)


# ---------------------------------------------------------------------------------------------
# the objective of a token's logits


@dataclass(frozen=True)
class Objective:
    """What the logits of a student are trained on: weight_ce * CE + weight_kl * divergence(p, q)."""

    weight_ce: float = 1.0
    weight_kl: float = 0.0  # includes T**2 and the like
    terms: Callable = forward_terms  # the divergence, as `divergence` gives it
    temperature: float = 1.0  # of p and q; the cross-entropy has T = 1
    ensemble: str = "logits"  # how several teachers make p: the mean of their "logits", or of their "probs"
    shares: tuple[float, ...] = (1.0,)  # of each teacher in that mean
    tail: str = "cell"  # how the ids that a cached teacher did not store count: one of TAILS


def loss_terms(logits, teacher_logits, targets, objective, grad_dtype=None, stored=None):
    """CE and divergence (2, n) of a few tokens, and the gradient (n, V) of their weighted sum.

    logits: (n, V) fp32; teacher_logits: a list of the same, one for each teacher, [] for CE alone; targets:
    (n,) ids. grad_dtype: of the gradient; None: it is not computed, and None is returned. stored: a cached
    teacher's predictions for the tokens, instead of teacher_logits.
    Both loops run this, through head.py and perhaps compiled. It changes no argument, and returns no memory
    of one: when arguments aliased each other, torch.compile kept the address of the first block in its graph
    and reused it for every later block.
    """
    z = shifted(logits)
    q_at_1 = F.softmax(z, dim=-1)
    # The largest z is 0, so the largest q is 1 / sum exp z, and no second pass of exp is needed.
    log_normaliser = q_at_1.amax(dim=-1).log()
    log_q_of_target = z.gather(1, targets[:, None]).squeeze(1) + log_normaliser
    divergences = torch.zeros_like(log_q_of_target)
    # The divergence has a temperature of its own, and so softmaxes of its own.
    has_tail = stored is not None and stored.ids is not None
    if has_tail:
        divergences, kl_grad = stored_terms(z / objective.temperature, stored, objective)
    elif teacher_logits or stored is not None:
        if stored is not None:
            # normalised again, as storing has rounded the probabilities
            log_p, p = softmaxes(shifted(stored.log_p))
        else:
            log_p, p = mixture(teacher_logits, objective)
        log_q, q = softmaxes(z / objective.temperature)
        divergences, slope = objective.terms(log_p, log_q, p, q)
        kl_grad = None if grad_dtype is None else chain_rule(q, slope)
    values = torch.stack((-log_q_of_target, divergences))
    if grad_dtype is None:
        return values, None

    # dCE/dz = q - onehot(target)
    grad = q_at_1 * objective.weight_ce
    grad.scatter_add_(1, targets[:, None], torch.full_like(grad[:, :1], -objective.weight_ce))
    # dD/dz of the module's docstring, 1/T included
    if teacher_logits or stored is not None:
        grad.add_(kl_grad, alpha=objective.weight_kl / objective.temperature)
    return values, grad.to(grad_dtype)


# ---------------------------------------------------------------------------------------------
# a teacher that was cached


class Stored(NamedTuple):
    """A cached teacher's predictions for n tokens, at the temperature of the objective (common/teacher_cache.py)."""

    log_p: torch.Tensor  # (n, k + 1): of the stored ids, and of all others together; or (n, V), where all are stored
    ids: torch.Tensor | None = None  # (n, k); None: all of them, in order
    draws: torch.Tensor | None = None  # (n, m): ids that were drawn from the others, with repetition
    entropy: torch.Tensor | None = None  # (n,): of the whole distribution

    def select(self, tokens):
        """The same for some of the tokens, a slice."""
        return Stored(*(None if part is None else part[tokens] for part in self))


# cell: all other ids count as one event, whatever their distribution among themselves; never above the true divergence
# draws: the teacher's samples from the other ids stand for them; the gradient of the forward KL is unbiased
# drop: the stored ids alone, their probabilities scaled up to sum to 1. Biased; here to measure what that costs
TAILS = ("cell", "draws", "drop")


def stored_terms(z, stored, objective):
    """The divergence (n,) from a teacher of k ids and a tail, and T * its gradient (n, V). z: logits / T, (n, V).

    p and q are distributions over k + 1 cells: the stored ids, and all others together. With r_i the student's
    probability of id i *among the others*, the tail's logit is log sum exp z_i over them, whose derivative is r_i:
    what the chain rule gives for the tail is shared out by r.
    """
    ids, draws = stored.ids, stored.draws
    others = z.scatter(1, ids, -math.inf)  # (n, V)
    # The log-sum-exp of the others, from their own logits. As log(1 - sum of the stored q) it would be nothing but
    # rounding where the student is sure, and its gradient NaN.
    largest = others.amax(dim=-1, keepdim=True).clamp(min=FLOOR)  # (n, 1)
    r = (others - largest).exp_()
    # at least 1, the largest's; where all ids are stored there are no others, and r is 0
    r_sum = r.sum(dim=-1, keepdim=True).clamp(min=1e-30)
    r /= r_sum
    z_of_tail = largest + r_sum.log()  # (n, 1)
    z_of_cells = torch.cat((z.gather(1, ids), z_of_tail), dim=1)  # (n, k + 1)
    log_q, q = softmaxes(shifted(z_of_cells))

    stored_log_p = stored.log_p
    if objective.tail == "drop":
        stored_log_p = torch.cat((stored_log_p[:, :-1], torch.full_like(z_of_tail, FLOOR)), dim=1)
    # normalised again: storing has rounded the probabilities, and "drop" has removed some
    log_p, p = softmaxes(shifted(stored_log_p))
    value, slope = objective.terms(log_p, log_q, p, q)
    grad_of_cells = chain_rule(q, slope)  # T * dD/dz, (n, k + 1)

    grad = r * grad_of_cells[:, -1:]
    grad.scatter_(1, ids, grad_of_cells[:, :-1])
    if objective.tail == "draws":
        # The forward KL is -H(p) - sum p log q, and the samples estimate the others' part of that sum. To the gradient
        # of the tail as one cell this adds p_tail * (r - p's distribution among the others).
        p_of_draw = p[:, -1:] / draws.size(1)  # (n, 1)
        grad += p[:, -1:] * r
        grad.scatter_add_(1, draws, -p_of_draw.expand(draws.shape))
        log_q_of_draws = (z.gather(1, draws) - z_of_tail + log_q[:, -1:]).clamp(min=FLOOR)
        value = -stored.entropy - (p[:, :-1] * log_q[:, :-1]).sum(-1) - (p_of_draw * log_q_of_draws).sum(-1)
    return value, grad


def check_tail(tail: str, kl: str, top_k: int, draws: int):
    """ValueError unless a cache of top_k ids and `draws` samples can teach by the knobs `tail` and `kl`."""
    if tail not in TAILS:
        raise ValueError(f"tail={tail!r} is not one of {', '.join(TAILS)}")
    # every id is stored, so there is no tail
    if top_k < 0:
        return
    if tail != "cell" and kl != "forward":
        raise ValueError(f"tail={tail!r} is for kl='forward', not {kl!r}: it would be biased; take --tail=cell")
    if tail == "draws" and not draws:
        raise ValueError("tail='draws', but the cache has none; take --tail=cell, or cache with --draws=16")
    if tail != "draws" and not top_k:
        remedy = "take --tail=draws" if kl == "forward" and draws else "cache with --top_k=16"
        raise ValueError(f"tail={tail!r}, but the cache stores no ids (top_k=0), so that it says nothing; {remedy}")


def shifted(logits):
    """A copy in fp32, each row shifted so that its largest is 0."""
    # before the division by T: at logits of 300, rounding logits / T alone costs 1e-5
    logits = logits.float()
    return logits - logits.amax(dim=-1, keepdim=True)


def softmaxes(z):
    """log softmax and softmax, (N, V) each, of rows z whose largest is 0."""
    # Not F.log_softmax: on a CPU it adds up exp z in eight or sixteen running sums, which at
    # V = 50,304 costs 1e-5 relative; torch.sum adds pairwise.
    exp_z = z.exp()
    log_sum = exp_z.sum(dim=-1, keepdim=True).log()
    log_softmax = (z - log_sum).clamp_(min=FLOOR)
    # By the log_sum *as it was rounded*: then both have the same error in their normaliser, which the
    # divergences cancel. Not exp of the log softmax: a second pass of exp costs 0.9 ns a logit, 2 %
    # of a step at V = 50,257, for a last digit.
    softmax = exp_z.mul_((-log_sum).exp())
    return log_softmax, softmax


def mixture(teacher_logits, objective):
    """log p and p, (n, V), that the logits of several teachers, (n, V) each, make together.

    "logits": softmax of the mean of logits / T (Baby Llama, arXiv:2308.02019, section 3).
    "probs": the mean of softmax(logits / T).
    """
    if len(teacher_logits) == 1:
        return softmaxes(shifted(teacher_logits[0]) / objective.temperature)
    assert len(teacher_logits) == len(objective.shares), "one share for each teacher"
    if objective.ensemble == "logits":
        mean = sum(t * share for t, share in zip(teacher_logits, objective.shares))
        return softmaxes(shifted(mean) / objective.temperature)
    # In log space throughout, so that log p stays finite where p underflows.
    log_parts = []
    for t, share in zip(teacher_logits, objective.shares):
        log_softmax, _ = softmaxes(shifted(t) / objective.temperature)
        log_parts.append(log_softmax + math.log(share))
    log_p = functools.reduce(torch.logaddexp, log_parts)
    return log_p, log_p.exp()


def teacher_shares(weights: str, n: int) -> tuple[float, ...]:
    """The knob `teacher_weights` ("2,1"; "": equal) as n shares that sum to 1; () for no teachers."""
    # a control without teachers may keep the knobs of the runs that it is compared with
    if n == 0:
        return ()
    numbers = [1.0] * n
    if weights.strip():
        try:
            numbers = [float(w) for w in weights.split(",")]
        except ValueError:
            numbers = []
    if len(numbers) != n or not all(0 < w < math.inf for w in numbers):
        expected = f"{n} numbers over 0 with commas between, one a teacher"
        raise ValueError(f"teacher_weights={weights!r} must be {expected}")
    shares = tuple(w / sum(numbers) for w in numbers)
    # the sum overflows, or a weight vanishes beside it
    if not all(shares):
        remedy = "each must be over 0, as with 2,1"
        raise ValueError(f"teacher_weights={weights!r} gives shares of {shares}; {remedy}")
    return shares


# ---------------------------------------------------------------------------------------------
# the same as functions of logits, for use outside of the loops: the code above with autograd around it


class TokenLoss(torch.autograd.Function):
    """The weighted sum of loss_terms (N,) of logits (N, V), with its gradient to the student's."""

    @staticmethod
    def forward(ctx, student_logits, teacher_logits, targets, objective):
        grad_dtype = student_logits.dtype if ctx.needs_input_grad[0] else None
        values, grad = loss_terms(student_logits, teacher_logits, targets, objective, grad_dtype)
        if grad is not None:
            ctx.save_for_backward(grad)
        ce, kl = values
        loss = objective.weight_kl * kl
        # without the `if`, a target of probability 0, whose ce is infinite, would make 0 * inf = NaN
        if objective.weight_ce:
            loss = loss + objective.weight_ce * ce
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        # a row depends on its own loss alone; teachers, targets and objective get no gradient
        (grad,) = ctx.saved_tensors
        return grad * upstream.unsqueeze(-1), None, None, None


def divergence_of_logits(student_logits, teacher_logits, temperature, terms):
    """The divergence of each position: (…, V) and (…, V) -> (…)."""
    student = student_logits.flatten(0, -2)  # (N, V)
    teacher = teacher_logits.flatten(0, -2)
    # loss_terms needs targets; with weight_ce=0 any will do
    any_target = torch.zeros(len(student), dtype=torch.long, device=student.device)
    objective = Objective(weight_ce=0.0, weight_kl=1.0, terms=terms, temperature=temperature)
    return TokenLoss.apply(student, [teacher], any_target, objective).view(student_logits.shape[:-1])


def forward_kl(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature=1.0
) -> torch.Tensor:  # fmt: skip
    """KL(p || q) = sum p (log p - log q) of each position, in nats.

    *_logits: (N, V), any float type; computed in fp32. Returns (N,). No gradient flows to the teacher.
    Hinton et al. 2015, section 2 (arXiv:1503.02531), without its T**2, which the caller applies, and
    with the teacher's entropy, which the paper's cross-entropy leaves out: so its floor is 0.
    Not kl_div("batchmean"): on (B, T, V) that divides by B alone.
    A token that only the student rules out (-inf) counts as log q = -1e9, here and in all below.
    """
    return divergence_of_logits(student_logits, teacher_logits, temperature, forward_terms)


def reverse_kl(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature=1.0
) -> torch.Tensor:  # fmt: skip
    """KL(q || p) = sum q (log q - log p) of each position, in nats: mode-seeking, where forward covers.

    Shapes as forward_kl. MiniLLM (arXiv:2306.08543), section 2.1, on tokens of the data rather than
    on the student's own samples.
    """
    return divergence_of_logits(student_logits, teacher_logits, temperature, reverse_terms)


def js_divergence(student_logits, teacher_logits, temperature=1.0, beta=0.5) -> torch.Tensor:
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q, of each position, in nats.

    Shapes as forward_kl; 0 < beta < 1; at most log 2 at beta = 1/2, where it is symmetric. The
    generalised JSD of GKD (arXiv:2306.13649), section 2. Divided by beta it tends to forward KL as
    beta -> 0.
    """
    terms = divergence("js", beta=beta)
    return divergence_of_logits(student_logits, teacher_logits, temperature, terms)


def skew_forward_kl(student_logits, teacher_logits, temperature=1.0, lam=0.1) -> torch.Tensor:
    """KL(p || lam p + (1 - lam) q) of each position, in nats; at most -log lam; forward KL at lam = 0.

    Shapes as forward_kl. DistiLLM (arXiv:2402.03898), section 3.1, whose alpha is lam.
    """
    terms = divergence("skew_forward", lam=lam)
    return divergence_of_logits(student_logits, teacher_logits, temperature, terms)


def skew_reverse_kl(student_logits, teacher_logits, temperature=1.0, lam=0.1) -> torch.Tensor:
    """KL(q || (1 - lam) p + lam q) of each position, in nats; at most -log lam; reverse KL at lam = 0.

    Shapes as forward_kl. DistiLLM (arXiv:2402.03898), section 3.1, whose alpha is lam.
    """
    terms = divergence("skew_reverse", lam=lam)
    return divergence_of_logits(student_logits, teacher_logits, temperature, terms)


def total_variation(student_logits, teacher_logits, temperature=1.0) -> torch.Tensor:
    """1/2 sum |p - q| of each position, in 0 … 1.

    Shapes as forward_kl. f-DISTILL (arXiv:2307.15190), section 2.
    """
    return divergence_of_logits(student_logits, teacher_logits, temperature, total_variation_terms)


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log q(target) of each position, in nats.

    logits: (N, V), any float type; computed in fp32. targets: (N,) ids in 0 … V - 1, or -1 for a
    position without a target, whose loss is 0. Returns (N,).
    """
    losses = TokenLoss.apply(logits, [], targets.clamp(min=0), Objective())
    return losses * (targets >= 0)


# ---------------------------------------------------------------------------------------------
# hidden states, and the mean over the step


def cosine_distance(student_hidden: torch.Tensor, teacher_hidden: torch.Tensor) -> torch.Tensor:
    """1 - cos(h_s, h_t) of each position, in 0 … 2.

    *_hidden: (N, C) after the last norm, any float type; computed in fp32. Returns (N,).
    DistilBERT (arXiv:1910.01108), section 2. Students of another width are projected to C by the caller.
    """
    return 1.0 - F.cosine_similarity(student_hidden.float(), teacher_hidden.float(), dim=-1)


def hidden_mse(student_hidden: torch.Tensor, teacher_hidden: torch.Tensor) -> torch.Tensor:
    """mean over C of (h_s - h_t)**2 of each position.

    *_hidden: (N, C), any float type; computed in fp32. Returns (N,). TinyBERT (arXiv:1909.10351),
    hidden states.
    """
    return (student_hidden.float() - teacher_hidden.float()).square().mean(dim=-1)


def reduce(
    per_token: torch.Tensor, valid: torch.Tensor, tokens_in_step: torch.Tensor | int
) -> torch.Tensor:  # fmt: skip
    """The sum over valid tokens / the valid tokens of the whole step.

    per_token: (N,) of one micro-step; valid: (N,) bool; tokens_in_step counts all micro-steps and ranks.
    Returns a scalar; those of all micro-steps and ranks add up to the step's mean.
    """
    return (per_token * valid).sum() / tokens_in_step
