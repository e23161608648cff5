"""The two models: shapes, causality, initialisation, FLOPs, sampling, refusals."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model import GPT, GPTConfig, LLaMA, LLaMAConfig, attend

SHAPE = dict(vocab_size=100, block_size=32, n_layer=3, n_head=4, n_embd=64)
MODELS = {
    "gpt": lambda **k: GPT(GPTConfig(**SHAPE | k)),
    "neox": lambda **k: GPT(GPTConfig(**SHAPE | dict(rotary_pct=0.25, parallel_residual=True, exact_gelu=True) | k)),
    "llama": lambda **k: LLaMA(LLaMAConfig(**SHAPE | dict(n_kv_head=2) | k)),
    "olmo2": lambda **k: LLaMA(LLaMAConfig(**SHAPE | dict(n_kv_head=2, qk_norm_all_heads=True, norm_after=True) | k)),
    # heads that together are wider than n_embd, and narrower
    "qwen3": lambda **k: LLaMA(LLaMAConfig(**SHAPE | dict(n_kv_head=2, head_dim=24, qk_norm=True) | k)),
    "narrow": lambda **k: LLaMA(LLaMAConfig(**SHAPE | dict(n_kv_head=2, head_dim=6) | k)),
}


@pytest.fixture(params=MODELS)
def make(request):
    torch.manual_seed(0)
    return MODELS[request.param]


def test_forward_gives_every_position_and_sees_no_future(make):
    model, idx = make().eval(), torch.randint(100, (2, 20))
    logits, hidden = model(idx), model(idx, hidden=True)
    assert logits.shape == (2, 20, 100) and hidden.shape == (2, 20, 64)
    torch.testing.assert_close(hidden @ model.lm_head.weight.T, logits)
    changed = idx.clone()
    changed[:, 12] += 1
    after = model(changed % 100)
    torch.testing.assert_close(after[:, :12], logits[:, :12])
    assert not torch.allclose(after[:, 12:], logits[:, 12:])


def test_initialisation_scales_both_residual_projections(make):
    model = make(n_layer=8, n_embd=256)
    small = 0.02 / math.sqrt(2 * 8)
    for name, p in model.named_parameters():
        if p.dim() == 2:
            want = small if name.endswith("c_proj.weight") else 0.02
            assert abs(p.std().item() / want - 1) < 0.05, name
        elif name.endswith("bias"):
            assert not p.any(), name
        else:
            assert (p == 1).all(), name
    assert sum(n.endswith("c_proj.weight") for n, _ in model.named_parameters()) == 16


def test_flops_equal_torchs_count_with_causal_attention(make):
    """torch counts all T x T scores; a causal query sees (T + 1) / 2 on average."""
    model, T = make(), 32
    with (
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        model(torch.zeros(1, T, dtype=torch.long))
    head_dim = getattr(model.config, "head_dim", 64 // 4)
    attention = 4 * model.config.n_layer * model.config.n_head * head_dim
    want = counter.get_total_flops() / T - attention * T + attention * (T + 1) / 2
    assert model.flops_per_token(T) == pytest.approx(want)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_heads(make, tied):
    model = make(tie_word_embeddings=tied)
    assert (model.lm_head.weight is model.wte.weight) == tied
    assert make(tie_word_embeddings=False).n_params() - make(tie_word_embeddings=True).n_params() == 100 * 64


def test_known_parameter_counts():
    with torch.device("meta"):
        assert GPT(GPTConfig(vocab_size=50257)).n_params() == 124_439_808  # GPT-2
        assert LLaMA(LLaMAConfig(50304, 1024, n_inner=2048)).n_params() == 123_587_328


def test_dropout_acts_in_training_only(make):
    model, idx = make(dropout=0.5), torch.randint(100, (1, 8))
    assert not torch.equal(model(idx), model(idx))
    assert torch.equal(model.eval()(idx), model(idx))


def test_generate_draws_from_top_k_of_the_true_vocabulary_and_stops_at_eot(make):
    model, idx = make().eval(), torch.randint(100, (2, 3))
    torch.manual_seed(1)
    out = model.generate(idx, 300, temperature=1.0, vocab_size=5)
    assert out.shape == (2, 303) and out[:, 3:].max() == 4
    greedy = model.generate(idx, 10, temperature=0)
    assert torch.equal(model.generate(idx, 10, temperature=1.0, top_k=1), greedy)
    eot = int(greedy[0, 3])
    alone = model.generate(idx[:1], 10, temperature=0, eot=eot)
    assert alone.shape == (1, 4)  # it ends with its first eot
    both = model.generate(idx, 10, temperature=0, eot=eot)
    assert (both[0, 3:] == eot).all()


@pytest.mark.parametrize("kernel_reads_them", [True, False])
def test_grouped_queries_equal_keys_and_values_expanded_to_all_heads(kernel_reads_them, monkeypatch):
    """In training, with a mask, and for the last queries of a cache: outputs and gradients.

    Also where attend expands them itself, as on CUDA in fp32 or with a mask.
    """
    monkeypatch.setattr("model.reads_grouped_heads", lambda q, mask: kernel_reads_them)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, 9, 8, requires_grad=True) for n in (6, 2, 2))
    mask = torch.rand(2, 1, 9, 9) < 0.5
    mask |= torch.eye(9, dtype=torch.bool)
    for queries, seen in ((q, None), (q, mask), (q[:, :, -3:], None), (q[:, :, -1:], None)):
        results = []
        for keys, values in ((k, v), (k.repeat_interleave(3, dim=1), v.repeat_interleave(3, dim=1))):
            y = attend(queries, keys, values, seen)
            results.append((y, *torch.autograd.grad(y.square().sum(), (q, k, v))))
        for got, want in zip(*results):
            torch.testing.assert_close(got, want)


def test_a_rotary_part_without_channels_is_refused():
    """It would be a model that does not know the order of its tokens."""
    for part in (0.01, 0.2, 3.0):
        with pytest.raises(ValueError, match="expected an even number of them, over 0"):
            GPTConfig(n_embd=64, n_head=4, rotary_pct=part)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="n_embd=64 is not divisible by n_head=5"):
        GPTConfig(n_embd=64, n_head=5)
    with pytest.raises(ValueError, match="n_head=4 is not divisible by n_kv_head=3"):
        LLaMAConfig(n_embd=64, n_head=4, n_kv_head=3)
    LLaMAConfig(n_embd=64, n_head=5, head_dim=16)  # nothing is divided


def test_rows_beyond_block_size_are_refused(make):
    with pytest.raises(ValueError, match="33 positions, but block_size is 32"):
        make()(torch.zeros(1, 33, dtype=torch.long))
