"""Score a model on multiple choice, last words, and the perplexity of texts.

    python evaluate.py --model=gpt2 --tasks=piqa,lambada,wikitext
    python evaluate.py --model=out/student --tasks=distilpythia --data_dir=my_data
    python evaluate.py --model=out/student --tasks=blimp,my_text.txt --json > results.json
    python evaluate.py --model=out/student --tasks=my_choices.jsonl --choices_column=options --label_column=answer

Tasks are those of common/tasks.py; "hellaswag" and "hellaswag_harness", the two conventions of hellaswag.py; any text
file by its name; a .jsonl of multiple choice of one's own, likewise; and the tables of the recipes, published rows
beside: distilpythia, distilgpt2, babyllama, microlm.

    metric         what                                                                             of
    acc            the choice with the largest summed log-probability is the right one              multiple choice
    acc_norm       the same, of the mean over characters (hellaswag: over tokens)
    f1, macro_f1   of label 1; mean of that of each label                                           mrpc, cb
    mcc            Matthews' correlation                                                            cola
    word_acc       each token of the last word is the likeliest                                     lambada
    word_ppl       exp of the mean loss of a last word; of texts: exp(loss / words of the file)     lambada, texts
    ppl            exp of the mean loss of a token: compare within one tokenizer only               texts
    bits_per_byte  loss in bits / bytes of the file in UTF-8; for enwik8, "bits per character"      texts

Multiple choice of one's own is a JSON object a line; a choice makes a text `context + " " + choice`, acc_norm is over
characters:

    {"context": "The capital of France is", "choices": ["Lyon", "Paris"], "label": 1}

label: the right choice's number from 0, its letter ("B") or its text; choices may be {"text": […], "label": [letters]}.

A text is read in windows: each scores `stride` tokens, with as many before them as the model can see; before the first
is the beginning-of-text (or end-of-text) id. stride=0 scores a whole window at a time, as lm-evaluation-harness does.
"""

# before torch, so that Ctrl-C while it loads ends in one line
from configurator import at_least, configure, nearest  # isort: split

import hashlib
import itertools
import json as jsonlib
import math
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from common.files import file_sha256
from common.pretrained import check_fits, find_model, load_pretrained, weights_sha256
from common.runtime import Runtime
from common.tasks import NORMED, OWN_COLUMNS, TASKS, Task, find, own_task, read_text, rows
from common.tokenizer import load_tokenizer
from hellaswag import URL, draw_shots, encode_rows, question, raw, score, standard_error

RECIPES = {  # their tasks, and what they published: {row: {task: {metric: value}}}
    "distilpythia": ("piqa winogrande lambada arc_challenge sciq wsc273", {
        "pythia-70m": {"piqa acc": 0.5985, "winogrande acc": 0.5122, "lambada word_ppl": 140.81,
                       "lambada word_acc": 0.2140, "arc_challenge acc": 0.1715, "sciq acc": 0.65, "wsc273 acc": 0.3653},
        "pythia-160m": {"lambada word_ppl": 30.03},
        "distilled": {"piqa acc": 0.5974, "winogrande acc": 0.5162, "lambada word_ppl": 420.70,
                      "lambada word_acc": 0.1582, "arc_challenge acc": 0.1715, "sciq acc": 0.613, "wsc273 acc": 0.3654},
        "constant": {"piqa acc": 0.5930, "winogrande acc": 0.5075, "lambada word_ppl": 403.78,
                     "lambada word_acc": 0.1516, "arc_challenge acc": 0.1698, "sciq acc": 0.592, "wsc273 acc": 0.3654},
    }),
    "distilgpt2": ("wikitext ptb enwik8 lambada", {
        "gpt2": {"wikitext ppl": 29.16, "ptb ppl": 35.86, "enwik8 ppl": 18, "lambada word_ppl": 45.28},
        "distilgpt2": {"wikitext ppl": 47.61, "ptb ppl": 85.56, "enwik8 ppl": 50.9, "lambada word_ppl": 100.01},
    }),
    "babyllama": ("blimp", {}),
    "microlm": ("hellaswag snli cola sst2 mrpc rte", {
        name: {"hellaswag acc_norm": value} for name, value in
        (("OLMo-7B", 0.7338), ("OLMo-1B", 0.6071), ("GPT-2 1.5B", 0.4893), ("GPT-2 124M", 0.2955))
    }),
}  # fmt: skip
NOTES = {
    "distilpythia": "Its WSC is SuperGLUE's, 104 sentences (0.3654 is 38 of them), not these 273.",
    "distilgpt2": "It does not say per what its perplexities are; they stand beside those per token.",
}


