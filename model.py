"""GPT and LLaMA, each readable on its own: read one class from its Attention to its forward.

GPT    GPT-2 (learned positions, tanh GELU, tied head) and, by its flags, GPT-NeoX / Pythia
       (rotary positions on a part of each head, parallel residual, exact GELU, untied head).
LLaMA  LLaMA 1-3 (RMSNorm, SwiGLU, rotary positions, grouped-query attention, RoPE scaling), Mistral,
       Qwen2.5 (bias on query, key and value), Qwen3 (queries and keys normalised, heads of any width),
       OLMo (LayerNorm without parameters, clipped q, k, v) and OLMo 2 (norms after attention and MLP).

Shapes: B rows, T positions, C = n_embd, V = vocab_size, nh query heads, nkv key/value heads,
hs = C / nh or head_dim. Nothing here knows about files, ranks, losses, or other libraries' names for weights.
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

    RoFormer (arXiv:2104.09864), section 3.4.2, in the half-split layout of GPT-NeoX.
    """
    # Computed in every forward rather than kept in a buffer, which `model.to(torch.bfloat16)`
    # would round: at position 1,000 that is off by whole radians.
    even_channels = torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32)
    # from one radian per position, for neighbours, down to almost 1/theta, for long distances
    inv_freq = 1.0 / theta ** (even_channels / dim)  # (dim/2,)
    if scaling:
        inv_freq = scale_rope(inv_freq, **scaling)
    angles = positions[..., None].float() * inv_freq  # (…, T, dim/2)
    return angles.cos(), angles.sin()


def scale_rope(inv_freq, rope_type, factor, low_freq_factor=1.0, high_freq_factor=4.0, original=8192):
    """Rotary frequencies stretched to a longer context; returns the shape of `inv_freq`.

    "linear": every frequency divided by `factor` (arXiv:2306.15595). "llama3": wavelengths beyond
    original/low_freq_factor positions divided by `factor`, those under original/high_freq_factor
    kept, a linear blend between (Llama 3.1's published code). `original`: the context of training.
    """
    if rope_type == "linear":
        return inv_freq / factor
    # A frequency that turned many times in the old context has shown the model all its angles. One that
    # did not finish a turn would reach angles that the model has never seen: it is slowed down instead.
    turns = original * inv_freq / (2 * math.pi)
    keep = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
    return keep * inv_freq + (1 - keep) * inv_freq / factor


def apply_rope(x, rope):
    """Rotate the first `dim` channels of x (B, n, T, hs) by rope = (cos, sin), each (…, T, dim / 2)."""
    cos, sin = rope
    half = cos.size(-1)
    # Channels i and i + half are one pair. In fp32 whatever x is: bfloat16 would blur the angle.
    a, b, kept = x.float().split((half, half, x.size(-1) - 2 * half), dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin, kept), dim=-1).type_as(x)


