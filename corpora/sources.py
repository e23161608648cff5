"""Where text comes from: corpora by name, which are downloaded, and the user's own files and folders.

`find_files` gives a corpus as a list of Files, each with the split that its name declares. The standard library, which
is not a list of files, comes from `stdlib`.
"""

import os
import re
import shutil
import sysconfig
import zipfile
import zlib
from pathlib import Path

import requests

from common.download import download, endpoint, locked
from configurator import nearest
from corpora.readers import SUFFIXES, File
from corpora.splits import declare_splits

SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"

# BabyLM's release of 2023 is one archive; that of 2024 lies in a project of OSF.
BABYLM_2023 = "https://github.com/babylm/babylm.github.io/raw/main/babylm_data.zip"
OSF = "https://api.osf.io/v2/nodes/ad7qg/files/osfstorage/"
# release: (the archive of its training text, its folder in the archive of 2023)
BABYLM = {
    # strict-small, 10 M words, and strict, 100 M
    "babylm": ("", "babylm_10M"),
    "babylm_100m": ("", "babylm_100M"),
    "babylm_2024_10m": ("train_10M.zip", ""),
    "babylm_2024_100m": ("train_100M.zip", ""),
}

FINEWEB_EDU = [("", f"sample/10BT/{i:03}_00000.parquet") for i in range(14)]
OPENWEBTEXT = [("", f"plain_text/train-{i:05}-of-00080.parquet") for i in range(80)]
PILE = [
    *[("train", f"train/{i:02}.jsonl.zst") for i in range(30)],
    ("val", "val.jsonl.zst"),
]
WIKITEXT = [
    ("train", "wikitext-103-raw-v1/train-00000-of-00002.parquet"),
    ("train", "wikitext-103-raw-v1/train-00001-of-00002.parquet"),
    ("val", "wikitext-103-raw-v1/validation-00000-of-00001.parquet"),
]
FINEWEB_EDU_IDS = [
    *[("train", f"finewebedu_train_{i:06}.bin") for i in range(1, 100)],
    ("val", "finewebedu_val_000000.bin"),
]
# corpora of plain files on a hub: (repository, [(split, file)]); with split "" each document is assigned to one
PLAIN = {
    "fineweb_edu": ("HuggingFaceFW/fineweb-edu", FINEWEB_EDU),
    "openwebtext": ("Skylion007/openwebtext", OPENWEBTEXT),
    # the Pile without its copyrighted parts
    "pile": ("monology/pile-uncopyrighted", PILE),
    "wikitext103": ("Salesforce/wikitext", WIKITEXT),
    # GPT-2's ids with headers, 100 M in each file
    "finewebedu10B": ("kjj0/finewebedu10B-gpt2", FINEWEB_EDU_IDS),
}
NAMES = ("stdlib", "shakespeare", *BABYLM, *PLAIN)

# The first int32 of a file of ids with a header, as the public pretokenised sets have them; common/data.py reads it.
HEADER_MAGIC = (20240520).to_bytes(4, "little")
WIKITEXT_DUMP = re.compile(r"wiki\.(train|valid|test)\.(tokens|raw)(\.gz|\.zst)?")


def find_files(source: str, text_dir: str, folder: Path, needs=None) -> list[File]:
    """The files of a named corpus (downloaded to `folder`, or a copy of it in text_dir), or those at a path.

    needs: a function of a file's number in the list: whether it has to be downloaded; None: all have.
    Raises FileNotFoundError or ValueError with the remedy where there are none, or none to train on.
    """
    if source in NAMES and not text_dir:
        return fetch(source, folder, needs or all_files)
    path = Path(text_dir or source)
    if not path.exists():
        knob = f"source {source!r}"
        suggestion = nearest(source, NAMES)
        if text_dir:
            knob = f"text_dir {text_dir!r}"
            suggestion = ""
        expected = f"expected a file or a folder of them, or one of {', '.join(NAMES)}"
        raise FileNotFoundError(f"{knob} is not there; {expected}{suggestion}")
    files = local_files(path, domains=source in BABYLM)
    for file in files:
        # Only WikiText has articles over several lines or rows; a user's copy of it is recognised by its folder.
        in_folder = any(part.startswith("wikitext") for part in file.path.parts)
        file.wikitext = source == "wikitext103" or in_folder or is_wikitext_dump(file)
    return files