def hellaswag_task(convention: str) -> Task:
    def pairs(row):
        example = question(row, convention)
        return [(example["ctx"], ending) for ending in example["endings"]], example["label"]

    return Task("hellaswag/hellaswag_val.jsonl", URL.format(split="val"), pairs, NORMED, convention=convention)


ALL = TASKS | {"hellaswag": hellaswag_task("completion"), "hellaswag_harness": hellaswag_task("harness")}


# ---------------------------------------------------------------------------------------------
# load


@dataclass
class Loaded:
    name: str
    task: Task
    files: list[Path]
    shots: int = 0
    seed: int = 0
    pool: Path | None = None  # where shots come from; None: from the file itself
    questions: list = field(default_factory=list)  # [([(context, ending), …], label, {part: value}, what comes before)]
    documents: list = field(default_factory=list)  # [(text of the file, as the model sees it)]


def load_tasks(names: str, data_dir: str, limit=0, shots=0, seed=0, columns=OWN_COLUMNS) -> list[Loaded]:
    """The tasks and recipes of "a,b" with their rows, all read before the first is scored.

    limit: the first rows of each file (0: all), of a text the first lines; shots: solved rows before each question;
    columns: the names of those of a .jsonl of one's own.
    """
    tasks, known = [], [*ALL, *RECIPES]
    wanted = list(dict.fromkeys(n.strip() for n in names.split(",") if n.strip()))
    for name in dict.fromkeys(one for n in wanted for one in (RECIPES[n][0].split() if n in RECIPES else [n])):
        if name in ALL:
            found = Loaded(name, ALL[name], find(name, ALL[name], data_dir), shots, seed)
        elif Path(name).is_file():
            task = Task(name, "", metrics=("ppl", "word_ppl", "bits_per_byte"), convention="as it is")
            if Path(name).suffix == ".jsonl":
                task = own_task(Path(name), columns)
            alone = [Path(n).name for n in wanted].count(Path(name).name) == 1 and Path(name).name not in ALL
            label = "_".join((Path(name).name if alone else name).split())  # log.txt has blanks between its columns
            found = Loaded(label, task, [Path(name)], shots, seed)
        elif Path(name).suffix or len(Path(name).parts) > 1:
            raise FileNotFoundError(f"tasks: no file {name!r}; a task of that name is not known either")
        else:
            raise ValueError(f"tasks: {name!r} is none of {', '.join(known)}, nor a file{nearest(name, known)}")
        tasks.append(found)
        if found.task.question:
            load_questions(found, limit, Path(data_dir) / name / "train.jsonl")
        else:
            load_documents(found, limit)
    if not tasks:
        raise ValueError(
            f"tasks is empty; name some of {', '.join(known)}, a text file, or a .jsonl of multiple choice"
        )
    return tasks


def load_questions(loaded: Loaded, limit: int, train: Path):
    """Shots are drawn from `train` where it is there, else from the file itself."""
    apart = train.is_file() and loaded.shots > 0
    loaded.pool = train if apart else None
    for path in loaded.files:
        found = read_questions(path, loaded, None if loaded.shots and not apart else limit or None)
        pool = read_questions(train, loaded, None) if apart else found
        solved = ["{} {}".format(*pairs[label]) for pairs, label, _ in pool]
        for i, example in enumerate(found[: limit or None]):
            loaded.questions.append((*example, draw_shots(solved, loaded.shots, loaded.seed, None if apart else i)))
    if not loaded.questions:
        raise ValueError(f"{loaded.name}: {loaded.files[0]} has no rows")


def read_questions(path: Path, loaded: Loaded, limit: int | None) -> list:
    """[([(context, ending), …], label, {part: value})] of the first rows of a file."""
    found = []
    for number, row in enumerate(rows(path)[:limit], 1):
        try:
            asked = loaded.task.question(row)
            if asked is None:
                continue
            pairs, label = asked
            if not 0 <= label < len(pairs):
                raise ValueError(f"label {label} of {len(pairs)} choices")
            if not all(isinstance(text, str) for pair in pairs for text in pair):
                raise TypeError("a choice is no text")
            found.append((pairs, label, {part: row[part].replace("/", "_") for part in loaded.task.parts}))
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f"{path}, row {number}: not an example of {loaded.name}, {loaded.task.form} ({reason})"
            ) from None
    return found


