"""Objectives of the two loops: nats per token, in fp32, and the head that computes them in chunks of tokens.

p is the teacher, q the student, both softmax(logits / T); sums run over the vocabulary. The step's loss is
    weight_ce * CE + weight_kl * T**2 * KL + weight_cos * cos + weight_mse * mse
where each term is summed over its tokens and divided by the tokens of the *whole step*, all micro-steps and ranks,
so that the loss does not depend on how the batch was split.

Every divergence is one short function of (log p, log q): its value, and its slope q * g, where g = dD/dq up to a
constant, chosen so that g = 0 where p = q. One chain rule serves all:  dD/dz = (q * g - q * sum(q * g)) / T.
"""

import functools
import math
from functools import partial

import torch
from torch.nn import functional as F

FLOOR = -1e9  # stands for log 0, so that 0 * log 0 is 0 and not NaN


# ---------------------------------------------------------------------------------------------
# divergences: log p, log q and p, q, (N, V) each -> value (N,), slope (N, V)
#
# Where D is a sum of x log(x / y), y - x is added to each summand: both sum to 1, so that it changes nothing but the
# rounding of the two normalisers, whose first order it cancels.


def forward_terms(log_p, log_q, p, q):
    """D = sum p log(p / q); g = 1 - p / q."""
    slope = q - p
    return (log_p - log_q).mul_(p).add_(slope).sum(-1), slope


def reverse_terms(log_p, log_q, p, q):
    """D = sum q log(q / p); g = log(q / p)."""
    slope = (log_q - log_p).mul_(q)
    return (slope + p).sub_(q).sum(-1), slope


def js_terms(log_p, log_q, p, q, beta):
    """D = beta sum p log(p / m) + (1 - beta) sum q log(q / m), m = beta p + (1 - beta) q; g = (1 - beta) log(q / m)."""
    slope = log_share(log_q, log_p, beta).mul_(q).mul_(1 - beta)
    of_p = log_share(log_p, log_q, 1 - beta).mul_(p)
    return of_p.mul_(beta).add_(slope).sum(-1), slope


def skew_forward_terms(log_p, log_q, p, q, lam):
    """D = sum p log(p / m), m = lam p + (1 - lam) q; g = (1 - lam) (1 - p / m)."""
    if lam == 0:
        return forward_terms(log_p, log_q, p, q)
    log_ratio = log_share(log_p, log_q, 1 - lam)
    value = (log_ratio * p).add_(q - p, alpha=1 - lam).sum(-1)
    return value, log_ratio.expm1_().mul_(q).mul_(lam - 1)


def skew_reverse_terms(log_p, log_q, p, q, lam):
    """D = sum q log(q / m), m = (1 - lam) p + lam q; g = log(q / m) + lam (1 - q / m)."""
    if lam == 0:
        return reverse_terms(log_p, log_q, p, q)
    log_ratio = log_share(log_q, log_p, 1 - lam)
    value = (log_ratio * q).add_(p - q, alpha=1 - lam).sum(-1)
    return value, log_ratio.sub_(log_ratio.expm1(), alpha=lam).mul_(q)


def total_variation_terms(log_p, log_q, p, q):
    """D = 1/2 sum |p - q|; g = 1/2 sign(q - p)."""
    difference = q - p
    return 0.5 * difference.abs().sum(-1), difference.sign_().mul_(q).mul_(0.5)


def chain_rule(q, slope):
    """T * dD/dz (N, V) from q and the slope q * g, which it overwrites.

    The sum over the result is 0. Where q is near one-hot the result is small beside g, and what rounding left of the
    sum is most of its error: taken out a second time, the error shrinks as the result does.
    """
    for _ in range(2):
        slope.addcmul_(q, slope.sum(-1, keepdim=True), value=-1)
    return slope


def log_share(log_x, log_y, share):
    """log(x / ((1 - share) x + share y)): exactly 0 where x = y, and finite where x and y underflow.

    Where y / x > e**80, x is under 1e-34, so that clamping there changes no product with x.
    """
    return (log_y - log_x).clamp_(max=80).expm1_().mul_(share).log1p_().neg_()


