"""How good is the text that a model writes? Its divergence from the teacher on that text, its repetition and variety.

    python -m studies.generation --model=out/student --teacher=out/teacher --dataset=data/mine

The model continues the beginnings of rows of the validation split, by its own distribution (temperature 1). Prints one
JSON object:

    reverse_kl    mean of KL(model || teacher) over the drawn tokens, nats
    forward_kl    mean of KL(teacher || model) over the same
    entropy       of the model, likewise; teacher_entropy
    repeated      share of a sample's 4-grams that occur earlier in it, mean over samples
    distinct_2, distinct_3    different 2-grams and 3-grams / all of them, over all samples together (Li et al. 2016,
                  arXiv:1510.03055)

and the last three of the data's own continuations, to compare with ("data_repeated" and so on).
"""

# before torch, so that Ctrl-C while it loads ends in one line
from configurator import at_least, configure  # isort: split

import json
import statistics

import torch

from common.data import TokenData
from common.own_text import write_own_text
from common.pretrained import check_fits, find_model, load_pretrained
from common.runtime import Runtime
from common.tokenizer import check_same_tokenizer
from head import COMPARED, compare
from losses import Objective


def ngrams(ids: list[int], n: int) -> list[tuple]:
    """
    >>> ngrams([1, 2, 3], 2)
    [(1, 2), (2, 3)]
    """
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]


def repetition(ids: list[int]) -> float:
    """The share of 4-grams that occur earlier in the text: 0 for a text that never repeats itself.

    >>> round(repetition([1, 2, 3, 4, 1, 2, 3, 4]), 2)
    0.2
    """
    grams = ngrams(ids, 4)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(texts: list[list[int]], n: int) -> float:
    """Different n-grams / all n-grams of all texts together."""
    grams = []
    for ids in texts:
        grams += ngrams(ids, n)
    return len(set(grams)) / len(grams) if grams else 0.0


def counts(texts: list[list[int]]) -> dict[str, float]:
    return {
        "repeated": statistics.mean(repetition(ids) for ids in texts),
        "distinct_2": distinct(texts, 2),
        "distinct_3": distinct(texts, 3),
    }


@torch.no_grad()
def main():
    run = Runtime(device, dtype)
    data = TokenData(dataset, "val", block_size, seed=0, batch_size=batch_size, random_offset=False)
    nets = {}
    for role, name in {"model": model, "teacher": teacher}.items():
        check_same_tokenizer(dataset, find_model(name))
        nets[role] = load_pretrained(name, run.device, torch.float32).eval()
        check_fits(nets[role], name, block_size, data.vocab_size)

    own_texts = []
    data_texts = []
    sums = dict.fromkeys(COMPARED, 0.0)
    n_drawn = 0
    # Each row once: a second time it would lower the variety of the data, but not of the model, which draws anew.
    n_samples = min(samples or data.n_rows, data.n_rows)
    for first in range(0, n_samples, batch_size):
        n = min(batch_size, n_samples - first)
        x, y = data.rows(first, n)
        own = write_own_text(
            nets["model"],
            x,
            y,
            first_row=first,
            seed=seed,
            prompt_tokens=(prompt_tokens, prompt_tokens),
            response_tokens=response_tokens,
            temperature=1.0,
            vocab_size=data.vocab_size,
            eot=data.meta["eot"],
            run=run,
        )
        own_texts += [row[row >= 0].tolist() for row in own.y]
        data_texts += [row.tolist() for row in x[:, prompt_tokens : prompt_tokens + response_tokens]]
        own_x, own_y = run.to_device(own.x, own.y)
        with run.autocast():
            heads = [(net(own_x, hidden=True), net.lm_head.weight) for net in nets.values()]
        added = compare(heads[0], heads[1:], own_y, Objective(), vocab_size=data.vocab_size, dtype=run.dtype)
        for name in COMPARED:
            sums[name] += added[name].item()
        n_drawn += (own_y >= 0).sum().item()
    result = {name: total / n_drawn for name, total in sums.items()}
    result |= counts(own_texts)
    result |= {f"data_{name}": value for name, value in counts(data_texts).items()}
    print(json.dumps(result | {"samples": len(own_texts), "tokens": n_drawn}))
    run.close()


if __name__ == "__main__":
    model = ""  # model folder or a run's out_dir
    teacher = ""  # likewise
    dataset = "data/stdlib"  # folder with val.bin and meta.json
    samples = 1000  # texts, one a row of the split; 0, or more than it has: all
    prompt_tokens = 32  # of a row
    response_tokens = 96  # most that the model writes
    block_size = 128  # tokens of a row: prompt and response
    batch_size = 100  # rows at a time
    seed = 1337  # of the draws
    device = "auto"  # "auto", "cpu" or "cuda"
    dtype = "auto"  # of the matmuls: bfloat16 on a GPU that has it, else float32
    config = configure(globals())
    at_least(config, 1, "prompt_tokens response_tokens block_size batch_size")
    at_least(config, 0, "seed samples")
    if prompt_tokens + response_tokens > block_size:
        raise ValueError(
            f"prompt_tokens={prompt_tokens} and response_tokens={response_tokens} are more than "
            f"block_size={block_size} together; lower one of them"
        )
    main()