def attend(q, k, v, mask=None, dropout=0.0):
    """Attention. q (B, nh, Tq, hs) are the last Tq of the Tk positions of k, v (B, nkv, Tk, hs).

    mask (B, 1, Tq, Tk): True where a query sees a key. None: each query sees the keys up to its own position.
    """
    Tq, Tk = q.size(2), k.size(2)
    # Where queries and keys are the same positions, torch's is_causal is faster than a mask.
    is_causal = mask is None and Tq == Tk
    # After a cache, the triangle of is_causal would start at the first key and hide the new tokens from
    # themselves; this one ends at the last key. A single new token sees all keys, and needs no mask.
    if mask is None and 1 < Tq < Tk:
        mask = torch.ones(Tq, Tk, dtype=torch.bool, device=q.device).tril(Tk - Tq)
    # With grouped-query attention, several query heads read one key/value head in place. Expanding keys and
    # values first takes a CPU 4-8 % longer, and 2.3-3.7 times as long with a cache (bench.py --part=gqa).
    gqa = q.size(1) != k.size(1)
    if gqa and not reads_grouped_heads(q, mask):
        k = k.repeat_interleave(q.size(1) // k.size(1), dim=1)  # (B, nh, Tk, hs)
        v = v.repeat_interleave(q.size(1) // v.size(1), dim=1)
        gqa = False
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal, enable_gqa=gqa
    )


def reads_grouped_heads(q, mask):
    """Whether torch has a fast kernel here that reads key/value heads which several query heads share."""
    # On CUDA flash and cuDNN do, in half precision and without a mask. Otherwise torch would write out all scores,
    # by plain matmuls, while with expanded heads its memory-efficient kernel takes fp32 and masks.
    return not q.is_cuda or (mask is None and q.dtype in (torch.float16, torch.bfloat16))


class Linear(nn.Linear):
    """nn.Linear, but faster on a CPU for one or a few positions at a time, as in generation."""

    def forward(self, x):
        rows = x.numel() // self.in_features
        if not (1 <= rows <= 32 and self.is_bound_by_reading(x)):
            return super().forward(x)
        # Reading the weights is what takes the time. Torch's x @ weight.T of one row reads them on one core, at a
        # quarter of the memory's speed, and of a few rows more slowly still. With the weights as the left factor,
        # and for one row as a batch of two halves, all cores read (bench.py --part=sample).
        columns = x.reshape(rows, -1).T  # (in, rows)
        if rows == 1 and self.out_features % 2 == 0:
            halves = self.weight.view(2, -1, self.in_features)
            y = torch.bmm(halves, columns.expand(2, -1, -1)).view(1, -1)
        else:
            y = (self.weight @ columns).T
        if self.bias is not None:
            y = y + self.bias
        return y.reshape(*x.shape[:-1], -1)

    def is_bound_by_reading(self, x):
        """Whether this is generation on a CPU in fp32, with a matrix too large to stay in the cache."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
            return False
        in_fp32 = x.dtype == self.weight.dtype == torch.float32
        return x.device.type == "cpu" and in_fp32 and self.weight.numel() >= 1 << 18 and self.weight.is_contiguous()


class KVCache:
    """Keys and values of the positions that one layer has seen, so that each is computed once."""

    def __init__(self, length):
        self.length = length
        self.seen = 0
        self.keys = self.values = None  # (B, nkv, length, hs) each, filled up to position `seen`

    def extend(self, k, v):
        """Append k, v (B, nkv, T, hs); return all keys and values, (B, nkv, seen + T, hs) each."""
        # at full length at once: growing would copy all of it for each token
        if self.keys is None:
            shape = (*k.shape[:2], self.length, k.size(3))
            self.keys = k.new_empty(shape)
            self.values = v.new_empty(shape)
        end = self.seen + k.size(2)
        self.keys[:, :, self.seen : end] = k
        self.values[:, :, self.seen : end] = v
        self.seen = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class LanguageModel(nn.Module):
    """What the loops and tools use; a subclass brings config, wte, h, ln_f, lm_head and `embed`."""

    def forward(self, idx, hidden=False, cache=None, positions=None, mask=None):
        """Token ids (B, T) -> logits (B, T, V), or with `hidden` the states (B, T, C) after ln_f.

        cache: a KVCache for each layer, whose positions come before idx and which idx extends.
        positions (B, T) and mask (B, 1, T, T), True where a query sees a key: for rows that hold
        more than one text, as tasks/scoring.py lays them out.
        """
        start = cache[0].seen if cache else 0
        end = start + idx.size(1)
        if end > self.config.block_size:
            raise ValueError(f"{end} positions, but block_size is {self.config.block_size}")
        if positions is None:
            positions = torch.arange(start, end, device=idx.device)  # (T,)
        x, rope = self.embed(idx, positions)  # (B, T, C)
        for i, block in enumerate(self.h):
            x = block(x, rope, mask, cache[i] if cache else None)  # (B, T, C)
        x = self.ln_f(x)  # the sum of all blocks' branches, which has no norm until here
        return x if hidden else self.lm_head(x)

    def generate(self, idx, n, **settings):
        """The last ids that `stream` yields for the same arguments: (B, T + n), or fewer if every row ended earlier."""
        *_, ids = self.stream(idx, n, **settings)
        return ids

    @torch.no_grad()
    def stream(self, idx, n, temperature=1.0, top_k=0, vocab_size=None, eot=None, lengths=None, uniforms=None):
        """Append up to n tokens to each prompt of idx (B, T); yields all ids so far, (B, t), prompts first.

        temperature 0 is greedy; top_k 0 draws from all; ids >= vocab_size (a padded head) are never
        drawn. A row that has drawn `eot` has ended, and is filled up with it.
        lengths (B,): of the prompts, where they differ; what idx has behind them is ignored. Row b draws
        its tokens lengths[b] … lengths[b] + n - 1, and is filled up with eot or 0 behind them.
        uniforms (B, n) in [0, 1): the random numbers that decide each row's n draws, instead of torch's
        generator, so that the draws are the same in any batch and on any device.
        """
        block_size = self.config.block_size
        if lengths is None:
            lengths = [idx.size(1)] * idx.size(0)
        lengths = torch.as_tensor(lengths, device=idx.device).unsqueeze(1)  # (B, 1)
        longest = int(lengths.max())
        ids = idx.new_full((idx.size(0), longest + n), 0 if eot is None else eot)
        in_prompt = torch.arange(longest, device=idx.device) < lengths  # (B, longest)
        ids[:, :longest] = idx[:, :longest].where(in_prompt, ids[:, :longest])
        if uniforms is not None:
            positions = lengths + torch.arange(n, device=idx.device)  # (B, n), of each row's draws
            uniforms = at_positions(uniforms, positions, ids.size(1))  # (B, longest + n)
        ends = lengths + n  # (B, 1), until eot ends a row
        # All rows start at the end of the shortest prompt, and those with longer ones keep their own tokens
        # until these end. So every token has its true position, and no padding needs a mask.
        t = int(lengths.min())
        cache = [KVCache(min(block_size, longest + n)) for _ in self.h]
        yield ids[:, :t]
        while t < ends.max():
            # Beyond block_size the window moves, and every token in it has another position than its cached key.
            if t > block_size:
                cache = None
            start = cache[0].seen if cache else t - block_size
            # the head costs V * C multiplications a position, and only the last one is needed
            last_hidden = self(ids[:, start:t], hidden=True, cache=cache)[:, -1]  # (B, C)
            # in the weights' own precision: autocast's bfloat16 would round a logit of 20 to an eighth
            with torch.autocast(idx.device.type, enabled=False):
                logits = self.lm_head(last_hidden.to(self.lm_head.weight.dtype))
            logits = logits.float()[:, :vocab_size]
            uniforms_now = None if uniforms is None else uniforms[:, t : t + 1]  # (B, 1)
            drawn = sample(logits, temperature, top_k, uniforms_now)  # (B, 1)
            is_open = (lengths <= t) & (t < ends)  # (B, 1)
            ids[:, t : t + 1] = drawn.where(is_open, ids[:, t : t + 1])
            t += 1
            if eot is not None:
                ends = ends.masked_fill(is_open & (drawn == eot), t)
            yield ids[:, :t]

    def flops_per_token(self, T):
        """Forward FLOPs per token in rows of T tokens: matrices, head and attention, not embeddings.

        Two per weight of each matrix, and two each for the scores and the weighted values of the
        (T + 1) / 2 positions that a causal query sees on average (PaLM, appendix B, counts all T).
        """
        matrices = sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))
        width = self.h[0].attn.c_proj.in_features  # nh * hs, which need not be C
        return 2 * matrices + 4 * self.config.n_layer * width * (T + 1) / 2

    def n_params(self):
        """Parameters, a tied head counted once."""
        return sum(p.numel() for p in self.parameters())

    def tie(self):
        """Make the head the embedding's own tensor, where the config ties them."""
        # Both have a row for each token, and tokens that mean the same on the way in are predicted
        # alike on the way out (arXiv:1608.05859). It saves GPT-2 39 of 163 million parameters.
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.wte.weight

    @torch.no_grad()
    def init_weights(self):
        """GPT-2's scheme: N(0, 0.02), residual projections smaller by 1/sqrt(2 n_layer); biases 0."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        # x is a sum of 2 n_layer branches, two a block. Unscaled its standard deviation would grow
        # with the square root of their number; scaled it is the same at any depth. (Norms behind the
        # branches, as in OLMo 2, undo the scale, as far as it is not below their epsilon.)
        residual_std = 0.02 / math.sqrt(2 * self.config.n_layer)
        for block in self.h:
            nn.init.normal_(block.attn.c_proj.weight, std=residual_std)
            nn.init.normal_(block.mlp.c_proj.weight, std=residual_std)


def sample(logits, temperature, top_k, uniforms=None):
    """One id a row from logits (B, V): (B, 1), by torch's generator, or by uniforms (B, 1) in [0, 1)."""
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    logits = logits / temperature
    if 0 < top_k < logits.size(-1):
        smallest_kept = logits.topk(top_k).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < smallest_kept, -math.inf)
    if uniforms is not None:
        return draw(logits, uniforms)
    return torch.multinomial(logits.softmax(dim=-1), num_samples=1)