def divergence(kl: str, beta=0.5, lam=0.1):
    """The terms function named by the knobs `kl`, `kl_beta` and `kl_lam` of distill.py."""
    known = {
        "forward": forward_terms,
        "reverse": reverse_terms,
        "js": partial(js_terms, beta=beta),
        "skew_forward": partial(skew_forward_terms, lam=lam),
        "skew_reverse": partial(skew_reverse_terms, lam=lam),
        "tv": total_variation_terms,
    }
    if kl not in known:
        raise ValueError(f"kl={kl!r} is not one of {', '.join(known)}")
    if not (0 < beta < 1 and 0 <= lam < 1):
        raise ValueError(f"kl_beta={beta} must be over 0 and under 1, kl_lam={lam} at least 0 and under 1")
    return known[kl]


# ---------------------------------------------------------------------------------------------
# the same as functions of logits, for use outside of the loops


class Divergence(torch.autograd.Function):
    """terms(log p, log q) of logits (N, V), with its closed-form gradient to the student's; none to the teacher's."""

    @staticmethod
    def forward(ctx, student_logits, teacher_logits, temperature, terms):
        log_p, log_q = log_softmax(teacher_logits, temperature), log_softmax(student_logits, temperature)
        q = log_q.exp()
        value, slope = terms(log_p, log_q, log_p.exp(), q)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward((chain_rule(q, slope) / temperature).to(student_logits.dtype))
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return ctx.saved_tensors[0] * grad.unsqueeze(-1), None, None, None


def log_softmax(logits, temperature=1.0):
    """log softmax(logits / T) of each row, (N, V) in fp32, with -inf as FLOOR.

    Not F.log_softmax: on a CPU it adds up exp z in eight or sixteen running sums, which at V = 50,304 costs 1e-5
    relative; torch.sum adds pairwise.
    """
    z = shifted(logits).div_(temperature)
    return z.sub_(z.exp().sum(dim=-1, keepdim=True).log_()).clamp_(min=FLOOR)


def shifted(logits):
    """A copy in fp32 whose rows have 0 as their largest: at logits of 300, rounding logits / T alone costs 1e-5."""
    logits = logits.float()
    return logits - logits.amax(dim=-1, keepdim=True)


def forward_kl(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature=1.0) -> torch.Tensor:
    """KL(p || q) = sum p (log p - log q) of each position, in nats.

    *_logits: (N, V), any float type; computed in fp32. Returns (N,). No gradient flows to the teacher.
    Hinton et al. 2015, section 2 (arXiv:1503.02531), without its T**2, which the caller applies, and
    with the teacher's entropy, which the paper's cross-entropy leaves out: so its floor is 0.
    Not kl_div("batchmean"): on (B, T, V) that divides by B alone.
    A token that only the student rules out (-inf) counts as log q = -1e9 here and in all that follow, not as -inf.
    """
    return Divergence.apply(student_logits, teacher_logits, temperature, forward_terms)


def reverse_kl(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature=1.0) -> torch.Tensor:
    """KL(q || p) = sum q (log q - log p) of each position, in nats: mode-seeking, where forward KL covers.

    Shapes as forward_kl. MiniLLM (arXiv:2306.08543), section 2.1, on tokens of the data rather than on the
    student's own samples.
    """
    return Divergence.apply(student_logits, teacher_logits, temperature, reverse_terms)


