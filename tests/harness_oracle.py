"""Compare evaluate.py with lm-evaluation-harness on the same model and files; not part of the tests.

    python tests/harness_oracle.py MODEL_FOLDER DATA_DIR [LIMIT [TASKS]]     # needs pip install lm-eval (0.4.13)

evaluate.py runs as a user runs it, in a process of its own; the harness reads its own task definitions, over our rows.
A SentencePiece tokenizer is ours in both, as transformers' conversion of tokenizer.model can give other ids. Prints
each metric of both, and exits with 1 where they differ by more than rounding.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
import datasets
import lm_eval
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks._yaml_loader import load_yaml

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(lm_eval.__file__).parent / "tasks"
YAML = {
    "piqa": "piqa/piqa", "winogrande": "winogrande/default", "arc_easy": "arc/arc_easy",
    "arc_challenge": "arc/arc_challenge", "sciq": "sciq/sciq", "openbookqa": "openbookqa/openbookqa",
    "commonsense_qa": "commonsense_qa/default", "social_iqa": "siqa/siqa", "wsc273": "wsc273/default",
    "boolq": "super_glue/boolq/default", "copa": "super_glue/copa/default", "cb": "super_glue/cb/default",
    "rte": "glue/rte/default", "mrpc": "glue/mrpc/default", "sst2": "glue/sst2/default", "cola": "glue/cola/default",
    "hellaswag_harness": "hellaswag/hellaswag", "lambada": "lambada/lambada_openai", "wikitext": "wikitext/wikitext",
    "blimp": "blimp/_template_yaml",
}  # fmt: skip
NAMES = {"macro_f1": "f1", "word_acc": "acc", "word_ppl": "perplexity"}  # theirs
WIKITEXT = {"word_ppl": "word_perplexity", "byte_ppl": "byte_perplexity", "bits_per_byte": "bits_per_byte"}


def their_rows(name: str, files: list[str], limit: int) -> dict[str, list[dict]]:
    """{task: rows} in the columns that the harness expects."""
    from tasks.files import read_rows, read_text
    from tasks.prompts import pages

    if name == "wikitext":
        text = "".join(read_text(Path(files[0])).splitlines(keepends=True)[: limit or None])
        return {name: [{"page": document.text} for document in pages(text)]}
    found = [row for file in files for row in read_rows(Path(file))[: limit or None]]
    for row in found:
        if name == "wsc273":
            row |= {"pronoun": "[MASK]", "pronoun_loc": row["text"].index("[MASK]"), "options": row["candidates"]}
        elif name == "boolq":
            row["label"] = int(row["answer"])
        elif name == "hellaswag_harness":
            row |= {"ctx_a": row.get("ctx_a", row["ctx"]), "ctx_b": row.get("ctx_b", "")}
        row.pop("idx", None)
    if name == "blimp":
        return {uid: [row for row in found if row["UID"] == uid] for uid in dict.fromkeys(row["UID"] for row in found)}
    return {name: found}


def their_task(name: str, task: str, found: list[dict]) -> ConfigurableTask:
    """The harness's own definition of a task, reading `found`."""
    path = FOLDER / YAML[name]
    config = load_yaml(path if path.is_file() else path.with_suffix(".yaml"))
    for key in ("dataset_path", "dataset_name", "training_split", "validation_split", "test_split", "tag"):
        config.pop(key, None)
    data = datasets.DatasetDict(validation=datasets.Dataset.from_list(found))
    config |= {"task": task, "validation_split": "validation", "custom_dataset": lambda **_: data}
    return ConfigurableTask(config=config)


def with_our_tokenizer(harness, folder: str):
    """Let the harness encode as we do, the beginning-of-text id in front where the tokenizer has one.

    Not in texts: there it puts that id in front twice, and scores the second.
    """
    from common.tokenizer import load_tokenizer

    ours = load_tokenizer(folder)
    front = [ours.bos] if ours.bos != ours.eot else []

    def encode(string, add_special_tokens=None, **_):
        bare = add_special_tokens is False or harness.reads_texts
        return ([] if bare else front) + ours.encode(string)

    harness.tok_encode, harness.custom_prefix_token_id = encode, ours.bos


def main():
    model, data_dir, limit = sys.argv[1], sys.argv[2], int((sys.argv[3:] or ["200"])[0])
    names = sys.argv[4].split(",") if len(sys.argv) > 4 else list(YAML)
    command = [sys.executable, ROOT / "evaluate.py", f"--model={model}", f"--data_dir={data_dir}", f"--limit={limit}"]
    command += ["--json", "--device=cpu", f"--tasks={','.join(names)}"]
    ours = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["results"]
    sys.path.append(str(ROOT))  # at the end: lm_eval imports another package called evaluate
    harness, differ = HFLM(pretrained=model, device="cpu", batch_size=8, dtype="float32"), 0
    if (Path(model) / "tokenizer.model").is_file():
        with_our_tokenizer(harness, model)
    for result in ours:
        harness.reads_texts = result["task"] == "wikitext"
        tables = their_rows(result["task"], result["data"], limit)
        made = [their_task(result["task"], task, found) for task, found in tables.items()]
        scored = lm_eval.simple_evaluate(harness, tasks=made, bootstrap_iters=0, log_samples=False)["results"]
        for metric, mine in result["metrics"].items():
            name = WIKITEXT.get(metric) if result["task"] == "wikitext" else NAMES.get(metric, metric)
            values = [theirs[f"{name},none"] for theirs in scored.values() if f"{name},none" in theirs]
            if values:
                theirs = sum(values) / len(values)
                same = abs(theirs - mine["value"]) <= 1e-4 * max(1, abs(theirs))
                print(
                    f"{result['task']:<18} {metric:<14} {mine['value']:<20.8g} {theirs:<20.8g}",
                    "" if same else "DIFFERS",
                )
                differ += not same
    sys.exit(differ > 0)


if __name__ == "__main__":
    main()
