"""Files from the network, resumed and checked; and whole repositories of a Hugging Face hub.

A repository's files come from {HF_ENDPOINT}/{repo}/resolve/{revision}/{file}, with HF_TOKEN where it is set, and go
to $HF_HOME/nanodistill/{repo}/{revision}/ or ~/.cache/nanodistill/… . Not to the hub library's own cache, whose links
and blobs only that library should touch: a plain folder can be looked at, copied, and named as a model.
"""

import contextlib
import glob
import hashlib
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import requests
import urllib3
from tqdm import tqdm

from common.files import file_sha256, flush, lock, read_json

# Failures in a row before we give up.
TRIES = 5
# Seconds to wait after the first of them, doubled after each.
WAIT = 1.0
# The forms of weights that we read, the best one first.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZERS = ("tokenizer.model", "tokenizer.json", "vocab.json", "merges.txt")
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "meta.json")


# ---------------------------------------------------------------------------------------------
# one file


def download(url: str, path: str | Path, token="", instead="") -> Path:
    """Fetch `url` to `path` unless it is there; returns the path. Another process doing the same is waited for.

    After server errors, dropped connections and short reads it resumes from the last byte received. The size and
    SHA-256 that the server states are checked. Raises FileNotFoundError for HTTP 404, else OSError, naming URL, reason
    and remedy. instead: the alternative that the remedy names, "" for fetching the file by hand.
    """
    path = Path(path)
    instead = instead or f"fetch it by hand to {path}"
    if path.is_file():
        return path
    headers = {}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    with locked(path):
        # The process that held the lock before may have fetched it.
        if not path.is_file():
            fetch_with_retries(url, path, headers, instead)
    return path


