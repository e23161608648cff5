"""From scores to metrics: which choices a model makes, how often they are right, and the perplexity of texts."""

import hashlib
import itertools
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from common.files import file_sha256
from common.runtime import Runtime
from tasks.loading import LoadedTask
from tasks.prompts import Question
from tasks.scoring import count_cut_endings, count_cut_texts, encode_rows, of_the_endings, raw, score
from tasks.tables import HARNESS


class Value(NamedTuple):
    value: float
    error: float | None = None  # standard error; None where none is known


@dataclass(frozen=True)
class Answer:
    """A model's answer to a question."""

    label: int  # the right choice
    by_sum: int  # the choice with the largest summed log-probability
    by_mean: int  # the choice with the largest mean
    log_probability: float  # of the right choice, in nats
    is_greedy: bool  # each token of the right choice is the likeliest
    parts: dict[str, str] = field(default_factory=dict)  # of the question


def run_task(loaded: LoadedTask, model, tokenizer, run: Runtime, stride=0, progress=False) -> dict:
    """A result of evaluate.py --json, {"metrics": {name: Value}, "parts": …, "n": …, …}, of a model in eval mode."""
    start = time.perf_counter()
    bar = loaded.name if progress else ""
    if loaded.task.question:
        result = score_questions(loaded, model, tokenizer, run, bar)
    else:
        result = score_documents(loaded, model, tokenizer, run, stride, bar)
    return {
        "task": loaded.name,
        "convention": loaded.task.convention,
        "shots": loaded.shots,
        "seed": loaded.seed,
        **result,
        "seconds": time.perf_counter() - start,
        "data": [str(path) for path in loaded.files],
        "data_sha256": data_hash(loaded.files),
        "shots_data": str(loaded.pool or ""),
    }


def data_hash(files) -> str:
    """SHA-256 of a file; for several files, SHA-256 of their concatenated digests."""
    hashes = [file_sha256(path) for path in files]
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def headlines(tasks: list[LoadedTask], model, tokenizer, run: Runtime) -> dict[str, float]:
    """{label of log.txt: value} as both loops log it, of a model in eval mode.

    For each task its first metric under its name; for HellaSwag `hella` (acc_norm) and `hella_sum` (acc).
    """
    values = {}
    # all ranks call this, as they share the questions of each task
    for loaded in tasks:
        result = run_task(loaded, model, tokenizer, run)
        metrics = result["metrics"]
        # printed once, as the same texts are scored again and again
        if result.get("cut") and not loaded.cut_announced:
            run.say(
                f"{loaded.name}: {result['cut']:,} texts are beyond the model's positions; they lose their first"
                + of_the_endings(result["cut_endings"])
            )
            loaded.cut_announced = True
        labels = loaded.task.log_labels or {loaded.name: loaded.task.metrics[0]}
        for label, name in labels.items():
            values[label] = metrics[name].value
    return values


# ---------------------------------------------------------------------------------------------
# questions


def score_questions(loaded: LoadedTask, model, tokenizer, run: Runtime, bar="") -> dict:
    is_harness = loaded.task.convention == HARNESS
    groups = [encode_question(tokenizer, question, is_harness) for question in loaded.questions]
    # whether a word is the likeliest takes a pass over the logits, which only one task needs
    greedy = "word_acc" in loaded.task.metrics
    scores = score(model, groups, tokenizer.vocab_size, run, progress=bar, greedy=greedy)

    # scores of all choices lie one after the other
    answers = []
    first = 0
    for question in loaded.questions:
        n_choices = len(question.choices)
        answers.append(answer(question, scores[first : first + n_choices], is_harness))
        first += n_choices
    return {
        "n": len(answers),
        "metrics": {name: metric(name, answers) for name in loaded.task.metrics},
        "parts": {column: accuracy_by_part(answers, column) for column in loaded.task.parts},
        "cut": count_cut_texts(groups, raw(model).config.block_size),
        "cut_endings": count_cut_endings(groups, raw(model).config.block_size),
    }


def encode_question(tokenizer, question: Question, is_harness: bool) -> list[tuple[list[int], int]]:
    """The question's texts (ids, how many of the last are scored), in the order of its choices."""
    texts = []
    # neighbouring choices with the same context, which is encoded once
    for context, choices in itertools.groupby(question.choices, key=lambda choice: choice.context):
        endings = [choice.ending for choice in choices]
        texts += encode_rows(tokenizer, question.shots + context, endings, is_harness)
    return texts


def answer(question: Question, scores: np.ndarray, is_harness: bool) -> Answer:
    """scores: (choices, 3), as of `score`."""
    sums, n_tokens, greedy = scores.T  # (choices,) each
    # what acc_norm divides by: tokens in Karpathy's convention, characters in the harness's
    lengths = n_tokens
    if is_harness:
        lengths = [max(1, len(choice.ending)) for choice in question.choices]
    return Answer(
        label=question.label,
        # of equal choices argmax takes the first
        by_sum=int(sums.argmax()),
        by_mean=int((sums / lengths).argmax()),
        log_probability=float(sums[question.label]),
        is_greedy=bool(greedy[question.label]),
        parts=question.parts,
    )


def accuracy_by_part(answers: list[Answer], column: str) -> dict[str, Value]:
    """{value of the column: accuracy}, in the order in which the values come."""
    # such as BLiMP's fields and paradigms: a model may have learnt agreement, but not islands
    answers_by_part = {}
    for answer in answers:
        answers_by_part.setdefault(answer.parts[column], []).append(answer)
    return {value: metric("acc", of_part) for value, of_part in answers_by_part.items()}


