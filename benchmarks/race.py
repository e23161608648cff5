"""A race to a validation loss: train.py with a config made for it, against a straightforward loop.

`python bench.py --part=race` runs this: seed by seed and in turns, each runner in a process of its own. Seconds are
those of training; evaluation, which both do on the same rows, is not counted.
"""

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from common.meta import read_meta
from configurator import read_config_file
from model import GPT, GPTConfig


@dataclass
class Course:
    config: str  # of train.py
    target: float  # nats per token
    plain: dict = field(default_factory=dict)  # settings of benchmarks/straightforward.py in place of the config's


# Each schedule, ours and the plain one, ends just after the loss that it is to reach.
COURSES = {
    # nanoGPT's example for a CPU reaches 1.88 in 2,000 steps
    "shakespeare": Course(
        config="config/race/shakespeare.py",
        target=1.88,
        plain={"learning_rate": 1e-3, "max_steps": 2000, "warmup_steps": 100},
    ),
    # The straightforward loop takes eleven minutes of two cores, at the best of three rates. Both have batches of 4:
    # with 8 it is a little worse (LOG.md).
    "text": Course(
        config="config/race/text.py",
        target=5.62,
        plain={"learning_rate": 1e-3, "max_steps": 420, "warmup_steps": 40, "eval_interval": 15},
    ),
}
# settings that both runners take from the config, unless a course gives the plain one its own
SHAPE = ("n_layer", "n_head", "n_embd", "block_size")
SHARED = ("dataset", *SHAPE, "batch_size", "eval_interval", "eval_rows")


def run_race(name: str, target: float, n_seeds: int, **on) -> dict[str, list[dict]]:
    """{runner: what each seed took}: steps, tokens, flops, seconds, val and losses.

    target: 0 for the course's own. on: device, dtype and compile of both, as train.py has them.
    """
    course = COURSES[name]
    target = target or course.target
    config = read_config_file(course.config)
    runners = {
        "straightforward": lambda seed: straightforward(config | course.plain, target, seed, on),
        "train.py": lambda seed: ours(course.config, target, seed, on),
    }
    results = {runner: [] for runner in runners}
    for seed in tqdm(range(n_seeds), unit="seed"):
        for runner, run in runners.items():
            results[runner].append(run(seed))
    return results


def ours(config: str, target: float, seed: int, on: dict) -> dict:
    # cleared, as the files of an earlier race would be in the way
    out_dir = Path(read_config_file(config)["out_dir"]) / f"seed{seed}"
    remove_run(out_dir)
    knobs = {"seed": seed, "out_dir": out_dir} | on
    return call("benchmarks.timed_run", str(target), config, *(f"--{name}={value}" for name, value in knobs.items()))


def remove_run(out_dir: Path):
    """Delete what an earlier race left of a run: its log and its lock; it has no checkpoints."""
    for name in ("log.txt", ".lock", "summary.json"):
        (out_dir / name).unlink(missing_ok=True)


def straightforward(settings: dict, target: float, seed: int, on: dict) -> dict:
    chosen = {name: settings[name] for name in (*SHARED, "learning_rate", "max_steps", "warmup_steps")}
    result = call("benchmarks.straightforward", json.dumps(chosen | on | {"target": target, "seed": seed}))
    shape = {name: settings[name] for name in SHAPE}
    net = GPT(GPTConfig(vocab_size=read_meta(settings["dataset"])["vocab_size"], **shape))
    # backward is twice forward
    return result | {"flops": result["tokens"] * 3 * net.flops_per_token(settings["block_size"])}


def call(module: str, *args: str) -> dict:
    done = subprocess.run([sys.executable, "-m", module, *args], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{module}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(results: dict[str, list[dict]], target: float) -> str:
    """A line for each runner: medians over the seeds, and by which factor it beat the first runner, seed by seed."""
    head = f"{'to ' + format(target, 'g') + ' nats/token':<24}{'seconds':>10}{'steps':>8}{'tokens/s':>10}{'TFLOP':>8}"
    lines = [head + f"{'val':>9}{'times sooner':>19}"]
    first = next(iter(results.values()))
    for runner, runs in results.items():
        columns = {}
        for name in ("seconds", "steps", "flops", "val"):
            columns[name] = statistics.median(run[name] for run in runs)
        speed = statistics.median(run["tokens"] / run["seconds"] for run in runs)
        ratios = [first_run["seconds"] / run["seconds"] for first_run, run in zip(first, runs)]
        sooner = f"{statistics.median(ratios):.2f}"
        if runs is not first:
            sooner += f" ({min(ratios):.2f}-{max(ratios):.2f})"
        # a runner that ends above the target has lost
        if max(run["val"] for run in runs) > target:
            sooner = "not reached"
        lines.append(
            f"{runner:<24}{columns['seconds']:10.1f}{columns['steps']:8.0f}{speed:10,.0f}{columns['flops'] / 1e12:8.2f}"
            f"{columns['val']:9.4f}{sooner:>19}"
        )
    return "\n".join(lines)