def load_documents(loaded: Loaded, limit: int):
    if loaded.shots:
        raise ValueError(f"shots={loaded.shots}, but {loaded.name} is a text to read, without questions; leave it out")
    text = read_text(loaded.files[0])
    text = "".join(text.splitlines(keepends=True)[:limit]) if limit else text
    if not text.strip():
        part = f" in its first {limit} lines; raise limit" if limit else ""
        raise ValueError(f"{loaded.name}: {loaded.files[0]} has no text{part}")
    loaded.documents = list((loaded.task.prepare or (lambda text: [(text, text)]))(text))


# ---------------------------------------------------------------------------------------------
# score


def run_task(loaded: Loaded, model, tokenizer, run: Runtime, stride=0, progress=False) -> dict:
    """{"metrics": {name: (value, standard error or None)}, "parts": …, "n", …} of a model in eval mode."""
    start, bar = time.perf_counter(), loaded.name * progress
    score_it = score_questions if loaded.task.question else score_documents
    result = score_it(loaded, model, tokenizer, run, stride, bar)
    digests = [file_sha256(path) for path in loaded.files]
    digest = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    files = {"data": [str(path) for path in loaded.files], "data_sha256": digest, "shots_data": str(loaded.pool or "")}
    how = {"convention": loaded.task.convention, "shots": loaded.shots, "seed": loaded.seed}
    return {"task": loaded.name, **how, **result, "seconds": time.perf_counter() - start, **files}


def headlines(tasks: list[Loaded], model, tokenizer, run: Runtime) -> dict[str, float]:
    """{task: its first metric}, as both loops log it, of a model in eval mode."""
    results = (run_task(task, model, tokenizer, run) for task in tasks)
    return {result["task"]: next(iter(result["metrics"].values()))[0] for result in results}


def score_questions(loaded: Loaded, model, tokenizer, run, stride, bar) -> dict:
    harness, groups = loaded.task.convention == "harness", []
    for pairs, _, _, before in loaded.questions:
        by_context = itertools.groupby(pairs, key=lambda pair: pair[0])
        encoded = (encode_rows(tokenizer, before + c, [e for _, e in same], harness) for c, same in by_context)
        groups.append([row for rows_ in encoded for row in rows_])
    scores = score(model, groups, tokenizer.vocab_size, run, bar, greedy="word_acc" in loaded.task.metrics)
    answers, first = [], 0
    for pairs, label, parts, _ in loaded.questions:
        sums, n, greedy = scores[first : first + len(pairs)].T
        lengths = [max(1, len(ending)) for _, ending in pairs] if harness else n
        answers.append((label, sums.argmax(), (sums / lengths).argmax(), sums[label], greedy[label], parts))
        first += len(pairs)
    size = raw(model).config.block_size
    apart = {part: {value: metric("acc", [a for a in answers if a[5][part] == value]) for value in
             dict.fromkeys(a[5][part] for a in answers)} for part in loaded.task.parts}  # fmt: skip
    return {"n": len(answers), "metrics": {name: metric(name, answers) for name in loaded.task.metrics},
            "parts": apart, "cut": sum(len(ids) > size + 1 for group in groups for ids, _ in group)}  # fmt: skip


def metric(name: str, answers) -> tuple[float, float | None]:
    """(value, standard error) over answers (label, prediction by sum, by mean, log-probability, greedy, parts)."""
    label, by_sum, by_mean, right, greedy, _ = (np.array(column) for column in zip(*answers))
    n, right = len(label), right.astype(float)
    shares = {"acc": by_sum == label, "acc_norm": by_mean == label, "word_acc": greedy > 0}
    if name in shares:
        return shares[name].mean().item(), standard_error(shares[name].mean(), n)
    if name == "word_ppl":  # of the error, to first order
        value = exp(-right.mean())
        return value, value * right.std(ddof=1).item() / math.sqrt(n) if n > 1 else 0.0
    table = np.zeros((3, 3))  # of label and prediction
    np.add.at(table, (label, by_sum), 1)
    both, either = table.diagonal(), table.sum(0) + table.sum(1)
    f1 = 2 * both / np.maximum(either, 1)
    if name == "mcc":
        product = table[0].sum() * table[1].sum() * table[:, 0].sum() * table[:, 1].sum()
        return (table[1, 1] * table[0, 0] - table[0, 1] * table[1, 0]) / math.sqrt(product or 1), None
    return (f1[1] if name == "f1" else f1.mean()).item(), None


def exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def windows(ids: list[int], size: int, stride: int):
    """(ids, how many of the last are scored) of each window over a text whose first id only comes before.

    The first window scores up to `size` ids, each other one `stride` more, after as many as fit: size before the last.
    """
    done = 0
    while done < len(ids) - 1:
        end = min(len(ids) - 1, done + (stride if done else size))
        yield ids[max(0, end - size) : end + 1], end - done
        done = end


def score_documents(loaded: Loaded, model, tokenizer, run, stride, bar) -> dict:
    size, groups = raw(model).config.block_size, []
    for _, seen in loaded.documents:
        ids = [tokenizer.bos, *tokenizer.encode(seen)]
        groups += [[window] for window in windows(ids, size, min(stride, size) or size)]
    sums, n, _ = score(model, groups, tokenizer.vocab_size, run, bar).T
    loss, n, texts = -sums.sum(), n.sum(), [text for text, _ in loaded.documents]
    words = sum(len(re.split(r"\s+", text)) for text in texts)  # as the harness counts: "a b\n" has three
    n_bytes = sum(len(text.encode()) for text in texts)
    values = {"ppl": exp(loss / n), "word_ppl": exp(loss / words),
              "bits_per_byte": loss / math.log(2) / n_bytes}  # fmt: skip
    values |= {"byte_ppl": 2 ** values["bits_per_byte"]}
    names = dict.fromkeys((*loaded.task.metrics, *values))
    return {"n": int(n), "metrics": {name: (values[name], None) for name in names}, "stride": stride or size,
            "words": words, "bytes": n_bytes, "documents": len(texts)}  # fmt: skip


# ---------------------------------------------------------------------------------------------
# report


def table(results: list[dict], published: dict) -> str:
    """Tasks with their metrics, one a line, and a column for each published row."""
    lines = [["task", "metric", "value", *published, "n", "time", "convention", "data"]]
    for result in results:
        shown = [(result["task"], name, value) for name, value in result["metrics"].items() if name != "byte_ppl"]
        fields = result.get("parts", {}).get("field", {})
        shown += [(f"  {value}", "acc", found) for value, found in fields.items()]
        for i, (task, name, (value, error)) in enumerate(shown):
            digits = ".4f" if abs(value) < 10 else ".2f" if abs(value) < 1e6 else ".3e"
            beside = [str(row.get(f"{result['task']} {name}", "")) for row in published.values()]
            value = f"{value:{digits}}" + ("" if error is None else f" ± {error:{digits}}")
            last = [f"{result['n']:,}", f"{result['seconds']:.1f} s", result["convention"], result["data_sha256"][:8]]
            last = last if i == 0 else [""] * len(last)
            lines.append([task if i == 0 or task[0] == " " else "", name, value, *beside, *last])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths)).rstrip() for line in lines)


def finite(value: float, error: float | None) -> dict:
    """A metric for JSON, which has no inf and no nan: null."""
    return {k: x if x is None or math.isfinite(x) else None for k, x in (("value", value), ("stderr", error))}


def main():
    at_least(config, 0, "limit shots seed stride")
    names = [name.strip() for name in tasks.split(",")]
    run = Runtime(device, dtype)
    tokenizer = load_tokenizer(find_model(model))
    columns = {"context": context_column, "choices": choices_column, "label": label_column}
    loaded = load_tasks(tasks, data_dir, limit=limit, shots=shots, seed=seed, columns=columns)
    net = load_pretrained(model, run.device, torch.float32).eval()
    check_fits(net, model, 1, tokenizer.vocab_size)
    net = run.compile(net, compile)
    results = [run_task(task, net, tokenizer, run, stride, progress=True) for task in loaded]
    hashes = {"model_sha256": weights_sha256(find_model(model)), "tokenizer_hash": tokenizer.hash}
    if json:
        for result in results:
            result["metrics"] = {k: finite(*pair) for k, pair in result["metrics"].items()}
        run.say(jsonlib.dumps({"model": model, **hashes, "limit": limit, "results": results}))
    else:
        run.say(
            f"{model}, weights {hashes['model_sha256'][:16]}, tokenizer {tokenizer.hash}, {shots} shots"
            + f" drawn with seed {seed}" * bool(shots)
        )
        run.say(table(results, {k: v for name in names for k, v in RECIPES.get(name, ("", {}))[1].items()}))
        for name in set(names) & set(NOTES):
            run.say(NOTES[name])
    run.close()


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
    device = "auto"  # "auto", "cpu" or "cuda"
    dtype = "auto"  # of the matmuls: bfloat16 on CUDA, float32 on the CPU
    compile = "auto"  # torch.compile: "on", "off"; "auto": on CUDA
    config = configure(globals())
    main()
