"""Texts, archives and tasks for tests/fuzz.py: valid ones, and what reads them."""

import contextlib
import gzip
import json
import os
import shutil
import zipfile
from pathlib import Path

import configurator
import prepare_data
from configurator import defaults_of
from corpora.readers import File, pieces
from corpora.sources import extract
from tasks.files import read_text
from tasks.loading import load_tasks

ROOT = Path(__file__).resolve().parents[1]


def make_texts(material) -> dict[str, bytes]:
    rows = [{"text": f"A text, number {i}.", "target": "A line."} for i in range(30)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    files = {"a.jsonl": lines, "b.jsonl.gz": gzip.compress(lines), "d.txt": b"A text.\n\nAnother.\n" * 20}
    folder = material.folder / "archives"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("babylm_10M/cbt.train", "A text.\n" * 50)
        archive.writestr("babylm_dev/cbt.dev", "Another.\n" * 50)
    files["x.zip"] = (folder / "x.zip").read_bytes()
    with contextlib.suppress(ImportError):
        import zstandard

        files["c.jsonl.zst"] = zstandard.compress(lines)
    with contextlib.suppress(ImportError):
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "e.parquet")
        files["e.parquet"] = (folder / "e.parquet").read_bytes()
    return files


def read_pieces(folder: Path, out: Path):
    """Each file by itself, so that the first that is refused does not hide the rest."""
    name = sorted(path.name for path in folder.iterdir())
    for path in map(folder.joinpath, name):
        if path.suffix != ".zip":
            for text, _ in pieces(File(path), separator="blank"):
                text.encode()


def prepare(folder: Path, out: Path):
    knobs = {"source": str(folder), "out_dir": str(out / "data"), "tokenizer": "bytes", "val_fraction": 0.2}
    prepare_data.prepare(configurator.Config(defaults_of(ROOT / "prepare_data.py") | knobs | {"workers": 1}, given={}))


def extract_zip(folder: Path, out: Path):
    if (folder / "x.zip").is_file():
        extract(folder / "x.zip", out / "texts", ("babylm_10M", "babylm_dev"))


def read_enwik8(folder: Path, out: Path):
    """The only archive that is read as a text, known by its name."""
    if (folder / "x.zip").is_file():
        (out / "tasks").mkdir(parents=True, exist_ok=True)
        path = out / "tasks/enwik8.zip"
        path.write_bytes((folder / "x.zip").read_bytes())
        read_text(path)


def make_tasks(material) -> dict[str, bytes]:
    own = {"context": "The capital of France is", "choices": ["Lyon", "Paris"], "label": 1}
    hellaswag = {"ctx": "ab", "endings": ["c", "de", "f", "cd"], "label": 0}
    piqa = {"goal": "g", "sol1": "a", "sol2": "b", "label": 1}
    files = {"own.jsonl": own, "hellaswag.jsonl": hellaswag, "piqa/valid.jsonl": piqa}
    texts = {name: (json.dumps(row) + "\n").encode() * 4 for name, row in files.items()}
    cola = b"gj04\t1\t\tA sentence.\n" * 4
    return texts | {"text.txt": b"A text of some words.\n" * 9, "cola/in_domain_dev.tsv": cola}


def score_files(folder: Path, out: Path):
    for name in ("own.jsonl", "hellaswag.jsonl", "text.txt"):
        load_tasks(str(folder / name), str(folder), shots=0 if name == "text.txt" else 1)


def score_tasks(folder: Path, out: Path):
    os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
    # what is missing there is downloaded to it
    shutil.copytree(folder, out / "eval")
    load_tasks("piqa,cola", str(out / "eval"))
