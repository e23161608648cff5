"""A cached teacher: every divergence on k + 1 cells against float64, draws on average, and through the head."""

import math

import pytest
import torch
from test_losses import OBJECTIVES, brute_force, make_logits

from head import chunked_head
from losses import FLOOR, Objective, Stored, check_tail, divergence, loss_terms

V = 40


def stored_of(teacher, T, k, m=0, generator=None):
    """What a cache would hold of logits (n, V), in float64 and rounded to float32."""
    log_p = (teacher.double() / T).log_softmax(-1)
    top = log_p.topk(k, dim=-1)
    others = log_p.scatter(1, top.indices, -math.inf)
    tail = others.logsumexp(-1, keepdim=True).clamp(min=FLOOR)
    draws = torch.multinomial(others.exp(), m, replacement=True, generator=generator) if m else None
    entropy = -(log_p.exp() * log_p).sum(-1)
    return Stored(torch.cat((top.values, tail), 1).float(), top.indices, draws, entropy.float())


def cells(logits, ids):
    """log-probabilities (n, k + 1) of the cells, of log-probabilities (n, V) in float64."""
    tail = logits.scatter(1, ids, -math.inf).logsumexp(-1, keepdim=True)
    return torch.cat((logits.gather(1, ids), tail), 1)


def terms(name, student, stored, T, tail="cell", targets=None):
    """(value (n,), gradient of the divergence (n, V)) of what the loops run."""
    objective = Objective(weight_ce=0.0, weight_kl=1.0, terms=divergence(name), temperature=T, tail=tail)
    targets = torch.zeros(len(student), dtype=torch.long) if targets is None else targets
    values, grad = loss_terms(student, [], targets, objective, torch.float32, stored)
    return values[1], grad


CASES = [(name, case) for name in OBJECTIVES for case in ("ordinary", "offset", "near one-hot", "close", "equal")]
CASES.remove(("tv", "equal"))  # whose gradient is the sign of a 0


