"""Generation with a GPT-2 of 124M: with the key/value cache, and with the whole prefix recomputed for each token.

`python bench.py --part=sample` runs this. For a token of one row each weight is read and multiplied once: however fast
the cores are, the memory's bandwidth is the limit. So copying a tensor, which is bound by nothing else, takes turns
with the rest.
"""

import statistics
import time

import torch
from torch import nn

from model import GPT, GPTConfig, sample

VOCAB_SIZE = 50257  # of the 50,304 rows of the head
PROMPT = 32  # tokens
MOST_RECOMPUTED = 8  # new tokens of a row without the cache; later ones, with longer prefixes, would be slower
COPIED = 1 << 28  # bytes of the tensor that is copied: more than any cache holds


def compare_sampling(run, n_new: int, n_turns: int) -> dict[str, dict[str, float]]:
    """{version: its figures}: the median "seconds", with "bytes_per_s" for the copy, "tokens_per_s" for the others.

    One row with the cache also has "bytes_per_s" of weights, and "share_of_copy", as a share of the copy's. n_new:
    tokens of each row.
    """
    torch.manual_seed(0)
    net = GPT(GPTConfig(vocab_size=50304)).to(run.device, run.dtype).eval()
    prompts = torch.randint(VOCAB_SIZE, (16, PROMPT), device=run.device)
    bytes_read = n_new * weight_bytes(net)  # of weights, for one row
    # copies read and write as many bytes: what else the machine does then slows both alike
    n_copies = max(1, round(bytes_read / (2 * COPIED)))
    source = torch.ones(COPIED, dtype=torch.uint8, device=run.device)
    target = torch.ones_like(source)

    def copy(n):
        for _ in range(n):
            target.copy_(source)

    def cached(n_rows, n):
        net.generate(prompts[:n_rows], n, vocab_size=VOCAB_SIZE)

    def recomputed(n_rows, n):
        generate_recomputed(net, prompts[:n_rows], n)

    n_recomputed = min(n_new, MOST_RECOMPUTED)
    cases = {
        "copy": (copy, n_copies),
        "cached, 1 row": (cached, 1, n_new),
        "recomputed, 1 row": (recomputed, 1, n_recomputed),
        "cached, 16 rows": (cached, 16, n_new),
        "recomputed, 16 rows": (recomputed, 16, n_recomputed),
    }
    seconds = alternate(cases, n_turns, run)
    figures = {"copy": {"seconds": seconds["copy"], "bytes_per_s": n_copies * 2 * COPIED / seconds["copy"]}}
    for name, (_, *sizes) in cases.items():
        if name != "copy":
            n_rows, n = sizes
            figures[name] = {"seconds": seconds[name], "tokens_per_s": n_rows * n / seconds[name]}
    one_row = figures["cached, 1 row"]
    one_row["bytes_per_s"] = bytes_read / one_row["seconds"]
    one_row["share_of_copy"] = one_row["bytes_per_s"] / figures["copy"]["bytes_per_s"]
    return figures


def weight_bytes(net) -> int:
    """Bytes of the weights that a token reads: the matrices of blocks and head. Of an embedding it reads only a row."""
    return sum(m.weight.numel() * m.weight.element_size() for m in net.modules() if isinstance(m, nn.Linear))


@torch.no_grad()
def generate_recomputed(net, idx, n: int):
    """net.generate of n tokens without a cache."""
    for _ in range(n):
        last_hidden = net(idx, hidden=True)[:, -1]
        logits = net.lm_head(last_hidden).float()[:, :VOCAB_SIZE]
        idx = torch.cat((idx, sample(logits, temperature=1.0, top_k=0)), dim=1)
    return idx


def alternate(cases: dict[str, tuple], n_turns: int, run) -> dict[str, float]:
    """{name: median seconds of function(*sizes)}; the cases take turns."""
    # attention as the loops choose it where lengths change
    for function, *sizes in cases.values():
        with run.any_shape():
            function(*sizes[:-1], 1)  # to warm up
    times = {name: [] for name in cases}
    for _ in range(n_turns):
        for name, (function, *sizes) in cases.items():
            start = time.perf_counter()
            with run.any_shape():
                function(*sizes)
            # CUDA calls return before their kernels have run
            if run.cuda:
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def table(figures: dict[str, dict[str, float]]) -> str:
    lines = [f"{'version':<20} {'seconds':>9} {'tokens/s':>10} {'GB/s':>7} {'of a copy':>10}"]
    for name, f in figures.items():
        line = f"{name:<20} {f['seconds']:9.3f}"
        line += f" {f['tokens_per_s']:10.1f}" if "tokens_per_s" in f else " " * 11
        if "bytes_per_s" in f:
            line += f" {f['bytes_per_s'] / 1e9:7.2f}"
        if "share_of_copy" in f:
            line += f" {f['share_of_copy']:10.1%}"
        lines.append(line.rstrip())
    return "\n".join(lines)
