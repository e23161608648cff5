"""The chunked head: hidden states -> losses and gradients, with the logits of one chunk alive at a time.

A micro-step of 32,768 tokens over 50,257 ids has 6.6 GB of logits, twice that with a teacher's, and
their gradients again; the hidden states behind them are 0.1 GB. So the head walks the tokens in
chunks. For each chunk:

    logits = hidden @ weight.T        of the student and of each teacher
    values, grad = loss_terms(…)    losses.py's closed form, a few rows at a time
    grad_hidden = grad @ weight       what autograd would have needed the logits for
    grad_weight += grad.T @ hidden

and the chunk's logits are overwritten by the next. Autograd is handed both gradients ready-made
(`WithGradient`): left to itself it would keep the logits of every chunk until backward, which is all
of them. So computing the loss computes its gradient too, unless autograd is off, as in evaluation.
"""

import math

import torch

from losses import Objective, forward_terms, loss_terms, mixture, reverse_terms, shifted, softmaxes


def chunked_head(
    hidden, weight, targets, n_tokens, teachers=(), objective=None, *,
    stored=None, vocab_size, chunk=0, dtype=None, body=None,
):  # fmt: skip
    """The losses of a micro-step from its hidden states: (weight_ce * ce + weight_kl * kl, ce, kl).

    hidden: (..., C). weight: (rows, C), of which those from vocab_size on are padding.
    targets: (...) ids, -1: masked. n_tokens: the valid tokens of the whole step, by which sums are divided.
    teachers: (hidden states, weight of the head) of each. objective: an Objective; None: cross-entropy.
    stored: a cached teacher's predictions for the N tokens (losses.Stored), instead of teachers.
    chunk: tokens at a time, which does not change the result; 0: a size that was fast.
    dtype: of all matmuls, the teachers' too (None: that of hidden); logits, losses and the sum of the
    head's gradient are fp32. body: `loss_terms`, perhaps compiled.
    Returns three scalars. Only the first has a gradient, to hidden and weight, and for one backward.
    """
    objective = objective or Objective()
    body = body or loss_terms
    dtype = dtype or hidden.dtype
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    # Autograd need not record anything here; autocast is off, as `dtype` decides the matmuls' type.
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        h = hidden.flatten(0, -2).to(dtype)  # (N, C)
        w = weight.to(dtype)  # (rows, C)
        y = targets.flatten()  # (N,)
        valid = (y >= 0).float()
        teachers = [(teacher_hidden, teacher_weight.to(dtype)) for teacher_hidden, teacher_weight in teachers]
        per_token = h.new_zeros(2, len(h), dtype=torch.float32)  # ce and kl

        # What outlives a chunk has the size of the hidden states or of the head, never (tokens, rows).
        # In fp32: grad_w is a sum over many chunks, and bfloat16 would lose the small summands.
        grad_h = torch.zeros_like(h, dtype=torch.float32) if needs_grad else None
        trains_head = needs_grad and weight.requires_grad
        grad_w = torch.zeros_like(w, dtype=torch.float32) if trains_head else None
        for tokens, logits, *teacher_logits in logits_in_chunks([(h, w), *teachers], chunk):
            grad = gradient_buffer(logits, dtype) if needs_grad else None
            # a masked token is treated as one of id 0, and its loss and gradient are multiplied by 0
            chunk_targets = y[tokens].clamp(min=0)
            chunk_stored = stored.select(tokens) if stored else None
            per_token[:, tokens] = chunk_terms(
                body, logits, teacher_logits, chunk_targets, objective, chunk_stored, vocab_size=vocab_size, grad=grad
            )  # fmt: skip
            if needs_grad:
                chunk_valid = valid[tokens, None]
                grad_h[tokens] = matmul(grad, w) * chunk_valid
                if trains_head:
                    add_matmul(grad_w, grad.T, h[tokens] * chunk_valid.to(dtype))
            del logits, teacher_logits, grad  # freed before the next chunk's are made
        ce, kl = (per_token * valid).sum(-1) / n_tokens
        loss = objective.weight_ce * ce + objective.weight_kl * kl
    if needs_grad:
        loss = WithGradient.apply(loss, hidden, weight, grad_h, grad_w, n_tokens)
    return loss, ce, kl


def gradient_buffer(logits, dtype):
    """Memory for a chunk's gradient, (n, rows): the logits' own, if that has the same type."""
    if dtype == torch.float32:
        return logits
    # Tensor cores read 16 bytes at a time: with GPT-2's 50,257 columns, every second row would begin between two.
    n, rows = logits.shape
    padded = logits.new_empty(n, 64 * math.ceil(rows / 64), dtype=dtype)
    return padded[:, :rows]


