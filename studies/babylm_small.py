"""What the studies on the BabyLM subset share: the cut of the corpus, and the knobs that name it.

Each cuts the same passages from the corpus and prepares them with config/babyllama_small/data.py, one study at a time.
"""

from pathlib import Path

from common.data import read_meta
from common.files import read_json, write_json
from corpora.sources import find_files
from studies.engine import Study

TEXT = Path("data/babylm_small_text")
DATA = Path("data/babylm_small")
PASSAGE = 4096  # bytes
EVERY_TRAIN = 150  # one of so many passages is kept
EVERY_DEV = 20

# ---------------------------------------------------------------------------------------------
# the subset


def passages(text: str, every: int) -> str:
    """One of every `every` passages, of about PASSAGE bytes and whole lines each, evenly spread.

    >>> passages("a\\n" * PASSAGE * 3 + "end\\n", 6) == "a\\n" * (PASSAGE // 2)
    True
    """
    complete = []  # passages of full length; the rest at the end of the text is left out
    lines = []
    size = 0
    for line in text.splitlines(keepends=True):
        lines.append(line)
        size += len(line.encode())
        if size >= PASSAGE:
            complete.append("".join(lines))
            lines = []
            size = 0
    # of each group of `every` passages the one in the middle
    return "".join(complete[every // 2 :: every])


def corpus_files(folder: str) -> list:
    """The files of the corpus by domain and split; without a folder they are downloaded."""
    return find_files("babylm", folder, Path("data/downloads/babylm"))


def cut_corpus(folder: str, every_train: int, every_dev: int):
    """Write the kept passages of each file to TEXT, and nothing else there.

    ValueError, with nothing written, where a file is too short for a passage.
    """
    # everything is read and checked before the first file is written
    every_of_split = {"train": every_train, "val": every_dev}
    texts = {}
    for file in corpus_files(folder):
        kept = ""
        if file.split in every_of_split:
            text = file.path.read_text(encoding="utf-8", errors="replace")
            kept = passages(text, every_of_split[file.split])
        if not kept:
            needed = PASSAGE * (every_of_split.get(file.split, 0) // 2 + 1)  # bytes
            raise ValueError(
                f"{file.path} gives no passage; corpus is a folder of <domain>.train and "
                f"<domain>.dev, of more than {needed:,} bytes, or --every_train and --every_dev are smaller"
            )
        texts[file.path.name] = kept
    TEXT.mkdir(parents=True, exist_ok=True)
    # files of another corpus would be prepared with these
    for path in TEXT.iterdir():
        if path.name not in texts:
            path.unlink()
    # a file that is the same keeps its time, by which prepare_data.py sees that nothing is new
    for name, kept in texts.items():
        path = TEXT / name
        if not path.exists() or path.read_text(encoding="utf-8") != kept:
            path.write_text(kept, encoding="utf-8")


def prepare(study: Study, corpus: str, every_train=EVERY_TRAIN, every_dev=EVERY_DEV) -> dict:
    """Cut the subset and prepare it as DATA, which the study has locked; its meta.json, with the corpus's name."""
    cut_corpus(corpus, every_train, every_dev)
    study.call(["prepare_data.py", "config/babyllama_small/data.py"])
    meta = read_meta(DATA)
    # by name only: pages are published, and a path would say nothing to their readers
    meta["corpus"] = Path(corpus or "babylm").name
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
    """Note which texts the runs of out_dir are of. ValueError if it holds runs on others."""
    study.out.mkdir(parents=True, exist_ok=True)
    # the runs' names do not say what they were trained on
    record = study.out / "data.json"
    if record.exists() and read_json(record) != meta["files"]:
        raise ValueError(
            f"{study.out} holds runs on another corpus than {DATA} has now; delete it, "
            "choose another --out_dir, or give --corpus, --every_train and --every_dev as they were"
        )
    write_json(record, meta["files"])
