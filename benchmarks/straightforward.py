"""Pretraining as one writes it, in one file: a GPT-2 with learned positions, AdamW, a cosine. nanoGPT's settings.

    python -m benchmarks.straightforward '{"dataset": "data/shakespeare", "n_layer": 4, …}'

Logits of all tokens, F.cross_entropy, batches at random places of the file. It is what train.py is compared with by
`bench.py --part=race`, and shares nothing with it but the rows of validation and the device. Prints one JSON object.
"""

import json
import math
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from common.data import TokenData
from common.meta import read_meta
from common.runtime import Runtime


@dataclass
class Settings:
    dataset: str
    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    batch_size: int
    learning_rate: float
    max_steps: int
    warmup_steps: int
    eval_interval: int
    eval_rows: int
    target: float  # validation loss at which it stops, nats per token; 0: never
    seed: int
    device: str = "auto"
    dtype: str = "auto"  # of the matmuls: bfloat16 on a GPU that has it, else float32
    compile: str = "off"
    beta2: float = 0.99
    weight_decay: float = 0.1
    grad_clip: float = 1.0


class Block(nn.Module):
    def __init__(self, s: Settings):
        super().__init__()
        self.n_head = s.n_head
        self.ln_1 = nn.LayerNorm(s.n_embd, bias=False)
        self.c_attn = nn.Linear(s.n_embd, 3 * s.n_embd, bias=False)
        self.c_proj = nn.Linear(s.n_embd, s.n_embd, bias=False)
        self.ln_2 = nn.LayerNorm(s.n_embd, bias=False)
        self.up = nn.Linear(s.n_embd, 4 * s.n_embd, bias=False)
        self.down = nn.Linear(4 * s.n_embd, s.n_embd, bias=False)

    def forward(self, x):
        B, T, C = x.shape
        heads = [part.view(B, T, self.n_head, -1).transpose(1, 2) for part in self.c_attn(self.ln_1(x)).split(C, dim=2)]
        y = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).reshape(B, T, C))
        return x + self.down(F.gelu(self.up(self.ln_2(x))))


class PlainGPT(nn.Module):
    def __init__(self, s: Settings, vocab_size: int):
        super().__init__()
        self.wte = nn.Embedding(vocab_size, s.n_embd)
        self.wpe = nn.Embedding(s.block_size, s.n_embd)
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.n_layer))
        self.ln_f = nn.LayerNorm(s.n_embd, bias=False)
        self.lm_head = nn.Linear(s.n_embd, vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # a branch's last matrix starts smaller, as 2 * n_layer branches are added up
                is_last = name.endswith(("c_proj.weight", "down.weight"))
                scale = math.sqrt(2 * s.n_layer) if is_last else 1.0
                nn.init.normal_(parameter, std=0.02 / scale)

    def forward(self, x):
        x = self.wte(x) + self.wpe.weight[: x.size(1)]
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.ln_f(x))


def rate_at(step: int, s: Settings) -> float:
    """Linear warm-up, then a cosine down to a tenth."""
    if step < s.warmup_steps:
        return s.learning_rate * (step + 1) / (s.warmup_steps + 1)
    progress = min(1.0, (step - s.warmup_steps) / max(1, s.max_steps - s.warmup_steps))
    return s.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))


@torch.no_grad()
def validation_loss(model, s: Settings, run: Runtime) -> float:
    """Of the rows that train.py takes."""
    data = TokenData(s.dataset, "val", s.block_size, seed=0, batch_size=s.batch_size)
    total = 0.0
    count = 0
    for x, y in data.eval_batches(s.eval_rows):
        x, y = x.to(run.device), y.to(run.device)
        with run.autocast():
            logits = model(x).flatten(0, 1)
        total += F.cross_entropy(logits.float(), y.flatten(), ignore_index=-1, reduction="sum").item()
        count += (y >= 0).sum().item()
    return total / count


def train(s: Settings) -> dict:
    """Until the target: steps, tokens, seconds of training without evaluation, and the validation losses."""
    # memory as torch and the system manage it by themselves
    run = Runtime(s.device, s.dtype, keep_memory=False)
    torch.manual_seed(s.seed)
    draws = np.random.default_rng(s.seed)
    ids = np.memmap(f"{s.dataset}/train.bin", dtype="<u2", mode="r")
    model = PlainGPT(s, read_meta(s.dataset)["vocab_size"]).to(run.device)
    compiled = run.compile(model, s.compile)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": s.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=s.learning_rate, betas=(0.9, s.beta2), fused=True)
    seconds = 0.0
    losses = {}
    for step in range(s.max_steps + 1):
        if step % s.eval_interval == 0 or step == s.max_steps:
            losses[step] = validation_loss(compiled, s, run)
            if step == s.max_steps or losses[step] <= s.target:
                break
        started = time.perf_counter()
        starts = draws.integers(len(ids) - s.block_size, size=s.batch_size)
        rows = np.stack([ids[start : start + s.block_size + 1] for start in starts]).astype(np.int64)
        rows = torch.from_numpy(rows).to(run.device)
        with run.autocast():
            logits = compiled(rows[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), s.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, s)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        # a GPU may have this step still before it
        if run.cuda:
            torch.cuda.synchronize()
        seconds += time.perf_counter() - started
    tokens = step * s.batch_size * s.block_size
    return {"steps": step, "tokens": tokens, "seconds": seconds, "val": losses[step], "losses": losses}


if __name__ == "__main__":
    print(json.dumps(train(Settings(**json.loads(sys.argv[1])))))
