"""GPT and LLaMA, each readable on its own: read one class from its Attention to its forward.

GPT    GPT-2 (learned positions, tanh GELU, tied head) and, by its flags, GPT-NeoX / Pythia
       (rotary positions on a part of each head, parallel residual, exact GELU, untied head).
LLaMA  LLaMA 1-3 (RMSNorm, SwiGLU, rotary positions, grouped-query attention, RoPE scaling), Mistral,
       Qwen2.5 (bias on query, key and value) and OLMo (LayerNorm without parameters, clipped q, k, v).

Shapes: B rows, T positions, C = n_embd, V = vocab_size, nh query heads, nkv key/value heads,
hs = C / nh. Nothing here knows of files, ranks, losses or foreign names of weights.
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn as nn
from torch.nn import functional as F

# ---------------------------------------------------------------------------------------------
# shared: rotary positions, attention, the key/value cache


def rope_table(positions, dim, theta, scaling):
    """Cosines and sines of positions (…, T): two fp32 tensors (…, T, dim / 2).

    RoFormer (arXiv:2104.09864), section 3.4.2, in the half-split layout of GPT-NeoX and the
    Hugging Face LLaMA. Computed from its formula in every forward rather than kept in a buffer,
    which `model.to(torch.bfloat16)` would round: at position 1,000 that is off by whole radians.
    """
    inv_freq = 1.0 / theta ** (torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim)
    if scaling:
        inv_freq = scale_rope(inv_freq, **scaling)
    angles = positions[..., None].float() * inv_freq  # (…, T, dim/2)
    return angles.cos(), angles.sin()


def scale_rope(inv_freq, rope_type, factor, low_freq_factor=1.0, high_freq_factor=4.0, original=8192):
    """Rotary frequencies stretched to a longer context; returns the shape of `inv_freq`.

    "linear": every frequency divided by `factor` (arXiv:2306.15595). "llama3": wavelengths beyond
    original/low_freq_factor positions divided by `factor`, those under original/high_freq_factor
    kept, a linear blend between (Llama 3.1's published code). `original` is the context it was trained on.
    """
    if rope_type == "linear":
        return inv_freq / factor
    turns = original * inv_freq / (2 * math.pi)  # how often a frequency turns within the old context
    keep = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
    return keep * inv_freq + (1 - keep) * inv_freq / factor


def apply_rope(x, rope):
    """Rotate the first `dim` channels of each head of x (B, n, T, hs) by rope = (cos, sin), each (…, T, dim / 2)."""
    cos, sin = rope
    half = cos.size(-1)
    a, b, kept = x.float().split((half, half, x.size(-1) - 2 * half), dim=-1)  # in fp32 whatever x is
    return torch.cat((a * cos - b * sin, b * cos + a * sin, kept), dim=-1).type_as(x)


def attend(q, k, v, mask=None, dropout=0.0):
    """Attention. q (B, nh, Tq, hs) are the last Tq of the Tk positions of k, v (B, nkv, Tk, hs).

    mask (B, 1, Tq, Tk): True where a query sees a key; without, those up to its own position.
    Grouped queries read their key/value head where it lies. With keys and values expanded to all heads first, a CPU
    takes 5-8 % longer in training, 4-7 % in scoring, and 2.3-3.7 times as long with a cache (`bench.py --part=gqa`).
    """
    Tq, Tk = q.size(2), k.size(2)
    causal = mask is None and Tq == Tk
    if mask is None and 1 < Tq < Tk:
        mask = torch.ones(Tq, Tk, dtype=torch.bool, device=q.device).tril(Tk - Tq)
    gqa = q.size(1) != k.size(1)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal, enable_gqa=gqa)


class KVCache:
    """Keys and values of the positions seen so far, a pair of (B, nkv, length, hs) buffers a layer."""

    def __init__(self, n_layer, length):
        self.buffers, self.length, self.seen = [None] * n_layer, length, 0

    def extend(self, layer, k, v):
        """Append k, v (B, nkv, T, hs) to `layer`; return all of its keys and values (B, nkv, seen + T, hs)."""
        if self.buffers[layer] is None:
            B, n, _, hs = k.shape
            self.buffers[layer] = (k.new_empty(B, n, self.length, hs), v.new_empty(B, n, self.length, hs))
        end = self.seen + k.size(2)
        for buffer, new in zip(self.buffers[layer], (k, v)):
            buffer[:, :, self.seen : end] = new
        return (buffer[:, :, :end] for buffer in self.buffers[layer])


class LanguageModel(nn.Module):
    """What the loops and tools use of either class; a subclass brings config, wte, h, ln_f, lm_head and `embed`."""

    def forward(self, idx, hidden=False, cache=None, positions=None, mask=None):
        """Token ids (B, T) -> logits (B, T, V) of every position, or with `hidden` the states (B, T, C) after ln_f.

        `cache`: a KVCache, whose positions come before idx and which is extended by idx. `positions` (B, T) and `mask`
        (B, 1, T, T), True where a query sees a key: for rows that hold more than one text, as hellaswag.py's.
        """
        start = cache.seen if cache else 0
        if start + idx.size(1) > self.config.block_size:
            raise ValueError(f"{start + idx.size(1)} positions, but block_size is {self.config.block_size}")
        if positions is None:
            positions = torch.arange(start, start + idx.size(1), device=idx.device)
        x, rope = self.embed(idx, positions)
        for i, block in enumerate(self.h):
            x = block(x, rope, mask, (lambda k, v, i=i: cache.extend(i, k, v)) if cache else None)
        if cache:
            cache.seen += idx.size(1)
        x = self.ln_f(x)
        return x if hidden else self.lm_head(x)

    @torch.no_grad()
    def generate(self, idx, n, temperature=1.0, top_k=0, vocab_size=None, eot=None):
        """Append n tokens to idx (B, T); returns (B, T + n), fewer when every row has drawn `eot`.

        temperature 0 is greedy; top_k 0 draws from all; ids >= vocab_size (a padded head) are never
        drawn. Uses a key/value cache until block_size is full, then recomputes the last block_size
        positions for each token, as without a cache.
        """
        cache, size = KVCache(len(self.h), self.config.block_size), self.config.block_size
        idx, done = idx, torch.zeros(idx.size(0), 1, dtype=torch.bool, device=idx.device)
        fresh = idx[:, -size:]
        for _ in range(n):
            if cache and cache.seen + fresh.size(1) > size:
                cache, fresh = None, idx[:, -size:]
            logits = self.lm_head(self(fresh, hidden=True, cache=cache)[:, -1]).float()[:, :vocab_size]
            fresh = sample(logits, temperature, top_k)  # (B, 1)
            if eot is not None:
                fresh = fresh.masked_fill(done, eot)
                done |= fresh == eot
            idx = torch.cat((idx, fresh), dim=1)
            fresh = fresh if cache else idx[:, -size:]
            if done.all():
                break
        return idx

    def flops_per_token(self, T):
        """Forward FLOPs per token in rows of T tokens: matrices, head and attention; embeddings look up for free.

        Two per weight of each matrix, and two each for the scores and the weighted values of the
        (T + 1) / 2 positions that a causal query sees on average (PaLM, appendix B, counts all T).
        """
        matrices = sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))
        return 2 * matrices + 4 * self.config.n_layer * self.config.n_embd * (T + 1) / 2

    def n_params(self):
        """Parameters, a tied head counted once."""
        return sum(p.numel() for p in self.parameters())

    def tie(self):
        """Make the head the embedding's own tensor, where the config ties them."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.wte.weight


def sample(logits, temperature, top_k):
    """One id a row from logits (B, V): (B, 1)."""
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    logits = logits / temperature
    if 0 < top_k < logits.size(-1):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -math.inf)
    return torch.multinomial(logits.softmax(dim=-1), num_samples=1)