def chunk_terms(body, logits, teacher_logits, targets, objective, stored=None, *, vocab_size, grad):
    """ce and kl (2, n) of a chunk, block by block, and their gradient into `grad`, if given.

    logits, grad: (n, rows), of which those from vocab_size on are padding. `grad` may be `logits`: a
    block's gradient is copied over its logits once they have been read.
    """
    values = logits.new_empty(2, len(logits))
    grad_dtype = None if grad is None else grad.dtype
    # a compiled body would be compiled once more for a shorter last block
    is_compiled = body is not loss_terms
    for block, new in blocks_to_write(logits, equal=is_compiled):
        block_logits = logits[block, :vocab_size]
        block_teachers = [t[block, :vocab_size] for t in teacher_logits]
        block_stored = stored.select(block) if stored else None
        block_values, block_grad = body(
            block_logits, block_teachers, targets[block], objective, grad_dtype, block_stored
        )  # fmt: skip
        # the last rows of the block: those before them belong to another block
        n_new = new.stop - new.start
        values[:, new] = block_values[:, -n_new:]
        if grad is not None:
            grad[new, :vocab_size] = block_grad[-n_new:]
        del block_grad  # so that the next block's reuses its memory, which is in the CPU's cache
    # padding rows take no part in the softmax, so their gradient is 0; the buffer may hold anything
    if grad is not None:
        grad[:, vocab_size:] = 0
    return values


class WithGradient(torch.autograd.Function):
    """`loss`, with gradients to hidden and weight that are computed already.

    They are those of the sums over tokens; the loss is such a sum divided by n_tokens.
    """

    @staticmethod
    def forward(ctx, loss, hidden, weight, grad_h, grad_w, n_tokens):
        # not save_for_backward: these are changed in place below
        ctx.grads = (grad_h, grad_w)
        ctx.n_tokens = n_tokens
        ctx.hidden_shape = hidden.shape
        ctx.dtypes = (hidden.dtype, weight.dtype)
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        if ctx.grads is None:
            raise RuntimeError("chunked_head makes its gradients in forward, for one backward; call it again")
        # scaled in place and handed over, so that no second copy of them is made
        grad_h, grad_w = ctx.grads
        ctx.grads = None
        hidden_dtype, weight_dtype = ctx.dtypes
        scale = upstream / ctx.n_tokens
        grad_h = grad_h.mul_(scale).view(ctx.hidden_shape).to(hidden_dtype)
        if grad_w is not None:
            grad_w = grad_w.mul_(scale).to(weight_dtype)
        return None, grad_h, grad_w, None, None, None


# ---------------------------------------------------------------------------------------------
# the student beside its teachers


COMPARED = ("agree", "entropy", "teacher_entropy", "forward_kl", "reverse_kl")


@torch.no_grad()
def compare(student, teachers, targets, objective, *, vocab_size, chunk=0, dtype=None) -> dict:
    """Compare the student with its teachers, at T = 1: a dict of sums over the valid tokens.

    agree: both have the same most likely token; entropy and teacher_entropy, forward_kl and
    reverse_kl in nats, the first of which chunked_head would return as kl. student, teachers: (hidden
    states, weight of the head) of each; objective: how several teachers are mixed; the rest as there.
    """
    # not the run's own temperature and divergence, so that runs with different knobs can be compared
    at_1 = Objective(ensemble=objective.ensemble, shares=objective.shares)
    dtype = dtype or student[0].dtype
    heads = [(hidden, weight.to(dtype)) for hidden, weight in (student, *teachers)]
    valid = targets.flatten() >= 0
    # chunks bound the memory, blocks within them keep the temporaries in a CPU's cache
    sums = 0.0
    for tokens, logits, *teacher_logits in logits_in_chunks(heads, chunk):
        for block in blocks(logits):
            block_teachers = [t[block, :vocab_size] for t in teacher_logits]
            values = compared_values(logits[block, :vocab_size], block_teachers, at_1)  # (5, n)
            block_valid = valid[tokens][block]
            sums = sums + (values * block_valid).sum(-1)
        del logits, teacher_logits, block_teachers  # before the next chunk's are made
    return dict(zip(COMPARED, sums))


def compared_values(logits, teacher_logits, objective):
    """What COMPARED names, of each token: (5, n) from logits (n, V) of the student and of each teacher."""
    log_q, q = softmaxes(shifted(logits))
    log_p, p = mixture(teacher_logits, objective)
    agree = log_q.argmax(-1) == log_p.argmax(-1)
    entropy = -(q * log_q).sum(-1)
    teacher_entropy = -(p * log_p).sum(-1)
    forward, _ = forward_terms(log_p, log_q, p, q)
    reverse, _ = reverse_terms(log_p, log_q, p, q)
    return torch.stack((agree, entropy, teacher_entropy, forward, reverse))