def js_divergence(student_logits, teacher_logits, temperature=1.0, beta=0.5) -> torch.Tensor:
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q, of each position, in nats.

    Shapes as forward_kl; 0 < beta < 1; at most log 2 at beta = 1/2, where it is symmetric. The generalised JSD of GKD
    (arXiv:2306.13649), section 2. Divided by beta it tends to forward KL as beta -> 0.
    """
    return Divergence.apply(student_logits, teacher_logits, temperature, divergence("js", beta=beta))


def skew_forward_kl(student_logits, teacher_logits, temperature=1.0, lam=0.1) -> torch.Tensor:
    """KL(p || lam p + (1 - lam) q) of each position, in nats; at most -log lam; forward KL at lam = 0.

    Shapes as forward_kl. DistiLLM (arXiv:2402.03898), section 3.1, whose alpha is lam.
    """
    return Divergence.apply(student_logits, teacher_logits, temperature, divergence("skew_forward", lam=lam))


def skew_reverse_kl(student_logits, teacher_logits, temperature=1.0, lam=0.1) -> torch.Tensor:
    """KL(q || (1 - lam) p + lam q) of each position, in nats; at most -log lam; reverse KL at lam = 0.

    Shapes as forward_kl. DistiLLM (arXiv:2402.03898), section 3.1, whose alpha is lam.
    """
    return Divergence.apply(student_logits, teacher_logits, temperature, divergence("skew_reverse", lam=lam))


def total_variation(student_logits, teacher_logits, temperature=1.0) -> torch.Tensor:
    """1/2 sum |p - q| of each position, in 0 … 1. Shapes as forward_kl. f-DISTILL (arXiv:2307.15190), section 2."""
    return Divergence.apply(student_logits, teacher_logits, temperature, total_variation_terms)


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log q(target) of each position, in nats.

    logits: (N, V), any float type; computed in fp32. targets: (N,) ids in 0 … V - 1, or -1 for a
    position without a target, whose loss is 0. Returns (N,).
    """
    return F.cross_entropy(logits.float(), targets, ignore_index=-1, reduction="none")


def cosine_distance(student_hidden: torch.Tensor, teacher_hidden: torch.Tensor) -> torch.Tensor:
    """1 - cos(h_s, h_t) of each position, in 0 … 2.

    *_hidden: (N, C) after the last norm, any float type; computed in fp32. Returns (N,).
    DistilBERT (arXiv:1910.01108), section 2. Students of another width are projected to C by the caller.
    """
    return 1.0 - F.cosine_similarity(student_hidden.float(), teacher_hidden.float(), dim=-1)


def hidden_mse(student_hidden: torch.Tensor, teacher_hidden: torch.Tensor) -> torch.Tensor:
    """mean over C of (h_s - h_t)**2 of each position.

    *_hidden: (N, C), any float type; computed in fp32. Returns (N,). TinyBERT (arXiv:1909.10351), hidden states.
    """
    return (student_hidden.float() - teacher_hidden.float()).square().mean(dim=-1)


def reduce(per_token: torch.Tensor, valid: torch.Tensor, tokens_in_step: torch.Tensor | int) -> torch.Tensor:
    """The sum over valid tokens / the valid tokens of the whole step.

    per_token: (N,) of one micro-step; valid: (N,) bool; tokens_in_step counts all micro-steps and ranks.
    Returns a scalar; those of all micro-steps and ranks add up to the step's mean.
    """
    return (per_token * valid).sum() / tokens_in_step


# ---------------------------------------------------------------------------------------------
# the chunked head: from hidden states to losses, with the logits of one chunk of tokens alive at a time


