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

A text longer than the context window loses its first tokens. An empty ending is the space alone, or where that makes no
token, the end-of-text id. An example without a label is an error, as in the official test split.
"""

# before torch, so that Ctrl-C while it loads ends in one line
from configurator import at_least, configure, one_of  # isort: split

import json as jsonlib
import time
from pathlib import Path

import torch

from common.download import download
from common.files import file_sha256, read_utf8
from common.pretrained import check_fits, load_pretrained, settle_model, weights_sha256
from common.runtime import Runtime
from common.tokenizer import load_tokenizer
from tasks.loading import draw_shots
from tasks.metrics import standard_error
from tasks.prompts import hellaswag_example
from tasks.scoring import encode_rows, score
from tasks.tables import HELLASWAG

CONVENTIONS = ("completion", "harness")


# ---------------------------------------------------------------------------------------------
# examples


def data_file(path: str, split="val") -> Path:
    """The .jsonl file of examples: `path`, or, for "", the official one of a split, downloaded."""
    file = Path(path)
    if not path:
        file = download(HELLASWAG.format(split=split), f"data/hellaswag/hellaswag_{split}.jsonl")
    if not file.is_file():
        raise FileNotFoundError(f"no HellaSwag file {str(file)!r}; leave it empty to download the official one")
    return file


def load_examples(path: str = "", limit: int = 0, split="val", convention="completion") -> list[dict]:
    """The first `limit` (0: all) examples as {"ctx", "endings", "label"}, their texts as the convention has them.

    path: as for `data_file`. Raises FileNotFoundError, or ValueError naming the line and the field that is wrong.
    """
    file = data_file(path, split)
    columns = "ctx, endings and label"
    if convention == "harness":
        columns += ", and activity_label"

    examples = []
    # the whole file is read and checked before a model is loaded
    for number, line in enumerate(read_utf8(file).split("\n"), 1):
        if limit and len(examples) == limit:
            break
        if not line.strip():
            continue
        try:
            example = hellaswag_example(jsonlib.loads(line), convention)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"{file}, line {number}: expected JSON with {columns} ({error!r})") from None
        n_endings = len(example["endings"])
        if not 0 <= example["label"] < n_endings:
            raise ValueError(f"{file}, line {number}: label {example['label']} of {n_endings} endings")
        examples.append(example)
    if not examples:
        raise ValueError(f"{file} has no examples")
    return examples


# ---------------------------------------------------------------------------------------------
# predictions


def predict(model, tokenizer, examples: list[dict], run: Runtime, convention="completion", prompts=(), progress=False):
    """[(ending with the best sum, with the best mean)] for each example, by a model in eval mode; the ranks share them.

    prompts: what to put before each example, () for nothing; progress: show a bar.
    """
    is_harness = convention == "harness"
    prompts = prompts or [""] * len(examples)
    groups = []  # for each example its texts, one an ending: (ids, how many of the last ones are the ending's)
    for prompt, example in zip(prompts, examples):
        groups.append(encode_rows(tokenizer, prompt + example["ctx"], example["endings"], is_harness))
    # a row for each ending: summed log-probability, number of tokens, and whether each token is the likeliest
    scores = score(model, groups, tokenizer.vocab_size, run, "hellaswag" if progress else "")

    predictions = []
    first = 0
    for example in examples:
        endings = example["endings"]
        sums, n_tokens, _ = scores[first : first + len(endings)].T
        # Karpathy divides by tokens, the harness by characters
        lengths = n_tokens
        if is_harness:
            lengths = [max(1, len(ending)) for ending in endings]
        # the most probable ending, and the one whose tokens (or characters) are the most probable on average
        predictions.append((int(sums.argmax()), int((sums / lengths).argmax())))
        first += len(endings)
    return predictions


def accuracy(model, tokenizer, examples: list[dict], run: Runtime, **settings) -> tuple[float, float]:
    """(acc, acc_norm) of a model in eval mode. settings: as for `predict`."""
    right_by_sum = 0
    right_by_mean = 0
    predictions = predict(model, tokenizer, examples, run, **settings)
    for example, (by_sum, by_mean) in zip(examples, predictions):
        right_by_sum += by_sum == example["label"]
        right_by_mean += by_mean == example["label"]
    return right_by_sum / len(examples), right_by_mean / len(examples)


def draw_prompts(examples: list[dict], pool: Path) -> list[str]:
    """What comes before each example: `shots` solved examples of the file `pool`. Reads the knobs at the end."""
    solved = []
    for example in load_examples(str(pool), convention=convention):
        right_ending = example["endings"][example["label"]]
        solved.append(f"{example['ctx']} {right_ending}")
    # if that file is also the one that is scored, no example may see its own answer
    file_is_pool = data_file(data, split).samefile(pool)
    prompts = []
    for i in range(len(examples)):
        prompts.append(draw_shots(solved, shots, seed, own_index=i if file_is_pool else None))
    return prompts


def as_json(metrics: dict, n: int, speed: float, hashes: dict, file: Path, pool: Path | None) -> str:
    """One JSON object as evaluate.py --json prints, for plot.py; hashes identify what was scored."""
    result = {
        "task": "hellaswag",
        "convention": convention,
        "shots": shots,
        "seed": seed,
        "n": n,
        "metrics": metrics,
        "examples_per_s": speed,
        "data": str(file),
        "data_sha256": file_sha256(file),
        "shots_data": str(pool or ""),
    }
    return jsonlib.dumps({"model": model, **hashes, "results": [result]})


def main():
    at_least(config, 0, "limit shots seed")
    one_of(config, split=("val", "train", "test"), convention=CONVENTIONS)
    run = Runtime(device, dtype)
    folder = settle_model(model, run)
    tokenizer = load_tokenizer(folder)
    file = data_file(data, split)
    examples = load_examples(str(file), limit, convention=convention)
    n = len(examples)
    pool = None
    prompts = ()
    if shots:
        pool = data_file(shots_data, "train")
        prompts = draw_prompts(examples, pool)
    # weights stay in fp32, whatever the matmuls compute in
    net = load_pretrained(folder, run.device, torch.float32).eval()
    hashes = {"model_sha256": weights_sha256(folder), "tokenizer_hash": tokenizer.hash}
    check_fits(net, model, 1, tokenizer.vocab_size)
    net = run.compile(net, compile)

    # the ranks of torchrun share the examples, and all get the result
    start = time.perf_counter()
    acc, acc_norm = accuracy(net, tokenizer, examples, run, convention=convention, prompts=prompts, progress=True)
    speed = n / (time.perf_counter() - start)

    acc_error = standard_error(acc, n)
    norm_error = standard_error(acc_norm, n)
    if json:
        metrics = {
            "acc": {"value": acc, "stderr": acc_error},
            "acc_norm": {"value": acc_norm, "stderr": norm_error},
        }
        run.say(as_json(metrics, n, speed, hashes, file=file, pool=pool))
    else:
        shown_shots = f", {shots} shots of {pool} drawn with seed {seed}" if shots else ""
        run.say(f"convention {convention}{shown_shots}")
        scores = f"acc={acc:.4f}±{acc_error:.4f} acc_norm={acc_norm:.4f}±{norm_error:.4f}"
        run.say(f"hellaswag n={n} {scores} ({speed:.1f} examples/s)")
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
    device = "auto"  # "auto", "cpu", "cuda" or "mps"
    dtype = "auto"  # of the matmuls: bfloat16 on a GPU that has it, else float32
    compile = "off"  # torch.compile: "on" takes a minute, and so pays for many minutes of questions; "auto": on CUDA
    config = configure(globals())
    main()