def check_config(config, n_kv_head):
    if not 0 <= config.dropout < 1:
        raise ValueError(f"dropout={config.dropout} must be at least 0 and under 1")
    for name, value, of, by in (("n_embd", config.n_embd, "n_head", config.n_head),
                                ("n_head", config.n_head, "n_kv_head", n_kv_head)):  # fmt: skip
        if by < 1 or value % by:
            raise ValueError(f"{name}={value} is not divisible by {of}={by}; choose a multiple")


# ---------------------------------------------------------------------------------------------
# GPT


@dataclass
class GPTConfig:
    vocab_size: int = 50304  # rows of the embedding and the head, padding included
    block_size: int = 1024
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_inner: int = 0  # width of the MLP; 0: 4 * n_embd
    dropout: float = 0.0
    tie_word_embeddings: bool = True
    rotary_pct: float = 0.0  # 0: learned positions; else the part of each head that rotates
    rope_theta: float = 10000.0
    parallel_residual: bool = False  # x + attn(ln_1(x)) + mlp(ln_2(x))
    exact_gelu: bool = False  # erf instead of GPT-2's tanh
    norm_eps: float = 1e-5

    def __post_init__(self):
        self.n_inner = self.n_inner or 4 * self.n_embd
        check_config(self, n_kv_head=1)
        hs = self.n_embd // self.n_head
        rotated = int(hs * self.rotary_pct)
        if not 0 <= self.rotary_pct <= 1 or rotated % 2 or (self.rotary_pct and not rotated):
            raise ValueError(
                f"rotary_pct={self.rotary_pct} of n_embd / n_head = {hs} rotates {rotated} channels of a head; "
                "expected an even number of them, over 0 and at most all"
            )


class GPTAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x, rope, mask, extend):
        B, T, C = x.shape
        q, k, v = (p.view(B, T, self.n_head, -1).transpose(1, 2) for p in self.c_attn(x).split(C, dim=2))
        if rope:
            q, k = apply_rope(q, rope), apply_rope(k, rope)  # (B, nh, T, hs)
        if extend:
            k, v = extend(k, v)
        y = attend(q, k, v, mask, self.dropout if self.training else 0.0)  # (B, nh, T, hs)
        y = self.c_proj(y.transpose(1, 2).reshape(B, T, C))
        return F.dropout(y, self.dropout, self.training)


class GPTMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, config.n_inner)
        self.c_proj = nn.Linear(config.n_inner, config.n_embd)
        self.approximate, self.dropout = "none" if config.exact_gelu else "tanh", config.dropout

    def forward(self, x):
        x = self.c_proj(F.gelu(self.c_fc(x), approximate=self.approximate))
        return F.dropout(x, self.dropout, self.training)


class GPTBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, config.norm_eps)
        self.attn = GPTAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, config.norm_eps)
        self.mlp = GPTMLP(config)
        self.parallel = config.parallel_residual

    def forward(self, x, rope, mask, extend):
        if self.parallel:
            return x + self.attn(self.ln_1(x), rope, mask, extend) + self.mlp(self.ln_2(x))
        x = x + self.attn(self.ln_1(x), rope, mask, extend)
        return x + self.mlp(self.ln_2(x))


