"""Every objective by hand, against float64, and at the edges of fp32. The chunked head has its own file."""

import inspect
import math

import pytest
import torch
from conftest import ROOT
from torch.nn import functional as F

from losses import (
    DIVERGENCES,
    Objective,
    cosine_distance,
    cross_entropy,
    divergence,
    forward_kl,
    hidden_mse,
    js_divergence,
    loss_terms,
    reduce,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
    teacher_shares,
    total_variation,
)  # fmt: skip

P, Q = (0.75, 0.25), (0.5, 0.5)
TEACHER, STUDENT = torch.tensor([P]).log(), torch.tensor([Q]).log()
OBJECTIVES = {
    "forward": forward_kl, "reverse": reverse_kl, "js": js_divergence, "skew_forward": skew_forward_kl,
    "skew_reverse": skew_reverse_kl, "tv": total_variation,
}  # fmt: skip


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q))


# ---------------------------------------------------------------------------------------------
# by hand: teacher P, student Q


@pytest.mark.parametrize(
    "got, want",
    [
        (forward_kl(STUDENT, TEACHER), 0.75 * math.log(1.5) + 0.25 * math.log(0.5)),
        (reverse_kl(STUDENT, TEACHER), 0.5 * math.log(2 / 3) + 0.5 * math.log(2)),
        (js_divergence(STUDENT, TEACHER), 0.5 * kl(P, (5 / 8, 3 / 8)) + 0.5 * kl(Q, (5 / 8, 3 / 8))),
        (js_divergence(STUDENT, TEACHER, beta=0.2), 0.2 * kl(P, (0.55, 0.45)) + 0.8 * kl(Q, (0.55, 0.45))),
        (skew_forward_kl(STUDENT, TEACHER, lam=0.2), kl(P, (0.55, 0.45))),
        (skew_reverse_kl(STUDENT, TEACHER, lam=0.2), kl(Q, (0.7, 0.3))),
        (total_variation(STUDENT, TEACHER), 0.25),
    ],
)  # fmt: skip
def test_divergences_by_hand(got, want):
    assert math.isclose(got.item(), want, rel_tol=1e-6)


def test_temperature_by_hand():
    """T = 2 takes the square root of the odds: 3 : 1 becomes sqrt 3 : 1."""
    p = math.sqrt(3) / (1 + math.sqrt(3))
    want = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert math.isclose(forward_kl(STUDENT, TEACHER, temperature=2.0).item(), want, rel_tol=1e-6)


def test_cross_entropy_by_hand():
    logits = torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.5, 0.5]]).log()
    got = cross_entropy(logits, torch.tensor([0, 1, -1]))
    torch.testing.assert_close(got, torch.tensor([math.log(4 / 3), math.log(4), 0.0]))


def test_hidden_state_terms_by_hand():
    student, teacher = torch.tensor([[1.0, 0], [2, 2], [1, 0]]), torch.tensor([[3.0, 0], [1, 0], [-1, 0]])
    torch.testing.assert_close(cosine_distance(student, teacher), torch.tensor([0.0, 1 - math.sqrt(0.5), 2.0]))
    torch.testing.assert_close(hidden_mse(student, teacher), torch.tensor([2.0, 2.5, 2.0]))


# ---------------------------------------------------------------------------------------------
# against float64


def brute_force(name, student, teacher, T, share=None):
    """The textbook formula in float64, through log-probabilities; `share`: its parameter (None: the default)."""
    log_p, log_q = (teacher / T).log_softmax(-1), (student / T).log_softmax(-1)
    _, parameters = DIVERGENCES[name]
    if share is None and parameters:
        (share,) = [parameter.default for parameter in parameters.values()]
    mix = lambda a, b: torch.logaddexp(a + math.log(share), b + math.log(1 - share))  # noqa: E731
    of = lambda a, b: (a.exp() * (a - b)).sum(-1)  # noqa: E731
    if name == "js":
        m = mix(log_p, log_q)
        return share * of(log_p, m) + (1 - share) * of(log_q, m)
    return {
        "forward": lambda: of(log_p, log_q),
        "reverse": lambda: of(log_q, log_p),
        "skew_forward": lambda: of(log_p, mix(log_p, log_q)),
        "skew_reverse": lambda: of(log_q, mix(log_q, log_p)),
        "tv": lambda: 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1),
    }[name]()


