"""How long a checkpoint keeps a run waiting: written in the loop, or by a thread from a copy.

`python bench.py --part=save` runs this, in turns, for the quickstart's teacher and for a GPT-2 of 124M, both with
AdamW's moments. On a CPU the thread takes from the cores that train, so steps with a save among them are timed as well.
"""

import statistics
import tempfile
import time
from functools import partial

import torch
from torch.nn import functional as F

from common.checkpoint_writer import CheckpointWriter
from common.optim import make_optimizers
from common.tokenizer import ByteTokenizer
from model import GPT, GPTConfig, LLaMA, LLaMAConfig

STEPS = 100  # between two saves, of the small model
VERSIONS = ("no save", "in the loop", "by a thread")


def compare_saving(run, n_turns: int) -> dict[str, dict[str, float]]:
    """{case: {version: median seconds}}: what a save takes from the loop, and STEPS steps with a save before them."""
    torch.manual_seed(0)
    small = LLaMA(LLaMAConfig(vocab_size=4096, block_size=128, n_layer=4, n_head=6, n_embd=192))
    large = GPT(GPTConfig(vocab_size=50304))
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, net in (("2.6 M", small), ("124 M", large)):
            net.to(run.device)
            optimizers = adamw(net)
            writer = CheckpointWriter(folder, keep=1)
            pause = partial(pause_of_save, writer, net, optimizers, run)
            figures[f"pause, {name}"] = in_turns(pause, n_turns)
            if net is small:
                train = partial(seconds_of_steps, writer, net, optimizers, run)
                figures[f"{STEPS} steps, {name}"] = in_turns(train, n_turns)
    return figures


def in_turns(seconds_of, n_turns: int) -> dict[str, float]:
    """{version: median of seconds_of(version)}."""
    times = {version: [] for version in VERSIONS}
    # the first turn is to warm up
    for turn in range(1 + n_turns):
        for version in VERSIONS:
            seconds = seconds_of(version)
            if turn:
                times[version].append(seconds)
    return {version: statistics.median(values) for version, values in times.items()}


def adamw(net):
    """Optimisers that have made a step, so that there are moments to save."""
    names = {"optimizer": "adamw", "learning_rate": 1e-4, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8}
    optimizers = make_optimizers(net, **names)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return optimizers


def pause_of_save(writer, net, optimizers, run, version: str) -> float:
    """Seconds for which the loop waits."""
    seconds = save(writer, net, optimizers, run, version)
    writer.wait()
    return seconds


def save(writer, net, optimizers, run, version: str) -> float:
    """Save as the version does; returns the seconds that it took from the loop."""
    # so that work the GPU still has to do is not counted as the save's
    if run.cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    if version != "no save":
        state = {"step": 1, "seconds": 0.0, "best": (0.0, 1), "config": {}}
        state["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
        writer.save(net, ByteTokenizer(), state)
    if version == "in the loop":
        writer.wait()
    return time.perf_counter() - started


def seconds_of_steps(writer, net, optimizers, run, version: str) -> float:
    """Seconds of a save and STEPS steps of 8 rows of 128 tokens."""
    x = torch.randint(4096, (8, 128), device=run.device)
    started = time.perf_counter()
    save(writer, net, optimizers, run, version)
    for _ in range(STEPS):
        with run.autocast():
            logits = net(x)
        F.cross_entropy(logits.flatten(0, 1).float(), x.flatten()).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    if run.cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    writer.wait()
    return seconds
