"""Show what a run was reading when its loss jumped: the rows of a step, those with the largest loss first.

    python rows.py --out_dir=out/run                       # of the steps whose loss stands out most
    python rows.py --out_dir=out/run --steps=1200,1340

Rows are a function of a few knobs and the step, so that nothing about them has to be logged; what these knobs were at a
step, also where a run was resumed with others, is in its newest checkpoint. The losses shown are those of the newest
checkpoint that is not beyond the step (of the oldest one where all are). Of a step that learnt from the
student's own text (distill.py --on_policy) these are the rows whose beginnings were its prompts.
"""

# before torch, so that Ctrl-C while it loads ends in one line
from configurator import at_least, configure  # isort: split

import math
import statistics
from pathlib import Path

import torch
from torch.nn import functional as F

from common.bad_steps import texts_of_rows
from common.checkpoint import checkpoints, load_trainer_state
from common.data import TokenData
from common.pretrained import load_pretrained
from common.runtime import Runtime
from common.tokenizer import load_tokenizer
from head import matmul
from plot import read_log

out_dir = "out/run"  # of the run
steps = ""  # "1200,1340"; "": those whose training loss stands out
spikes = 3  # how many of those
rows = 4  # of each step, those with the largest loss; 0: all
neighbours = 20  # log lines before a step, with whose median it is compared
device = "auto"  # "auto", "cpu", "cuda" or "mps"
dtype = "auto"  # of the matmuls: bfloat16 on a GPU that has it, else float32
config = configure(globals())
at_least(config, 1, "spikes neighbours")
at_least(config, 0, "rows")


# ---------------------------------------------------------------------------------------------
# which steps


def highest_steps(out_dir: str) -> list[int]:
    """The steps of log.txt whose training loss stands highest above the median of the lines before it."""
    logged, losses = read_log(out_dir).get("train", ([], []))
    heights = []
    for i, step in enumerate(logged):
        # only lines before the step: in a falling curve every step stands above those that follow
        before = [loss for loss in losses[max(0, i - neighbours) : i] if math.isfinite(loss)]
        if not before:
            continue
        height = losses[i] - statistics.median(before)
        # the loss was not finite, and the update was skipped: no step stands out more
        if math.isnan(height):
            height = math.inf
        heights.append((height, step))
    return [step for _, step in sorted(heights, reverse=True)[:spikes]]


def wanted_steps() -> list[int]:
    if not steps:
        return highest_steps(out_dir)
    try:
        return [int(step) for step in str(steps).split(",")]
    except ValueError:
        raise ValueError(f"steps={steps!r}; expected numbers with commas between, as in 1200,1340") from None


# ---------------------------------------------------------------------------------------------
# their rows


def checkpoint_for(step: int, saved: list[Path]) -> Path:
    """The newest checkpoint that is not beyond a step, else the oldest."""
    before = [folder for folder in saved if int(folder.name.removeprefix("step_")) <= step]
    return before[-1] if before else saved[0]


def section_of(step: int, state: dict) -> dict:
    """The knobs with which a step's rows were read, and the step and row at which they took effect.

    state: that of the newest checkpoint. Runs of older versions recorded only the knobs that they ended with.
    """
    last_section = state["config"] | {"step": state["step"], "row": state["rows"]}
    sections = [section for section in state.get("sections", [last_section]) if section["step"] <= step]
    return sections[-1] if sections else last_section


def data_of(knobs: dict) -> TokenData:
    """The rows of a section of a run, all ranks' read as one."""
    data = TokenData(
        knobs["dataset"],
        "train",
        block_size=knobs["block_size"],
        seed=knobs["seed"],
        batch_size=knobs["batch_size"],
        # the ranks' rows of a micro-step follow each other
        grad_accum_steps=knobs["tokens_per_step"] // (knobs["batch_size"] * knobs["block_size"]),
        packing=knobs["packing"],
        random_offset=knobs["random_offset"],
    )
    data.continue_at(knobs["step"], knobs["row"])
    return data


@torch.no_grad()
def losses_of_rows(model, x, y, vocab_size: int, run) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows,) each: the summed cross-entropy of each row of x, y (rows, T), in nats, and its number of targets."""
    losses = []
    # one at a time: the logits of a row of 1,024 tokens and 50,000 ids are 200 MB
    for row_x, row_y in zip(x, y):
        row_x, row_y = run.to_device(row_x[None], row_y[None])
        with run.autocast():
            hidden = model(row_x, hidden=True)
        # (T, V) in fp32, without the head's padding
        logits = matmul(hidden[0].to(run.dtype), model.lm_head.weight.to(run.dtype).T)[:, :vocab_size]
        losses.append(F.cross_entropy(logits, row_y[0], ignore_index=-1, reduction="sum"))
    return torch.stack(losses).cpu(), (y >= 0).sum(-1).cpu()


def show(step: int, folder: Path, newest: dict, run):
    """Print the rows of a step. folder: the checkpoint whose losses are shown; newest: the state of the newest one."""
    data = data_of(section_of(step, newest))
    first, n = data.rows_of_step(step)
    if step < 0 or first < 0:
        raise ValueError(f"{folder} has no step {step} before it with rows of this size; leave it out")
    model = load_pretrained(folder, run.device, torch.float32)
    tokenizer = load_tokenizer(folder)
    sums, n_targets = losses_of_rows(model, *data.rows(first, n), data.vocab_size, run)
    # over the targets of all rows, as the loop's loss is; rows of documents have more or fewer
    print(f"step {step}: {n} rows, {sums.sum() / n_targets.sum():.4f} nats/token by {folder}")
    losses = sums / n_targets
    order = losses.argsort(descending=True).tolist()
    for i in order[: rows or n]:
        print(f"{losses[i]:.4f} nats/token")
        print(texts_of_rows(data, tokenizer, [first + i]), end="")


saved = checkpoints(out_dir)
if not saved:
    raise ValueError(f"{out_dir} has no checkpoint, which says what its rows were; out_dirs of train.py have")
machine = Runtime(device, dtype)
newest = load_trainer_state(saved[-1], mmap=True)
logged, _ = read_log(out_dir).get("train", ([], []))
# a run may have got beyond its newest checkpoint before it stopped
n_steps = max([newest["step"], *(step + 1 for step in logged)])
for step in wanted_steps():
    if step >= n_steps:
        raise ValueError(f"{out_dir} has made {n_steps} steps, of which {step} is none; steps are counted from 0")
    show(step, checkpoint_for(step, saved), newest, machine)
