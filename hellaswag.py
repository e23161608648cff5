"""Score a model on HellaSwag: which of four endings does it find likeliest?

    python hellaswag.py --model=out/quickstart/teacher --limit=200
    python hellaswag.py --model=gpt2 --convention=harness --shots=5

An example is one line of JSON (Zellers et al. 2019, arXiv:1905.07830):

    {"ind": 24, "activity_label": "Roof shingle removal", "label": 3,
     "ctx_a": "A man is sitting on a roof.", "ctx_b": "he", "ctx": "A man is sitting on a roof. he",
     "endings": ["is using wrap to wrap a pair of skis.", "is ripping level tiles off.",
                 "is holding a rubik's cube.", "starts pulling up roofing on a roof."]}

Each ending makes a text `ctx + " " + ending`. `acc` takes the ending whose tokens have the largest log-probability in
sum, `acc_norm` that with the largest mean; of equals, the first. Two conventions, whose numbers must not be mixed:

    completion  Karpathy's: ctx as it is, mean over tokens. It shifts with the tokenizer: compare within one only.
    harness     lm-evaluation-harness's: "activity_label: ctx_a Ctx_b" without the brackets of WikiHow, mean over
                characters (the harness's manual says bytes, its code counts characters), and the beginning-of-text
                token first, where the tokenizer has one of its own.

A text longer than the context window loses its first tokens. An empty ending is the blank alone; where that is no
token, the end-of-text id stands for it. An example without a label is an error, as in the official test split.
"""

# before torch, so that Ctrl-C while it loads ends in one line
from configurator import at_least, configure, one_of  # isort: split

import json as jsonlib
import math
import random
import re
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common.download import download
from common.files import file_sha256, read_utf8
from common.pretrained import check_fits, find_model, load_pretrained, weights_sha256
from common.runtime import Runtime
from common.tasks import to_label
from common.tokenizer import load_tokenizer
from head import blocks, logits_in_chunks
from losses import Objective, loss_terms

URL = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_{split}.jsonl"
CONVENTIONS = ("completion", "harness")


# ---------------------------------------------------------------------------------------------
# examples


def data_file(path: str, split="val") -> Path:
    """The .jsonl file of examples: `path`, or, for "", the official one of a split, downloaded."""
    name = f"hellaswag_{split}.jsonl"
    file = Path(path) if path else download(URL.format(split=split), f"data/hellaswag/{name}")
    if not file.is_file():
        raise FileNotFoundError(f"no HellaSwag file {str(file)!r}; leave it empty to download the official one")
    return file