class GPT(LanguageModel):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = None if config.rotary_pct else nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(GPTBlock(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, config.norm_eps)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.tie()
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """GPT-2: N(0, 0.02), both residual projections of each block by 1/sqrt(2 n_layer) less; biases 0."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for block in self.h:
            for projection in (block.attn.c_proj, block.mlp.c_proj):
                nn.init.normal_(projection.weight, std=0.02 / math.sqrt(2 * self.config.n_layer))

    def embed(self, idx, positions):
        """Ids (B, T) at positions (T,) or (B, T): (B, T, C), and the rotary table or None."""
        c, x, rope = self.config, self.wte(idx), None
        if self.wpe is not None:
            x = x + self.wpe(positions)
        else:
            rotated = int(c.n_embd // c.n_head * c.rotary_pct)
            rope = rope_table(positions.unsqueeze(-2), rotated, c.rope_theta, None)  # one for all heads
        return F.dropout(x, c.dropout, self.training), rope


# ---------------------------------------------------------------------------------------------
# LLaMA


@dataclass
class LLaMAConfig:
    vocab_size: int = 32000  # rows of the embedding and the head, padding included
    block_size: int = 2048
    n_layer: int = 12
    n_head: int = 12
    n_kv_head: int = 0  # key/value heads, each shared by n_head / n_kv_head queries; 0: n_head
    n_embd: int = 768
    n_inner: int = 0  # width of the SwiGLU; 0: 8/3 * n_embd, up to a multiple of 64
    dropout: float = 0.0
    tie_word_embeddings: bool = True
    rope_theta: float = 10000.0
    rope_scaling: dict = field(default_factory=dict)  # arguments of scale_rope; empty: none
    qkv_bias: bool = False  # Qwen2.5
    attn_proj_bias: bool = False  # of attention's output
    mlp_bias: bool = False
    clip_qkv: float = 0.0  # OLMo: queries, keys and values are clamped to +- this; 0: not
    sliding_window: int = 0  # Mistral: positions a query sees; block_size is at most this, where it makes no difference
    parametric_norm: bool = True  # True: RMSNorm; False: OLMo's LayerNorm without weight and bias
    norm_eps: float = 1e-5

    def __post_init__(self):
        self.n_kv_head = self.n_kv_head or self.n_head
        self.n_inner = self.n_inner or 64 * math.ceil(8 * self.n_embd / 3 / 64)
        check_config(self, self.n_kv_head)
        if 0 < self.sliding_window < self.block_size:
            raise ValueError(f"block_size={self.block_size} is beyond sliding_window={self.sliding_window}; lower it")
        if self.n_embd // self.n_head % 2:
            raise ValueError(f"n_embd / n_head = {self.n_embd // self.n_head} is odd; rotary positions need pairs")

    def norm(self):
        if self.parametric_norm:
            return nn.RMSNorm(self.n_embd, self.norm_eps)
        return nn.LayerNorm(self.n_embd, self.norm_eps, elementwise_affine=False)


class LLaMAAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.hs, self.dropout, self.clip = config.n_embd // config.n_head, config.dropout, config.clip_qkv
        self.c_q = nn.Linear(config.n_embd, config.n_embd, bias=config.qkv_bias)
        self.c_k = nn.Linear(config.n_embd, config.n_kv_head * self.hs, bias=config.qkv_bias)
        self.c_v = nn.Linear(config.n_embd, config.n_kv_head * self.hs, bias=config.qkv_bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.attn_proj_bias)

    def forward(self, x, rope, mask, extend):
        B, T, C = x.shape
        q, k, v = (c(x).view(B, T, -1, self.hs).transpose(1, 2) for c in (self.c_q, self.c_k, self.c_v))
        if self.clip:
            q, k, v = (p.clamp(-self.clip, self.clip) for p in (q, k, v))
        q, k = apply_rope(q, rope), apply_rope(k, rope)  # (B, nh, T, hs), (B, nkv, T, hs)
        if extend:
            k, v = extend(k, v)
        y = attend(q, k, v, mask, self.dropout if self.training else 0.0)  # (B, nh, T, hs)
        y = self.c_proj(y.transpose(1, 2).reshape(B, T, C))
        return F.dropout(y, self.dropout, self.training)


class LLaMAMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_gate = nn.Linear(config.n_embd, config.n_inner, bias=config.mlp_bias)
        self.c_fc = nn.Linear(config.n_embd, config.n_inner, bias=config.mlp_bias)
        self.c_proj = nn.Linear(config.n_inner, config.n_embd, bias=config.mlp_bias)
        self.dropout = config.dropout

    def forward(self, x):
        x = self.c_proj(F.silu(self.c_gate(x)) * self.c_fc(x))
        return F.dropout(x, self.dropout, self.training)


class LLaMABlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = config.norm()
        self.attn = LLaMAAttention(config)
        self.ln_2 = config.norm()
        self.mlp = LLaMAMLP(config)

    def forward(self, x, rope, mask, extend):
        x = x + self.attn(self.ln_1(x), rope, mask, extend)
        return x + self.mlp(self.ln_2(x))


class LLaMA(LanguageModel):
    def __init__(self, config: LLaMAConfig):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.h = nn.ModuleList(LLaMABlock(config) for _ in range(config.n_layer))
        self.ln_f = config.norm()
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.tie()
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """GPT-2's scheme: N(0, 0.02), both residual projections of each block by 1/sqrt(2 n_layer) less; biases 0."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for block in self.h:
            for projection in (block.attn.c_proj, block.mlp.c_proj):  # not c_gate: it does not write to x
                nn.init.normal_(projection.weight, std=0.02 / math.sqrt(2 * self.config.n_layer))

    def embed(self, idx, positions):
        """Ids (B, T) at positions (T,) or (B, T): (B, T, C), and the rotary table."""
        c = self.config
        rope = rope_table(positions.unsqueeze(-2), c.n_embd // c.n_head, c.rope_theta, c.rope_scaling)  # for all heads
        return F.dropout(self.wte(idx), c.dropout, self.training), rope
