"""Steps whose loss or gradient is not finite: which rows and which parameter it came from.

An update with such a gradient could never be undone. The loops skip the step, and stop once there are more than
max_bad_steps of them; the report on each is written here.
"""

from pathlib import Path

import torch.distributed as dist

from common.data import TokenData
from common.sharding import whole


def report_bad_step(run, model, data: TokenData, tokenizer, out_dir: str, step: int, losses: list, own_texts=()) -> str:
    """Say where a loss or gradient became infinite or NaN, and write the texts to out_dir/bad_step_NNNNNN.txt.

    losses: of this rank's micro-steps, scalar tensors; data: where their rows come from. own_texts: the micro-steps
    that learnt from the student's own text, for which data has the prompts. All ranks call it together, before
    gradients are clipped: by a norm that is not finite, clipping would make all of them so.
    """
    bad_micro_steps = [i for i, loss in enumerate(losses) if not loss.isfinite()]
    first_row = None
    if bad_micro_steps:
        first_row = data.first_of_batch(step, bad_micro_steps[0])
    bad_first_rows = [row for row in gather(first_row, run.world) if row is not None]
    if bad_first_rows:
        # of the first rank that has such a loss
        first = bad_first_rows[0]
        n = data.batch_size
        problem = "the loss is not finite first in"
    else:
        first, n = data.rows_of_step(step)
        problem = "it is the gradient alone, from"
    file = Path(out_dir) / f"bad_step_{step:06d}.txt"
    if run.is_main:
        file.write_text(texts_of_rows(data, tokenizer, range(first, first + n)), encoding="utf-8")
    rows = f"rows {first} to {first + n - 1}, which are in {file}"
    if own_texts:
        rows += " (of some the student read the beginning alone, and its own text behind it)"
    return f"{problem} {rows}; {first_bad_parameter(model)}"


def gather(value, world: int) -> list:
    """The value of each rank."""
    if world == 1:
        return [value]
    values = [None] * world
    dist.all_gather_object(values, value)
    return values


def first_bad_parameter(model) -> str:
    """The first parameter that is not finite itself, else the first one to which backward gave such a gradient.

    Where the ranks divide the model, all call it together.
    """
    named = list(model.named_parameters())
    for name, parameter in named:
        if not whole(parameter).isfinite().all():
            return f"the weights {name} are not finite themselves"
    # in reverse, as backward goes from the head to the embedding
    for name, parameter in reversed(named):
        if parameter.grad is not None and not whole(parameter.grad).isfinite().all():
            return f"the gradient is not finite first in {name}"
    return "all gradients of the model are finite"


def texts_of_rows(data: TokenData, tokenizer, rows) -> str:
    """Rows as text, each under a line with its number in the endless order and its place in the tokens."""
    parts = []
    for row in rows:
        start, length = data.row_span(row)
        text = tokenizer.decode(data.ids(start, length).tolist())
        parts.append(f"--- row {row}: tokens {start} to {start + length - 1} of {data.split}\n{text}\n")
    return "".join(parts)