def load_examples(path: str = "", limit: int = 0, split="val", convention="completion") -> list[dict]:
    """The first `limit` (0: all) examples as {"ctx", "endings", "label"}, their texts as the convention has them.

    path: as of `data_file`. Raises FileNotFoundError, or ValueError naming the line and the field that is wrong.
    """
    file, examples = data_file(path, split), []
    lines = read_utf8(file).split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip() or len(examples) == limit > 0:
            continue
        try:
            row = jsonlib.loads(line)
            example = question(row, convention)
        except (jsonlib.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            columns = "ctx, endings and label" + ", and activity_label" * (convention == "harness")
            raise ValueError(f"{file}, line {number}: expected JSON with {columns} ({error!r})") from None
        if not 0 <= example["label"] < len(example["endings"]):
            raise ValueError(f"{file}, line {number}: label {example['label']} of {len(example['endings'])} endings")
        examples.append(example)
    if not examples:
        raise ValueError(f"{file} has no examples")
    return examples


def question(row: dict, convention="completion") -> dict:
    """An example as a convention has it. KeyError, TypeError or ValueError for a row that is none."""
    ctx, endings, label = row["ctx"], row["endings"], to_label(row["label"])
    if not (isinstance(endings, list) and all(isinstance(text, str) for text in (ctx, *endings))):
        raise TypeError("ctx must be a text and endings a list of texts")
    if convention == "harness":
        first, second = (row["ctx_a"], row.get("ctx_b") or "") if row.get("ctx_a") else (ctx, "")
        ctx = f"{row['activity_label']}: {first} {second.capitalize()}"
        ctx, endings = without_brackets(ctx), [without_brackets(ending) for ending in endings]
    return {"ctx": ctx, "endings": endings, "label": label}


def without_brackets(text: str) -> str:
    """A text of WikiHow as lm-evaluation-harness cleans it: [header], [step] and the like go, a title is a sentence."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def draw_shots(pool: list[str], k: int, seed: int, itself: int | None = None) -> str:
    """k of the pool's solved examples, a blank line after each, the same for all but those drawn: they do not see
    themselves (itself: an index into the pool)."""
    drawn = random.Random(seed).sample(range(len(pool)), min(k + 1, len(pool))) if k else []
    drawn = [i for i in drawn if i != itself][:k]
    if len(drawn) < k:
        there = len(pool) - (itself is not None)
        raise ValueError(f"shots={k}, but there are only {there} other examples to draw from; lower it")
    return "".join(f"{pool[i]}\n\n" for i in drawn)


def encode_rows(tokenizer, ctx: str, endings: list[str], harness=False) -> list[tuple[list[int], int]]:
    """(ids, how many of the last are the ending's) of each text `ctx + " " + ending`.

    The ending's tokens are those of encode(ctx + " " + ending) beyond encode(ctx) where that is a prefix, else
    encode(" " + ending). With GPT-2's BPE, which never merges across the blank, both are Karpathy's rule: encode(ctx) +
    encode(" " + ending). Before an empty context there is the beginning-of-text (or end-of-text) id. harness: there
    is before any, where a tokenizer has one of its own, and blanks at the end of ctx belong to the ending.
    """
    rows, before = [], ctx.rstrip() if harness else ctx
    context = tokenizer.encode(before)
    front = [tokenizer.bos] if not context or (harness and tokenizer.bos != tokenizer.eot) else []
    for ending in endings:
        text = f"{ctx} {ending}"
        whole = tokenizer.encode(text)
        if whole[: len(context)] != context or len(whole) == len(context):
            whole = context + (tokenizer.encode(text[len(before) :]) or [tokenizer.eot])
        rows.append((front + whole, len(whole) - len(context)))
    return rows


# ---------------------------------------------------------------------------------------------
# scorer


class Row:
    """Texts side by side in one row: the first as it is, of each other one only what comes after their common start.

    Column by column: id, position in its text, text (0: the first), and how many of the first's columns it sees.
    """

    def __init__(self, length: int):
        self.ids, self.positions, self.text, self.shared, self.first, self.texts = [], [], [], [], length, 0
        self.scored = []  # (column, the id that follows, number of the text)

    def add(self, number: int, ids: list[int], n: int, same: int):
        """Append a text, whose last n ids are scored and whose first `same` inputs are the first's."""
        length, start = len(ids) - 1, len(self.ids) - same  # the last id is only predicted
        self.ids += ids[same:-1]
        self.positions += range(same, length)
        self.text += [self.texts] * (length - same)
        self.shared += [same] * (length - same)
        self.scored += [(j if j < same else start + j, ids[j + 1], number) for j in range(length - n, length)]
        self.texts += 1


def lay_out(texts, size: int) -> list[Row]:
    """Rows of at most `size` columns for texts [(number, ids, n)] that may begin alike.

    A text beyond size + 1 ids loses its first, as the model cannot see them.
    """
    rows = []
    for number, ids, n in texts:
        ids = ids[-size - 1 :]
        n, same = min(n, len(ids) - 1), 0
        if rows:
            pairs = zip(rows[-1].ids[: rows[-1].first], ids[:-1])
            same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(rows[-1].first, len(ids) - 1))
        if not rows or len(rows[-1].ids) + len(ids) - 1 - same > size:
            rows, same = [*rows, Row(len(ids) - 1)], 0
        rows[-1].add(number, ids, n, same)
    return rows


def batch(rows: list[Row], width: int, device):
    """(ids, positions, mask) of rows, padded to (B, width); no mask where no row holds a second text."""
    table = np.zeros((4, len(rows), width), dtype=np.int64)
    table[2] = -1  # padding sees itself and is not seen
    for i, row in enumerate(rows):
        table[:, i, : len(row.ids)] = row.ids, row.positions, row.text, row.shared
    ids, positions, text, shared = torch.from_numpy(table).to(device)
    if all(row.texts == 1 for row in rows):
        return ids, None, None
    column = torch.arange(width, device=device)
    own = text[:, :, None] == text[:, None, :]
    first = (text == 0)[:, None, :] & (column < shared[:, :, None])
    return ids, positions, ((own | first) & (column <= column[:, None]))[:, None]


def plan(groups, size: int, run: Runtime, progress="") -> tuple[list[Row], dict[int, list[int]]]:
    """This rank's rows, longest first, and {number of a text: numbers of all that are the same} in a group."""
    rows, same_as, number = [], {}, 0
    for i, group in enumerate(groups):
        texts = {}
        for ids, n in group:
            texts.setdefault((tuple(ids), n), []).append(number)
            number += 1
        same_as |= {numbers[0]: numbers for numbers in texts.values()}
        if i % run.world == run.rank:
            rows += lay_out([(numbers[0], list(ids), n) for (ids, n), numbers in texts.items()], size)
    if progress and run.is_main and (cut := sum(len(ids) > size + 1 for group in groups for ids, _ in group)):
        said = f"{progress}: {cut:,} of {number:,} texts are beyond the model's {size} positions; they lose their first"
        print(said, file=sys.stderr)
    return sorted(rows, key=lambda row: -len(row.ids)), same_as


@torch.no_grad()
def score(model, groups, vocab_size: int, run: Runtime, progress="", greedy=False) -> np.ndarray:
    """(N, 3): of the last n ids of each text the summed log-probability in nats, n, and whether all are the likeliest.

    groups: a list for each example of its texts (ids, n), N in all; a common start is computed once, equal texts too,
    and the head is applied to scored positions alone. Padding is seen by no scored position. The last column is made
    for `greedy` alone. The ranks share the groups. `model` in eval mode; progress: the name at the bar.
    Raises ValueError for a model that gives NaN.
    """
    net, total = raw(model), torch.zeros(sum(map(len, groups)), 3, dtype=torch.float64)
    size = net.config.block_size
    rows, same_as = plan(groups, size, run, progress)
    budget, multiple = (32768, 64) if run.cuda else (1536, 8)  # columns; few shapes for the compiler and the kernels
    show = progress and run.is_main and sys.stderr.isatty()
    bar = tqdm(total=len(rows), unit="row", desc=progress, disable=not show)
    while rows:  # a batch that is too large for the memory fails at once
        width = min(size, -(-len(rows[0].ids) // multiple) * multiple)
        now, rows = rows[: max(1, budget // width)], rows[max(1, budget // width) :]
        ids, positions, mask = batch(now, width, run.device)
        scored = [(i * width + column, *rest) for i, row in enumerate(now) for column, *rest in row.scored]
        columns, target, text = torch.tensor(scored).T.to(run.device)
        with run.autocast():
            hidden = model(ids, hidden=True, positions=positions, mask=mask).flatten(0, 1)[columns]
        losses, hits = token_losses(hidden, net.lm_head.weight.to(run.dtype), target, vocab_size, greedy)
        values = torch.stack((-losses, torch.ones_like(losses), ~hits), dim=1)
        total.index_add_(0, text.cpu(), values.double().cpu())
        bar.update(len(now))
    bar.close()
    total = run.all_sum(total)
    if not total.isfinite().all():
        raise ValueError("the model gives log-probabilities that are not finite; its weights are damaged or diverged")
    for first, numbers in same_as.items():
        total[numbers] = total[first].clone()
    total[:, 2] = total[:, 2] == 0
    return total.numpy()


def token_losses(hidden, weight, target, vocab_size, greedy):
    """Cross-entropy in nats (N,), fp32, and with `greedy` whether the target is the likeliest, of hidden (N, C)."""
    losses, hits = torch.empty(len(target), device=target.device), torch.ones_like(target, dtype=torch.bool)
    for now, logits in logits_in_chunks([(hidden, weight)]):
        for part in blocks(logits):
            z, y = logits[part, :vocab_size], target[now][part]
            (ce, _), _ = loss_terms(z, [], y, Objective())
            losses[now][part] = ce
            if greedy:
                hits[now][part] = z.argmax(-1) == y
        del logits, z  # before the next chunk's are made
    return losses, hits


def raw(model):
    """The module that torch.compile wrapped, or the model itself."""
    return getattr(model, "_orig_mod", model)


# ---------------------------------------------------------------------------------------------
# HellaSwag


def predict(model, tokenizer, examples: list[dict], run: Runtime, convention="completion", prompts=(), progress=False):
    """(prediction by sum, by mean) of each example; prompts: what to put before each, or nothing."""
    harness, prompts = convention == "harness", prompts or [""] * len(examples)
    groups = [encode_rows(tokenizer, p + e["ctx"], e["endings"], harness) for p, e in zip(prompts, examples)]
    scores, first, predictions = score(model, groups, tokenizer.vocab_size, run, "hellaswag" * progress), 0, []
    for e in examples:
        sums, n, _ = scores[first : first + len(e["endings"])].T
        lengths = [max(1, len(ending)) for ending in e["endings"]] if harness else n
        predictions.append((int(sums.argmax()), int((sums / lengths).argmax())))
        first += len(e["endings"])
    return predictions


def accuracy(model, tokenizer, examples: list[dict], run: Runtime, **how) -> tuple[float, float]:
    """(acc, acc_norm) of a model in eval mode; the ranks share the examples. how: as for `predict`."""
    predictions = predict(model, tokenizer, examples, run, **how)
    return tuple(sum(p[k] == e["label"] for p, e in zip(predictions, examples)) / len(examples) for k in (0, 1))


def standard_error(share: float, n: int) -> float:
    """Of the mean of n zeros and ones: the sample's standard deviation / sqrt(n)."""
    return math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else math.nan


def main():
    at_least(config, 0, "limit shots seed")
    one_of(config, split=("val", "train", "test"), convention=CONVENTIONS)
    run = Runtime(device, dtype)
    tokenizer = load_tokenizer(find_model(model))
    examples, prompts, pool = load_examples(data, limit, split, convention), (), None
    if shots:
        pool = data_file(shots_data, "train")
        solved = [f"{e['ctx']} {e['endings'][e['label']]}" for e in load_examples(str(pool), 0, "", convention)]
        itself = data_file(data, split).samefile(pool)
        prompts = [draw_shots(solved, shots, seed, i if itself else None) for i in range(len(examples))]
    net = load_pretrained(model, run.device, torch.float32).eval()
    check_fits(net, model, 1, tokenizer.vocab_size)
    start = time.perf_counter()
    how = {"convention": convention, "prompts": prompts, "progress": True}
    found = accuracy(run.compile(net, compile), tokenizer, examples, run, **how)
    speed, n = len(examples) / (time.perf_counter() - start), len(examples)
    (acc, e), (acc_norm, e_norm) = ((x, standard_error(x, n)) for x in found)
    file = data_file(data, split)
    if json:
        result = {
            "task": "hellaswag", "convention": convention, "shots": shots, "seed": seed, "n": n,
            "metrics": {"acc": {"value": acc, "stderr": e}, "acc_norm": {"value": acc_norm, "stderr": e_norm}},
            "examples_per_s": speed, "data": str(file), "data_sha256": file_sha256(file), "shots_data": str(pool or ""),
        }  # fmt: skip
        hashes = {"model_sha256": weights_sha256(find_model(model)), "tokenizer_hash": tokenizer.hash}
        run.say(jsonlib.dumps({"model": model, **hashes, "results": [result]}))
    else:
        run.say(f"convention {convention}" + f", {shots} shots of {pool} drawn with seed {seed}" * bool(shots))
        run.say(f"hellaswag n={n} acc={acc:.4f}±{e:.4f} acc_norm={acc_norm:.4f}±{e_norm:.4f} ({speed:.1f} examples/s)")
    run.close()


if __name__ == "__main__":
    model = ""  # model folder, a run's out_dir (its newest checkpoint), or a hub repository's name
    data = ""  # .jsonl file of examples; "" downloads the official one of the split
    split = "val"  # "val" or "train"; the official "test" has no labels
    limit = 0  # the first examples only; 0: all 10,042
    shots = 0  # solved examples before each question, the same for all
    shots_data = ""  # .jsonl file to draw them from; "" downloads the official training split
    seed = 1337  # of the draw
    convention = "completion"  # or "harness"; see above
    json = False  # print one JSON object instead of the last line
    device = "auto"  # "auto", "cpu" or "cuda"
    dtype = "auto"  # of the matmuls: bfloat16 on CUDA, float32 on the CPU
    compile = "auto"  # torch.compile: "on", "off"; "auto": on CUDA
    config = configure(globals())
    main()
