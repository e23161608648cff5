"""The chunked head against a slow reference that has all logits at once, in float64, and autograd."""

import shutil

import pytest
import torch
from conftest import ROOT, run_python
from test_losses import OBJECTIVES, brute_force
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from losses import chunked_head, compare, divergence, head_terms

V, ROWS, C = 211, 256, 24  # the vocabulary, the rows of the padded head, the width of the student
WIDTHS = ((40, 211), (16, 230), (33, 256))  # of teachers: width, rows of the head


def make(B=6, T=11, n_teachers=1, seed=0):
    """Ids, a tied weight, a layer between, targets with ragged masks, and teachers' (hidden, head)."""
    torch.manual_seed(seed)
    ids, targets = torch.randint(V, (B, T)), torch.randint(V, (B, T))
    for row, length in enumerate(torch.randint(1, T + 1, (B,))):
        targets[row, length:] = -1
    weight, layer = torch.randn(ROWS, C).requires_grad_(), torch.randn(C, C).div_(C**0.5).requires_grad_()
    teachers = [(torch.randn(B, T, w), torch.randn(rows, w).mul_(0.3)) for w, rows in WIDTHS[:n_teachers]]
    return ids, targets, weight, layer, teachers


def states(ids, weight, layer):
    """Hidden states (B, T, C) of a student whose head is its embedding."""
    return F.embedding(ids, weight).tanh() @ layer


def slow_head(hidden, weight, targets, n_tokens, teachers, name, weight_ce, weight_kl, T, ensemble, shares):
    """(loss, ce, kl) with all logits and autograd."""
    logits, y = (hidden @ weight.T)[..., :V].flatten(0, 1), targets.flatten()
    valid = y >= 0
    ce, kl = F.cross_entropy(logits, y, ignore_index=-1, reduction="sum") / n_tokens, torch.zeros(())
    if teachers:
        each = [(h.double() @ w.double().T)[..., :V].flatten(0, 1) for h, w in teachers]
        if ensemble == "logits":
            taught = sum(s * t for s, t in zip(shares, each))
        else:
            taught = T * sum(s * (t / T).softmax(-1) for s, t in zip(shares, each)).log()
        kl = (brute_force(name, logits, taught, T) * valid).sum() / n_tokens
    return weight_ce * ce + weight_kl * kl, ce, kl


def close(got, want, tolerance):
    error, norm = (got.double() - want.double()).norm().item(), want.double().norm().item()
    assert error <= tolerance * norm, f"{error / norm:.2e} relative"


@pytest.mark.parametrize("name", [None, *OBJECTIVES])
@pytest.mark.parametrize("n_teachers, ensemble", [(1, "logits"), (3, "logits"), (2, "probs")])
@pytest.mark.parametrize("T", [1.0, 2.5])
def test_losses_and_gradients_equal_the_slow_reference(name, n_teachers, ensemble, T):
    """Tied embedding, padded heads, ragged masks, teachers of other widths; name None: pretraining."""
    ids, targets, weight, layer, teachers = make(n_teachers=n_teachers)
    teachers = teachers if name else []
    shares, n = torch.tensor([3.0, 2.0, 1.0])[:n_teachers], (targets >= 0).sum().item()
    shares = (shares / shares.sum()).tolist()
    loss, ce, kl = chunked_head(
        states(ids, weight, layer), weight, targets, n, teachers, vocab_size=V, chunk=7, weight_ce=0.3, temperature=T,
        weight_kl=2.0 if name else 0.0, terms=divergence(name or "forward"), ensemble=ensemble, shares=shares,
    )  # fmt: skip
    grads = torch.autograd.grad(loss, (weight, layer))
    exact = weight.detach().double().requires_grad_(), layer.detach().double().requires_grad_()
    want = slow_head(states(ids, *exact), exact[0], targets, n, teachers, name, 0.3, 2.0, T, ensemble, shares)
    for a, b in zip((loss, ce, kl), want):
        assert a.item() == pytest.approx(b.item(), rel=1e-6)
    for a, b in zip(grads, torch.autograd.grad(want[0], exact)):
        close(a, b, 2e-6)
    assert not ce.requires_grad and not kl.requires_grad


