"""The student's own text: what it writes after prompts from the data, for distill.py to learn from.

On-policy distillation (GKD, arXiv:2306.13649, algorithm 1, which draws at random whether a step has own text): the
student continues the beginning of a data row, and at each position where it drew a token it learns from the teacher's
distribution there. Prompt lengths and draws are functions of (seed, row), rows being numbered in the endless order of
common/data.py; which micro-steps have own text is a function of their number.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

# Mixed into the seed, so that the numbers differ from those that the same seed gives elsewhere.
PURPOSE = 0x0171


def parse_prompt_tokens(text: str) -> tuple[int, int]:
    """The knob `prompt_tokens`, "32" or "32-96", as (fewest, most). ValueError for anything else.

    >>> parse_prompt_tokens("32-96"), parse_prompt_tokens("32")
    ((32, 96), (32, 32))
    """
    parts = [part.strip() for part in text.split("-")]
    numbers = [int(part) for part in parts if part.isdecimal()]
    if len(numbers) != len(parts) or len(parts) > 2 or not 1 <= numbers[0] <= numbers[-1]:
        raise ValueError(f"prompt_tokens={text!r}: expected a length or a range, as in --prompt_tokens=32-96")
    return numbers[0], numbers[-1]


def check_own_text(config: dict, has_cache: bool):
    """ValueError unless the knobs of on-policy distillation are compatible with the others."""
    share = config["on_policy"]
    if not 0 <= share <= 1:
        raise ValueError(f"on_policy={share} is out of range; it is a share of the micro-steps, 0 ... 1")
    if not share:
        return
    _, most = parse_prompt_tokens(config["prompt_tokens"])
    if most + config["response_tokens"] > config["block_size"]:
        raise ValueError(
            f"prompt_tokens={config['prompt_tokens']} and response_tokens={config['response_tokens']} are more than "
            f"block_size={config['block_size']} together; lower one of them"
        )
    if not config["weight_kl"]:
        remedy = "own text is learnt from by the divergence alone; set it over 0, or leave on_policy out"
        raise ValueError(f"on_policy={share}, but weight_kl=0: {remedy}")
    for key in ("weight_cos", "weight_mse"):
        if share == 1 and config[key]:
            raise ValueError(f"on_policy=1 leaves no data, which alone {key}={config[key]:g} is of; lower one of them")
    if has_cache:
        remedy = "which no cache can know; name the teachers themselves"
        raise ValueError(f"on_policy={share} asks the teacher about text that is written during the run, {remedy}")


def own_micro_steps(share: float, step: int, micro_steps: int) -> list[int]:
    """The micro-steps of a step that learn from own text: a `share` of those of all steps, spread evenly.

    >>> [own_micro_steps(0.25, step, micro_steps=1) for step in range(8)]
    [[], [], [], [0], [], [], [], [0]]
    >>> own_micro_steps(0.5, step=0, micro_steps=4)
    [1, 3]
    """
    chosen = []
    for micro_step in range(micro_steps):
        number = step * micro_steps + micro_step  # counted as if all earlier steps had as many
        if math.floor((number + 1) * share) > math.floor(number * share):
            chosen.append(micro_step)
    return chosen


class OwnText(NamedTuple):
    """Rows of prompts and the student's continuations, on the CPU, in the shape of a batch of data."""

    x: torch.Tensor  # (B, T) ids
    y: torch.Tensor  # (B, T): the next id where that was drawn, else -1
    n_ended: int  # rows that wrote their end-of-text
    n_computed: int  # positions that the student computed while it wrote


@torch.no_grad()
def write_own_text(
    model, x, y, first_row, *, seed, prompt_tokens, response_tokens, temperature, vocab_size, eot, run
) -> OwnText:
    """Have the student continue the beginnings of rows x (B, T) with targets y; what it draws are the new targets.

    model: the student, in eval mode. first_row: the number of the batch's first row. prompt_tokens: (fewest, most)
    tokens of a row that are kept. After these each row draws up to response_tokens from softmax(logits / temperature)
    over the vocab_size true ids, and ends with its first `eot`, which is a target too.
    """
    B, T = x.shape
    lengths, uniforms = prompt_lengths_and_uniforms(
        x, y, first_row, seed=seed, prompt_tokens=prompt_tokens, response_tokens=response_tokens
    )
    (prompts,) = run.to_device(x)
    with run.autocast(), run.any_shape():
        ids = model.generate(
            prompts,
            response_tokens,
            temperature=temperature,
            vocab_size=vocab_size,
            eot=eot,
            lengths=lengths,
            uniforms=uniforms,
        ).cpu()
    # rows are decoded together, up to the end of the longest; its last token is drawn but not read again
    n_computed = B * (ids.size(1) - 1)
    # padded to the shape of a data batch, for which the model is compiled already
    ids = F.pad(ids, (0, T + 1 - ids.size(1)), value=eot)  # (B, T + 1)
    is_response = response_mask(ids, lengths, response_tokens, eot)
    n_ended = ((ids == eot) & is_response).sum().item()
    targets = ids.where(is_response, -1)
    return OwnText(x=ids[:, :-1].contiguous(), y=targets[:, 1:].contiguous(), n_ended=n_ended, n_computed=n_computed)


def prompt_lengths_and_uniforms(
    x, y, first_row, seed, prompt_tokens, response_tokens
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The length of each row's prompt, (B,), and the random numbers for its draws, (B, response_tokens) in [0, 1)."""
    fewest, most = prompt_tokens
    lengths = []
    uniforms = []
    for row in range(first_row, first_row + len(x)):
        rng = np.random.default_rng((seed, PURPOSE, row))
        lengths.append(rng.integers(fewest, most + 1))
        uniforms.append(rng.random(response_tokens))
    # a document shorter than that is kept up to its end-of-text, so that the student has something to add
    n_text = (y >= 0).sum(dim=1)
    lengths = torch.minimum(torch.tensor(lengths), n_text)
    return lengths, torch.from_numpy(np.stack(uniforms))


def response_mask(ids, lengths, response_tokens, eot) -> torch.Tensor:
    """True where ids (B, W) were drawn: after the prompt, up to response_tokens of them, or to the first eot."""
    position = torch.arange(ids.size(1))
    is_drawn = (position >= lengths[:, None]) & (position < lengths[:, None] + response_tokens)
    is_end = is_drawn & (ids == eot)
    # only among the drawn ones: an eot within the prompt does not end the row
    ends_before = is_end.cumsum(dim=1) - is_end.long()
    return is_drawn & (ends_before == 0)
