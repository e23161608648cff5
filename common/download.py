"""One file from the network: written aside, size checked, renamed; with a bar, retries and one-line errors."""

import sys
import time
from pathlib import Path

import requests
from tqdm import tqdm

TRIES = 4


def download(url: str, path: str | Path) -> Path:
    """Fetch `url` to `path` unless it is there; returns the path.

    Tries 4 times, 1, 2 and 4 seconds apart, on server errors, dropped connections and short reads.
    Raises OSError naming the URL, the reason and the remedy.
    """
    path = Path(path)
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    for attempt in range(TRIES):
        if attempt:
            time.sleep(2 ** (attempt - 1))
        try:
            fetch(url, aside)
            break
        except requests.RequestException as error:
            status = error.response.status_code if error.response is not None else None
            reason = f"HTTP {status}" if status else type(error).__name__
            if attempt == TRIES - 1 or (status and status < 500):
                raise OSError(f"cannot download {url} ({reason}); fetch it by hand to {path}") from None
    aside.rename(path)
    return path


def fetch(url: str, path: Path):
    """GET `url` into `path`; requests.ConnectionError when fewer bytes come than the server stated."""
    with requests.get(url, stream=True, timeout=30) as response:
        response.raise_for_status()
        size = int(response.headers.get("Content-Length", 0))
        bar = tqdm(total=size or None, unit="B", unit_scale=True, desc=path.stem, disable=not sys.stderr.isatty())
        with bar, open(path, "wb") as file:
            for block in response.iter_content(1 << 20):
                file.write(block)
                bar.update(len(block))
        plain = "Content-Encoding" not in response.headers
        if size and plain and path.stat().st_size != size:
            raise requests.ConnectionError(f"{path.stat().st_size} of {size} bytes", response=None)