SETTINGS = {"vocab_size": V, "weight_ce": 0.5, "weight_kl": 2.0, "terms": divergence("forward"), "temperature": 2.0}


def test_chunks_of_any_size_give_the_same():
    ids, targets, weight, layer, teachers = make()
    results = []
    for chunk in (0, 1, 7, 66, 1000):
        hidden = states(ids, weight, layer)
        loss, _, _ = chunked_head(hidden, weight, targets, 40, teachers, chunk=chunk, **SETTINGS)
        results.append((loss, *torch.autograd.grad(loss, (weight, layer))))
    for result in results[1:]:
        for a, b in zip(result, results[0]):
            close(a, b, 1e-6)


def test_a_frozen_head_leaves_the_gradient_of_the_hidden_states_as_it_is():
    ids, targets, weight, _, teachers = make()
    grads = []
    for frozen in (False, True):
        hidden = torch.nn.functional.embedding(ids, weight.detach()).requires_grad_()
        head = weight.detach().clone().requires_grad_(not frozen)
        chunked_head(hidden, head, targets, 40, teachers, chunk=7, **SETTINGS)[0].backward()
        grads.append(hidden.grad)
        assert (head.grad is None) == frozen
    assert torch.equal(*grads) and grads[0].abs().max() > 0


def gradients(B, parts, settings=SETTINGS):
    """Gradients of 16 ragged rows in `parts` micro-batches, accumulated as the loops do, over one denominator."""
    ids, targets, weight, layer, teachers = make(B)
    n = (targets >= 0).sum().item()
    for rows in torch.arange(B).chunk(parts):
        now = [(h[rows], w) for h, w in teachers]
        chunked_head(states(ids[rows], weight, layer), weight, targets[rows], n, now, **settings)[0].backward()
    return weight.grad, layer.grad


def test_micro_batches_give_the_same_gradients():
    whole = gradients(16, 1)
    for parts in (4, 16):
        for a, b in zip(gradients(16, parts), whole):
            close(a, b, 1e-6)


TWO_RANKS = f"""
import sys, torch
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from common.runtime import Runtime
from test_head import SETTINGS, chunked_head, make, states
class Student(torch.nn.Module):
    def __init__(self, weight, layer):
        super().__init__()
        self.weight, self.layer = torch.nn.Parameter(weight.detach()), torch.nn.Parameter(layer.detach())
    def forward(self, ids):
        return states(ids, self.weight, self.layer)
run = Runtime("cpu")
ids, targets, weight, layer, teachers = make(16)
student = Student(weight, layer)
model = run.parallel(student)
n = (targets >= 0).sum().item()
for i, rows in enumerate(torch.arange(16)[run.rank::run.world].chunk(2)):
    model.require_backward_grad_sync = i == 1
    now = [(h[rows], w) for h, w in teachers]
    loss, _, _ = chunked_head(model(ids[rows]), student.weight, targets[rows], n, now, **SETTINGS)
    (loss * run.world).backward()
if run.is_main:
    torch.save([student.weight.grad, student.layer.grad], sys.argv[1])
del model, loss
run.close()
"""


def test_two_ranks_give_the_same_gradients(tmp_path):
    (tmp_path / "two.py").write_text(TWO_RANKS)
    run_python(tmp_path / "two.py", tmp_path / "grads.pt", torchrun=2)
    for a, b in zip(torch.load(tmp_path / "grads.pt", weights_only=True), gradients(16, 1)):
        close(a, b, 1e-6)


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operator returns, and how many matrix products ran."""

    def __init__(self):
        super().__init__()
        self.numel, self.products = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, torch.Tensor):
                self.numel = max(self.numel, t.numel(), t.untyped_storage().nbytes() // t.element_size())
        return out


@pytest.mark.parametrize("name", OBJECTIVES)
def test_logits_of_all_tokens_are_never_allocated(name):
    """264 tokens x 256 rows would be 67,584 elements; the largest tensor is the head's own gradient."""
    ids, targets, weight, layer, teachers = make(B=24, n_teachers=3)
    settings = SETTINGS | {"terms": divergence(name), "shares": [1 / 3] * 3, "ensemble": "probs"}
    N = targets.numel()
    with Largest() as seen:
        hidden = states(ids, weight, layer)
        chunked_head(hidden, weight, targets, 40, teachers, chunk=20, **settings)[0].backward()
    assert weight.grad.any() and layer.grad.any()
    assert 20 * ROWS <= seen.numel <= max(ROWS * C, N * max(C, 40)) < N * V / 4
    with Largest() as seen:
        compare((states(ids, weight, layer), weight), teachers, targets, V, 20, "probs", [1 / 3] * 3)
    assert 20 * ROWS <= seen.numel < N * V / 4
    with Largest() as seen:  # and that this test would see them
        states(ids, weight, layer) @ weight.T
    assert seen.numel == N * ROWS


