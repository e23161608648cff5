"""The chunked head against a slow reference that has all logits at once, in float64, and autograd."""

import doctest
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, run_python
from test_losses import OBJECTIVES, brute_force
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import head as head_module
from head import blocks_to_write, chunked_head, compare, equal_chunk, fastest_chunk
from losses import Objective, divergence, loss_terms

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
    objective = Objective(weight_ce=0.3)
    if name:
        objective = Objective(0.3, 2.0, divergence(name), temperature=T, ensemble=ensemble, shares=tuple(shares))
    hidden = states(ids, weight, layer)
    loss, ce, kl = chunked_head(hidden, weight, targets, n, teachers, objective, vocab_size=V, chunk=7)
    grads = torch.autograd.grad(loss, (weight, layer))
    exact = weight.detach().double().requires_grad_(), layer.detach().double().requires_grad_()
    want = slow_head(states(ids, *exact), exact[0], targets, n, teachers, name, 0.3, 2.0, T, ensemble, shares)
    for a, b in zip((loss, ce, kl), want):
        assert a.item() == pytest.approx(b.item(), rel=1e-6)
    for a, b in zip(grads, torch.autograd.grad(want[0], exact)):
        close(a, b, 2e-6)
    assert not ce.requires_grad and not kl.requires_grad


OBJECTIVE = Objective(weight_ce=0.5, weight_kl=2.0, temperature=2.0)
SETTINGS = {"vocab_size": V, "objective": OBJECTIVE}


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


@pytest.mark.slow
def test_two_ranks_give_the_same_gradients(tmp_path):
    (tmp_path / "two.py").write_text(TWO_RANKS)
    run_python(tmp_path / "two.py", tmp_path / "grads.pt", ranks=2)
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


