"""From the names of tasks, recipes and files to their questions and documents, all read before any is scored."""

import random
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from common.log import LOG_LABELS
from configurator import nearest
from tasks import prompts
from tasks.files import find_files, read_rows, read_text
from tasks.prompts import OWN_COLUMNS, Document, Question
from tasks.tables import AS_IT_IS, COMPLETION, NORMED, RECIPES, TASKS, Task


@dataclass
class LoadedTask:
    name: str  # a task's, or a file's; the loops log its first metric under this name
    task: Task
    files: list[Path]
    shots: int = 0  # solved examples before each question
    seed: int = 0  # of their draw
    pool: Path | None = None  # where they come from; None: from the file itself
    questions: list[Question] = field(default_factory=list)
    documents: list[Document] = field(default_factory=list)
    cut_announced: bool = False  # whether it was printed that some texts are too long for the model


def load_tasks(names: str, data_dir: str, limit=0, shots=0, seed=0, columns=OWN_COLUMNS) -> list[LoadedTask]:
    """The tasks, recipes and files of "a,b" with their questions or documents.

    limit: only so many rows of each file, or lines of a text (0: all); shots: solved rows before each question;
    columns: the names of the columns in the user's own .jsonl.
    Raises ValueError or FileNotFoundError for a name that is unknown, and a file that is missing or of another form.
    """
    wanted = without_repetitions(name.strip() for name in names.split(","))
    # all are read before the first is scored, so that a wrong name ends the run at once
    loaded_tasks = []
    for name in unfold_recipes(wanted):
        # a task comes before a file of the same name; write ./piqa for the file
        if name in TASKS:
            task = TASKS[name]
            label = name
            files = find_files(name, task.files, task.source, data_dir)
        elif Path(name).is_file():
            task = own_task(Path(name), columns)
            label = file_label(name, wanted)
            files = [Path(name)]
        else:
            raise unknown_task(name)
        # a blank becomes "_" in a label, so that "a b.txt" and "a_b.txt" have the same
        if label in [other.name for other in loaded_tasks]:
            raise ValueError(f"tasks: two of them would be {label!r} in the log and in tables; rename a file")
        loaded = LoadedTask(label, task, files, shots=shots, seed=seed)
        if task.question:
            load_questions(loaded, limit, Path(data_dir) / name / "train.jsonl")
        else:
            load_documents(loaded, limit)
        loaded_tasks.append(loaded)
    if not loaded_tasks:
        known = ", ".join([*TASKS, *RECIPES])
        raise ValueError(f"tasks is empty; name some of {known}, a text file, or a .jsonl of multiple choice")
    return loaded_tasks


def without_repetitions(names) -> list[str]:
    return list(dict.fromkeys(name for name in names if name))


def unfold_recipes(names: list[str]) -> list[str]:
    unfolded = []
    for name in names:
        if name in RECIPES:
            unfolded += RECIPES[name].tasks.split()
        else:
            unfolded.append(name)
    # two recipes may share a task
    return without_repetitions(unfolded)


def unknown_task(name: str) -> Exception:
    """The error for a name that is neither a task nor a file."""
    # of a path the file is missing, any other name is misspelt
    looks_like_a_path = Path(name).suffix or len(Path(name).parts) > 1
    if looks_like_a_path:
        return FileNotFoundError(f"tasks: no file {name!r}; a task of that name is not known either")
    known = [*TASKS, *RECIPES]
    return ValueError(f"tasks: {name!r} is none of {', '.join(known)}, nor a file{nearest(name, known)}")


# ---------------------------------------------------------------------------------------------
# the user's own files


def file_label(name: str, wanted: list[str]) -> str:
    """A file's name, with its folders where the name alone is ambiguous; without blanks."""
    short = Path(name).name
    namesakes = [other for other in wanted if Path(other).name == short]
    is_clear = len(namesakes) == 1 and short not in TASKS
    label = short if is_clear else name
    # the loops log their own numbers under these
    if label in LOG_LABELS:
        label = f"./{label}"
    # blanks separate the columns of log.txt
    return "_".join(label.split())


def own_task(path: Path, columns: dict[str, str]) -> Task:
    """The task of a user's file: perplexity for a text, multiple choice for a .jsonl with `columns` or HellaSwag's.

    Raises ValueError for a .jsonl whose first row has neither, and for a table of another kind.
    """
    # scored as prose, a table would have a perplexity that looks like a result
    if path.suffix in (".json", ".csv", ".tsv", ".parquet"):
        raise ValueError(f"{path} is a table, not prose; make a .jsonl of it, or a .txt if it is a text all the same")
    if path.suffix != ".jsonl":
        return Task(str(path), "", metrics=("ppl", "word_ppl", "bits_per_byte"), convention=AS_IT_IS)

    # the first row decides the form; an empty file is an error later, as for every task
    first = next(iter(read_rows(path)), {})
    if not isinstance(first, dict):
        expected = ", ".join(columns.values())
        raise ValueError(f"{path}: its first row is not a JSON object; expected one with {expected}")
    missing = [role for role, column in columns.items() if column not in first]
    if first and missing:
        if {"ctx", "endings", "label"} <= set(first):
            return own_hellaswag(path)
        knobs = " ".join(f"--{role}_column=<name>" for role in missing)
        missing_columns = ", ".join(columns[role] for role in missing)
        present = ", ".join(first)
        raise ValueError(f"{path} has the columns {present}, but not {missing_columns}; name its own with {knobs}")
    return Task(
        files=str(path),
        source="",
        question=partial(prompts.own_question, columns=columns),
        metrics=NORMED,
        form="see the form of a file of one's own in evaluate.py --help",
    )


