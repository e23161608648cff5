"""Questions of HellaSwag's form from held-out text, so that a quickstart has a task to score without a download."""

import json
from pathlib import Path

import numpy as np

CONTEXT_LINES = 6
# Fewest characters of a line that is used: "else:" could end any context.
LONG_ENOUGH = 20
# Lines from one question to the next, so that their contexts do not overlap.
STRIDE = CONTEXT_LINES + 20
# Most questions from one text, so that a few long ones do not supply them all.
MOST_OF_A_TEXT = 20
MOST = 500  # questions in all


def write_choices(stream, path: Path):
    """Write questions from the held-out documents: which line comes next? Three wrong ones come from the same text.

    No substitute for HellaSwag, whose wrong endings are made to mislead.
    """
    rng = np.random.default_rng(0)
    questions = []
    for piece in stream:
        if piece.split == "val" and len(questions) < MOST:
            questions += questions_of(piece.text, rng)
    lines = [json.dumps(question) + "\n" for question in questions[:MOST]]
    path.write_text("".join(lines), encoding="utf-8")


def questions_of(text: str, rng: np.random.Generator) -> list[dict]:
    """The questions of a text, {"ctx": str, "endings": [4 str], "label": the index of the right one}."""
    lines = [line for line in text.splitlines() if len(line.strip()) >= LONG_ENOUGH]
    starts = range(0, len(lines) - CONTEXT_LINES - 4, STRIDE)
    questions = []
    for start in starts[:MOST_OF_A_TEXT]:
        stop = start + CONTEXT_LINES
        right = lines[stop].strip()
        others = {line.strip() for line in lines} - {right}
        if len(others) < 3:
            continue
        # sorted, as the order of a set of strings differs from run to run
        wrong = rng.choice(sorted(others), 3, replace=False)
        endings = [str(line) for line in wrong]
        label = int(rng.integers(4))
        endings.insert(label, right)
        context = "\n".join(lines[start:stop]) + "\n"
        questions.append({"ctx": context, "endings": endings, "label": label})
    return questions