# ---------------------------------------------------------------------------------------------
# corpora by name


def all_files(i: int) -> bool:
    """`needs` for a process that reads the whole corpus."""
    return True


def fetch(source: str, folder: Path, needs) -> list[File]:
    """The files of a named corpus, those that are needed downloaded to `folder` where they are not there yet."""
    if source == "shakespeare":
        return [File(download(SHAKESPEARE, folder / "input.txt"))]
    if source in BABYLM:
        return local_files(fetch_babylm(source, folder), domains=True)
    # HF_ENDPOINT may name a mirror.
    repo, names = PLAIN[source]
    base = f"{endpoint()}/datasets/{repo}/resolve/main"
    files = []
    for i, (split, name) in enumerate(names):
        path = folder / name
        if needs(i):
            download(f"{base}/{name}", path)
        files.append(File(path, split, wikitext=source == "wikitext103"))
    return files


def fetch_babylm(source: str, folder: Path) -> Path:
    """A folder of <domain>.train and <domain>.dev files of a release."""
    archive, folder_of_2023 = BABYLM[source]
    texts = folder / source
    if folder_of_2023:
        extract(download(BABYLM_2023, folder / "babylm_data.zip"), texts, (folder_of_2023, "babylm_dev"))
        return texts
    # in 2024 training and validation text are separate archives
    for name in (archive, "dev.zip"):
        extract(download(osf_url(name), folder / name), texts)
    return texts


def osf_url(name: str) -> str:
    """The address of a file of BabyLM's OSF project, looked up there, as it contains an id instead of the name."""
    try:
        top = requests.get(f"{OSF}?page[size]=100", timeout=30).json()["data"]
        text_data = osf_item(top, "text_data")
        folder_url = text_data["relationships"]["files"]["links"]["related"]["href"]
        files = requests.get(f"{folder_url}?page[size]=100", timeout=30).json()["data"]
        return osf_item(files, name)["links"]["download"]
    except (requests.RequestException, KeyError, TypeError, StopIteration) as error:
        reason = type(error).__name__
        remedy = "fetch it by hand and name its text_dir"
        raise OSError(f"{OSF} does not tell where {name} is ({reason}); {remedy}") from None


def osf_item(listing: list[dict], name: str) -> dict:
    """The entry of that name in a listing of OSF. StopIteration if there is none."""
    return next(item for item in listing if item["attributes"]["name"] == name)


def extract(archive: Path, folder: Path, wanted_folders=()):
    """Write the .train and .dev files of a zip to `folder`: all, or those that lie in one of wanted_folders.

    ValueError for a damaged archive, and for one with a path that leads out of the folder.
    """
    try:
        # one process at a time, as another part of the corpus may be prepared beside this one
        with locked(folder), zipfile.ZipFile(archive) as file:
            for member in file.infolist():
                extract_member(file, member, archive, folder, wanted_folders)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{archive} is damaged ({error}); delete it to fetch it again") from None