def make_logits(case, V):
    """Student's and teacher's logits (6, V) of a kind that has broken somebody's KL."""
    student, teacher = torch.randn(6, V) * 3, torch.randn(6, V) * 3
    if case == "offset":  # of +-300, where softmax(logits / T) rounds 300 / T
        student[:3], student[3:], teacher[:3], teacher[3:] = (
            student[:3] + 300,
            student[3:] - 300,
            teacher[:3] - 300,
            teacher[3:] + 300,
        )
    elif case == "near one-hot":  # the teacher, the student, both on one token, both on two
        teacher[:2, 0] += 30
        student[2:4, 0] += 30
        teacher[3:5, 0] += 30
        student[4, 0], student[5, 0], teacher[5, 1] = student[4, 0] + 25, student[5, 0] + 30, teacher[5, 1] + 30
    elif case == "close":
        student = teacher + 0.01 * torch.randn(6, V)
    return student, teacher


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("case", ["normal", "offset", "near one-hot", "close"])
@pytest.mark.parametrize("V", [2, 77, pytest.param(50304, marks=pytest.mark.slow)])
@pytest.mark.parametrize("T", [0.5, 1.0, 3.0, 4.0])
def test_value_and_gradient_equal_float64(name, case, V, T):
    """Within 1e-5 relative: values of each position, gradients by the norm over its logits.

    Below 3e-7, the spacing of fp32 at 2 to 4, nothing is compared. Total variation alone subtracts probabilities
    near 1, and its slope is a sign: where p = q to the last bits it may differ, which shows in the fifth digit.
    """
    torch.manual_seed(V)
    student, teacher = make_logits(case, V)
    exact, student = student.double().requires_grad_(), student.requires_grad_()
    want, got = brute_force(name, exact, teacher.double(), T), OBJECTIVES[name](student, teacher, T)
    assert got.dtype == torch.float32 and got.shape == (6,)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=3e-7)
    weights = torch.rand(6)  # an upstream gradient that differs from row to row
    (got_grad,), (want_grad,) = (
        torch.autograd.grad((v * weights).sum(), z) for v, z in ((got, student), (want, exact))
    )
    error, norm = (got_grad - want_grad).norm(dim=-1), want_grad.norm(dim=-1)
    assert (error <= 1e-5 * norm + (5e-5 if name == "tv" else 1e-7)).all(), (error / norm, norm)


def within(got, want, relative, absolute):
    return ((got.double() - want).abs() <= relative * want.abs() + absolute).all()


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("case", ["normal", "offset", "near one-hot", "close"])
@pytest.mark.parametrize("V", [2, 77, pytest.param(50304, marks=pytest.mark.slow)])
@pytest.mark.parametrize("T", [0.5, 1.0, 3.0, 4.0])
def test_what_the_loops_run_equals_float64(name, case, V, T):
    """`loss_terms`, with the cross-entropy that the functions above leave out, and gradients of both."""
    torch.manual_seed(V)
    student, teacher = make_logits(case, V)
    targets = torch.randint(V, (6,))
    objective = Objective(weight_ce=0.0, weight_kl=1.0, terms=divergence(name), temperature=T)
    (ce, _), ce_grad = loss_terms(student, [], targets, Objective(), torch.float32)
    (_, kl), kl_grad = loss_terms(student, [teacher], targets, objective, torch.float32)

    exact = student.double().requires_grad_()
    want_ce = F.cross_entropy(exact, targets, reduction="none")
    want_kl = brute_force(name, exact, teacher.double(), T)
    assert within(ce, want_ce, 1e-5, 5e-7)  # -log q(target) of up to 60 nats is rounded once, at the size of its parts
    assert within(kl, want_kl, 1e-5, 3e-7)
    for got, want, absolute in ((ce_grad, want_ce, 1e-7), (kl_grad, want_kl, 5e-5 if name == "tv" else 1e-7)):
        (want_grad,) = torch.autograd.grad(want.sum(), exact, retain_graph=True)
        error, norm = (got - want_grad).norm(dim=-1), want_grad.norm(dim=-1)
        assert (error <= 1e-5 * norm + absolute).all(), (error / norm, norm)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_bfloat16_logits_are_computed_in_fp32(name):
    torch.manual_seed(0)
    student, teacher = (
        (torch.randn(2, 5, 1000) * 3).bfloat16().requires_grad_(),
        (torch.randn(2, 5, 1000) * 3).bfloat16(),
    )
    got = OBJECTIVES[name](student, teacher, 2.0)
    assert got.dtype == torch.float32 and got.shape == (2, 5)
    torch.testing.assert_close(got, OBJECTIVES[name](student.float(), teacher.float(), 2.0), rtol=0, atol=0)
    (grad,) = torch.autograd.grad(got.sum(), student)
    assert grad.dtype == torch.bfloat16


@pytest.mark.parametrize("share", [0.05, 0.7])
def test_shares_of_the_mixtures(share):
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 50) * 3, torch.randn(4, 50) * 3
    for name, got in [
        ("js", js_divergence(student, teacher, 2.0, beta=share)),
        ("skew_forward", skew_forward_kl(student, teacher, 2.0, lam=share)),
        ("skew_reverse", skew_reverse_kl(student, teacher, 2.0, lam=share)),
    ]:
        want = brute_force(name, student.double(), teacher.double(), 2.0, share)
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------------------------------------
# identities and edges


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("T", [0.7, 1.0, 3.0])
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_student_that_is_the_teacher_has_no_loss_and_no_gradient(name, T, scale):
    torch.manual_seed(0)
    logits = torch.randn(5, 500) * scale
    logits[:, 7] = -math.inf
    logits.requires_grad_()
    value = OBJECTIVES[name](logits, logits.detach().clone(), T)
    assert torch.equal(value, torch.zeros(5))
    assert not torch.autograd.grad(value.sum(), logits)[0].any()