def chunked_head(
    hidden, weight, targets, n_tokens, teachers=(), *, vocab_size, chunk=0, dtype=None, body=None, **settings
):  # fmt: skip
    """The losses of a micro-step from its hidden states: (weight_ce * ce + weight_kl * kl, ce, kl), three scalars.

    hidden: (..., C). weight: (rows, C), of which those from vocab_size on are padding. targets: (...) ids, -1: masked.
    n_tokens: the valid tokens of the whole step, what sums are divided by. teachers: hidden states and head of each.
    chunk: tokens at a time, the result is the same with any; 0: what was fastest. dtype: of all matmuls, the teachers'
    too (None: as hidden); logits, losses and the sum of the head's gradient are fp32. body: `head_terms`, perhaps
    compiled; settings: what else it takes. Gradients are made beside the losses, in closed form, chunk by chunk, so
    that N x V numbers are never alive; only the first result has a gradient, to hidden and weight, for one backward.
    """
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    body, dtype = body or head_terms, dtype or hidden.dtype
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        h, w, y = hidden.flatten(0, -2).to(dtype), weight.to(dtype), targets.flatten()  # (N, C), (rows, C), (N,)
        teachers = [(teacher_hidden, teacher_weight.to(dtype)) for teacher_hidden, teacher_weight in teachers]
        valid, per_token = (y >= 0).float(), h.new_zeros(2, len(h), dtype=torch.float32)
        grad_h = torch.zeros_like(h, dtype=torch.float32) if needs_grad else None
        grad_w = torch.zeros_like(w, dtype=torch.float32) if needs_grad and weight.requires_grad else None
        for now, logits, *taught in logits_in_chunks([(h, w), *teachers], chunk):
            grad = None
            if needs_grad:  # in the place of the logits where it has their type
                grad = logits if dtype == torch.float32 else torch.empty_like(logits, dtype=dtype)
            per_token[:, now] = chunk_terms(body, logits, taught, y[now].clamp(min=0), vocab_size, grad, settings)
            if needs_grad:
                grad_h[now] = matmul(grad, w) * valid[now, None]
                if grad_w is not None:  # the head is not frozen
                    add_matmul(grad_w, grad.T, h[now] * valid[now, None].to(dtype))
            del logits, taught, grad  # before the next chunk's are made
        ce, kl = (per_token * valid).sum(-1) / n_tokens
        loss = settings.get("weight_ce", 1.0) * ce + settings.get("weight_kl", 0.0) * kl
    if needs_grad:
        loss = WithGradient.apply(loss, hidden, weight, grad_h, grad_w, n_tokens)
    return loss, ce, kl


def chunk_terms(body, logits, taught, targets, vocab_size, grad, settings):
    """ce and kl (2, n) of a chunk, block by block, and their gradient into `grad`, if given; it may be `logits`.

    logits, grad: (n, rows), of which those from vocab_size on are padding. A block's gradient is copied over its logits
    when they have been read.
    """
    values = logits.new_empty(2, len(logits))
    grad_dtype = None if grad is None else grad.dtype
    for rows, new in blocks_to_write(logits, equal=body is not head_terms):
        block_taught = [t[rows, :vocab_size] for t in taught]
        block_values, block_grad = body(logits[rows, :vocab_size], block_taught, targets[rows], grad_dtype, **settings)
        n_new = new.stop - new.start  # the last rows of the block
        values[:, new] = block_values[:, -n_new:]
        if grad is not None:
            grad[new, :vocab_size] = block_grad[-n_new:]
    if grad is not None:
        grad[:, vocab_size:] = 0
    return values


def head_terms(
    logits, taught, targets, grad_dtype=None, weight_ce=1.0, weight_kl=0.0, terms=forward_terms, temperature=1.0,
    ensemble="logits", shares=(1.0,),
):  # fmt: skip
    """ce and kl (2, n) of a few tokens, and the gradient (n, V) of weight_ce * ce + weight_kl * kl.

    logits: (n, V) fp32; taught: those of each teacher; targets: (n,) ids. grad_dtype: of the gradient; None: it is not
    made, and None returned. Within 2e-5 relative or 5e-7 nats of float64 (total variation: 1e-5), as `both_softmaxes`
    has it. The arguments are left as they are and share no memory with what is returned: where one was another's
    place, torch.compile kept the first block's place in its graph, and read and wrote it for every later block.
    """
    z = shifted(logits)
    total = F.softmax(z, dim=-1)
    ce = -total.amax(dim=-1).log() - z.gather(1, targets[:, None]).squeeze(1)
    if taught:
        (log_p, p), (log_q, q) = mixture(taught, temperature, ensemble, shares), both_softmaxes(z.div_(temperature))
        kl, slope = terms(log_p, log_q, p, q)
    values = torch.stack((ce, kl if taught else torch.zeros_like(ce)))
    if grad_dtype is None:
        return values, None
    grad = total.mul_(weight_ce)  # weight_ce * (q - onehot(target)), with q at T = 1
    grad.scatter_add_(1, targets[:, None], torch.full_like(grad[:, :1], -weight_ce))
    if taught:
        grad.add_(chain_rule(q, slope), alpha=weight_kl / temperature)
    return values, grad.to(grad_dtype)


