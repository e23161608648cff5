"""Where text comes from: named corpora and their downloads, local files of every usual form, documents in pieces.

A corpus is a list of Files; `pieces` reads one as (text, whether a document ends here), each piece at most PIECE
characters, cut where no tokenizer of ours would have merged across. Nothing is held in memory but one piece, or one
line of JSON, or one batch of parquet.

Which split a file belongs to is what its name declares (`declared_split`), for named corpora and for folders of one's
own alike; a file of a test split is found but never read.
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
from configurator import nearest

PIECE = 1 << 20  # characters
PLAIN_TEXT = (".txt", ".train", ".dev")  # files whose documents are told apart by document_separator
SUFFIXES = (*PLAIN_TEXT, ".jsonl", ".parquet")  # each but the last perhaps with .gz or .zst
END_OF_TEXT = "<|endoftext|>"
SEPARATORS = {  # of the documents inside a plain text file
    "file": None,  # a file is one document
    "line": re.compile(r"[\r\n]+"),
    "blank": re.compile(r"\r?\n(?:[ \t\r]*\n)+"),
    "eot": re.compile(re.escape(END_OF_TEXT)),
}
BLANK_LINES = re.compile(r"\A(?:[ \t]*[\r\n])*")  # at the beginning of a document
SPLIT_WORDS = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "eval": "val",
    "test": "test",
}
OSF = "https://api.osf.io/v2/nodes/ad7qg/files/osfstorage/"  # where the BabyLM release of 2024 lies


@dataclass
class File:
    path: Path
    split: str = ""  # "train", "val", "test" (not to be read), or "": decided document by document
    domain: str = ""  # of a corpus with domains
    wikitext: bool = False  # its rows or lines are joined to articles

    @property
    def form(self) -> str:
        """The suffix that says how it is read, without that of its compression."""
        return Path(self.path.name.removesuffix(".gz").removesuffix(".zst")).suffix


# ---------------------------------------------------------------------------------------------
# files -> pieces


def pieces(file: File, text_key="text", where=None, clean=str, separator="file"):
    """(text, whether a document ends here) of a file.

    where: a dict whose "bytes" follows the bytes read of it. clean: is given whole lines, or a whole document.
    separator: a key of SEPARATORS, for plain text files.
    """
    try:
        with open(file.path, "rb") as raw:
            texts = cleaned(documents(file, raw, text_key), raw, where, clean)
            if separator != "file" and file.form in PLAIN_TEXT:
                texts = separate(texts, SEPARATORS[separator])
            for text, ends in texts:
                for start, stop in cuts(text):
                    yield text[start:stop], ends and stop == len(text)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{file.path} is damaged or was cut ({error}); fetch it again") from None


def cleaned(texts, raw, where, clean):
    """The texts of `documents`, cleaned; where["bytes"] follows the position in the open file."""
    for text, ends in texts:
        if where is not None:
            where["bytes"] = raw.tell()
        yield clean(text), ends


def documents(file: File, raw, text_key):
    """(text, whether it ends its document) of an open file: all of a line or row, or some lines of a text."""
    if file.form == ".parquet":
        texts = parquet_rows(raw, file.path, text_key)
        yield from articles(texts) if file.wikitext else ((text, True) for text in texts)
        return
    lines = io.TextIOWrapper(decompressed(raw, file.path), encoding="utf-8-sig", errors="replace", newline="")
    if file.form == ".jsonl":
        yield from json_rows(lines, file.path, text_key)
    elif file.wikitext:
        yield from articles(lines)
    else:
        piece = lines.read(PIECE)
        while piece:
            piece += lines.readline(PIECE) if len(piece) == PIECE else ""
            following = lines.read(PIECE)
            yield piece, not following
            piece = following


def separate(texts, pattern):
    """(text, whether its document ends here) of the documents inside a file, given as its texts one after the other.

    What matches `pattern` separates and is dropped, with the blank lines and line ends around it. A blank document is
    none. What is found does not depend on where one text ends and the next begins.
    """
    held = ""  # the end of what was read: a separator may be cut in two by the end of a text
    is_open = False  # whether some of the present document was given out
    for text, _ in texts:
        *ended, rest = pattern.split(held + text)
        for part in ended:
            if part.strip() or is_open:
                yield without_line_ends(part, is_open), True
            is_open = False
        rest = rest if is_open else BLANK_LINES.sub("", rest)
        for start, stop in cuts(rest[: -len(END_OF_TEXT)]):
            if stop < len(rest) - len(END_OF_TEXT):  # not the last
                yield rest[start:stop], False
                is_open = True
        held = rest[start:]
    if held.strip() or is_open:
        yield without_line_ends(held, is_open), True


def without_line_ends(text: str, is_open: bool) -> str:
    """A whole document, or the end of an open one, without the line ends around it; not empty, as that ends nothing."""
    if is_open:
        return text.rstrip("\r\n") or text
    return BLANK_LINES.sub("", text).rstrip("\r\n")


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
    """The texts of a column of a parquet file."""
    parquet = need("pyarrow.parquet", path)
    try:
        table = parquet.ParquetFile(raw)
        if text_key not in table.schema_arrow.names:
            raise ValueError(f"{path} has no column {text_key!r}; name one of {', '.join(table.schema_arrow.names)}")
        for batch in table.iter_batches(256, columns=[text_key]):
            for text in batch[text_key].to_pylist():
                yield text or ""
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
    """The files of a named corpus (downloaded to `folder`, or as they lie in text_dir), or of a path.

    Raises FileNotFoundError or ValueError with the remedy where there are none, or none to train on.
    """
    if source in NAMES and not text_dir:
        if source == "shakespeare":
            return [File(download(SHAKESPEARE, folder / "input.txt"))]
        if source in BABYLM:
            return local_files(fetch_babylm(source, folder), domains=True)
        repo, files = PLAIN[source]
        base = f"{endpoint()}/datasets/{repo}/resolve/main"
        is_wikitext = source == "wikitext103"
        return [File(download(f"{base}/{name}", folder / name), split, "", is_wikitext) for split, name in files]
    path = Path(text_dir or source)
    if not path.exists():
        what = f"text_dir {text_dir!r}" if text_dir else f"source {source!r}"
        near = "" if text_dir else nearest(source, NAMES)
        raise FileNotFoundError(
            f"{what} is not there; expected a file or a folder of them, or one of {', '.join(NAMES)}{near}"
        )
    found = local_files(path, domains=source in BABYLM)
    for file in found:
        in_folder = any(part.startswith("wikitext") for part in file.path.parts)
        file.wikitext = source == "wikitext103" or in_folder or is_wiki_dump(file)
    return found


def local_files(path: Path, domains=False) -> list[File]:
    """The text files under a path, in the order of their names, with the splits that the names declare.

    Where a name declares validation, files that declare nothing are training text. Where none does, a name that
    declares training says nothing: what is held out is decided document by document. A file that is itself the path
    declares nothing either.
    """
    paths = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    files = [f for f in map(File, paths) if is_read(f)]
    if not files:
        what = f"{path} has none of" if path.is_dir() else f"{path} is not one of"
        what = f"{what} {', '.join(SUFFIXES)}"
        raise ValueError(f"{what} (nor with .gz or .zst behind); rename or convert it")
    for f in files:
        is_domain = domains or f.form in (".train", ".dev")
        f.domain = f.path.name.split(".")[0] if is_domain else ""
        f.split = declared_split(f, path)
    held_out = any(f.split == "val" for f in files)
    for f in files:
        if f.split in ("train", ""):
            f.split = "train" if held_out or f.form == ".bin" else ""
    check_files(files, path)
    return files


def check_files(files: list[File], path: Path):
    """ValueError where nothing is left to train on, or where texts lie beside files of ids."""
    if not any(f.split in ("train", "") for f in files):
        shown = ", ".join(f.path.name for f in files[:3])
        raise ValueError(
            f"{path}: by their names all files are for validation or test ({shown}), none to train on; rename one, or "
            "name a single file as the source"
        )
    ids = [f for f in files if f.form == ".bin"]
    if 0 < len(ids) < len(files):
        text = next(f for f in files if f.form != ".bin")
        raise ValueError(f"{path} holds ids ({ids[0].path.name}) and text ({text.path.name}); move one kind elsewhere")


def is_read(file: File) -> bool:
    """Whether a file is text that can be read, or ids with a header."""
    return file.form in SUFFIXES or is_wiki_dump(file) or (file.form == ".bin" and has_header(file.path))


def is_wiki_dump(file: File) -> bool:
    """Whether a file is named as in the archives of WikiText, which were published before there was parquet."""
    return re.fullmatch(r"wiki\.(train|valid|test)\.(tokens|raw)(\.gz|\.zst)?", file.path.name) is not None


def declared_split(file: File, source: Path) -> str:
    """The split that the name of a file below `source` declares: "train", "val", "test", or "" where it does not.

    One of SPLIT_WORDS is the suffix (BabyLM's cbt.dev), or the name of a folder that the file lies in (the Pile's
    train/00.jsonl.zst), or the first or last word of the file's name, else of a folder's (validation-00000-of-00001,
    TinyStories-valid, babylm_dev). Words end at blanks, "-", "_" and "."; the numbers of shards are not counted.
    """
    if file.form in (".train", ".dev"):
        return SPLIT_WORDS[file.form[1:]]
    if file.path == source:
        return ""
    folders = file.path.relative_to(source).parts[:-1]
    folders = [name.lower() for name in reversed(folders)]
    if named := [name for name in folders if name in SPLIT_WORDS]:
        return SPLIT_WORDS[named[0]]
    stem = file.path.name.lower().removesuffix(".gz").removesuffix(".zst").removesuffix(file.form.lower())
    for name in (stem, *folders):
        words = [word for word in re.split(r"[-_.\s]+", name) if word and word != "of" and not word.isdecimal()]
        if file.form != ".bin":  # in names of shards any word counts: text has titles, and those may hold one
            words = words[:1] + words[-1:]
        for word in words:
            if word in SPLIT_WORDS:
                return SPLIT_WORDS[word]
    return ""


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