@pytest.mark.parametrize("name, case", CASES)
@pytest.mark.parametrize("k", [1, 4, 16])
@pytest.mark.parametrize("T", [1.0, 2.0])
def test_cells_equal_float64(name, case, k, T):
    """Value and gradient within 1e-5, and the value never above that of the whole distributions."""
    torch.manual_seed(0)
    student, teacher = make_logits(case, V)
    if case == "equal":
        student = teacher.clone()
    stored = stored_of(teacher, T, k)
    value, grad = terms(name, student, stored, T)
    z = student.double().requires_grad_()
    p = cells((teacher.double() / T).log_softmax(-1), stored.ids)
    q = cells((z / T).log_softmax(-1), stored.ids)
    want = brute_force(name, q, p, 1.0)
    (want_grad,) = torch.autograd.grad(want.sum(), z)
    torch.testing.assert_close(value.double(), want.detach(), rtol=1e-5, atol=5e-7)
    torch.testing.assert_close(grad.double(), want_grad, rtol=5e-5 if name == "tv" else 1e-5, atol=2e-7)
    whole = brute_force(name, student.double(), teacher.double(), T)
    assert (value <= whole + 1e-6 + 1e-5 * whole).all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_whole_distribution_is_the_live_teacher(name):
    student, teacher = make_logits("ordinary", V)
    targets = torch.arange(len(student))
    objective = Objective(weight_ce=0.3, weight_kl=0.7, terms=divergence(name), temperature=2.0)
    whole = Stored((teacher / 2).log_softmax(-1))
    got, want = (
        loss_terms(student, t, targets, objective, torch.float32, s) for t, s in (([], whole), ([teacher], None))
    )
    torch.testing.assert_close(got[0], want[0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(got[1], want[1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_without_others_the_cells_are_all_ids(name):
    """k = V: value and gradient are those of the whole distribution, and not NaN."""
    student, teacher = make_logits("ordinary", V)
    value, grad = terms(name, student, stored_of(teacher, 2.0, V), 2.0)
    want, want_grad = terms(name, student, Stored((teacher / 2).log_softmax(-1)), 2.0)
    torch.testing.assert_close(value, want, rtol=1e-5, atol=5e-7)
    torch.testing.assert_close(grad, want_grad, rtol=1e-5, atol=2e-7)


@pytest.mark.parametrize("k", [0, 3])
def test_the_mean_over_draws_is_the_exact_gradient(k):
    """Over 20,000 caches: within 4 standard errors, value too; with stored ids it scatters less than without."""
    torch.manual_seed(0)
    student, teacher = torch.randn(1, 8), 2 * torch.randn(1, 8)
    n, m = 20_000, 4
    many = Stored(*(part.expand(n, *part.shape[1:]) for part in stored_of(teacher, 1.5, k, 1)))
    log_p = (teacher.double() / 1.5).log_softmax(-1)
    others = log_p.scatter(1, many.ids[:1], -math.inf).exp()
    many = many._replace(draws=torch.multinomial(others.expand(n, 8), m, replacement=True))
    value, grad = terms("forward", student.expand(n, 8), many, 1.5, tail="draws")
    z = student.double().requires_grad_()
    want = brute_force("forward", z, teacher.double(), 1.5)
    (want_grad,) = torch.autograd.grad(want.sum(), z)
    for got, exact in ((grad, want_grad[0]), (value, want.detach()[0])):
        error = got.double().std(0) / math.sqrt(n)
        assert ((got.double().mean(0) - exact).abs() <= 4 * error + 1e-6).all()
    scatter[k] = grad.var(0).sum().item()
    if len(scatter) == 2:
        assert 0 < scatter[3] < scatter[0]
    # the tail as one cell is another gradient: what the samples add can be told from it
    if k:
        _, of_cell = terms("forward", student, stored_of(teacher, 1.5, k), 1.5)
        assert (of_cell[0] - want_grad[0]).abs().max() > 10 * error.max()


scatter = {}


def test_dropped_tails_are_the_renormalised_top_k():
    student, teacher = make_logits("ordinary", V)
    stored = stored_of(teacher, 1.0, 4)
    value, grad = terms("forward", student, stored, 1.0, tail="drop")
    z = student.double().requires_grad_()
    p = (teacher.double()).log_softmax(-1).gather(1, stored.ids)
    p = p.softmax(-1)
    want = (p * (p.log() - z.log_softmax(-1).gather(1, stored.ids))).sum(-1)
    (want_grad,) = torch.autograd.grad(want.sum(), z)
    torch.testing.assert_close(value.double(), want.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad.double(), want_grad, rtol=1e-5, atol=2e-7)


def test_a_student_that_is_sure_has_a_finite_gradient():
    """Of a stored id or of another, by 200 nats: where 1 - the sum of the stored is 0, its logarithm infinite."""
    for place in (0, V - 1):
        student, teacher = torch.zeros(1, V), torch.linspace(3, 0, V)[None]
        student[0, place] = 200.0
        for name in OBJECTIVES:
            value, grad = terms(name, student, stored_of(teacher, 1.0, 4), 1.0)
            assert value.isfinite().all() and grad.isfinite().all() and grad.sum().abs() < 1e-5


@pytest.mark.parametrize("tail, k, m", [("cell", 4, 0), ("draws", 4, 6), ("drop", 4, 0), ("draws", 0, 6)])
def test_through_the_head_in_chunks_of_any_size(tail, k, m):
    """Loss and gradients are those of all tokens at once; padding rows of the head stay as they are."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(3, 7, 12).requires_grad_(), torch.randn(48, 12).requires_grad_()
    targets = torch.randint(V, (3, 7))
    targets[1, 4:] = -1
    stored = stored_of(3 * torch.randn(21, V), 2.0, k, m)
    objective = Objective(0.5, 2.0, divergence("forward"), temperature=2.0, tail=tail)
    results = []
    for chunk in (1, 5, 100):
        loss, ce, kl = chunked_head(
            hidden, weight, targets, 18, [], objective, stored=stored, vocab_size=V, chunk=chunk
        )
        results.append((loss, ce, kl, *torch.autograd.grad(loss, (hidden, weight))))
    for other in results[1:]:
        for a, b in zip(results[0], other):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert (results[0][4][V:] == 0).all() and (results[0][3][1, 4:] == 0).all()
    logits = (hidden @ weight.T)[..., :V].flatten(0, 1)
    values, _ = loss_terms(logits.detach(), [], targets.flatten().clamp(min=0), objective, None, stored)
    valid = targets.flatten() >= 0
    torch.testing.assert_close(results[0][2], (values[1] * valid).sum() / 18, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "tail, kl, top_k, draws, message",
    [
        ("rest", "forward", 4, 0, "tail='rest' is not one of cell, draws, drop"),
        ("draws", "reverse", 4, 4, "tail='draws' is for kl='forward', not 'reverse'"),
        ("drop", "js", 4, 0, "would be biased; take --tail=cell"),
        ("draws", "forward", 4, 0, "the cache has none; take --tail=cell, or cache with --draws=16"),
        ("cell", "forward", 0, 9, "stores no ids .* take --tail=draws"),
        ("cell", "reverse", 0, 9, "cache with --top_k=16"),
    ],
)
def test_tails_that_do_not_go_with_the_rest(tail, kl, top_k, draws, message):
    with pytest.raises(ValueError, match=message):
        check_tail(tail, kl, top_k, draws)