def mixture(logits, temperature=1.0, ensemble="logits", shares=(1.0,)):
    """log p and p, (n, V), that several teachers' logits, (n, V) each, make together; shares: of each, their sum 1.

    "logits": softmax of the mean of logits / T (Baby Llama, arXiv:2308.02019, section 3).
    "probs": the mean of softmax(logits / T).
    """
    assert len(logits) == 1 or len(logits) == len(shares), f"{len(logits)} teachers, but {len(shares)} shares"
    if ensemble == "logits" or len(logits) == 1:
        mean = logits[0] if len(logits) == 1 else sum(t * share for t, share in zip(logits, shares))
        return both_softmaxes(shifted(mean).div_(temperature))
    parts = [log_softmax(t, temperature) + math.log(share) for t, share in zip(logits, shares)]
    log_p = functools.reduce(torch.logaddexp, parts)
    return log_p, log_p.exp()


def both_softmaxes(z):
    """log softmax, in the place of z, and softmax, of rows whose largest is 0.

    With one pass of exp: the largest probability is 1 / sum exp z. Its logarithm is rounded once, by up to 5e-7 at
    V = 50,000, and torch sums exp z in one go, which costs up to 1e-5 relative there; `log_softmax` and its exp, as in
    the functions above, agree with each other better and take longer.
    """
    p = F.softmax(z, dim=-1)
    return z.add_(p.amax(dim=-1, keepdim=True).log_()), p


def teacher_shares(weights: str, n: int) -> list[float]:
    """The knob `teacher_weights` ("2,1"; "": equal) as n shares whose sum is 1; of no teachers none."""
    if n == 0:  # a control, which may have the knobs of the runs that it is compared with
        return []
    try:
        numbers = [float(w) for w in weights.split(",")] if weights.strip() else [1.0] * n
    except ValueError:
        numbers = []
    if len(numbers) != n or not all(0 < w < math.inf for w in numbers):
        raise ValueError(f"teacher_weights={weights!r} must be {n} numbers over 0 with commas between, one a teacher")
    shares = [w / sum(numbers) for w in numbers]
    if not all(shares):  # the sum overflows, or a weight vanishes beside it
        raise ValueError(f"teacher_weights={weights!r} gives shares of {shares}; each must be over 0, as with 2,1")
    return shares


COMPARED = ("agree", "entropy", "teacher_entropy", "forward_kl", "reverse_kl")


@torch.no_grad()
def compare(student, teachers, targets, vocab_size, chunk=0, ensemble="logits", shares=(1.0,), dtype=None) -> dict:
    """How the student stands to its teachers, at T = 1: a dict of sums over the valid tokens.

    agree: both have the same most likely token; entropy and teacher_entropy, forward_kl and reverse_kl in nats.
    student, teachers: (hidden states, head) of each; the rest as in chunked_head, of which forward_kl is the kl.
    """
    sums, y = 0.0, targets.flatten()
    dtype = dtype or student[0].dtype
    heads = [(hidden, weight.to(dtype)) for hidden, weight in (student, *teachers)]
    for now, logits, *taught in logits_in_chunks(heads, chunk):
        for rows in blocks(logits):
            block_taught = [t[rows, :vocab_size] for t in taught]
            values = compared_terms(logits[rows, :vocab_size], block_taught, ensemble, shares)
            sums = sums + (values * (y[now][rows] >= 0)).sum(-1)
        del logits, taught, block_taught  # before the next chunk's are made
    return dict(zip(COMPARED, sums))