def extract_member(file, member, archive: Path, folder: Path, wanted_folders):
    # The whole archive is refused, as one that tries to write elsewhere is not what was asked for.
    parts = Path(member.filename).parts
    if ".." in parts or Path(member.filename).is_absolute():
        problem = f"{archive} holds {member.filename!r}, which would be written elsewhere"
        raise ValueError(f"{problem}; delete it")
    # macOS adds __MACOSX to archives: a file of attributes for each file, under the same name
    is_text = member.filename.endswith((".train", ".dev")) and "__MACOSX" not in parts
    is_wanted = not wanted_folders or any(name in parts for name in wanted_folders)
    if not (is_text and is_wanted):
        return
    target = folder / parts[-1]
    time = archive.stat().st_mtime_ns
    # unchanged: size and time must stay, as by them a run that continues recognises the text it began with
    if target.is_file() and (target.stat().st_size, target.stat().st_mtime_ns) == (member.file_size, time):
        return
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(target.name + ".writing")
    with file.open(member) as source, open(unfinished, "wb") as copy:
        shutil.copyfileobj(source, copy)
    os.utime(unfinished, ns=(time, time))
    unfinished.replace(target)


# ---------------------------------------------------------------------------------------------
# the user's own files and folders


def local_files(path: Path, domains=False) -> list[File]:
    """The files under a path that can be read, sorted by name, with the splits that the names declare.

    domains: each file is the text of a domain, whose name it begins with.
    """
    paths = [path]
    if not path.is_file():
        paths = sorted(p for p in path.rglob("*") if p.is_file())
    files = [file for file in map(File, paths) if is_readable(file)]
    if not files:
        problem = f"{path} has none of" if path.is_dir() else f"{path} is not one of"
        remedy = "(nor with .gz or .zst behind); rename or convert it"
        raise ValueError(f"{problem} {', '.join(SUFFIXES)} {remedy}")
    for file in files:
        if domains or file.form in (".train", ".dev"):
            # without blanks, as it becomes a label of log.txt, whose columns they separate
            file.domain = "_".join(file.path.name.split(".")[0].split())
            # its val_000.bin would be the first shard of val
            if file.domain.isdecimal():
                raise ValueError(f"{file.path}: a domain cannot be a number, {file.domain}; rename the file")
    declare_splits(files, path)
    check_files(files, path)
    return files


def check_files(files: list[File], path: Path):
    """ValueError where nothing is left to train on, or where texts lie beside files of ids."""
    if not any(file.split in ("train", "") for file in files):
        examples = ", ".join(file.path.name for file in files[:3])
        raise ValueError(
            f"{path}: by their names all files are for validation or test ({examples}), none to train on; rename one, "
            "or name a single file as the source"
        )
    ids = [file.path.name for file in files if file.form == ".bin"]
    texts = [file.path.name for file in files if file.form != ".bin"]
    if ids and texts:
        raise ValueError(f"{path} holds ids ({ids[0]}) and text ({texts[0]}); move one kind elsewhere")


def is_readable(file: File) -> bool:
    """Whether a file is text in a known form, or ids with a header."""
    if file.form == ".bin":
        return has_header(file.path)
    return file.form in SUFFIXES or is_wikitext_dump(file)


def is_wikitext_dump(file: File) -> bool:
    """Whether a file is named as in WikiText's original archives, from before its parquet files."""
    return WIKITEXT_DUMP.fullmatch(file.path.name) is not None


def has_header(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(HEADER_MAGIC)) == HEADER_MAGIC


# ---------------------------------------------------------------------------------------------
# the standard library

# Folders of tests and tables, which some systems do not install, and of packages that users have installed.
LEFT_OUT = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "pydoc_data",
    "encodings",
    "ensurepip",
    "lib2to3",
}


def stdlib():
    """Yield (text, True) of the documentation topics and sources of the Python that runs this.

    Each is a document; none comes twice. Sources are in the order of their paths.
    """
    # imported here, as it is large and only this source needs it
    from pydoc_data.topics import topics

    texts = [topics[name] for name in sorted(topics)]
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        if LEFT_OUT.isdisjoint(path.relative_to(root).parts):
            source = path.read_bytes().decode("utf-8", errors="replace")
            texts.append(source.replace("\r\n", "\n"))
    # Many __init__.py are identical, and a text that came twice could be in both splits.
    seen = set()
    for text in texts:
        if text.strip() and text not in seen:
            seen.add(text)
            yield text, True
