"""Score a model on multiple choice, last words, and the perplexity of texts.

    python evaluate.py --model=gpt2 --tasks=piqa,lambada,wikitext
    python evaluate.py --model=out/student --tasks=distilpythia --data_dir=my_data
    python evaluate.py --model=out/student --tasks=blimp,my_text.txt --json > results.json
    python evaluate.py --model=out/student --tasks=my_choices.jsonl --choices_column=options --label_column=answer

Tasks are those of tasks/tables.py; "hellaswag" and "hellaswag_harness", the two conventions of hellaswag.py; any text
file by its name; likewise a .jsonl of your own multiple choice; and the tables of the recipes, with the published rows
beside them: distilpythia, distilgpt2, babyllama, microlm.

    metric         what                                                                             of
    acc            the choice with the largest summed log-probability is the right one              multiple choice
    acc_norm       the same, of the mean over characters (hellaswag: over tokens)
    f1, macro_f1   of label 1; mean of that of each label                                           mrpc, cb
    mcc            Matthews' correlation                                                            cola
    word_acc       each token of the last word is the likeliest                                     lambada
    word_ppl       exp of the mean loss of a last word; of texts: exp(loss / words of the file)     lambada, texts
    ppl            exp of the mean loss of a token: compare within one tokenizer only               texts
    bits_per_byte  loss in bits / bytes of the file in UTF-8; for enwik8, "bits per character"      texts

Your own multiple choice has one JSON object a line; each choice makes a text `context + " " + choice`, and acc_norm is
over characters:

    {"context": "The capital of France is", "choices": ["Lyon", "Paris"], "label": 1}

label: the right choice's number from 0, its letter ("B") or its text; choices may be {"text": […], "label": [letters]}.

A text is read in windows: each scores `stride` tokens, after as many earlier ones as the model sees; before the first
is the beginning-of-text (or end-of-text) id. stride=0 scores whole windows, as lm-evaluation-harness does.
"""

# before torch, so that Ctrl-C while it loads ends in one line
from configurator import at_least, configure  # isort: split

import json as jsonlib
import math

import torch

from common.pretrained import check_fits, load_pretrained, settle_model, weights_sha256
from common.runtime import Runtime
from common.tokenizer import load_tokenizer
from tasks.loading import load_tasks
from tasks.metrics import Value, run_task
from tasks.tables import RECIPES

# ---------------------------------------------------------------------------------------------
# report


def table(results: list[dict], published: dict[str, dict[str, float]]) -> str:
    """Tasks with their metrics, one a line, and a column for each published row {"task metric": value}."""
    lines = [["task", "metric", "value", *published, "n", "time", "convention", "data"]]
    for result in results:
        lines += result_lines(result, published)
    # columns as wide as their widest cell
    widths = []
    for column in zip(*lines):
        widths.append(max(len(cell) for cell in column))
    padded = []
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths)]
        padded.append("  ".join(cells).rstrip())
    return "\n".join(padded)


def result_lines(result: dict, published: dict[str, dict[str, float]]) -> list[list[str]]:
    """A line for each metric of a task, its name at the first, then one for each of BLiMP's fields."""
    task = result["task"]
    task_columns = [
        f"{result['n']:,}",
        f"{result['seconds']:.1f} s",
        result["convention"],
        result["data_sha256"][:8],
    ]
    lines = []
    for name, value in result["metrics"].items():
        # it is 2 ** bits_per_byte, and kept in the JSON alone, for comparisons with other tools
        if name == "byte_ppl":
            continue
        beside = [str(row.get(f"{task} {name}", "")) for row in published.values()]
        # what holds for the whole task is shown beside its first metric only
        if lines:
            lines.append(["", name, shown(value), *beside, *[""] * len(task_columns)])
        else:
            lines.append([task, name, shown(value), *beside, *task_columns])
    for field, value in result.get("parts", {}).get("field", {}).items():
        empty = [""] * (len(published) + len(task_columns))
        lines.append([f"  {field}", "acc", shown(value), *empty])
    return lines


def shown(value: Value) -> str:
    """A value with four decimals, fewer if it is large, and its standard error with as many."""
    digits = ".3e"
    if abs(value.value) < 1e6:
        digits = ".2f"
    if abs(value.value) < 10:
        digits = ".4f"
    if value.error is None:
        return f"{value.value:{digits}}"
    return f"{value.value:{digits}} ± {value.error:{digits}}"


def for_json(value: Value) -> dict[str, float | None]:
    """A metric for JSON, which has no inf and no nan: null."""
    return {"value": finite(value.value), "stderr": finite(value.error)}


def finite(x: float | None) -> float | None:
    return x if x is not None and math.isfinite(x) else None


def main():
    at_least(config, 0, "limit shots seed stride")
    run = Runtime(device, dtype)
    folder = settle_model(model, run)
    tokenizer = load_tokenizer(folder)
    columns = {"context": context_column, "choices": choices_column, "label": label_column}
    # all files are read before the model is loaded, so that a missing one fails at once
    loaded_tasks = load_tasks(tasks, data_dir, limit=limit, shots=shots, seed=seed, columns=columns)
    # weights stay in fp32, whatever the matmuls compute in
    net = load_pretrained(folder, run.device, torch.float32).eval()
    weights_hash = weights_sha256(folder)
    check_fits(net, model, 1, tokenizer.vocab_size)
    net = run.compile(net, compile)

    results = []
    for loaded in loaded_tasks:
        results.append(run_task(loaded, net, tokenizer, run, stride=stride, progress=True))
    if json:
        for result in results:
            result["metrics"] = {name: for_json(value) for name, value in result["metrics"].items()}
        hashes = {"model_sha256": weights_hash, "tokenizer_hash": tokenizer.hash}
        run.say(jsonlib.dumps({"model": model, **hashes, "limit": limit, "results": results}))
    else:
        draw = f" drawn with seed {seed}" if shots else ""
        run.say(f"{model}, weights {weights_hash[:16]}, tokenizer {tokenizer.hash}, {shots} shots{draw}")
        say_table(run, results)
    run.close()


def say_table(run: Runtime, results: list[dict]):
    """Print the table, with the published rows and the notes of the recipes that the knob `tasks` names."""
    names = [name.strip() for name in tasks.split(",")]
    recipes = [RECIPES[name] for name in names if name in RECIPES]
    published = {}
    for recipe in recipes:
        published |= recipe.published
    run.say(table(results, published))
    for recipe in recipes:
        if recipe.note:
            run.say(recipe.note)


if __name__ == "__main__":
    model = ""  # model folder, a run's out_dir (its newest checkpoint), or a hub repository's name
    tasks = ""  # tasks, recipes, text files and .jsonl files of multiple choice, with commas between
    data_dir = "data/eval"  # their files, as {task}/{split}.jsonl; fetched where they are not there
    limit = 0  # the first rows of each file only (lines of a text); 0: all
    shots = 0  # solved examples before each question, of {task}/train.jsonl if it is there, else of the file itself
    seed = 1337  # of their draw
    context_column = "context"  # of a .jsonl of one's own: what comes before the choices
    choices_column = "choices"  # likewise: a list of texts
    label_column = "label"  # likewise: which of them is right
    stride = 0  # tokens of a text scored in each window; 0: all that a window holds
    json = False  # print one JSON object instead of a table
    device = "auto"  # "auto", "cpu", "cuda" or "mps"
    dtype = "auto"  # of the matmuls: bfloat16 on a GPU that has it, else float32
    compile = "off"  # torch.compile: "on" takes a minute, and so pays for many minutes of questions; "auto": on CUDA
    config = configure(globals())
    main()