def compared_terms(logits, taught, ensemble, shares):
    """What COMPARED names, of each token: (5, n) from logits (n, V) of the student and of each teacher."""
    log_q, q = both_softmaxes(shifted(logits))
    log_p, p = mixture(taught, 1.0, ensemble, shares)
    agree = log_q.argmax(-1) == log_p.argmax(-1)
    entropies = -(q * log_q).sum(-1), -(p * log_p).sum(-1)
    kls = (terms(log_p, log_q, p, q)[0] for terms in (forward_terms, reverse_terms))
    return torch.stack((agree, *entropies, *kls))


class WithGradient(torch.autograd.Function):
    """`loss` with gradients made before: those to hidden and weight, of sums that the loss divides by n_tokens."""

    @staticmethod
    def forward(ctx, loss, hidden, weight, grad_h, grad_w, n_tokens):
        ctx.grads, ctx.n_tokens, ctx.like = (grad_h, grad_w), n_tokens, (hidden.shape, hidden.dtype, weight.dtype)
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        if ctx.grads is None:
            raise RuntimeError("chunked_head makes its gradients in forward, for one backward; call it again")
        (grad_h, grad_w), (shape, dtype, weight_dtype), ctx.grads = ctx.grads, ctx.like, None
        scale = upstream / ctx.n_tokens
        grad_w = grad_w if grad_w is None else grad_w.mul_(scale).to(weight_dtype)
        return None, grad_h.mul_(scale).view(shape).to(dtype), grad_w, None, None, None


def logits_in_chunks(heads, chunk=0):
    """Yield (slice of the tokens, fp32 logits (n, rows) of each head), heads being pairs of (N, C) and (rows, C).

    Those of fp32 heads lie in buffers that the next chunk overwrites: fresh memory costs a CPU a page fault each 4 kB.
    """
    heads = [(hidden.flatten(0, -2).to(weight.dtype), weight) for hidden, weight in heads]
    N, rows = len(heads[0][0]), sum(len(weight) for _, weight in heads)
    budget = 256e6 if heads[0][0].is_cuda else 52e6  # logits: 1 GB and 208 MB, in fp32
    chunk = chunk or max(128, int(budget / rows) // 128 * 128)
    # a row stride of whole cache lines: at V = 50,257 without, the matmul takes half as long again
    fp32 = [min(chunk, N) if w.dtype == torch.float32 else 0 for _, w in heads]
    buffers = [w.new_empty(n, -(-len(w) // 64) * 64) for n, (_, w) in zip(fp32, heads)]
    for start in range(0, N, chunk):
        now = slice(start, min(start + chunk, N))
        yield now, *(matmul(h[now], w.T, out[: now.stop - start, : len(w)]) for (h, w), out in zip(heads, buffers))


def blocks(logits):
    """Slices of a few rows each, whose temporaries stay in a CPU's cache; on CUDA all rows at once."""
    n, V = logits.shape
    step = n if logits.is_cuda else torch.get_num_threads() * max(1, 2**18 // V)
    return (slice(i, min(i + step, n)) for i in range(0, n, step))


def blocks_to_write(logits, equal=False):
    """Pairs of slices: a block's rows, and those of them whose results are to be kept, by default all.

    equal: a short last block is lengthened at its front, so that a compiled body meets one shape and not several. It
    comes first: the results of the others overwrite the logits that it shares with them.
    """
    *whole, last = blocks(logits)
    if whole and equal:
        size = whole[0].stop
        yield slice(last.stop - size, last.stop), last
    else:
        whole = [*whole, last]
    yield from zip(whole, whole)


def matmul(a, b, out=None):
    """a @ b in fp32, of fp32 matrices into `out`, of others in memory of its own.

    The product of two bfloat16 is exact in fp32: what a CPU sums here is what out_dtype sums on CUDA. Its own bfloat16
    product would round every logit to three digits, and takes nine times as long where it has no instructions for it.
    """
    if a.dtype == torch.float32:
        return torch.mm(a, b, out=out)
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else torch.mm(a.float(), b.float())


def add_matmul(total, a, b):
    """total += a @ b, total in fp32."""
    if a.dtype == torch.float32:
        total.addmm_(a, b)
    else:
        total += matmul(a, b)
