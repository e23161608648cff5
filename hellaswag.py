"""Score a model on HellaSwag: which of four endings does it find likeliest? Karpathy's way, for any tokenizer.

    python hellaswag.py --model=out/quickstart/teacher --limit=200

An example is one line of JSON (Zellers et al. 2019, arXiv:1905.07830):

    {"ind": 24, "activity_label": "Roof shingle removal", "label": 3,
     "ctx": "A man is sitting on a roof. he",
     "endings": ["is using wrap to wrap a pair of skis.", "is ripping level tiles off.",
                 "is holding a rubik's cube.", "starts pulling up roofing on a roof."]}

Each ending becomes a row `ctx + " " + ending`, and its score is the loss of the ending's tokens in nats:
their sum for `acc`, their mean for `acc_norm`. The least loss is the prediction. The per-token mean
shifts with the tokenizer: compare `acc_norm` between models of one tokenizer only.
"""

import json
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

from common.download import download
from common.pretrained import check_fits, find_model, load_pretrained
from common.runtime import Runtime
from common.tokenizer import load_tokenizer
from configurator import at_least, configure

URL = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"
BATCH_TOKENS = 16384  # of rows scored together, padding included


def load_examples(path: str = "", limit: int = 0) -> list[dict]:
    """The first `limit` (0: all) examples of a .jsonl file; "" is the official validation set, downloaded.

    Raises FileNotFoundError or ValueError naming the line and the field that is wrong.
    """
    file = Path(path) if path else download(URL, "data/hellaswag/hellaswag_val.jsonl")
    if not file.is_file():
        raise FileNotFoundError(f"no HellaSwag file {str(file)!r}; leave it empty to download the official one")
    examples = []
    lines = file.read_bytes().decode("utf-8", errors="replace").strip("\n").split("\n")
    for number, line in enumerate(lines[: limit or None] if any(lines) else [], 1):
        try:
            row = json.loads(line)
            example = {"ctx": row["ctx"], "endings": row["endings"], "label": int(row["label"])}
            if not (
                isinstance(row["endings"], list) and all(isinstance(t, str) for t in [row["ctx"], *row["endings"]])
            ):
                raise TypeError("ctx must be a text and endings a list of texts")
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file}, line {number}: expected JSON with ctx, endings and label ({error!r})") from None
        if not 0 <= example["label"] < len(example["endings"]):
            raise ValueError(f"{file}, line {number}: label {example['label']} of {len(example['endings'])} endings")
        examples.append(example)
    if not examples:
        raise ValueError(f"{file} has no examples")
    return examples


def encode_rows(tokenizer, ctx: str, endings: list[str]) -> list[tuple[list[int], int]]:
    """(ids, length of the ending) of each ending.

    The ending's tokens are those of encode(ctx + " " + ending) beyond encode(ctx) where that is a
    prefix, else encode(" " + ending) after encode(ctx). With GPT-2's BPE, which never merges across
    the blank, both are encode(ctx) + encode(" " + ending): Karpathy's rule.
    """
    rows, context = [], tokenizer.encode(ctx) or [tokenizer.eot]
    for ending in endings:
        whole = tokenizer.encode(f"{ctx} {ending}")
        if whole[: len(context)] != context or len(whole) == len(context):
            whole = context + tokenizer.encode(f" {ending}")
        rows.append((whole, len(whole) - len(context)))
    return rows


@torch.no_grad()
def score_rows(model, rows, vocab_size: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum and mean loss in nats of the endings of rows [(ids, length of the ending)]: two (N,) tensors.

    Rows beyond block_size lose their first tokens, as the model cannot see them. The padding on the
    right is seen by no scored position.
    """
    size = model.config.block_size + 1  # one more: the last token is only predicted
    rows = [(ids[-size:], min(n, len(ids[-size:]) - 1)) for ids, n in rows]
    x = torch.zeros(len(rows), max(len(ids) for ids, _ in rows) - 1, dtype=torch.long)
    y = torch.full_like(x, -1)  # -1: not scored
    for i, (ids, n) in enumerate(rows):
        x[i, : len(ids) - 1] = torch.tensor(ids[:-1])
        y[i, len(ids) - 1 - n : len(ids) - 1] = torch.tensor(ids[len(ids) - n :])
    x, y = x.to(device), y.to(device)
    scored = y >= 0
    logits = model.lm_head(model(x, hidden=True)[scored])[:, :vocab_size]  # the head on ending tokens only
    loss = torch.zeros(y.shape, device=device)
    loss[scored] = F.cross_entropy(logits.float(), y[scored], reduction="none")
    return loss.sum(1).cpu(), (loss.sum(1) / scored.sum(1)).cpu()


def predict(model, tokenizer, examples: list[dict], device, progress=False) -> list[tuple[int, int]]:
    """(prediction by sum, prediction by mean) of each example. `model` in eval mode."""
    encoded = [encode_rows(tokenizer, e["ctx"], e["endings"]) for e in examples]
    order = sorted(range(len(examples)), key=lambda i: -max(len(ids) for ids, _ in encoded[i]))
    predictions = [(0, 0)] * len(examples)
    bar = tqdm(total=len(examples), unit="ex", desc="hellaswag", disable=not (progress and sys.stderr.isatty()))
    while order:  # longest first, so that a batch that is too large fails at once
        width = max(len(ids) for ids, _ in encoded[order[0]])
        width = min(width, model.config.block_size)
        now = order[: max(1, BATCH_TOKENS // (width * len(encoded[order[0]])))]
        order = order[len(now) :]
        sums, means = score_rows(model, [row for i in now for row in encoded[i]], tokenizer.vocab_size, device)
        first = 0
        for i in now:
            last = first + len(encoded[i])
            predictions[i] = (sums[first:last].argmin().item(), means[first:last].argmin().item())
            first = last
        bar.update(len(now))
    bar.close()
    return predictions


def accuracy(model, tokenizer, examples: list[dict], run: Runtime, progress=False) -> tuple[float, float]:
    """(acc, acc_norm) of a model in eval mode; the ranks share the examples."""
    mine = examples[run.rank :: run.world]
    with run.autocast():
        predictions = predict(model, tokenizer, mine, run.device, progress) if mine else []
    right = [sum(p[k] == e["label"] for p, e in zip(predictions, mine)) for k in (0, 1)]
    acc, acc_norm = run.sum(*right)
    return acc / len(examples), acc_norm / len(examples)


if __name__ == "__main__":
    model = ""  # model folder, a run's out_dir (its newest checkpoint), or a hub repository's name
    data = ""  # .jsonl file of examples; "" downloads the official validation set
    limit = 0  # the first examples only; 0: all 10,042
    device = "auto"  # "auto", "cpu" or "cuda"
    dtype = "auto"  # of the matmuls: bfloat16 on CUDA, float32 on the CPU
    config = configure(globals())
    at_least(config, 0, "limit")

    run = Runtime(device, dtype)
    tokenizer = load_tokenizer(find_model(model))
    examples = load_examples(data, limit)
    net = load_pretrained(model, run.device, torch.float32)
    check_fits(net, model, 1, tokenizer.vocab_size)
    start = time.perf_counter()
    acc, acc_norm = accuracy(net, tokenizer, examples, run, progress=run.is_main)
    speed = len(examples) / (time.perf_counter() - start)
    run.say(f"hellaswag n={len(examples)} acc={acc:.4f} acc_norm={acc_norm:.4f} ({speed:.1f} examples/s)")
    run.close()
