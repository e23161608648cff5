"""Where text comes from: named corpora and their downloads, local files of every usual form, documents in pieces.

A corpus is a list of Files; `pieces` reads one as (text, whether a document ends here), each piece at most PIECE
characters, cut where no tokenizer of ours would have merged across. Nothing is held in memory but one piece, or one
line of JSON, or one batch of parquet.
"""

import gzip
import io
import json
import re
import sysconfig
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import requests

from common.download import download, endpoint

PIECE = 1 << 20  # characters
SUFFIXES = (".txt", ".train", ".dev", ".jsonl", ".parquet")  # of text files; each but the last perhaps with .gz or .zst
OSF = "https://api.osf.io/v2/nodes/ad7qg/files/osfstorage/"  # where the BabyLM release of 2024 lies


@dataclass
class File:
    path: Path
    split: str = ""  # "train", "val", or "": decided document by document
    domain: str = ""  # of a corpus with domains

    @property
    def form(self) -> str:
        """The suffix that says how it is read, without that of its compression."""
        return Path(self.path.name.removesuffix(".gz").removesuffix(".zst")).suffix


# ---------------------------------------------------------------------------------------------
# files -> pieces


def pieces(file: File, text_key="text", where=None, clean=str):
    """(text, whether a document ends here) of a file.

    where: a dict whose "bytes" follows the bytes read of it. clean: is given whole lines, or a whole document.
    """
    try:
        with open(file.path, "rb") as raw:
            for text, ends in documents(file, raw, text_key):
                if where is not None:
                    where["bytes"] = raw.tell()
                text = clean(text)
                for start, stop in cuts(text):
                    yield text[start:stop], ends and stop == len(text)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{file.path} is damaged or was cut ({error}); fetch it again") from None


def documents(file: File, raw, text_key):
    """(text, whether it ends its document) of an open file: all of a line or row, or some lines of a text."""
    if file.form == ".parquet":
        yield from parquet_rows(raw, file.path, text_key)
        return
    lines = io.TextIOWrapper(decompressed(raw, file.path), encoding="utf-8", errors="replace", newline="")
    if file.form == ".jsonl":
        yield from json_rows(lines, file.path, text_key)
    else:
        piece = lines.read(PIECE)
        while piece:
            piece += lines.readline(PIECE) if len(piece) == PIECE else ""
            following = lines.read(PIECE)
            yield piece, not following
            piece = following


def decompressed(raw, path: Path):
    """A binary file, decompressed as its name says."""
    if path.suffix == ".gz":
        return gzip.GzipFile(fileobj=raw)
    if path.suffix == ".zst":
        return need("zstandard", path).ZstdDecompressor().stream_reader(raw, read_across_frames=True)
    return raw


