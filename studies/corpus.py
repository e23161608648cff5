"""The subsets of a corpus in BabyLM's form that the studies use, and the knobs that name the corpus.

Three data sets, each used by one study at a time:

data/babylm_small     a 150th of the training text, in passages of 4 KB (config/babyllama_small/data.py)
data/babylm_larger    a 37th, likewise (config/babyllama_larger/data.py)
data/babylm_medium    a 20th, in documents of 60 bytes to 3 KB (config/babylm_medium/data.py); trials are chosen by
                      its held-out split. data/babylm_medium_test holds out other documents, for the pages
"""

from pathlib import Path

import numpy as np

from common.files import read_json, write_json
from common.meta import read_meta
from corpora.readers import END_OF_TEXT
from corpora.sources import find_files
from studies.runs import Study

DATA = Path("data/babylm_small")
LARGER = Path("data/babylm_larger")
PASSAGE = 4096  # bytes
EVERY_TRAIN = 150  # one in so many passages is kept
EVERY_TRAIN_LARGER = 37
EVERY_DEV = 20

MEDIUM = Path("data/babylm_medium")
MEDIUM_TEST = Path("data/babylm_medium_test")
MEDIUM_TEXT = Path("data/babylm_medium_text")
MEDIUM_TEST_TEXT = Path("data/babylm_medium_test_text")
SHORTEST, LONGEST = 60, 3000  # bytes of a document, which consists of whole lines
EVERY_DOCUMENT = 20  # one in so many is kept, of every split

# ---------------------------------------------------------------------------------------------
# the subset