# ---------------------------------------------------------------------------------------------
# metrics of answers


def metric(name: str, answers: list[Answer]) -> Value:
    return METRICS[name](answers)


def accuracy(answers: list[Answer]) -> Value:
    return share([a.by_sum == a.label for a in answers])


def accuracy_by_mean(answers: list[Answer]) -> Value:
    return share([a.by_mean == a.label for a in answers])


def word_accuracy(answers: list[Answer]) -> Value:
    return share([a.is_greedy for a in answers])


def share(hits: list[bool]) -> Value:
    # a question is right or wrong, and so the error follows from the mean
    mean = np.mean(hits).item()
    return Value(mean, standard_error(mean, len(hits)))


def standard_error(share: float, n: int) -> float:
    """Of the mean of n zeros and ones: the sample's standard deviation / sqrt(n)."""
    if n < 2:
        return math.nan
    return math.sqrt(share * (1 - share) / (n - 1))


def word_perplexity(answers: list[Answer]) -> Value:
    """exp of the last words' mean loss. Its error, to first order, is the perplexity times the error of the mean."""
    log_probabilities = np.array([a.log_probability for a in answers])
    n = len(answers)
    value = exp(-log_probabilities.mean())
    if n < 2:
        return Value(value, 0.0)
    return Value(value, value * log_probabilities.std(ddof=1).item() / math.sqrt(n))


def exp(x: float) -> float:
    # above 709.78 math.exp raises OverflowError
    return math.exp(x) if x < 700 else math.inf


def f1_of_true(answers: list[Answer]) -> Value:
    return Value(f1_by_label(answers)[1].item())


def macro_f1(answers: list[Answer]) -> Value:
    return Value(f1_by_label(answers).mean().item())


def f1_by_label(answers: list[Answer]) -> np.ndarray:
    """2 * true positives / (predicted + actual positives) of labels 0, 1 and 2."""
    table = confusion(answers)
    n_positives = table.sum(0) + table.sum(1)  # predicted (columns) + actual (rows)
    # 0, not NaN, for a label that never occurs
    return 2 * table.diagonal() / np.maximum(n_positives, 1)


def matthews(answers: list[Answer]) -> Value:
    """Matthews' correlation of two labels: the covariance of label and prediction / both standard deviations."""
    table = confusion(answers)
    covariance = table[1, 1] * table[0, 0] - table[0, 1] * table[1, 0]
    product = table[0].sum() * table[1].sum() * table[:, 0].sum() * table[:, 1].sum()
    # 0 where only one label was predicted, as in scikit-learn
    return Value(float(covariance / math.sqrt(product or 1)))


def confusion(answers: list[Answer]) -> np.ndarray:
    """(3, 3): how often each label, a row, got each prediction, a column."""
    table = np.zeros((3, 3))
    for a in answers:
        table[a.label, a.by_sum] += 1
    return table


METRICS = {
    "acc": accuracy,
    "acc_norm": accuracy_by_mean,
    "word_acc": word_accuracy,
    "word_ppl": word_perplexity,
    "f1": f1_of_true,
    "macro_f1": macro_f1,
    "mcc": matthews,
}


# ---------------------------------------------------------------------------------------------
# texts


def score_documents(loaded: LoadedTask, model, tokenizer, run: Runtime, stride=0, bar="") -> dict:
    size = raw(model).config.block_size
    # a window scores no more than it holds
    stride = min(stride or size, size)
    # with a stride below their size windows overlap: each token has more context, at the cost of more computation
    groups = []
    for document in loaded.documents:
        # bos, so that the first token has something before it
        ids = [tokenizer.bos, *tokenizer.encode(document.seen)]
        # each window is a group of its own, as windows are long and share no beginning
        groups += [[window] for window in windows(ids, size, stride)]
    sums, n_scored, _ = score(model, groups, tokenizer.vocab_size, run, progress=bar).T
    loss = -sums.sum()  # of the whole text, in nats
    n_tokens = n_scored.sum()

    # per word and byte of the file, so that tokenizers and preparations can be compared
    n_words = 0
    n_bytes = 0
    for document in loaded.documents:
        n_words += len(re.split(r"\s+", document.text))  # as the harness counts: "a b\n" has three
        n_bytes += len(document.text.encode())
    bits_per_byte = loss / math.log(2) / n_bytes
    values = {
        "ppl": exp(loss / n_tokens),
        "word_ppl": exp(loss / n_words),
        "bits_per_byte": bits_per_byte,
        "byte_ppl": 2**bits_per_byte,
    }
    # the task's own metrics first
    names = dict.fromkeys((*loaded.task.metrics, *values))
    return {
        "n": int(n_tokens),
        "metrics": {name: Value(values[name]) for name in names},
        "stride": stride,
        "words": n_words,
        "bytes": n_bytes,
        "documents": len(loaded.documents),
    }


def windows(ids: list[int], size: int, stride: int) -> Iterator[tuple[list[int], int]]:
    """(ids, how many of the last are scored) of each window over a text, whose first id is context only.

    The first window scores up to `size` ids, each other one the next `stride`, with as much context as fits.
    """
    done = 0  # scored so far
    last = len(ids) - 1
    while done < last:
        more = size if done == 0 else stride
        end = min(last, done + more)
        # size inputs at most, and the id after the last of them
        yield ids[max(0, end - size) : end + 1], end - done
        done = end