# ---------------------------------------------------------------------------------------------
# chunks, blocks, and matmuls in fp32


def logits_in_chunks(heads, chunk=0):
    """Yield (slice of the tokens, fp32 logits (n, rows) of each head).

    heads: pairs of hidden states (..., C) and weights (rows, C), each with a C of its own.
    Logits of fp32 heads lie in buffers that the next chunk overwrites.
    """
    heads = [(hidden.flatten(0, -2).to(weight.dtype), weight) for hidden, weight in heads]
    first_hidden, _ = heads[0]
    N = len(first_hidden)
    if chunk == 0:
        chunk = fastest_chunk(heads)
        if first_hidden.is_cuda:
            chunk = equal_chunk(N, chunk)
    # Buffers, as fresh memory for every chunk costs a CPU a page fault each 4 kB.
    buffers = [logits_buffer(weight, min(chunk, N)) for _, weight in heads]
    for start in range(0, N, chunk):
        tokens = slice(start, min(start + chunk, N))
        n = tokens.stop - tokens.start
        logits = []
        for (hidden, weight), buffer in zip(heads, buffers):
            logits.append(matmul(hidden[tokens], weight.T, out=buffer[:n, : len(weight)]))
        yield tokens, *logits
        # The caller has dropped its references: without ours no logits are alive while the next are made.
        del logits


def fastest_chunk(heads):
    """Tokens of a chunk, a multiple of 128: enough for fast matmuls, few enough for the memory."""
    first_hidden, _ = heads[0]
    # how many logits a chunk may have, at 4 bytes each
    if first_hidden.is_cuda:
        budget = 256e6  # 1 GB
    else:
        budget = 52e6  # 208 MB
    columns = sum(len(weight) for _, weight in heads)
    most = budget / columns
    # More than 512 tokens make a CPU no faster, and a third of the memory will do (bench.py --part=step); with 256
    # tokens and 50,257 ids it is 3 % slower.
    if not first_hidden.is_cuda:
        most = min(most, max(512, budget / 3 / columns))
    return max(128, int(most) // 128 * 128)


def equal_chunk(N: int, most: int) -> int:
    """The largest chunk of at most `most` tokens that divides N: a compiled body then meets one shape only.

    `most` itself, with a shorter last chunk, where only much smaller ones would divide N.

    >>> equal_chunk(16384, most=4992)
    4096
    >>> equal_chunk(101, most=50)  # a prime: two of 50, and one of 1
    50
    """
    fewest_chunks = math.ceil(N / most)
    for n_chunks in range(fewest_chunks, 2 * fewest_chunks):
        if N % n_chunks == 0:
            return N // n_chunks
    return most


def logits_buffer(weight, n):
    """Memory for n tokens' logits of a head; empty unless the head is fp32, as `matmul` writes to no other."""
    # rows start at whole cache lines: at V = 50,257 the matmul would otherwise take 50 % longer
    stride = 64 * math.ceil(len(weight) / 64)
    if weight.dtype != torch.float32:
        n = 0
    return weight.new_empty(n, stride)


def blocks(logits):
    """Slices of a few rows each, whose temporaries stay in a CPU's cache; on CUDA all rows at once."""
    n, V = logits.shape
    step = n
    # on CUDA more blocks cost more kernel launches, and no cache would hold a block
    if not logits.is_cuda:
        step = torch.get_num_threads() * max(1, 2**18 // V)  # 1 MB of fp32 for each thread
    return (slice(i, min(i + step, n)) for i in range(0, n, step))


def blocks_to_write(logits, equal=False):
    """Pairs of slices: the rows of a block, and those of them whose results are kept, by default all.

    equal: a short last block is extended at its front to full size, so that a compiled body meets one shape.
    """
    *whole, last = blocks(logits)
    # The extended block comes first: the results of the others overwrite the logits that it shares with them.
    if whole and equal:
        size = whole[0].stop
        yield slice(last.stop - size, last.stop), last
    else:
        whole = [*whole, last]
    yield from zip(whole, whole)


def matmul(a, b, out=None):
    """a @ b in fp32: of fp32 matrices written into `out`, of others into new memory."""
    if a.dtype == torch.float32:
        return torch.mm(a, b, out=out)
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    # The product of two bfloat16 is exact in fp32: what a CPU sums here is what out_dtype sums on
    # CUDA. Its own bfloat16 product would round every logit to three digits, and takes nine times as
    # long where it has no instructions for it.
    return torch.mm(a.float(), b.float())


def add_matmul(total, a, b):
    """total += a @ b, total in fp32."""
    # in one kernel where torch has it, without a product of the size of `total`
    if a.dtype == torch.float32:
        total.addmm_(a, b)
    else:
        total += matmul(a, b)