def own_hellaswag(path: Path) -> Task:
    """For rows with ctx, endings and label: Karpathy's convention, and acc_norm first, as the loops log HellaSwag."""
    return Task(
        files=str(path),
        source="",
        question=prompts.hellaswag,
        metrics=("acc_norm", "acc"),
        convention=COMPLETION,
        form="expected JSON with ctx, endings and label as in hellaswag.py",
    )


# ---------------------------------------------------------------------------------------------
# questions and texts


def load_questions(loaded: LoadedTask, limit: int, train_file: Path):
    """Fill loaded.questions. Shots are drawn from `train_file` or, without one, from the scored file itself."""
    train_questions = []
    if loaded.shots and train_file.is_file():
        loaded.pool = train_file
        train_questions = read_questions(train_file, loaded)
    file_is_pool = loaded.shots > 0 and loaded.pool is None
    for path in loaded.files:
        # the pool is the whole file, however few of its rows are scored
        questions = read_questions(path, loaded, limit=0 if file_is_pool else limit)
        pool = questions if file_is_pool else train_questions
        solved = [solve(question) for question in pool]
        for i, question in enumerate(questions[: limit or None]):
            # no question may see its own answer
            own_index = i if file_is_pool else None
            shots = draw_shots(solved, k=loaded.shots, seed=loaded.seed, own_index=own_index)
            loaded.questions.append(replace(question, shots=shots))
    if not loaded.questions:
        raise ValueError(f"{loaded.name}: {loaded.files[0]} has no rows")


def read_questions(path: Path, loaded: LoadedTask, limit=0) -> list[Question]:
    """The questions in the first `limit` (0: all) rows of a file. ValueError with the number of a row without one."""
    questions = []
    for number, row in enumerate(read_rows(path)[: limit or None], 1):
        try:
            question = loaded.task.question(row)
            # SNLI: the annotators did not agree on a label
            if question is None:
                continue
            check(question)
            parts = {}
            for column in loaded.task.parts:
                # not every tool that reads JSON accepts "syntax/semantics" as a key
                parts[column] = row[column].replace("/", "_")
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            # a KeyError's text is the key alone
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            form = f"{loaded.task.form} ({reason})"
            raise ValueError(f"{path}, row {number}: not an example of {loaded.name}, {form}") from None
        questions.append(replace(question, parts=parts))
    return questions


def check(question: Question):
    """ValueError or TypeError for a question without a right choice, or with a choice that is not text."""
    if not 0 <= question.label < len(question.choices):
        raise ValueError(f"label {question.label} of {len(question.choices)} choices")
    for context, ending in question.choices:
        if not (isinstance(context, str) and isinstance(ending, str)):
            raise TypeError("a choice is no text")


def solve(question: Question) -> str:
    right = question.choices[question.label]
    return f"{right.context} {right.ending}"


def draw_shots(pool: list[str], k: int, seed: int, own_index: int | None = None) -> str:
    """k of the pool's solved examples, a blank line after each.

    own_index: the question's own index in the pool, if it is there. All questions see the same examples,
    except that a question that was drawn itself sees the next one instead.
    """
    if k == 0:
        return ""
    # one more than needed, in case the question itself is among them
    drawn = random.Random(seed).sample(range(len(pool)), min(k + 1, len(pool)))
    others = [i for i in drawn if i != own_index][:k]
    if len(others) < k:
        n_others = len(pool) if own_index is None else len(pool) - 1
        few = f"there are only {n_others} other examples to draw from"
        raise ValueError(f"shots={k}, but {few}; lower it")
    return "".join(f"{pool[i]}\n\n" for i in others)


def load_documents(loaded: LoadedTask, limit: int):
    """Fill loaded.documents from a text, or from its first `limit` lines."""
    if loaded.shots:
        reason = f"{loaded.name} is a text to read, without questions"
        raise ValueError(f"shots={loaded.shots}, but {reason}; leave it out")
    text = read_text(loaded.files[0])
    if limit:
        lines = text.splitlines(keepends=True)
        text = "".join(lines[:limit])
    if not text.strip():
        # nothing but blank lines: a loss per word or byte would not exist
        part = f" in its first {limit} lines; raise limit" if limit else ""
        raise ValueError(f"{loaded.name}: {loaded.files[0]} has no text{part}")
    loaded.documents = list(loaded.task.documents(text))
