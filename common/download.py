"""Files from the network: written aside, resumed, checked, renamed; and whole repositories of a Hugging Face hub.

A repository's files come from {HF_ENDPOINT}/{repo}/resolve/{revision}/{file}, with HF_TOKEN where it is set, and go
to $HF_HOME/nanodistill/{repo}/{revision}/ or ~/.cache/nanodistill/… . That is not the hub library's own cache: its
links and blobs are for that library to keep, while a plain folder can be looked at, copied, and named as a model.
"""

import contextlib
import fcntl
import glob
import hashlib
import os
import re
import sys
import time
from pathlib import Path

import requests
import urllib3
from tqdm import tqdm

from common.files import file_sha256, flush, read_json

TRIES, WAIT = 5, 1.0  # failures in a row; seconds after the first of them, doubled after each
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZERS = ("tokenizer.model", "tokenizer.json", "vocab.json", "merges.txt")
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "meta.json")


# ---------------------------------------------------------------------------------------------
# one file


def download(url: str, path: str | Path, token="", instead="") -> Path:
    """Fetch `url` to `path` unless it is there; returns the path. Another process doing the same is waited for.

    Tries again on server errors, dropped connections and short reads, from where it got to. What the server states of
    size and SHA-256 is checked. Raises FileNotFoundError for HTTP 404, else OSError, naming URL, reason and remedy;
    instead: what else can be done, "" to fetch it by hand.
    """
    path, instead = Path(path), instead or f"fetch it by hand to {path}"
    if path.is_file():
        return path
    with alone(path):
        failures, most = 0, 0  # failures in a row that brought no byte more
        while not path.is_file():
            try:
                fetch(url, path, {"Authorization": f"Bearer {token}"} if token else {})
            except requests.RequestException as error:
                status = error.response.status_code if error.response is not None else 0
                here = max((part.stat().st_size for part in parts(path)), default=0)
                failures, most = 1 if here > most else failures + 1, max(here, most)
                last = 1 if isinstance(error, ValueError) else 2 if is_unreachable(error) else TRIES
                if failures >= last or (400 <= status < 500 and status not in (408, 429)):
                    raise refusal(url, instead, status, error) from None
                time.sleep(WAIT * 2 ** (failures - 1))
            except (urllib3.exceptions.HTTPError, UnicodeError) as error:  # addresses that are none
                raise OSError(
                    f"cannot download {url} ({error!r}); expected an address like https://huggingface.co"
                ) from None
    return path


def parts(path: Path) -> list[Path]:
    """What an earlier attempt left of `path`."""
    return list(path.parent.glob(f"{glob.escape(path.name)}.*.part"))