def passages(text: str, every: int) -> str:
    """One of every `every` passages, of about PASSAGE bytes and whole lines each, evenly spread.

    >>> passages("a\\n" * PASSAGE * 3 + "end\\n", 6) == "a\\n" * (PASSAGE // 2)
    True
    """
    complete = []  # passages of full length; a shorter one at the end of the text is left out
    lines = []
    size = 0
    for line in text.splitlines(keepends=True):
        lines.append(line)
        size += len(line.encode())
        if size >= PASSAGE:
            complete.append("".join(lines))
            lines = []
            size = 0
    # the middle one of each group of `every` passages
    return "".join(complete[every // 2 :: every])


def corpus_files(folder: str) -> list:
    """The files of the corpus by domain and split; without a folder they are downloaded."""
    return find_files("babylm", folder, Path("data/downloads/babylm"))


def cut_corpus(folder: str, text: Path, every_train: int, every_dev: int):
    """Write the kept passages of each file of a corpus to the folder `text`, and nothing else there.

    ValueError, with nothing written, where a file is too short for a passage.
    """
    # everything is read and checked before the first file is written
    every_of_split = {"train": every_train, "val": every_dev}
    texts = {}
    for file in corpus_files(folder):
        kept = ""
        if file.split in every_of_split:
            kept = passages(read_text(file), every_of_split[file.split])
        if not kept:
            needed = PASSAGE * (every_of_split.get(file.split, 0) // 2 + 1)  # bytes
            raise ValueError(
                f"{file.path} gives no passage; corpus is a folder of <domain>.train and "
                f"<domain>.dev, of more than {needed:,} bytes, or --every_train and --every_dev are smaller"
            )
        texts[file.path.name] = kept
    write_texts(text, texts)


def read_text(file) -> str:
    return file.path.read_text(encoding="utf-8", errors="replace")


def write_texts(folder: Path, texts: dict[str, str]):
    """Write {name of file: text} to a folder, and nothing else there."""
    folder.mkdir(parents=True, exist_ok=True)
    # files of an earlier corpus would be prepared together with these
    for path in folder.iterdir():
        if path.name not in texts:
            path.unlink()
    # an unchanged file keeps its time of change, by which prepare_data.py recognises it
    for name, kept in texts.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != kept:
            path.write_text(kept, encoding="utf-8")


def prepare(
    study: Study,
    corpus: str,
    every_train=EVERY_TRAIN,
    every_dev=EVERY_DEV,
    config="config/babyllama_small/data.py",
) -> dict:
    """Cut the passages and prepare the study's data, which it has locked. Returns meta.json and the corpus's name."""
    cut_corpus(corpus, Path(f"{study.data}_text"), every_train, every_dev)
    study.call(["prepare_data.py", config])
    return named_meta(study.data, corpus)


def named_meta(data: Path, corpus: str) -> dict:
    """meta.json of a data set, and the name of the corpus that it was cut from."""
    meta = read_meta(data)
    # only the name: pages are published, and the path would mean nothing to their readers
    meta["corpus"] = Path(corpus or "babylm").name
    return meta


# ---------------------------------------------------------------------------------------------
# the larger one, of documents


def documents(text: str) -> list[str]:
    """A text cut into documents of whole lines, whose lengths are uniform on a logarithmic scale.

    >>> "".join(documents("a line\\n" * 1000)) == "a line\\n" * 1000
    True
    """
    rng = np.random.default_rng(0)
    complete = []
    lines = []
    size = 0
    target_size = 0.0  # bytes of the document that these lines are of
    for line in text.splitlines(keepends=True):
        lines.append(line)
        size += len(line.encode())
        if size >= target_size:
            complete.append("".join(lines))
            lines = []
            size = 0
            target_size = np.exp(rng.uniform(np.log(SHORTEST), np.log(LONGEST)))
    if lines:
        complete.append("".join(lines))
    return complete


def joined(kept: list[str]) -> str:
    """Documents as one text, which --document_separator=eot takes apart again."""
    return "".join(document + END_OF_TEXT for document in kept)


def cut_documents(folder: str):
    """Write the kept documents of each file to MEDIUM_TEXT and MEDIUM_TEST_TEXT, and nothing else there.

    ValueError, with nothing written, where a file is too short.
    """
    texts = {}
    test_texts = {}
    for file in corpus_files(folder):
        all_documents = documents(read_text(file))
        # kept and test documents are far from each other in the text, never neighbours
        kept = all_documents[EVERY_DOCUMENT // 2 :: EVERY_DOCUMENT]
        others = all_documents[::EVERY_DOCUMENT]
        if not kept:
            raise ValueError(
                f"{file.path} has {len(all_documents)} documents, of which one in {EVERY_DOCUMENT} is kept: none"
            )
        texts[file.path.name] = joined(kept)
        # one document to train on, as prepare_data.py requires it of every data set
        test_texts[file.path.name] = joined(kept[:1] if file.split == "train" else others)
    write_texts(MEDIUM_TEXT, texts)
    write_texts(MEDIUM_TEST_TEXT, test_texts)


def prepare_medium(study: Study, corpus: str) -> dict:
    """Cut the documents and prepare MEDIUM, which the study has locked, and MEDIUM_TEST. Returns as `prepare`."""
    cut_documents(corpus)
    study.call(["prepare_data.py", "config/babylm_medium/data.py"])
    study.call(["prepare_data.py", "config/babylm_medium/test.py"])
    meta = named_meta(MEDIUM, corpus)
    meta["test_tokens"] = read_meta(MEDIUM_TEST)["val_tokens"]
    return meta


# ---------------------------------------------------------------------------------------------
# knobs


def parse_seeds(text: str) -> list[int]:
    """The knob `seeds`. ValueError unless it has two or more, all different."""
    parts = text.split(",")
    numbers = [int(part) for part in parts if part.strip().isdecimal()]
    # one seed has no error bar, and a seed given twice would shrink it
    if len(numbers) < 2 or len(set(numbers)) != len(parts):
        expected = "expected two or more different whole numbers, as in --seeds=0,1,2"
        raise ValueError(f"seeds={text!r}: {expected}")
    return numbers


def check_corpus(folder: str):
    """ValueError for a folder without the files of a corpus, before anything is written."""
    if not folder:  # downloaded later
        return
    if not Path(folder).is_dir():
        remedy = "name one of <domain>.train and <domain>.dev files"
        raise ValueError(f"corpus={folder!r} is no folder; {remedy}")
    corpus_files(folder)


def record_corpus(study: Study, meta: dict):
    """Record which texts the runs in out_dir are trained on. ValueError if it holds runs on others."""
    study.out.mkdir(parents=True, exist_ok=True)
    # as a run's name does not say what it was trained on
    record = study.out / "data.json"
    if record.exists() and read_json(record) != meta["files"]:
        raise ValueError(
            f"{study.out} holds runs on another corpus than {study.data} has now; delete it, "
            "choose another --out_dir, or give --corpus, --every_train and --every_dev as they were"
        )
    write_json(record, meta["files"])
