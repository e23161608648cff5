"""The files of tasks: where they are, where they are downloaded from, and how rows and texts are read from them."""

import json
import re
import zipfile
import zlib
from pathlib import Path

from common.download import download, endpoint
from common.files import need, read_json, read_utf8


def find_files(name: str, files: str, source: str, data_dir: str) -> list[Path]:
    """A task's files in data_dir, which are downloaded if none are there.

    files, source: as of Task in tasks/tables.py.
    """
    folder = Path(data_dir)
    patterns = files.split()
    for pattern in patterns:
        existing = [path for path in folder.glob(pattern) if path.is_file()]
        # not train.jsonl, which lies in the same folder: shots are drawn from it
        existing = [path for path in existing if not path.stem.endswith("train")]
        if existing:
            return sorted(existing)

    remedy = f"put {patterns[0]} into {data_dir}"
    is_address = ":" in source
    if is_address:
        return [download(source, folder / patterns[0], instead=remedy)]
    return download_from_hub(source, folder / name, remedy)


def download_from_hub(source: str, folder: Path, remedy: str) -> list[Path]:
    """The parquet files of "repository configuration split", one for each configuration; "*" stands for all."""
    repo, wanted, split = source.split()
    base = f"{endpoint()}/api/datasets/{repo}/parquet"
    # {configuration: {split: [addresses]}}
    index = read_json(download(base, folder / "parquet.json", instead=remedy))
    configurations = []
    for configuration, splits in index.items():
        is_wanted = wanted in (configuration, "*")
        # it becomes part of a path: nothing like ../up
        is_plain_name = re.fullmatch(r"[\w.-]+", configuration)
        if is_wanted and is_plain_name and split in splits:
            configurations.append(configuration)
    if not configurations:
        raise ValueError(f"{base} has no configuration {wanted!r} with a split {split!r}; {remedy}")

    downloaded = []
    for configuration in sorted(configurations):
        url = f"{base}/{configuration}/{split}/0.parquet"
        path = folder / f"{configuration}_{split}.parquet"
        downloaded.append(download(url, path, instead=remedy))
    return downloaded


class FileRow(dict):
    """A row: using a column whose value is null is a ValueError."""

    def __getitem__(self, name):
        value = super().__getitem__(name)
        if value is None:
            raise ValueError(f"its {name} is null")
        return value


def read_rows(path: Path) -> list[FileRow]:
    """The rows of a .jsonl, .parquet, or CoLA's .tsv."""
    if path.suffix == ".parquet":
        return read_parquet(path)
    rows = []
    # not splitlines(): JSON may hold other line ends, as U+2028, inside a string
    for number, line in enumerate(read_utf8(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(read_tsv_line(line) if path.suffix == ".tsv" else read_json_line(line))
        except (ValueError, RecursionError) as error:
            form = "one JSON object a line"
            if path.suffix == ".tsv":
                form = "source, label, mark, sentence with tabs"
            raise ValueError(f"{path}, line {number}: expected {form} ({error})") from None
    return rows


def read_json_line(line: str):
    return json.loads(line, object_hook=FileRow)


def read_tsv_line(line: str) -> FileRow:
    """Of CoLA: source, label (1: acceptable), the author's mark ("*"), sentence."""
    _, label, _, sentence = line.rstrip("\r").split("\t")
    return FileRow(sentence=sentence, label=int(label))


def read_parquet(path: Path) -> list[FileRow]:
    # optional: only users who take rows from a hub need it
    parquet = need("pyarrow.parquet", path)
    arrow = need("pyarrow", path)
    try:
        table = parquet.read_table(path)
    except (arrow.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is damaged ({reason}); delete it to fetch it again") from None
    return [FileRow(row) for row in table.to_pylist()]


ENWIK8_TEST_BYTES = 5_000_000  # at the end: the usual split is 90, 5 and 5 MB


def read_text(path: Path) -> str:
    """The text of a file: of enwik8 the test part, of CommonGen's rows their sentences, one a line."""
    if path.suffix in (".jsonl", ".parquet"):
        return sentences(path)
    if path.stem != "enwik8":
        return read_utf8(path)
    try:
        data = read_first_member(path) if path.suffix == ".zip" else path.read_bytes()
    except (zipfile.BadZipFile, zlib.error, EOFError, IndexError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to fetch it again") from None
    # the cut may go through a character, whose second half is left out
    return data[-ENWIK8_TEST_BYTES:].decode("utf-8", errors="ignore")


def sentences(path: Path) -> str:
    """The sentence of each row of CommonGen, a line each."""
    lines = []
    for number, row in enumerate(read_rows(path), 1):
        target = row.get("target")
        if not isinstance(target, str):
            raise ValueError(f"{path}, row {number}: expected a target, the sentence, as in CommonGen")
        lines.append(f"{target.strip()}\n")
    return "".join(lines)


def read_first_member(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(archive.namelist()[0])
