r"""Prompts: how a row of a task's file becomes a question, and how a text is divided into documents.

A question has a few choices of context and ending, one of them right: which text `context + " " + ending` is the
likeliest, by the ending's tokens given the context? A row of PIQA, read by `piqa`:

    {"goal": "Sew a seam", "sol1": "by hand", "sol2": "by ear", "label": 0}

    Question(
        choices=[
            Choice(context="Question: Sew a seam\nAnswer:", ending="by hand"),
            Choice(context="Question: Sew a seam\nAnswer:", ending="by ear"),
        ],
        label=0,
    )

Prompts are lm-evaluation-harness's (0.4.13), so that scores can be compared with published ones; SNLI, which it
lacks, has its prompt for ANLI. Where the choices differ in the context and not in the ending (Winogrande, WSC273), it
is the partial scoring of Trinh and Le 2018 (arXiv:1806.02847).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from corpora.readers import articles


class Choice(NamedTuple):
    context: str
    ending: str  # only its tokens are scored


@dataclass(frozen=True)
class Question:
    choices: list[Choice]
    label: int  # the index of the right choice
    parts: dict[str, str] = field(default_factory=dict)  # {column: value} of the task's `parts`
    shots: str = ""  # solved examples, put before each context


class Document(NamedTuple):
    text: str  # as in the file: its words and bytes are counted
    seen: str  # as the model reads it


# ---------------------------------------------------------------------------------------------
# building blocks


def to_label(label) -> int:
    """1, True or "1" as a number. ValueError for anything else, as 1.5 or "": rows of a test split have none."""
    if isinstance(label, int) or (isinstance(label, str) and label.strip().isdecimal()):
        return int(label)
    raise ValueError(f"label {label!r} is not a whole number")


def ask(context: str, endings: list[str], label) -> Question:
    """Which ending follows the context?"""
    return Question([Choice(context, ending) for ending in endings], to_label(label))


def ask_partial(before: str, options: list[str], after: str, label) -> Question:
    """Which option makes the text after it likeliest?"""
    return Question([Choice(before + option, after) for option in options], to_label(label))


def lettered(row) -> tuple[list[str], int]:
    """The texts of choices that the file labels with letters, and the index of the right one."""
    texts = row["choices"]["text"]
    letters = row["choices"]["label"]
    answer = row["answerKey"].strip()
    if len(texts) != len(letters) or answer not in letters:
        raise ValueError(f"answerKey {row['answerKey']!r} is not one of {len(texts)} choices, {', '.join(letters)}")
    return texts, letters.index(answer)


# ---------------------------------------------------------------------------------------------
# a row of each task -> Question; the sources of the tasks stand in tasks/tables.py


def winogrande(row) -> Question:
    # "Al saw Bo so _ ran off." -> which name in place of the _ makes "ran off." likelier?
    before, mark, after = row["sentence"].partition("_")
    if not mark:
        raise ValueError("its sentence has no _")
    # the file counts its options from 1
    label = to_label(row["answer"]) - 1
    return ask_partial(before, [row["option1"], row["option2"]], after.strip(), label)


# words that begin an option with a capital, and lose it inside a sentence
CAPITALS = ("A", "An", "The", "She", "He", "It", "They", "My", "His", "Her", "Their")
POSSESSIVES = ("my", "his", "her", "our", "their")


def wsc273(row) -> Question:
    """Files with [MASK] for the pronoun do not tell "his" from "he", so that a possessive gets no 's there.

    The harness puts two blanks before what follows, here and in COPA; so do we.
    """
    # a hub's columns (pronoun, options), or those of the file with [MASK]
    pronoun = row.get("pronoun", "[MASK]")
    options = row.get("options") or row["candidates"]
    text = row["text"].replace("  ", " ")
    if "pronoun" in row:
        # by its place in the file alone, as "he" is in "the" too
        if "pronoun_loc" not in row:
            raise ValueError("it has a pronoun, but no pronoun_loc")
        start = row["pronoun_loc"]
    else:
        start = text.find(pronoun)
    if start < 0:
        raise ValueError("its text has no [MASK]")

    # an option inside a sentence has no capital
    begins_sentence = text[start - 2] == "."
    fitted_options = []
    for option in options:
        if pronoun.lower() in POSSESSIVES:
            option += "'s"
        first_word = option.split()[0]
        if first_word in CAPITALS and not begins_sentence:
            option = option.replace(first_word, first_word.lower())
        fitted_options.append(option)
    return ask_partial(text[:start], fitted_options, text[start + len(pronoun) :], row["label"])


def piqa(row) -> Question:
    return ask(f"Question: {row['goal']}\nAnswer:", [row["sol1"], row["sol2"]], row["label"])


def arc(row) -> Question:
    texts, label = lettered(row)
    return ask(f"Question: {row['question']}\nAnswer:", texts, label)


def openbookqa(row) -> Question:
    # the stem is often half a sentence, which a choice completes: no "Question:" around it
    texts, label = lettered(row)
    return ask(row["question_stem"], texts, label)


def commonsense_qa(row) -> Question:
    # the choices are listed in the prompt, and only their letters scored
    texts, label = lettered(row)
    options = [f"{letter}. {text}\n" for letter, text in zip("ABCDE", texts)]
    context = f"Question: {row['question'].strip()}\n{''.join(options)}Answer:"
    return ask(context, list("ABCDE"), label)


def social_iqa(row) -> Question:
    endings = [row["answerA"], row["answerB"], row["answerC"]]
    # the file counts its answers from 1
    return ask(f"Q: {row['context']} {row['question']}\nA:", endings, to_label(row["label"]) - 1)


def sciq(row) -> Question:
    # the right answer last, as the harness has it
    endings = [row["distractor1"], row["distractor2"], row["distractor3"], row["correct_answer"]]
    context = f"{row['support'].lstrip()}\nQuestion: {row['question']}\nAnswer:"
    return ask(context, endings, 3)


def boolq(row) -> Question:
    context = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
    # "label" in the hub's files, "answer" (true, false) in the published ones
    label = row["label"] if "label" in row else row["answer"]
    return ask(context, ["no", "yes"], label)


def copa(row) -> Question:
    joint = {"cause": "because", "effect": "therefore"}[row["question"]]
    # the premise without its full stop; a choice goes on in lower case
    context = f"{row['premise'].strip()[:-1]} {joint}"
    endings = [f" {text[0].lower()}{text[1:]}" for text in (row["choice1"], row["choice2"])]
    return ask(context, endings, row["label"])


def cb(row) -> Question:
    # labels: 0 entailment, 1 contradiction, 2 neutral
    question = f"Question: {row['hypothesis']}. True, False, or Neither?"
    return ask(f"{row['premise']}\n{question}\nAnswer:", ["True", "False", "Neither"], row["label"])


def rte(row) -> Question:
    # labels: 0 entailment, 1 not
    context = f"{row['sentence1']}\nQuestion: {row['sentence2']} True or False?\nAnswer:"
    return ask(context, ["True", "False"], row["label"])


def snli(row) -> Question | None:
    """None for the few on whose label the annotators did not agree."""
    if row.get("gold_label") == "-" or row.get("label") == -1:
        return None
    # the published files have names for labels, the hub's have numbers and other names of columns
    if "gold_label" in row:
        label = ("entailment", "neutral", "contradiction").index(row["gold_label"])
    else:
        label = row["label"]
    premise = row["sentence1"] if "sentence1" in row else row["premise"]
    hypothesis = row["sentence2"] if "sentence2" in row else row["hypothesis"]
    # labels: 0 entailment, 1 neutral, 2 contradiction; in CB's prompt the last two change places
    context = f"{premise}\nQuestion: {hypothesis} True, False, or Neither?\nAnswer:"
    return ask(context, ["True", "Neither", "False"], label)


def mrpc(row) -> Question:
    sentences = f"Sentence 1: {row['sentence1']}\nSentence 2: {row['sentence2']}\n"
    context = f"{sentences}Question: Do both sentences mean the same thing?\nAnswer:"
    return ask(context, ["no", "yes"], row["label"])


def sst2(row) -> Question:
    context = f"{row['sentence']}\nQuestion: Is this sentence positive or negative?\nAnswer:"
    return ask(context, ["negative", "positive"], row["label"])


def cola(row) -> Question:
    context = f"{row['sentence']}\nQuestion: Does this sentence make sense?\nAnswer:"
    return ask(context, ["no", "yes"], row["label"])


def blimp(row) -> Question:
    # whole sentences without a context: the good one should be likelier
    return ask("", [row["sentence_good"], row["sentence_bad"]], 0)


def lambada(row) -> Question:
    # one choice, the last word of a text: its metrics ask whether and how well it is predicted
    context, _, word = row["text"].rpartition(" ")
    if not (context and word):
        raise ValueError("its text has no last word")
    return ask(context, [word], 0)


# ---------------------------------------------------------------------------------------------
# HellaSwag, in two conventions: see hellaswag.py


def hellaswag(row) -> Question:
    example = hellaswag_example(row, "completion")
    return ask(example["ctx"], example["endings"], example["label"])


def hellaswag_harness(row) -> Question:
    example = hellaswag_example(row, "harness")
    return ask(example["ctx"], example["endings"], example["label"])


def hellaswag_example(row: dict, convention="completion") -> dict:
    """{"ctx", "endings", "label"} of a row, as a convention has them. KeyError, TypeError or ValueError for others.

    completion: the texts as they are. harness: "activity_label: ctx_a Ctx_b", without WikiHow's brackets.
    """
    ctx = row["ctx"]
    endings = row["endings"]
    label = to_label(row["label"])
    # a string would pass for a list of its letters
    if not (isinstance(endings, list) and all(isinstance(text, str) for text in (ctx, *endings))):
        raise TypeError("ctx must be a text and endings a list of texts")
    if convention == "harness":
        first = ctx
        second = ""
        if row.get("ctx_a"):
            # ctx is the two joined, but the harness joins them itself
            first = row["ctx_a"]
            second = row.get("ctx_b") or ""
        ctx = without_brackets(f"{row['activity_label']}: {first} {second.capitalize()}")
        endings = [without_brackets(ending) for ending in endings]
    return {"ctx": ctx, "endings": endings, "label": label}


def without_brackets(text: str) -> str:
    """A text of WikiHow as lm-evaluation-harness cleans it: [header], [step] and the like go, a title is a sentence."""
    text = text.strip().replace(" [title]", ". ")
    text = re.sub(r"\[.*?\]", "", text)
    return text.replace("  ", " ")


# ---------------------------------------------------------------------------------------------
# the user's own files

OWN_COLUMNS = {"context": "context", "choices": "choices", "label": "label"}  # {what it holds: its name}


def own_question(row, columns: dict[str, str]) -> Question:
    """A row of a user's file, its columns named as in OWN_COLUMNS.

    Its choices are a list of texts, or {"text": [texts], "label": [their letters]}; for its label see `own_label`.
    """
    texts = row[columns["choices"]]
    label = row[columns["label"]]
    letters = None
    # the form of ARC and CommonsenseQA on the hub
    if isinstance(texts, dict):
        letters = texts.get("label")
        texts = texts["text"]
    if not isinstance(texts, list) or len(texts) < 2:
        raise ValueError(f"its {columns['choices']} are not a list of two texts or more")
    return ask(row[columns["context"]], texts, own_label(label, texts, letters))


def own_label(label, texts: list[str], letters: list[str] | None = None) -> int:
    """The index of the right choice. label: the index, the choice itself, or its letter, of `letters` or A, B, ….

    ValueError if it is none of them, or ambiguous, as "1" is for the choices "1" and "5".

    >>> own_label(1, ["no", "yes"]), own_label("yes", ["no", "yes"]), own_label("B", ["no", "yes"])
    (1, 1, 1)
    """
    if isinstance(label, bool):
        raise ValueError(f"label {label!r} is no choice; give its number from 0, its letter or its text")
    places = set()
    # "1" is a number, unless the choices have letters of their own, which may be digits
    is_digits = isinstance(label, str) and label.strip().isdecimal()
    if isinstance(label, int) or (is_digits and not letters):
        places.add(int(label))
    if not letters:
        letters = [chr(ord("A") + i) for i in range(len(texts))]
    for i, text in enumerate(texts):
        if text == label:
            places.add(i)
    for i, letter in enumerate(letters):
        if str(letter) == str(label).strip():
            places.add(i)
    if len(places) != 1:
        problem = "could be several" if places else "is none"
        shown = ", ".join(map(str, texts))[:60]
        raise ValueError(
            f"label {label!r} {problem} of the choices {shown}; give its number from 0, its letter or its text"
        )
    return places.pop()


# ---------------------------------------------------------------------------------------------
# texts


def whole(text: str) -> Iterator[Document]:
    yield Document(text, text)


def lines(text: str) -> Iterator[Document]:
    """Each line is a document: sentences that have nothing to do with each other."""
    for line in text.splitlines():
        yield Document(line, line)


def pages(text: str) -> Iterator[Document]:
    """WikiText page by page, as it is."""
    # as git writes it on Windows
    text = text.replace("\r\n", "\n")
    # the file begins with a blank line, which is no page
    without_first_blank_lines = re.sub(r"^\s*\n", "", text)
    for page, _ in articles(without_first_blank_lines.splitlines(keepends=True)):
        yield Document(page, page)


def wikitext(text: str) -> Iterator[Document]:
    """WikiText page by page, its blanks before punctuation and around "@-@" undone, as in the harness."""
    for page, _ in pages(text):
        seen = page
        for old, new in WIKITEXT_RULES:
            # a rule with a group is a regular expression
            seen = re.sub(old, new, seen) if "\\" in new else seen.replace(old, new)
        yield Document(page, seen)


# (old, new), applied in this order, which is that of lm-evaluation-harness's wikitext_detokenizer
WIKITEXT_RULES = [
    # the blank before a possessive of the plural
    ("s '", "s'"),
    # inside numbers and compounds
    (" @-@ ", "-"),
    (" @,@ ", ","),
    (" @.@ ", "."),
    # before punctuation
    (" : ", ": "),
    (" ; ", "; "),
    (" . ", ". "),
    (" ! ", "! "),
    (" ? ", "? "),
    (" , ", ", "),
    # inside brackets and quotation marks
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    # in headings
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    # the rest: degrees, line ends, and N, which stands for a number
    (" " + chr(176) + " ", chr(176)),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
]