def test_evaluation_skips_the_gradient():
    ids, targets, weight, layer, teachers = make()
    hidden = states(ids, weight, layer)
    with Largest() as trained:
        want = chunked_head(hidden, weight, targets, 40, teachers, chunk=22, **SETTINGS)
    with torch.no_grad(), Largest() as evaluated:
        got = chunked_head(hidden, weight, targets, 40, teachers, chunk=22, **SETTINGS)
    assert (trained.products, evaluated.products) == (12, 6)  # 3 chunks: logits of two models, and two gradients
    assert [t.item() for t in got] == [t.item() for t in want] and not got[0].requires_grad


def test_bfloat16_hidden_states():
    """Matmuls in bfloat16 stay within its rounding, and the head's gradient is summed in fp32 over any chunks."""
    ids, targets, weight, layer, teachers = make(B=32)
    want = chunked_head(states(ids, weight, layer), weight, targets, 300, teachers, **SETTINGS)[0]
    want_grads = torch.autograd.grad(want, (weight, layer))
    for chunk in (1, 100):
        hidden = states(ids, weight, layer).bfloat16()
        low = [(h.bfloat16(), w.bfloat16()) for h, w in teachers]
        got = chunked_head(hidden, weight, targets, 300, low, chunk=chunk, dtype=torch.bfloat16, **SETTINGS)[0]
        assert got.dtype == torch.float32
        close(got, want, 2e-3)
        for a, b in zip(torch.autograd.grad(got, (weight, layer)), want_grads):
            assert a.dtype == torch.float32
            close(a, b, 1e-2)


def test_a_second_backward_is_an_error():
    ids, targets, weight, layer, _ = make()
    loss, _, _ = chunked_head(states(ids, weight, layer), weight, targets, 40, vocab_size=V)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward"):
        loss.backward()


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a compiler")
def test_compiled_chunks_equal_eager_ones():
    ids, targets, weight, layer, teachers = make()
    body = torch.compile(head_terms)
    for name in ("forward", "js"):
        settings = SETTINGS | {"terms": divergence(name)}
        results = []
        for kind in (None, body):
            hidden = states(ids, weight, layer)
            loss, _, _ = chunked_head(hidden, weight, targets, 40, teachers, chunk=30, body=kind, **settings)
            results.append((loss, *torch.autograd.grad(loss, (weight, layer))))
        for a, b in zip(*results):
            close(a, b, 1e-6)


def test_comparison_with_the_teachers():
    ids, targets, weight, layer, teachers = make(n_teachers=2)
    hidden, valid = states(ids, weight, layer).detach(), targets.flatten() >= 0
    got = compare((hidden, weight), teachers, targets, V, 9, shares=[0.75, 0.25])
    logits = (hidden.double() @ weight.double().T)[..., :V].flatten(0, 1)
    taught = sum(s * (h.double() @ w.double().T)[..., :V].flatten(0, 1) for s, (h, w) in zip((0.75, 0.25), teachers))
    p, q = taught.softmax(-1), logits.softmax(-1)
    want = {
        "agree": (logits.argmax(-1) == taught.argmax(-1)).double(),
        "entropy": -(q * q.log()).sum(-1),
        "teacher_entropy": -(p * p.log()).sum(-1),
        "forward_kl": brute_force("forward", logits, taught, 1.0),
        "reverse_kl": brute_force("reverse", logits, taught, 1.0),
    }
    assert got.keys() == want.keys()
    for key in want:
        assert got[key].item() == pytest.approx((want[key] * valid).sum().item(), rel=1e-5)