@contextlib.contextmanager
def alone(path: Path):
    """One process at a time; the lock is a file beside `path`, and goes with the process that holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def fetch(url: str, path: Path, headers: dict):
    """One GET of what is still missing of `path`. What came is kept in {path}.{tag}.part when the connection drops.

    The tag is of the file's version: bytes of two versions are never joined.
    """
    part = next(iter(parts(path)), None)
    done = max(0, part.stat().st_size - 1) if part else 0  # the last byte again: all but it is no range
    headers = headers | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with requests.get(url, headers=headers, stream=True, timeout=30) as response:
        if response.status_code != 416:  # that is: the file has become shorter
            response.raise_for_status()
        if "text/html" in response.headers.get("Content-Type", "") and response.status_code == 200:
            raise OSError(f"{url} is answered by a web page; log in to this network, or check HF_ENDPOINT")
        size, sha256, tag = stated(response)
        resumed = response.status_code == 206 and part.name == f"{path.name}.{tag}.part"
        if part and not resumed:  # of another version, or the server starts over
            part.unlink()
        if response.status_code in (206, 416) and not resumed:
            raise requests.ConnectionError("the partial file was of no use")
        part = path.with_name(f"{path.name}.{tag}.part")
        done = done if resumed else 0
        write(response, part, done, size)
    if size is not None and part.stat().st_size != size:
        raise requests.ConnectionError(f"{part.stat().st_size} of {size} bytes")
    if sha256 and sha256 != file_sha256(part):
        part.unlink()
        raise OSError(f"{url} has not the SHA-256 that its server states ({sha256}); it was removed, try again later")
    flush(part)
    part.replace(path)


def stated(response) -> tuple[int | None, str, str]:
    """(size, SHA-256 or "", a tag of the version) of the whole file, as the headers on the way to it say."""
    headers = [r.headers for r in (*response.history, response)]
    etags = [h.get("X-Linked-Etag") or h.get("ETag", "") for h in headers]
    etag = next((e for e in etags if e), "").removeprefix("W/").strip('"')
    size = next((h["X-Linked-Size"] for h in headers if "X-Linked-Size" in h), None)
    if size is None and response.status_code == 206:
        size = response.headers.get("Content-Range", "").rpartition("/")[2]
    elif size is None and "Content-Encoding" not in response.headers:
        size = response.headers.get("Content-Length", "")
    sha256 = etag if re.fullmatch("[0-9a-f]{64}", etag) else ""
    version = f"{etag} {size} {response.headers.get('Last-Modified')}"  # some servers state no ETag
    tag = hashlib.sha256(version.encode()).hexdigest()[:8]
    return int(size) if size and size.isdecimal() else None, sha256, tag


def write(response, part: Path, done: int, size: int | None):
    """Append the body of a response to a partial file of which `done` bytes are there."""
    quiet = not sys.stderr.isatty()
    bar = tqdm(total=size, initial=done, unit="B", unit_scale=True, desc=part.name.split(".")[0], disable=quiet)
    with bar, open(part, "r+b" if done else "wb") as file:
        file.truncate(done)
        file.seek(done)
        for block in response.iter_content(1 << 16):
            file.write(block)
            bar.update(len(block))


def is_unreachable(error) -> bool:
    """Whether no connection came about at all: no network, no such host, nobody listening."""
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(reason, (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ProxyError))


def refusal(url: str, instead: str, status: int, error) -> OSError:
    host = "/".join(url.split("/")[:3])
    if status == 404:
        ways = f"check the name, and the revision behind @ if any, or {instead}"
        return FileNotFoundError(f"{url} is not there (HTTP 404); {ways}")
    if status in (401, 403):
        return OSError(
            f"{url} (HTTP {status}) needs a permission, or does not exist; set HF_TOKEN to a token with access"
        )
    if not status and is_unreachable(error):
        return OSError(f"cannot reach {host} for {url}; connect to the network, or {instead}")
    reason = f"HTTP {status}" if status else type(error).__name__
    if isinstance(error, ValueError):  # requests' kinds for addresses and headers that are none
        return OSError(f"cannot download {url} ({reason}: {error}); check HF_ENDPOINT and HF_TOKEN")
    return OSError(f"cannot download {url} ({reason}, {TRIES} tries); try again to go on, or {instead}")


# ---------------------------------------------------------------------------------------------
# repositories


def is_repo(name: str) -> bool:
    """Whether `name` could be a hub repository: "gpt2", "EleutherAI/pythia-160m", "EleutherAI/pythia-160m@step1000"."""
    part = r"(?!\.)[\w.-]*[\w-]"
    return re.fullmatch(f"{part}(/{part})?(@{part})?", name, re.ASCII) is not None and ".." not in name


def endpoint() -> str:
    """HF_ENDPOINT, or the hub. ValueError when it is no address."""
    address = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", address):
        raise ValueError(f"HF_ENDPOINT={address!r} is no address; expected one like https://huggingface.co")
    return address


def download_repo(name: str, weights=True, check=None) -> Path:
    """The folder of a hub repository, complete; downloaded unless it was before. weights=False: its tokenizer alone.

    check: is given the path of config.json, to refuse a model before its weights are downloaded.
    """
    if not is_repo(name):
        raise ValueError(f"{name!r} is not the name of a hub repository; expected one like EleutherAI/pythia-160m")
    repo, _, revision = name.partition("@")
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache")
    folder = home / "nanodistill" / repo / (revision or "main")
    base = f"{endpoint()}/{repo}/resolve/{revision or 'main'}"
    complete = folder / (".complete" if weights else ".complete-tokenizer")
    if not complete.is_file() and not (folder / ".complete").is_file():
        try:
            get_files(base, folder, weights, check)
        except OSError as error:
            raise type(error)(f"no folder {name!r} here, and from the hub: {error}") from None
        complete.touch()
    return folder


def get_files(base: str, folder: Path, weights: bool, check):
    """Download what a repository has of configuration, tokenizer and weights, these in the first form that is there."""

    def get(file, optional=True):
        try:
            path = download(f"{base}/{file}", folder / file, token, "name a folder with the repository's files instead")
        except FileNotFoundError:
            if not optional:
                raise
            return None
        if path.suffix == ".json":
            try:
                read_json(path)
            except ValueError:
                path.unlink()  # else it would be there the next time
                raise
        return path

    token = os.environ.get("HF_TOKEN", "").strip()
    if not token.isascii() or not token.isprintable():
        raise ValueError("HF_TOKEN has characters that no token has; set it anew")
    config = get("config.json", optional=not weights)
    try:
        if check:
            check(config)
    except ValueError:
        config.unlink()
        raise
    tokenizers = [file for file in TOKENIZERS if get(file)]
    for file in SETTINGS:
        get(file)
    if not weights and not tokenizers:
        raise FileNotFoundError(f"{base} has none of {', '.join(TOKENIZERS)}; check the name, and the revision if any")
    found = next(filter(None, map(get, WEIGHTS)), None) if weights else None
    if weights and found is None:
        raise FileNotFoundError(f"{base} has none of {', '.join(WEIGHTS)}; it holds no weights that we can read")
    if found and found.suffix == ".json":
        for shard in shards(found):
            get(shard, optional=False)


def shards(index: Path) -> list[str]:
    """The files that an index of shards names, in the folder it is in. ValueError for any that is not."""
    files = read_json(index).get("weight_map")
    files = sorted({str(file) for file in files.values()}) if isinstance(files, dict) else [""]
    if bad := [file for file in files if not re.fullmatch(r"(?!\.)[\w.-]+\.(safetensors|bin)", file, re.ASCII)]:
        raise ValueError(f"{index}: {bad[0]!r} is not a file of weights beside it")
    return files