def json_rows(lines, path: Path, text_key: str):
    """The text of each line of a .jsonl file, a document each."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)[text_key]
            if not isinstance(text, str):
                raise TypeError(f"it is {type(text).__name__}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f'{path}, line {number}: expected JSON with a "{text_key}" ({error!r})') from None
        yield text.encode("utf-8", errors="replace").decode(), True  # half a surrogate pair becomes "?"


def parquet_rows(raw, path: Path, text_key: str):
    """The texts of a column of a parquet file; WikiText's rows are lines, which are joined to articles."""
    parquet = need("pyarrow.parquet", path)
    try:
        table = parquet.ParquetFile(raw)
        if text_key not in table.schema_arrow.names:
            raise ValueError(f"{path} has no column {text_key!r}; name one of {', '.join(table.schema_arrow.names)}")
        texts = (
            text or "" for batch in table.iter_batches(256, columns=[text_key]) for text in batch[text_key].to_pylist()
        )
        yield from articles(texts) if "wikitext" in str(path) else ((text, True) for text in texts)
    except (need("pyarrow", path).ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is damaged or was cut ({str(error).splitlines()[0]}); fetch it again") from None


def articles(lines):
    """WikiText's lines joined: an article begins with a line " = Title = "."""
    article = []
    for line in lines:
        if re.fullmatch(r" = [^=].* = \n", line) and article:
            yield "".join(article), True
            article = []
        article.append(line)
    if article:
        yield "".join(article), True


def need(module: str, path: Path):
    """An optional package. ValueError with the way to install it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.split(".")[0]
        raise ValueError(f"{path} is read through {package}, which is not installed: pip install {package}") from None


def cuts(text: str):
    """(start, stop) of the pieces of a text: in front of a blank after a word where there is one, else at PIECE."""
    start = 0
    while len(text) - start > PIECE:
        stop = start + PIECE
        for _ in range(100):  # blanks to try, from the back
            blank = text.rfind(" ", start + 1, stop)
            if blank < 0 or not text[blank - 1].isspace():
                break
            stop = blank
        stop = blank if blank > start else start + PIECE
        yield start, stop
        start = stop
    yield start, len(text)


# ---------------------------------------------------------------------------------------------
# corpora


BABYLM_2023 = "https://github.com/babylm/babylm.github.io/raw/main/babylm_data.zip"
SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
PLAIN = {  # corpora of plain files on a hub: repository, [(split, file)]
    "fineweb_edu": ("HuggingFaceFW/fineweb-edu", [("", f"sample/10BT/{i:03}_00000.parquet") for i in range(14)]),
    "openwebtext": ("Skylion007/openwebtext", [("", f"plain_text/train-{i:05}-of-00080.parquet") for i in range(80)]),
    "pile": (
        "monology/pile-uncopyrighted",  # the Pile but for what it had no right to
        [("train", f"train/{i:02}.jsonl.zst") for i in range(30)] + [("val", "val.jsonl.zst")],
    ),
    "wikitext103": (
        "Salesforce/wikitext",
        [("train", f"wikitext-103-raw-v1/train-0000{i}-of-00002.parquet") for i in range(2)]
        + [("val", "wikitext-103-raw-v1/validation-00000-of-00001.parquet")],
    ),
    "finewebedu10B": (
        "kjj0/finewebedu10B-gpt2",  # ids of GPT-2 with headers, 100 M in each file
        [("train", f"finewebedu_train_{i:06}.bin") for i in range(1, 100)] + [("val", "finewebedu_val_000000.bin")],
    ),
}
BABYLM = {  # release: the archive of its training text; its folder in the archive of 2023
    "babylm": ("", "babylm_10M"),  # 2023, strict-small: 10 M words
    "babylm_100m": ("", "babylm_100M"),  # 2023, strict
    "babylm_2024_10m": ("train_10M.zip", ""),
    "babylm_2024_100m": ("train_100M.zip", ""),
}
NAMES = ("stdlib", "shakespeare", *BABYLM, *PLAIN)


def find_files(source: str, text_dir: str, folder: Path) -> list[File]:
    """The files of a named corpus (downloaded to `folder`, or as they lie in text_dir), or of a path."""
    if source in NAMES and not text_dir:
        if source == "shakespeare":
            return [File(download(SHAKESPEARE, folder / "input.txt"))]
        if source in BABYLM:
            return local_files(fetch_babylm(source, folder), domains=True)
        repo, files = PLAIN[source]
        base = f"{endpoint()}/datasets/{repo}/resolve/main"
        return [File(download(f"{base}/{name}", folder / name), split) for split, name in files]
    path = Path(text_dir or source)
    if not path.exists():
        what = f"text_dir {text_dir!r}" if text_dir else f"source {source!r}"
        raise FileNotFoundError(
            f"{what} is not there; expected a file or a folder of them, or one of {', '.join(NAMES)}"
        )
    return local_files(path, domains=source in BABYLM)


def local_files(path: Path, domains=False) -> list[File]:
    """The text files under a path, in the order of their names; <domain>.dev is held out, <domain>.train is not."""
    paths = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    files = [f for f in map(File, paths) if f.form in SUFFIXES or (f.form == ".bin" and has_header(f.path))]
    if not files:
        what = (
            f"{path} has none of {', '.join(SUFFIXES)}"
            if path.is_dir()
            else f"{path} is not one of {', '.join(SUFFIXES)}"
        )
        raise ValueError(f"{what} (nor with .gz or .zst behind); rename or convert it")
    held_out = any(f.form == ".dev" for f in files)
    for f in files:
        f.domain = f.path.name.split(".")[0] if domains or f.form in (".train", ".dev") else ""
        f.split = {".dev": "val", ".train": "train" if held_out else ""}.get(f.form, "")
        if f.form == ".bin":
            f.split = "val" if "val" in f.path.name else "train"
    return files


def has_header(path: Path) -> bool:
    """Whether a file of ids begins as those of the public pretokenised sets do."""
    with open(path, "rb") as file:
        return file.read(4) == (20240520).to_bytes(4, "little")


def fetch_babylm(source: str, folder: Path) -> Path:
    """A folder of <domain>.train and <domain>.dev files of a release."""
    archive, inside = BABYLM[source]
    texts = folder / source
    if not archive:
        extract(download(BABYLM_2023, folder / "babylm_data.zip"), texts, (inside, "babylm_dev"))
        return texts
    for name in (archive, "dev.zip"):
        extract(download(osf_url(name), folder / name), texts)
    return texts


def osf_url(name: str) -> str:
    """Where a file of BabyLM's OSF project can be downloaded: its store is asked, as addresses there are numbers."""
    try:
        found = requests.get(f"{OSF}?page[size]=100", timeout=30).json()["data"]
        texts = next(item for item in found if item["attributes"]["name"] == "text_data")
        href = texts["relationships"]["files"]["links"]["related"]["href"]
        files = requests.get(f"{href}?page[size]=100", timeout=30).json()["data"]
        return next(item["links"]["download"] for item in files if item["attributes"]["name"] == name)
    except (requests.RequestException, KeyError, TypeError, StopIteration) as error:
        reason = type(error).__name__
        raise OSError(
            f"{OSF} does not tell where {name} is ({reason}); fetch it by hand and name its text_dir"
        ) from None


def extract(archive: Path, folder: Path, inside=("",)):
    """The .train and .dev files in those folders of a zip. ValueError for one that would write elsewhere."""
    try:
        with zipfile.ZipFile(archive) as file:
            for member in file.infolist():
                parts = Path(member.filename).parts
                if ".." in parts or Path(member.filename).is_absolute():
                    raise ValueError(
                        f"{archive} holds {member.filename!r}, which would be written elsewhere; delete it"
                    )
                wanted = member.filename.endswith((".train", ".dev")) and "__MACOSX" not in parts
                if wanted and any(not name or name in parts for name in inside):
                    folder.mkdir(parents=True, exist_ok=True)
                    with file.open(member) as source, open(folder / parts[-1], "wb") as target:
                        while block := source.read(1 << 20):
                            target.write(block)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{archive} is damaged ({error}); delete it to fetch it again") from None


def stdlib():
    """(text, True) of the documentation topics and sources of the Python that runs this, a document each, none twice.

    In the order of the path. Left out: tests and tables, which some systems do not install.
    """
    from pydoc_data.topics import topics

    seen, root = set(), Path(sysconfig.get_path("stdlib"))
    leave = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data",
             "encodings", "ensurepip", "lib2to3"}  # fmt: skip
    texts = [topics[name] for name in sorted(topics)]
    for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
        if not leave & set(path.relative_to(root).parts):
            texts.append(path.read_bytes().decode("utf-8", errors="replace").replace("\r\n", "\n"))
    for text in texts:
        if text.strip() and text not in seen:
            seen.add(text)
            yield text, True