@contextlib.contextmanager
def locked(path: Path):
    """One process at a time. The lock is a file beside `path`, and is released when the process that holds it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as lock_file:
        lock(lock_file, wait=True)
        yield


def fetch_with_retries(url: str, path: Path, headers: dict, instead: str):
    failures = 0
    most_bytes = 0
    while not path.is_file():
        try:
            fetch(url, path, headers)
        except requests.RequestException as error:
            # Only failures in a row without progress count: over a connection that drops every minute a large file
            # still arrives, one minute at a time.
            n_bytes = bytes_so_far(path)
            if n_bytes > most_bytes:
                failures = 0
                most_bytes = n_bytes
            failures += 1
            if failures >= tries_allowed(error):
                raise refusal(url, instead, error) from None
            time.sleep(WAIT * 2 ** (failures - 1))
        except (urllib3.exceptions.HTTPError, UnicodeError) as error:
            # requests does not wrap every error of a malformed address.
            expected = "an address like https://huggingface.co"
            raise OSError(f"cannot download {url} ({error!r}); expected {expected}") from None


def tries_allowed(error: requests.RequestException) -> int:
    """After how many failures of this kind in a row we give up."""
    status = http_status(error)
    # 4xx: the server has understood, and refuses. 408, a timeout on its side, and 429, too many requests, pass.
    is_refused = 400 <= status < 500 and status not in (408, 429)
    # requests' errors for malformed addresses and headers are ValueErrors too.
    is_malformed = isinstance(error, ValueError)
    if is_refused or is_malformed:
        return 1
    # Without a network nobody should have to wait half a minute for the error.
    if is_unreachable(error):
        return 2
    return TRIES


def http_status(error: requests.RequestException) -> int:
    """The status that the server answered with, 0 for no answer."""
    if error.response is None:
        return 0
    return error.response.status_code


def is_unreachable(error) -> bool:
    """Whether there was no connection at all: no network, no such host, nobody listening."""
    if not error.args:
        return False
    reason = getattr(error.args[0], "reason", None)
    return isinstance(reason, (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ProxyError))


def refusal(url: str, instead: str, error: requests.RequestException) -> OSError:
    """The error to raise for a download that failed for good."""
    host = "/".join(url.split("/")[:3])
    status = http_status(error)
    if status == 404:
        remedy = f"check the name, and the revision behind @ if any, or {instead}"
        return FileNotFoundError(f"{url} is not there (HTTP 404); {remedy}")
    if status in (401, 403):
        # The hub does not tell a stranger whether a private repository exists.
        problem = "needs a permission, or does not exist"
        return OSError(f"{url} (HTTP {status}) {problem}; set HF_TOKEN to a token with access")
    if status == 0 and is_unreachable(error):
        return OSError(f"cannot reach {host} for {url}; connect to the network, or {instead}")
    reason = type(error).__name__
    if status:
        reason = f"HTTP {status}"
    if isinstance(error, ValueError):
        return OSError(f"cannot download {url} ({reason}: {error}); check HF_ENDPOINT and HF_TOKEN")
    remedy = f"try again to resume it, or {instead}"
    return OSError(f"cannot download {url} ({reason}, {TRIES} tries); {remedy}")


# ---------------------------------------------------------------------------------------------
# one request for a file, or for the rest of it


def fetch(url: str, path: Path, headers: dict):
    """One GET of the rest of `path`. If the connection drops, the bytes so far stay in {path}.{version}.part.

    The name has the file's version, so that bytes of two versions are never joined.
    """
    part = next(iter(partial_files(path)), None)
    n_done = 0
    if part:
        # The last byte is requested again. If all bytes are there, the rest would be an empty range, and the answer to
        # that, 416, is also the answer where the file has become shorter.
        n_done = max(0, part.stat().st_size - 1)
    # The length and ranges of a compressed body would not be those of the file.
    headers = headers | {"Accept-Encoding": "identity"}
    if n_done:
        headers["Range"] = f"bytes={n_done}-"

    with requests.get(url, headers=headers, stream=True, timeout=30) as response:
        check_answer(url, response)
        size, sha256, version = stated_by(response)
        part_of_version = path.with_name(f"{path.name}.{version}.part")
        is_resumed = response.status_code == 206 and part == part_of_version
        if not is_resumed:
            # Another version, or a server without ranges, which sends the file from its start.
            if part:
                part.unlink()
            n_done = 0
            if response.status_code in (206, 416):
                raise requests.ConnectionError("the partial file is of another version")
        write_body(response, part_of_version, n_done, size)
    finish(url, part_of_version, path, size, sha256)


def partial_files(path: Path) -> list[Path]:
    """Unfinished downloads of `path` that earlier attempts have left."""
    return list(path.parent.glob(f"{glob.escape(path.name)}.*.part"))


def bytes_so_far(path: Path) -> int:
    return max((part.stat().st_size for part in partial_files(path)), default=0)


def check_answer(url: str, response: requests.Response):
    """Raise for a status that is an error, and OSError for a web page, as no file of ours is one."""
    # 416: the file is shorter than our part of it, so it is another version; `fetch` starts over.
    if response.status_code != 416:
        response.raise_for_status()
    # Hotels and airports answer every address with their log-in page, and with status 200.
    is_web_page = "text/html" in response.headers.get("Content-Type", "")
    if is_web_page and response.status_code == 200:
        remedy = "log in to this network, or check HF_ENDPOINT"
        raise OSError(f"{url} is answered by a web page; {remedy}")


def stated_by(response: requests.Response) -> tuple[int | None, str, str]:
    """(size, SHA-256 or "", a short tag of the version) of the whole file, as the headers state them."""
    # The hub redirects to a storage server. The redirect, which states the file's own hash and size in X-Linked-*,
    # comes first in the history.
    etag = ""
    for answer in [*response.history, response]:
        etag = answer.headers.get("X-Linked-Etag") or answer.headers.get("ETag", "")
        if etag:
            break
    etag = etag.removeprefix("W/").strip('"')
    # The ETag of a file in the hub's large storage is its SHA-256; that of other files may be anything.
    sha256 = ""
    if re.fullmatch("[0-9a-f]{64}", etag):
        sha256 = etag
    size_text = stated_size(response)
    size = None
    if size_text and size_text.isdecimal():
        size = int(size_text)
    # For servers without an ETag, size and date have to identify the version.
    version = f"{etag} {size_text} {response.headers.get('Last-Modified')}"
    return size, sha256, hashlib.sha256(version.encode()).hexdigest()[:8]


def stated_size(response: requests.Response) -> str | None:
    """The size of the whole file as stated by a header; None or "" where no header states it."""
    for answer in [*response.history, response]:
        if "X-Linked-Size" in answer.headers:
            return answer.headers["X-Linked-Size"]
    if response.status_code == 206:
        # "bytes 100-199/200"
        return response.headers.get("Content-Range", "").rpartition("/")[2]
    # A server that compresses against our request states the compressed length.
    if "Content-Encoding" in response.headers:
        return None
    return response.headers.get("Content-Length", "")


def write_body(response: requests.Response, part: Path, n_done: int, size: int | None):
    """Write the body of a response behind the first `n_done` bytes of a partial file."""
    # no bars in log files
    quiet = not sys.stderr.isatty()
    name = part.name.split(".")[0]
    mode = "wb"
    if n_done:
        mode = "r+b"
    with (
        tqdm(total=size, initial=n_done, unit="B", unit_scale=True, desc=name, disable=quiet) as bar,
        open(part, mode) as file,
    ):
        file.truncate(n_done)
        file.seek(n_done)
        for block in response.iter_content(1 << 16):
            file.write(block)
            bar.update(len(block))


def finish(url: str, part: Path, path: Path, size: int | None, sha256: str):
    """Check a downloaded file, then give it its final name, which only complete files have."""
    n_bytes = part.stat().st_size
    if size is not None and n_bytes != size:
        # A proxy may close a connection early without an error. The part stays, and the next attempt resumes it.
        raise requests.ConnectionError(f"{n_bytes} of {size} bytes")
    if sha256 and sha256 != file_sha256(part):
        # Resuming it would keep the wrong bytes.
        part.unlink()
        problem = f"does not have the SHA-256 that its server states ({sha256})"
        raise OSError(f"{url} {problem}; deleted, try again later")
    # The name must not reach the disk before the bytes, should the power fail.
    flush(part)
    part.replace(path)


# ---------------------------------------------------------------------------------------------
# repositories


def is_repo(name: str) -> bool:
    """Whether `name` could be a hub repository: "gpt2", "EleutherAI/pythia-160m", "EleutherAI/pythia-160m@step1000"."""
    # Names become folders of the cache: none may be hidden, or lead out of it.
    word = r"(?!\.)[\w.-]*[\w-]"
    return re.fullmatch(f"{word}(/{word})?(@{word})?", name, re.ASCII) is not None and ".." not in name


def endpoint() -> str:
    """HF_ENDPOINT, or the hub. ValueError for what is not an address."""
    address = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", address):
        expected = "one like https://huggingface.co"
        raise ValueError(f"HF_ENDPOINT={address!r} is not an address; expected {expected}")
    return address


def download_repo(name: str, weights=True, check=None) -> Path:
    """The folder of a hub repository, complete; downloaded unless it was before. weights=False: only its tokenizer.

    check: a function of the path of config.json, which may refuse a model before its weights are downloaded.
    """
    folder = cache_folder(name)
    # An interrupted download leaves some of the files, each complete. Only these markers say that none is missing.
    complete = folder / ".complete"
    complete_for_us = complete
    if not weights:
        complete_for_us = folder / ".complete-tokenizer"
    if complete.is_file() or complete_for_us.is_file():
        return folder
    repository = repository_of(name)
    try:
        get_files(repository, weights, check)
    except OSError as error:
        raise type(error)(f"no folder {name!r} here, and from the hub: {error}") from None
    complete_for_us.touch()
    return folder


def download_config(name: str) -> Path:
    """config.json of a hub repository alone, which says the shape of its model."""
    try:
        return repository_of(name).get("config.json")
    except OSError as error:
        raise type(error)(f"no folder {name!r} here, and from the hub: {error}") from None


def repository_of(name: str) -> "Repository":
    repo, _, revision = name.partition("@")
    url = f"{endpoint()}/{repo}/resolve/{revision or 'main'}"
    return Repository(url, cache_folder(name), hub_token())


def cache_folder(name: str) -> Path:
    """Where a repository's files go. ValueError for what is no repository's name, perhaps with @revision."""
    if not is_repo(name):
        expected = "one like EleutherAI/pythia-160m"
        raise ValueError(f"{name!r} is not the name of a hub repository; expected {expected}")
    repo, _, revision = name.partition("@")
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache")
    return home / "nanodistill" / repo / (revision or "main")


def hub_token() -> str:
    """HF_TOKEN. ValueError for what no HTTP header can hold, such as a line end in the middle."""
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token.isascii() or not token.isprintable():
        raise ValueError("HF_TOKEN has characters that no token has; set it anew")
    return token


@dataclass
class Repository:
    """Where the files of a repository are downloaded from, and to."""

    url: str  # to which "/config.json" is added
    folder: Path
    token: str

    def get(self, file: str) -> Path:
        """A file, downloaded. FileNotFoundError where the repository lacks it, ValueError for damaged JSON."""
        instead = "name a folder with the repository's files instead"
        path = download(f"{self.url}/{file}", self.folder / file, self.token, instead)
        if path.suffix == ".json":
            try:
                read_json(path)
            except ValueError:
                # A file that is there is not downloaded again, so a damaged one must not stay.
                path.unlink()
                raise
        return path

    def get_if_there(self, file: str) -> Path | None:
        try:
            return self.get(file)
        except FileNotFoundError:
            return None


def get_files(repository: Repository, weights: bool, check):
    """Download a repository's configuration, tokenizer and weights."""
    # A tokenizer's repository may lack a config.json.
    get_config = repository.get if weights else repository.get_if_there
    config = get_config("config.json")
    try:
        if check:
            check(config)
    except ValueError:
        # A later version of the repository may be one that we can read: its config.json is to be fetched then.
        config.unlink()
        raise
    tokenizer_files = [file for file in TOKENIZERS if repository.get_if_there(file)]
    for file in SETTINGS:
        repository.get_if_there(file)
    if weights:
        get_weights(repository)
    elif not tokenizer_files:
        names = ", ".join(TOKENIZERS)
        remedy = "check the name, and the revision if any"
        raise FileNotFoundError(f"{repository.url} has none of {names}; {remedy}")


def get_weights(repository: Repository):
    """Download the weights in the first form that the repository has, with all shards."""
    for file in WEIGHTS:
        path = repository.get_if_there(file)
        if path is None:
            continue
        if path.suffix == ".json":
            for shard in shards(path):
                repository.get(shard)
        return
    names = ", ".join(WEIGHTS)
    raise FileNotFoundError(f"{repository.url} has none of {names}; it holds no weights that we can read")


def shards(index: Path) -> list[str]:
    """The files that an index of shards names, all in its own folder. ValueError for a name of anything else."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index} has no weight_map of tensors to files; it is not an index of shards")
    files = sorted({str(file) for file in weight_map.values()})
    for file in files:
        # It becomes a path: nothing like ../up.
        if not re.fullmatch(r"(?!\.)[\w.-]+\.(safetensors|bin)", file, re.ASCII):
            raise ValueError(f"{index}: {file!r} is not a file of weights beside it")
    return files
