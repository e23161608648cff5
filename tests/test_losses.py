"""Every objective against cases computed by hand and against float64 autograd of its formula."""

import math

import pytest
import torch

from losses import KL, cosine_distance, cross_entropy, forward_kl, reduce, reverse_kl

TEACHER = torch.tensor([[0.75, 0.25]]).log()
STUDENT = torch.zeros(1, 2)


def test_forward_kl_by_hand():
    """Teacher (3/4, 1/4), student (1/2, 1/2): 3/4 log 3/2 + 1/4 log 1/2."""
    want = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert math.isclose(forward_kl(STUDENT, TEACHER).item(), want, rel_tol=1e-6)


def test_reverse_kl_by_hand():
    """1/2 log (1/2)/(3/4) + 1/2 log (1/2)/(1/4)."""
    want = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    assert math.isclose(reverse_kl(STUDENT, TEACHER).item(), want, rel_tol=1e-6)


def test_temperature_by_hand():
    """T = 2 takes the square root of the odds: 3 : 1 becomes sqrt 3 : 1."""
    p = math.sqrt(3) / (1 + math.sqrt(3))
    want = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert math.isclose(forward_kl(STUDENT, TEACHER, temperature=2.0).item(), want, rel_tol=1e-6)


def test_cross_entropy_by_hand():
    logits = torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.5, 0.5]]).log()
    got = cross_entropy(logits, torch.tensor([0, 1, -1]))
    torch.testing.assert_close(got, torch.tensor([math.log(4 / 3), math.log(4), 0.0]))


def test_cosine_distance_by_hand():
    got = cosine_distance(torch.tensor([[1.0, 0], [2, 2], [1, 0]]), torch.tensor([[3.0, 0], [1, 0], [-1, 0]]))
    torch.testing.assert_close(got, torch.tensor([0.0, 1 - math.sqrt(0.5), 2.0]))


def brute_force(name, student, teacher, T):
    p, q = (teacher / T).softmax(-1), (student / T).softmax(-1)
    a, b = (p, q) if name == "forward" else (q, p)
    return (a * (a.log() - b.log())).sum(-1)


@pytest.mark.parametrize("name", KL)
@pytest.mark.parametrize("T", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kl_value_and_gradient_equal_float64_brute_force(name, T, dtype):
    torch.manual_seed(0)
    student, teacher = (torch.randn(5, 1000) * 3).to(dtype).requires_grad_(), (torch.randn(5, 1000) * 3).to(dtype)
    exact = student.detach().double().requires_grad_()
    want = brute_force(name, exact, teacher.double(), T)
    got = KL[name](student, teacher, T)
    assert got.dtype == torch.float32 and got.shape == (5,)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
    grads = torch.autograd.grad(got.sum(), student)[0], torch.autograd.grad(want.sum(), exact)[0]
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-4}
    torch.testing.assert_close(grads[0].double(), grads[1], **tolerance)


@pytest.mark.parametrize("name", KL)
def test_kl_is_zero_without_gradient_where_student_is_teacher(name):
    logits = torch.randn(3, 50, requires_grad=True)
    value = KL[name](logits, logits.detach(), 2.0)
    assert torch.equal(value, torch.zeros(3))
    assert torch.autograd.grad(value.sum(), logits)[0].abs().max() < 1e-7


def test_kl_does_not_depend_on_the_offset_of_the_logits():
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 100), torch.randn(4, 100)
    for kl in KL.values():
        torch.testing.assert_close(kl(student + 300, teacher - 300), kl(student, teacher), rtol=1e-4, atol=1e-5)


def test_reduction_does_not_depend_on_the_split():
    """Micro-steps of 1, 2 and 5 tokens, of which 6 are valid, add up to the mean over 6."""
    per_token, valid = torch.arange(8.0), torch.tensor([1, 0, 1, 1, 1, 0, 1, 1], dtype=torch.bool)
    parts = zip(per_token.split([1, 2, 5]), valid.split([1, 2, 5]))
    total = sum(reduce(values, mask, 6) for values, mask in parts)
    torch.testing.assert_close(total, per_token[valid].mean())
