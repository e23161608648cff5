"""Small things about files that several parts need."""

import hashlib
import json
import os
from pathlib import Path


def read_json(path: Path) -> dict:
    """The JSON object in a file. FileNotFoundError, or ValueError with the path, for anything else."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, expected an object")
    return content


def write_json(path: Path, content: dict):
    """Write `content` to a file that is either the old one or the new one, whenever the process is killed."""
    unfinished = path.with_name(path.name + ".writing")
    unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    flush(unfinished)
    unfinished.replace(path)


def read_utf8(path: Path) -> str:
    """A text file without its byte order mark. ValueError for what is no UTF-8."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start:,}); decompress or convert it") from None


def by_step(out_dir: str | Path) -> list[Path]:
    """The folders out_dir/step_N by N, as a number: step_1000000 comes after step_999999."""
    folders = (p for p in Path(out_dir).glob("step_*") if p.name.removeprefix("step_").isdecimal())
    return sorted(folders, key=lambda p: int(p.name.removeprefix("step_")))


def resident(peak=False) -> int:
    """Bytes of memory of this process now, or at most so far. Not by getrusage, where a parent's peak is handed on."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:" if peak else "VmRSS:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM; memory is measured on Linux only")


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def flush(path: Path):
    """fsync a file or folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
