"""Objectives of the two loops: short pure functions that return nats per token, shape (N,), in fp32.

p is the teacher, q the student, T the temperature; sums run over the vocabulary. The step's loss is
    weight_ce * CE + weight_kl * T**2 * KL + weight_cos * cos
where each term is `reduce`d: summed over its tokens and divided by the tokens of the *whole step*, all
micro-steps and ranks, so that the loss does not depend on how the batch was split. Logits come with
padding columns already cut: a softmax over padding is a different distribution.
"""

import torch
from torch.nn import functional as F


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log q(target) of each position, in nats.

    logits: (N, V), any float type; computed in fp32. targets: (N,) ids in 0 … V - 1, or -1 for a
    position without a target, whose loss is 0. Returns (N,).
    """
    return F.cross_entropy(logits.float(), targets, ignore_index=-1, reduction="none")


def forward_kl(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature=1.0) -> torch.Tensor:
    """KL(p || q) = sum p (log p - log q) of each position, in nats.

    *_logits: (N, V), any float type; computed in fp32. Returns (N,).
    Hinton et al. 2015, section 2 (arXiv:1503.02531), without its T**2, which the caller applies, and
    with the teacher's entropy, which the paper's cross-entropy leaves out: so its floor is 0.
    Not kl_div("batchmean"): on (B, T, V) that divides by B alone.
    """
    log_p = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    log_q = F.log_softmax(student_logits.float() / temperature, dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def reverse_kl(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature=1.0) -> torch.Tensor:
    """KL(q || p) = sum q (log q - log p) of each position, in nats: mode-seeking, where forward KL covers.

    *_logits: (N, V), any float type; computed in fp32. Returns (N,). Without T**2, which the caller applies.
    MiniLLM (arXiv:2306.08543), section 2.1, on tokens of the data rather than on the student's own samples.
    """
    log_p = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    log_q = F.log_softmax(student_logits.float() / temperature, dim=-1)
    return (log_q.exp() * (log_q - log_p)).sum(dim=-1)


def cosine_distance(student_hidden: torch.Tensor, teacher_hidden: torch.Tensor) -> torch.Tensor:
    """1 - cos(h_s, h_t) of each position, in 0 … 2.

    *_hidden: (N, C) after the last norm, any float type; computed in fp32. Returns (N,).
    DistilBERT (arXiv:1910.01108), section 2. Students of another width are projected to C by the caller.
    """
    return 1.0 - F.cosine_similarity(student_hidden.float(), teacher_hidden.float(), dim=-1)


KL = {"forward": forward_kl, "reverse": reverse_kl}


def reduce(per_token: torch.Tensor, valid: torch.Tensor, tokens_in_step: torch.Tensor | int) -> torch.Tensor:
    """The one place where losses are reduced: the sum over valid tokens / the valid tokens of the whole step.

    per_token: (N,) of one micro-step; valid: (N,) bool; tokens_in_step counts all micro-steps and ranks.
    Returns a scalar; those of all micro-steps and ranks add up to the step's mean.
    """
    return (per_token * valid).sum() / tokens_in_step