def test_identities():
    torch.manual_seed(0)
    student, teacher = torch.randn(8, 300) * 5, torch.randn(8, 300) * 5
    torch.testing.assert_close(js_divergence(student, teacher), js_divergence(teacher, student), rtol=1e-6, atol=0)
    assert not torch.allclose(js_divergence(student, teacher, beta=0.2), js_divergence(teacher, student, beta=0.2))
    assert (js_divergence(100 * student, 100 * teacher) <= math.log(2) + 1e-6).all()
    torch.testing.assert_close(total_variation(student, teacher), total_variation(teacher, student))
    assert (total_variation(100 * student, 100 * teacher) <= 1 + 1e-6).all()
    for lam in (1e-3, 1e-6, 0.0):
        near = {"rtol": 50 * lam + 1e-6, "atol": 0}
        torch.testing.assert_close(
            skew_forward_kl(student, teacher, 4.0, lam), forward_kl(student, teacher, 4.0), **near
        )
        torch.testing.assert_close(
            skew_reverse_kl(student, teacher, 4.0, lam), reverse_kl(student, teacher, 4.0), **near
        )
    small = js_divergence(student, teacher, 4.0, beta=1e-4) / 1e-4
    torch.testing.assert_close(small, forward_kl(student, teacher, 4.0), rtol=1e-2, atol=0)
    torch.testing.assert_close(reverse_kl(student, teacher), forward_kl(teacher, student))


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("T", [0.5, 4.0])
def test_no_nan_where_probabilities_underflow(name, T):
    """Logits of +-1e4, and columns that the teacher, the student or both rule out."""
    torch.manual_seed(0)
    student, teacher = torch.randn(7, 40), torch.randn(7, 40)
    student[0, 0], teacher[0, 1] = 1e4, 1e4
    student[1, 0], teacher[1, 0] = -1e4, 1e4
    student[2], teacher[2] = 1e4 * torch.randn(40).sign(), 1e4 * torch.randn(40).sign()
    student[3, 5], teacher[4, 5], student[5, 5], teacher[5, 5] = (-math.inf,) * 4
    student[6, :39] = -math.inf
    value = OBJECTIVES[name](student.requires_grad_(), teacher, T)
    (grad,) = torch.autograd.grad(value.sum(), student)
    assert value.isfinite().all() and (value >= 0).all() and grad.isfinite().all()
    rows = torch.tensor([0, 1, 2])  # no -inf: float64 knows these too
    want = brute_force(name, student[rows].detach().double(), teacher[rows].double(), T)
    torch.testing.assert_close(value[rows].double(), want, rtol=1e-5, atol=1e-7)


def test_names_and_ranges_of_divergences():
    with pytest.raises(
        ValueError, match="kl='backward' is not one of forward, reverse, js, skew_forward, skew_reverse, tv"
    ):
        divergence("backward")
    for beta, lam in ((0.0, 0.1), (1.0, 0.1), (0.5, -0.1), (0.5, 1.0)):
        with pytest.raises(ValueError, match="is out of range"):
            divergence("js", beta=beta, lam=lam)
    assert teacher_shares("", 4) == (0.25,) * 4 and teacher_shares("3, 1", 2) == (0.75, 0.25)
    for text in ("1", "1,2,3", "1,x", "1,0", "1,nan", "1,inf", ","):
        with pytest.raises(ValueError, match="must be 2 numbers over 0"):
            teacher_shares(text, 2)
    for text in ("1e308,1e308", "1e-320,1e300"):  # the sum is infinite; a share is 0
        with pytest.raises(ValueError, match="each must be over 0"):
            teacher_shares(text, 2)
    assert teacher_shares("2,1", 0) == ()  # a control without teachers


def test_every_divergence_by_name_is_compared_with_float64():
    assert list(DIVERGENCES) == list(OBJECTIVES), "add a row to OBJECTIVES, in the order of DIVERGENCES"
    for name, (_, parameters) in DIVERGENCES.items():
        defaults = {n: p.default for n, p in inspect.signature(OBJECTIVES[name]).parameters.items()}
        for parameter, row in parameters.items():
            assert defaults[parameter] == row.default, f"{name}: {parameter} has two defaults"
    for file in ("distill.py", "docs/losses.md"):
        text = (ROOT / file).read_text()
        for name in DIVERGENCES:
            assert f'"{name}"' in text, f"{file} does not mention {name} among the values of kl"


def test_reduction_does_not_depend_on_the_split():
    """Micro-steps of 1, 2 and 5 tokens, of which 6 are valid, add up to the mean over 6."""
    per_token, valid = torch.arange(8.0), torch.tensor([1, 0, 1, 1, 1, 0, 1, 1], dtype=torch.bool)
    parts = zip(per_token.split([1, 2, 5]), valid.split([1, 2, 5]))
    total = sum(reduce(values, mask, 6) for values, mask in parts)
    torch.testing.assert_close(total, per_token[valid].mean())