class LiveLogits(TorchDispatchMode):
    """The most matrices of n x rows that are alive while another is being multiplied."""

    def __init__(self, n):
        super().__init__()
        self.n, self.made, self.most = n, [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten.mm:
            self.most = max(self.most, sum(not storage.expired() for storage in self.made))
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten.mm and out.shape[0] == self.n and out.shape[1] in (V, ROWS):
            self.made.append(StorageWeakRef(out.untyped_storage()))
        return out


def test_logits_of_a_chunk_are_freed_before_the_next_are_made():
    """In bfloat16, as on CUDA, they have memory of their own; two models' are alive, not four."""
    ids, targets, weight, layer, teachers = make(B=12)
    hidden = states(ids, weight, layer)
    with LiveLogits(22) as live:
        chunked_head(hidden, weight, targets, 40, teachers, chunk=22, dtype=torch.bfloat16, **SETTINGS)[0].backward()
    assert len(live.made) == 12 and live.most == 2
    with LiveLogits(22) as live:
        compare((hidden, weight), teachers, targets, OBJECTIVE, vocab_size=V, chunk=22, dtype=torch.bfloat16)
    assert len(live.made) == 12 and live.most == 1


@pytest.mark.parametrize("name", OBJECTIVES)
def test_logits_of_all_tokens_are_never_allocated(name):
    """264 tokens x 256 rows would be 67,584 elements; the largest tensor is the head's own gradient."""
    ids, targets, weight, layer, teachers = make(B=24, n_teachers=3)
    objective = replace(OBJECTIVE, terms=divergence(name), shares=(1 / 3,) * 3, ensemble="probs")
    settings = {"vocab_size": V, "objective": objective}
    N = targets.numel()
    with Largest() as seen:
        hidden = states(ids, weight, layer)
        chunked_head(hidden, weight, targets, 40, teachers, chunk=20, **settings)[0].backward()
    assert weight.grad.any() and layer.grad.any()
    assert 20 * ROWS <= seen.numel <= max(ROWS * C, N * max(C, 40)) < N * V / 4
    with Largest() as seen:
        compare((states(ids, weight, layer), weight), teachers, targets, objective, vocab_size=V, chunk=20)
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


def test_rows_of_a_bfloat16_gradient_begin_at_16_bytes():
    """Tensor cores read so many at a time; GPT-2's 50,257 columns alone are no multiple of eight numbers."""
    logits = torch.empty(3, 50257)
    grad = head_module.gradient_buffer(logits, torch.bfloat16)
    assert grad.shape == logits.shape and grad.dtype == torch.bfloat16
    assert grad.stride(0) * grad.element_size() % 16 == 0
    assert head_module.gradient_buffer(logits, torch.float32) is logits


def test_a_second_backward_is_an_error():
    ids, targets, weight, layer, _ = make()
    loss, _, _ = chunked_head(states(ids, weight, layer), weight, targets, 40, vocab_size=V)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward"):
        loss.backward()


def test_what_the_head_computes_leaves_the_logits_as_they_are():
    """And returns memory of its own: a compiled body with an argument in another's place gave wrong gradients."""
    torch.manual_seed(0)
    logits, taught, targets = torch.randn(5, V), [torch.randn(5, V), torch.randn(5, V)], torch.randint(V, (5,))
    before = [t.clone() for t in (logits, *taught, targets)]
    objective = replace(OBJECTIVE, shares=(0.5, 0.5))
    for name in OBJECTIVES:
        for ensemble in ("logits", "probs"):
            for teachers in ([], taught[:1], taught):
                now = replace(objective, terms=divergence(name), ensemble=ensemble)
                _, grad = loss_terms(logits, teachers, targets, now, torch.float32)
                places = {t.untyped_storage().data_ptr() for t in (logits, *taught)}
                assert grad.any() and grad.untyped_storage().data_ptr() not in places
                for after, then in zip((logits, *taught, targets), before):
                    assert torch.equal(after, then)


def test_blocks_to_write_cover_each_row_once():
    """With `equal` all have one size, where there are several; what they share is read before it is written."""
    step = torch.get_num_threads() * 2
    for n in (1, step - 1, step, step + 1, 3 * step, 4 * step - 1):
        logits = torch.empty(n, 2**17)
        for equal in (False, True):
            written = []
            for rows, new in blocks_to_write(logits, equal):
                assert rows.start <= new.start < new.stop == rows.stop
                assert not set(range(rows.start, rows.stop)) & set(written)
                written += range(new.start, new.stop)
                assert not equal or rows.stop - rows.start == min(n, step)
            assert sorted(written) == list(range(n))


def test_bfloat16_logits_are_not_rounded():
    """The product of two bfloat16 is exact in fp32: the losses are those of fp32 hidden states with the same values."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(40, C).bfloat16(), torch.randn(ROWS, C).bfloat16()
    teacher = (hidden + 0.05 * torch.randn(40, C)).bfloat16(), weight
    targets = torch.randint(V, (40,))
    wide = [(t.float(), w.float()) for t, w in [teacher]]
    got = chunked_head(hidden, weight, targets, 40, [teacher], chunk=16, **SETTINGS)
    want = chunked_head(hidden.float(), weight.float(), targets, 40, wide, chunk=16, **SETTINGS)
    for a, b in zip(got, want):
        close(a, b, 1e-6)
    narrow_student, wide_student = (hidden, weight), (hidden.float(), weight.float())
    sums = [
        compare(narrow_student, [teacher], targets, OBJECTIVE, vocab_size=V),
        compare(wide_student, wide, targets, OBJECTIVE, vocab_size=V),
    ]
    for name in sums[0]:
        close(sums[0][name], sums[1][name], 1e-5)


def test_comparison_with_the_teachers():
    ids, targets, weight, layer, teachers = make(n_teachers=2)
    hidden, valid = states(ids, weight, layer).detach(), targets.flatten() >= 0
    objective = Objective(shares=(0.75, 0.25))
    got = compare((hidden, weight), teachers, targets, objective, vocab_size=V, chunk=9)
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


@pytest.mark.parametrize("student_dtype, teacher_dtype", [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_student_and_teacher_are_compared_in_one_format(student_dtype, teacher_dtype):
    """A student with its teacher's weights, one of them kept in bfloat16, is its teacher in the run's bfloat16."""
    ids, targets, weight, layer, _ = make()
    hidden = states(ids, weight, layer).detach()
    student = hidden.bfloat16(), weight.to(getattr(torch, student_dtype))
    teacher = hidden.to(getattr(torch, teacher_dtype)), weight.to(getattr(torch, teacher_dtype))
    for dtype in (torch.bfloat16, None):  # None: as the student's hidden states
        got = compare(student, [teacher], targets, OBJECTIVE, vocab_size=V, dtype=dtype)
        assert got["agree"] == (targets >= 0).sum() and got["forward_kl"] == got["reverse_kl"] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("teacher_dtype", [torch.float32, torch.bfloat16])
def test_the_comparison_has_the_kl_that_is_trained_on(dtype, teacher_dtype):
    ids, targets, weight, layer, teachers = make(n_teachers=2)
    hidden = states(ids, weight, layer)
    teachers = [(h.to(teacher_dtype), w.to(teacher_dtype)) for h, w in teachers]
    objective = Objective(weight_kl=1.0, shares=(0.75, 0.25))
    _, _, kl = chunked_head(hidden, weight, targets, 1, teachers, objective, vocab_size=V, dtype=dtype)
    got = compare((hidden, weight), teachers, targets, objective, vocab_size=V, dtype=dtype)
    close(got["forward_kl"], kl, 1e-6)


def heads_of(*rows):
    """Heads whose weights have so many rows, of no memory."""
    return [(torch.empty(1, 8, device="meta"), torch.empty(n, 8, device="meta")) for n in rows]


@pytest.mark.parametrize(
    "rows, expected",
    [
        ((2048, 2048), 4224),  # a third of 52 million logits
        ((16000, 16000), 512),  # no fewer, as long as they fit
        ((50257, 50257), 512),
        ((128000, 128000), 128),  # 52 million logits are 203 tokens
    ],
)
def test_tokens_of_a_chunk_on_a_cpu(rows, expected):
    assert fastest_chunk(heads_of(*rows)) == expected


def test_chunks_of_one_size():
    """A compiled body meets one shape, where the number of tokens has a divisor in reach."""
    assert doctest.testmod(head_module).failed == 0
    for N in (1, 7, 128, 1000, 16384):
        for most in (1, 100, 4992):
            chunk = equal_chunk(N, most)
            assert 1 <= chunk <= most and (N % chunk == 0 or chunk == most)