def at_positions(uniforms, positions, width):
    """uniforms (B, n) moved to the positions (B, n) that they decide: (B, width), 0 elsewhere."""
    if positions.is_cuda:  # all at once, rather than a column with every token
        uniforms = uniforms.to(positions.device)
    return uniforms.new_zeros(len(uniforms), width).scatter(1, positions.to(uniforms.device), uniforms)


def draw(log_weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Ids (n, m) drawn in proportion to exp(log_weights) (n, V), never one whose log-weight is -inf.

    By inverting the cumulative distribution: the first id at which it exceeds a uniform number in 0 … 1.
    """
    # relative to the likeliest id, so that the sum is at least 1, however small all weights are
    largest, likeliest = log_weights.max(dim=-1, keepdim=True)
    # in float64, as the rounding of 50,000 sums in float32 is more than many a weight; Apple's GPUs have none
    precise = torch.float32 if log_weights.device.type == "mps" else torch.float64
    cumulative = (log_weights - largest).to(precise).exp_().cumsum(dim=-1)
    targets = uniforms.to(log_weights.device, precise) * cumulative[:, -1:]
    # right=True: an id without weight does not raise the sum, and so is never the first above a target
    ids = torch.searchsorted(cumulative, targets, right=True)
    # Rounding may put a target at the very end, and a sum computed in parallel may decrease in its last digit.
    ids.clamp_(max=log_weights.shape[1] - 1)
    is_excluded = log_weights.gather(1, ids) == -math.inf
    return torch.where(is_excluded, likeliest, ids)


def check_config(config, n_kv_head, head_dim=0):
    if not 0 <= config.dropout < 1:
        raise ValueError(f"dropout={config.dropout} must be at least 0 and under 1")
    width, heads = config.n_embd, config.n_head
    if heads < 1 or (not head_dim and width % heads):
        raise ValueError(f"n_embd={width} is not divisible by n_head={heads}; choose a multiple")
    if n_kv_head < 1 or heads % n_kv_head:
        raise ValueError(f"n_head={heads} is not divisible by n_kv_head={n_kv_head}; choose a multiple")


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
        # Channels rotate in pairs. A part that rounds to none leaves the order of tokens unknown.
        if not 0 <= self.rotary_pct <= 1 or rotated % 2 or (self.rotary_pct and not rotated):
            raise ValueError(
                f"rotary_pct={self.rotary_pct} of n_embd / n_head = {hs} rotates {rotated} channels of a head; "
                "expected an even number of them, over 0 and at most all"
            )


class GPTAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.hs = config.n_embd // config.n_head
        self.dropout = config.dropout
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)  # q, k, v of all heads in one
        self.c_proj = Linear(config.n_embd, config.n_embd)  # mixes what the heads found

    def forward(self, x, rope, mask, cache):
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split(C, dim=2)  # (B, T, C) each
        q = q.view(B, T, -1, self.hs).transpose(1, 2)  # (B, nh, T, hs)
        k = k.view(B, T, -1, self.hs).transpose(1, 2)  # (B, nh, T, hs)
        v = v.view(B, T, -1, self.hs).transpose(1, 2)  # (B, nh, T, hs)
        # Queries and keys alone: the product of two turned vectors depends on the distance of their
        # positions. Values are not compared but passed on, and would arrive turned.
        if rope:
            q = apply_rope(q, rope)
            k = apply_rope(k, rope)
        if cache:  # after the rotation, so that each key is turned once
            k, v = cache.extend(k, v)  # (B, nh, seen + T, hs)
        y = attend(q, k, v, mask, self.dropout if self.training else 0.0)  # (B, nh, T, hs)
        y = y.transpose(1, 2).reshape(B, T, C)  # the heads side by side again
        return F.dropout(self.c_proj(y), self.dropout, self.training)


class GPTMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = Linear(config.n_embd, config.n_inner)
        self.c_proj = Linear(config.n_inner, config.n_embd)
        self.approximate = "none" if config.exact_gelu else "tanh"
        self.dropout = config.dropout

    def forward(self, x):
        x = F.gelu(self.c_fc(x), approximate=self.approximate)  # (B, T, n_inner)
        return F.dropout(self.c_proj(x), self.dropout, self.training)  # (B, T, C)


class GPTBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, config.norm_eps)
        self.attn = GPTAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, config.norm_eps)
        self.mlp = GPTMLP(config)
        self.parallel = config.parallel_residual

    def forward(self, x, rope, mask, cache):
        # Pre-norm: a branch normalises what it reads, and x itself goes from the embedding to ln_f
        # by additions alone. So gradients reach every layer, however deep (arXiv:2002.04745).
        if self.parallel:  # GPT-NeoX: the MLP reads the same x, and need not wait for attention
            return x + self.attn(self.ln_1(x), rope, mask, cache) + self.mlp(self.ln_2(x))
        x = x + self.attn(self.ln_1(x), rope, mask, cache)
        return x + self.mlp(self.ln_2(x))


class GPT(LanguageModel):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        # positions are added to the embedding here, or else enter every layer by rotation
        self.wpe = None if config.rotary_pct else nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(GPTBlock(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, config.norm_eps)
        self.lm_head = Linear(config.n_embd, config.vocab_size, bias=False)
        self.tie()
        self.init_weights()

    def embed(self, idx, positions):
        """Ids (B, T) at positions (T,) or (B, T): (B, T, C), and the rotary table or None."""
        c = self.config
        x = self.wte(idx)
        rope = None
        if self.wpe is not None:
            x = x + self.wpe(positions)
        else:
            rotated = int(c.n_embd // c.n_head * c.rotary_pct)
            # one table for all heads: an axis of one in their place
            rope = rope_table(positions.unsqueeze(-2), rotated, c.rope_theta, None)
        return F.dropout(x, c.dropout, self.training), rope


# ---------------------------------------------------------------------------------------------
# LLaMA


@dataclass
class LLaMAConfig:
    vocab_size: int = 32000  # rows of the embedding and the head, padding included
    block_size: int = 2048
    n_layer: int = 12
    n_head: int = 12
    # Key/value heads, each shared by n_head / n_kv_head query heads; 0: n_head. Fewer make a smaller
    # cache, all of which is read for every token that is generated.
    n_kv_head: int = 0
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
    # Mistral: positions that a query sees. block_size is at most this, where it makes no difference.
    sliding_window: int = 0
    parametric_norm: bool = True  # True: RMSNorm; False: OLMo's LayerNorm without weight and bias
    norm_eps: float = 1e-5
    head_dim: int = 0  # channels of a head; 0: n_embd / n_head
    qk_norm: bool = False  # Qwen3: RMSNorm over the channels of each query and key
    qk_norm_all_heads: bool = False  # OLMo 2: RMSNorm over the channels of all heads together
    norm_after: bool = False  # OLMo 2: x + norm(attn(x)) instead of x + attn(norm(x)); likewise the MLP

    def __post_init__(self):
        self.n_kv_head = self.n_kv_head or self.n_head
        # three matrices of 8/3 the width have as many weights as the two of GPT's MLP of 4 times
        self.n_inner = self.n_inner or 64 * math.ceil(8 * self.n_embd / 3 / 64)
        check_config(self, self.n_kv_head, self.head_dim)
        self.head_dim = self.head_dim or self.n_embd // self.n_head
        if 0 < self.sliding_window < self.block_size:
            raise ValueError(f"block_size={self.block_size} is beyond sliding_window={self.sliding_window}; lower it")
        if self.head_dim % 2:
            raise ValueError(f"head_dim (or n_embd / n_head) = {self.head_dim} is odd; rotary positions need pairs")
        if self.qk_norm and self.qk_norm_all_heads:
            raise ValueError("qk_norm and qk_norm_all_heads exclude each other; choose one")

    def norm(self):
        if self.parametric_norm:
            return nn.RMSNorm(self.n_embd, self.norm_eps)
        return nn.LayerNorm(self.n_embd, self.norm_eps, elementwise_affine=False)


def norm_qk(x, norm):
    """Queries or keys (B, T, W), in pieces as wide as `norm`, each normalised by itself: (B, T, W)."""
    # A score is at most sqrt(hs) times the norms' weights, however long queries and keys grow
    # (arXiv:2302.05442). Qwen3's norm is as wide as a head. OLMo 2's (arXiv:2501.00656) is as wide as all heads
    # and bounds them together: one may be longer where others are shorter.
    # Under autocast x is bfloat16 and the norm's weight fp32, but both must be of one type.
    pieces = x.type_as(norm.weight).unflatten(-1, (-1, norm.weight.numel()))  # (B, T, W / width, width)
    return norm(pieces).flatten(-2).type_as(x)


class LLaMAAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.hs = config.head_dim
        self.dropout = config.dropout
        self.clip = config.clip_qkv
        q_width = config.n_head * self.hs
        kv_width = config.n_kv_head * self.hs
        self.c_q = Linear(config.n_embd, q_width, bias=config.qkv_bias)
        self.c_k = Linear(config.n_embd, kv_width, bias=config.qkv_bias)
        self.c_v = Linear(config.n_embd, kv_width, bias=config.qkv_bias)
        self.c_proj = Linear(q_width, config.n_embd, bias=config.attn_proj_bias)
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(self.hs, config.norm_eps)
            self.k_norm = nn.RMSNorm(self.hs, config.norm_eps)
        if config.qk_norm_all_heads:
            self.q_norm = nn.RMSNorm(q_width, config.norm_eps)
            self.k_norm = nn.RMSNorm(kv_width, config.norm_eps)

    def forward(self, x, rope, mask, cache):
        B, T, _ = x.shape
        q = self.c_q(x)  # (B, T, nh * hs)
        k = self.c_k(x)  # (B, T, nkv * hs)
        v = self.c_v(x)  # (B, T, nkv * hs)
        if self.clip:
            q = q.clamp(-self.clip, self.clip)
            k = k.clamp(-self.clip, self.clip)
            v = v.clamp(-self.clip, self.clip)
        if self.q_norm is not None:
            q = norm_qk(q, self.q_norm)
            k = norm_qk(k, self.k_norm)
        q = q.view(B, T, -1, self.hs).transpose(1, 2)  # (B, nh, T, hs)
        k = k.view(B, T, -1, self.hs).transpose(1, 2)  # (B, nkv, T, hs)
        v = v.view(B, T, -1, self.hs).transpose(1, 2)  # (B, nkv, T, hs)
        # queries and keys alone, for the reason that GPTAttention gives
        q = apply_rope(q, rope)
        k = apply_rope(k, rope)
        if cache:
            k, v = cache.extend(k, v)  # (B, nkv, seen + T, hs)
        y = attend(q, k, v, mask, self.dropout if self.training else 0.0)  # (B, nh, T, hs)
        y = y.transpose(1, 2).reshape(B, T, -1)  # the heads side by side again, (B, T, nh * hs)
        return F.dropout(self.c_proj(y), self.dropout, self.training)


class LLaMAMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_gate = Linear(config.n_embd, config.n_inner, bias=config.mlp_bias)
        self.c_fc = Linear(config.n_embd, config.n_inner, bias=config.mlp_bias)
        self.c_proj = Linear(config.n_inner, config.n_embd, bias=config.mlp_bias)
        self.dropout = config.dropout

    def forward(self, x):
        # SwiGLU (arXiv:2002.05202): one projection says how much of the other passes
        x = F.silu(self.c_gate(x)) * self.c_fc(x)  # (B, T, n_inner)
        return F.dropout(self.c_proj(x), self.dropout, self.training)  # (B, T, C)


class LLaMABlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = config.norm()
        self.attn = LLaMAAttention(config)
        self.ln_2 = config.norm()
        self.mlp = LLaMAMLP(config)
        self.norm_after = config.norm_after

    def forward(self, x, rope, mask, cache):
        # OLMo 2 (arXiv:2501.00656, after Swin V2, arXiv:2111.09883): what a branch adds to x has the size
        # of its norm's weights, in any layer. x itself still goes through by additions alone. Autocast
        # computes the branches in bfloat16, and a norm's input and weights must be of one type.
        if self.norm_after:
            x = x + self.ln_1(self.attn(x, rope, mask, cache).type_as(x))
            return x + self.ln_2(self.mlp(x).type_as(x))
        # pre-norm, for the reason that GPTBlock gives
        x = x + self.attn(self.ln_1(x), rope, mask, cache)
        return x + self.mlp(self.ln_2(x))


class LLaMA(LanguageModel):
    def __init__(self, config: LLaMAConfig):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.h = nn.ModuleList(LLaMABlock(config) for _ in range(config.n_layer))
        self.ln_f = config.norm()
        self.lm_head = Linear(config.n_embd, config.vocab_size, bias=False)
        self.tie()
        self.init_weights()

    def embed(self, idx, positions):
        """Ids (B, T) at positions (T,) or (B, T): (B, T, C), and the rotary table."""
        c = self.config
        rope = rope_table(positions.unsqueeze(-2), c.head_dim, c.rope_theta, c.rope_scaling)
        return F.dropout(self.wte(idx), c.dropout, self.training), rope
