"""Helpers for files that several modules need: reading, safe writing, locks."""

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
    # RecursionError: from a file of nothing but "[", such as an attacker's.
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
    """Import an optional package, which the file `path` needs. ValueError with the command that installs it."""
    # Imported this late so that only users with such files need pyarrow or zstandard.
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.split(".")[0]
        remedy = f"pip install {package}"
        raise ValueError(f"{path} is read through {package}, which is not installed: {remedy}") from None


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        # block by block, as weights and token files may be larger than memory
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------
# write


@contextlib.contextmanager
def names_file(path: Path):
    """Add the file's name to an OSError that is raised inside: that of write() on a full disk has none."""
    try:
        yield
    except OSError as error:
        # an error without errno has a message of our own
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def write_json(path: Path, content: dict):
    replace_text(path, json.dumps(content, indent=2) + "\n")


def replace_text(path: Path, text: str):
    """Write `text` to a file, atomically: whenever the process is killed, the file is the old or the new one."""
    unfinished = path.with_name(path.name + ".writing")
    with names_file(path):
        unfinished.write_text(text, encoding="utf-8")
    # should the power fail, the renaming must not have reached the disk before the bytes
    flush(unfinished)
    unfinished.replace(path)


def flush(path: Path):
    """fsync a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# errno of flock on file systems without locks: NFS without its lock daemon, Lustre mounted without them.
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def lock(file, wait=False):
    """Lock an open file for as long as it is open. BlockingIOError when another process holds it, unless `wait`.

    On a file system without locks it prints a note and returns: an error would make such systems unusable, and the lock
    only guards against a user's mistake.
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
    """The folders out_dir/step_N in the order of the numbers N: step_1000000 comes after step_999999."""
    steps = []
    for folder in Path(out_dir).glob("step_*"):
        number = folder.name.removeprefix("step_")
        # A user's step_100_copy is no checkpoint of the run.
        if number.isdecimal():
            steps.append((int(number), folder))
    return [folder for _, folder in sorted(steps)]


def resident(peak=False) -> int:
    """Bytes of memory that this process holds now, or their peak so far."""
    # Not getrusage, whose peak is inherited from the process that started this one.
    label = "VmRSS"
    if peak:
        label = "VmHWM"
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{label}:"):
            return int(line.split()[1]) * 1024  # it is in kB
    raise OSError(f"/proc/self/status has no {label}; memory is measured on Linux only")
