"""Muon, against float64 and against torch's own, which computes in bfloat16."""

import numpy as np
import pytest
import torch

from common.muon import COEFFICIENTS, ITERATIONS, POLAR_EXPRESS, HeadMuon, Muon, NorMuon, orthogonalized
from common.optim import by_heads, load_optimizer_state
from model import GPT, GPTConfig, LLaMA, LLaMAConfig


def matrices(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def one_step_each(optimizers, params_of_each, seed):
    """The same random gradients for both."""
    for i, params in enumerate(zip(*params_of_each)):
        gradient = torch.randn(params[0].shape, generator=torch.Generator().manual_seed(100 * seed + i))
        for p in params:
            p.grad = gradient.clone()
    for optimizer in optimizers:
        optimizer.step()


@pytest.mark.parametrize("shape", [(1, 24, 40), (3, 40, 24), (2, 16, 16)])
def test_singular_values_follow_the_polynomial_and_vectors_stay(shape):
    """U S V^T -> U f(S) V^T with f(s) = a s + b s^3 + c s^5, five times, of S divided by its norm; in float64."""
    given = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    a, b, c = COEFFICIENTS
    u, s, vt = torch.linalg.svd(given.double(), full_matrices=False)
    s = s / s.norm(dim=-1, keepdim=True)
    for _ in range(ITERATIONS):
        s = a * s + b * s**3 + c * s**5
    expected = u @ torch.diag_embed(s) @ vt
    got = orthogonalized(given)
    assert got.dtype == torch.float32 and got.shape == shape
    assert (got - expected).norm() < 1e-5 * expected.norm()
    assert 0.3 < torch.linalg.svdvals(got).min() and torch.linalg.svdvals(got).max() < 1.25


def test_steps_are_those_of_torch_but_for_the_rounding_of_bfloat16():
    shapes = [(24, 40), (40, 24), (24, 40), (16, 16)]
    ours = matrices(*shapes)
    theirs = matrices(*shapes)
    optimizers = [
        Muon(ours, lr=1e-2, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ]
    start = matrices(*shapes)
    for seed in range(3):
        one_step_each(optimizers, [ours, theirs], seed)
    for p, q, before in zip(ours, theirs, start):
        assert (p - q).norm() < 0.03 * (p - before).norm()
        assert torch.equal(optimizers[0].state[p]["momentum_buffer"], optimizers[1].state[q]["momentum_buffer"])


def test_checkpoints_with_the_state_of_torch_load():
    theirs = matrices((8, 12), (12, 8))
    written = torch.optim.Muon(theirs, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    one_step_each([written], [theirs], seed=0)
    read = matrices((8, 12), (12, 8))
    optimizer = Muon(read, lr=5e-3, weight_decay=0.2)
    load_optimizer_state(optimizer, written.state_dict())
    for p, q in zip(read, theirs):
        assert torch.equal(optimizer.state[p]["momentum_buffer"], written.state[q]["momentum_buffer"])
    assert optimizer.param_groups[0]["weight_decay"] == 0.2 and optimizer.param_groups[0]["lr"] == 5e-3
    one_step_each([optimizer], [read], seed=1)


def test_no_gradient_and_a_gradient_of_zeros():
    still, zero = matrices((8, 12), (8, 12))
    before = still.detach().clone(), zero.detach().clone()
    zero.grad = torch.zeros_like(zero)
    optimizer = Muon([still, zero], lr=0.1, weight_decay=0.5)
    optimizer.step()
    assert torch.equal(still, before[0]) and still not in optimizer.state
    assert torch.allclose(zero, before[1] * (1 - 0.1 * 0.5))


def test_normuon_by_hand():
    """Its first step is Muon's with all rows of one norm; its second knows the rows of the first."""
    muon, normuon = matrices((24, 8)), matrices((24, 8))
    start = muon[0].detach().clone()
    optimizers = [Muon(muon, lr=0.1, weight_decay=0.0), NorMuon(normuon, lr=0.1, weight_decay=0.0)]
    one_step_each(optimizers, [muon, normuon], seed=0)
    first = [(p[0].detach() - start) for p in (muon, normuon)]
    rows = [step.norm(dim=1) for step in first]
    assert rows[0].max() > 1.2 * rows[0].min() and rows[1].max() < 1.0001 * rows[1].min()
    assert first[1].norm() == pytest.approx(first[0].norm().item(), rel=1e-5)
    torch.testing.assert_close(first[0] / rows[0][:, None], first[1] / rows[1][:, None])
    # the second, from the first's squares
    squares = (first[0] / first[0].norm()).square().mean(1, keepdim=True)
    before = [p[0].detach().clone() for p in (muon, normuon)]
    one_step_each(optimizers, [muon, normuon], seed=1)
    second = [(p[0].detach() - b) for p, b in zip((muon, normuon), before)]
    scale = (first[0].norm() / second[0].norm()).square()  # of the two orthogonal matrices' norms
    average = 0.95 * squares * scale + (second[0] / second[0].norm()).square().mean(1, keepdim=True)
    expected = second[0] / average.sqrt()
    torch.testing.assert_close(second[1] / second[1].norm(), expected / expected.norm(), rtol=1e-4, atol=1e-6)


def best_odd_quintic(low, high):
    """(a, b, c) and the error: a s + b s^3 + c s^5 nearest to 1 on low … high, by Remez's exchange.

    The best has its largest error at four points, with alternating signs: both ends and its two extrema between.
    """
    points = low + (high - low) * (1 - np.cos(np.arange(4) * np.pi / 3)) / 2
    for _ in range(30):
        signs = (-1.0) ** np.arange(4)
        equations = np.stack([points, points**3, points**5, signs], axis=1)
        a, b, c, error = np.linalg.solve(equations, np.ones(4))
        extrema = np.sqrt(np.sort(np.roots([5 * c, 3 * b, a]).real))
        points = np.array([low, *extrema, high])
    return (a, b, c), abs(error)


def test_polar_express_is_the_best_three_polynomials_can_do():
    """Each is the best on the interval where the one before it ends, from 0.001 on, and 1 % more (arXiv:2505.16932)."""
    low, high = 0.001, 1.0
    for given in POLAR_EXPRESS:
        best, error = best_odd_quintic(low, 1.01 * high)
        assert given == pytest.approx(best, abs=5e-5)
        low, high = 1 - error, 1 + error
    assert (low, high) == pytest.approx((0.136, 1.864), abs=1e-3)


def test_polar_express_bears_the_rounding_of_bfloat16():
    """A matrix of rank one has its singular value at the end of the interval, and rounding may push it over."""
    values = np.geomspace(0.001, 1, 10_000)
    for a, b, c in POLAR_EXPRESS:
        # up, by the most that bfloat16's 8 bits round
        values = values * (1 + 2**-8)
        values = a * values + b * values**3 + c * values**5
    assert 0.13 < values.min() and values.max() < 1.87


def by_hand(part):
    """U S V^T -> U f(S) V^T in float64, f the three polynomials, of S divided by its norm."""
    u, s, vt = torch.linalg.svd(part.double(), full_matrices=False)
    s = s / s.norm()
    for a, b, c in POLAR_EXPRESS:
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ vt


@pytest.mark.parametrize("shape", [(2, 12, 40), (2, 40, 12), (1, 64, 192)])
def test_through_the_gram_matrix_it_is_the_same(shape):
    """Also for singular values from 1 down to 0.0003, whose squares the gram matrix holds."""
    generator = torch.Generator().manual_seed(3)
    u, s, vt = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    spread = torch.logspace(0, -3.5, s.size(-1)).expand_as(s)
    given = u @ torch.diag_embed(spread) @ vt
    expected = torch.stack([by_hand(matrix) for matrix in given])
    got = orthogonalized(given, POLAR_EXPRESS, through_gram=True)
    assert got.shape == shape and (got - expected).norm() < 1e-4 * expected.norm()


def test_the_gram_matrix_serves_flat_matrices_in_float32_alone(monkeypatch):
    called = []
    monkeypatch.setattr("common.muon.newton_schulz_through_gram", lambda x, coefficients: called.append(x.shape) or x)
    for n_out, n_in in [(8, 8), (8, 12), (8, 13), (13, 8)]:
        orthogonalized(torch.ones(1, n_out, n_in), POLAR_EXPRESS, through_gram=True)
    orthogonalized(torch.ones(1, 8, 13), POLAR_EXPRESS)
    assert called == [(1, 8, 13), (1, 8, 13)]


def step_of(optimizer, p):
    before = p.detach().clone()
    optimizer.step()
    return p.detach() - before


@pytest.mark.parametrize("heads", ["rows", "columns", ""])
def test_headmuon_takes_each_head_by_itself(heads):
    """The first step of a matrix with four heads of 6: parts made orthogonal, rows of one norm, RMS 0.2 * lr."""
    (p,) = matrices((24, 32) if heads == "rows" else (32, 24))
    p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(5))
    if heads == "rows":
        parts = p.grad.split(6, dim=0)
        expected = torch.cat([by_hand(part) for part in parts], dim=0)
    elif heads == "columns":
        parts = p.grad.split(6, dim=1)
        expected = torch.cat([by_hand(part) for part in parts], dim=1)
    else:
        expected = by_hand(p.grad)
    group = {"params": [p], "heads": heads, "head_dim": 6}
    step = step_of(HeadMuon([group], lr=0.01, weight_decay=0.0), p)
    expected = -expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(step / step.norm(dim=1, keepdim=True), expected.float(), atol=1e-4, rtol=0)
    assert step.square().mean().sqrt() == pytest.approx(0.2 * 0.01, rel=1e-3)


def test_a_head_without_a_gradient_stays_and_disturbs_none():
    (p,) = matrices((24, 32))
    p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(5))
    p.grad[:6] = 0
    group = {"params": [p], "heads": "rows", "head_dim": 6}
    step = step_of(HeadMuon([group], lr=0.01, weight_decay=0.0), p)
    assert not step[:6].any() and torch.isfinite(step).all() and (step[6:].norm(dim=1) > 0).all()


@pytest.mark.parametrize("arch", ["gpt", "llama"])
def test_the_heads_of_every_matrix_are_where_the_groups_say(arch):
    if arch == "gpt":
        model = GPT(GPTConfig(64, 16, n_layer=2, n_head=4, n_embd=32))
        n_in_rows = 1  # queries, keys and values in one
    else:
        model = LLaMA(LLaMAConfig(64, 16, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, head_dim=12))
        n_in_rows = 3
    model.h[1].mlp.c_fc.weight.requires_grad_(False)
    trained = [p for p in model.h.parameters() if p.dim() == 2 and p.requires_grad]
    groups = {group["heads"]: group for group in by_heads(model.h, trained)}
    assert len(groups["rows"]["params"]) == 2 * n_in_rows and len(groups["columns"]["params"]) == 2
    assert sum(len(group["params"]) for group in groups.values()) == len(trained)
    head_dim = groups["rows"]["head_dim"]
    assert head_dim == (8 if arch == "gpt" else 12)
    assert all(len(p) % head_dim == 0 for p in groups["rows"]["params"])
    # a head's columns of the output are what multiplies that head's values: without them the head says nothing
    attention = model.h[0].attn
    assert groups["columns"]["params"][0] is attention.c_proj.weight
    assert attention.c_proj.weight.shape[1] == 4 * head_dim


def test_a_state_of_muon_is_none_of_normuon():
    written = matrices((8, 12))
    muon = Muon(written, lr=0.1, weight_decay=0.0)
    one_step_each([muon], [written], seed=0)
    with pytest.raises(ValueError, match="moments are those of another model"):
        load_optimizer_state(NorMuon(matrices((8, 12)), lr=0.1, weight_decay=0.0), muon.state_dict())


@pytest.mark.parametrize("shape", [(), (8, 1)])
def test_a_moment_of_another_shape_is_refused(shape):
    """One that broadcasts as well: the fused AdamW would read beyond its end."""
    written = matrices((8, 12))
    muon = Muon(written, lr=0.1, weight_decay=0.0)
    one_step_each([muon], [written], seed=0)
    state = muon.state_dict()
    state["state"][0]["momentum_buffer"] = torch.zeros(shape)
    with pytest.raises(ValueError, match="moments are those of another model"):
        load_optimizer_state(Muon(matrices((8, 12)), lr=0.1, weight_decay=0.0), state)
