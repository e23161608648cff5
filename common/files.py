"""Small things about files that several parts need."""

import contextlib
import errno
import fcntl
import hashlib
import importlib
import json
import os
import sys
from pathlib import Path

# ---------------------------------------------------------------------------------------------
# read


def read_json(path: Path) -> dict:
    """The JSON object in a file. FileNotFoundError, or ValueError with the path, for anything else."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    # RecursionError: a file of nothing but "[" is how somebody else's file would crash us.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, expected an object")
    return content


def read_utf8(path: Path) -> str:
    """A text file without its byte order mark. ValueError for what is not UTF-8."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 (byte {error.start:,})"
        raise ValueError(f"{path} {problem}; decompress or convert it") from None


def need(module: str, path: Path):
    """An optional package, imported. ValueError with the way to install it."""
    # Only here, so that nobody needs pyarrow or zstandard who has no such files.
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.split(".")[0]
        remedy = f"pip install {package}"
        raise ValueError(f"{path} is read through {package}, which is not installed: {remedy}") from None


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        # A block at a time: weights and token files may be larger than memory.
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------
# write


@contextlib.contextmanager
def names_file(path: Path):
    """Within it an OSError says which file it is about: write() itself, on a full disk, does not."""
    try:
        yield
    except OSError as error:
        # one without a number is a sentence of ours
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def write_json(path: Path, content: dict):
    """Write `content` to a file that is either the old one or the new one, whenever the process is killed."""
    unfinished = path.with_name(path.name + ".writing")
    with names_file(path):
        unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    # The new name must not reach the disk before the bytes, should the power fail.
    flush(unfinished)
    unfinished.replace(path)


def flush(path: Path):
    """fsync a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# What flock answers on file systems without locks: NFS without its lock daemon, Lustre mounted without them.
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def lock(file, wait=False):
    """Lock an open file for as long as it is open. BlockingIOError when another process holds it, unless `wait`.

    On a file system without locks one line says so, and the caller goes on: to refuse would mean that nobody could ever
    work there, and what a lock prevents takes a second mistake.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        folder = Path(file.name).parent
        risk = "a second process that writes there would not be noticed"
        print(f"note: {folder} is on a file system without locks ({error.strerror}); {risk}", file=sys.stderr)


# ---------------------------------------------------------------------------------------------
# a run's folders, a process's memory


def by_step(out_dir: str | Path) -> list[Path]:
    """The folders out_dir/step_N by N, as a number: step_1000000 comes after step_999999."""
    steps = []
    for folder in Path(out_dir).glob("step_*"):
        number = folder.name.removeprefix("step_")
        # A user's step_100_copy is no checkpoint of the run.
        if number.isdecimal():
            steps.append((int(number), folder))
    return [folder for _, folder in sorted(steps)]


def resident(peak=False) -> int:
    """Bytes of memory that this process holds now, or has held at most."""
    # Not getrusage: there the peak of the process that started this one counts too.
    label = "VmRSS"
    if peak:
        label = "VmHWM"
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{label}:"):
            return int(line.split()[1]) * 1024  # it is in kB
    raise OSError(f"/proc/self/status has no {label}; memory is measured on Linux only")
