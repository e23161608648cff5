"""Helpers of the tests: the repository on the path, scripts run as a user runs them, tiny data sets."""

import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"  # the models are tiny, and pytest runs as many tests at once as there are cores
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # nobody listens there: no test reaches the network
os.environ["HF_HOME"] = f"{tempfile.gettempdir()}/nanodistill_tests"
# a shell that starts the tests with & has them ignore Ctrl-C, and all that they start with them
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
TINY = ["--n_layer=2", "--n_head=2", "--n_embd=32", "--block_size=16", "--batch_size=4", "--eval_rows=8",
        "--eval_interval=0", "--log_interval=1", "--device=cpu"]  # fmt: skip


LONG = (pytest.mark.slow, pytest.mark.long)  # of a case, see pytest.ini


class WarmPython:
    """Runs scripts in processes forked from one that has imported torch (tests/warm.py), one at a time."""

    def __init__(self):
        self.server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("warm.py"))], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.settings = import_settings()
        self.lock = threading.Lock()

    def run(self, command: list[str], cwd, timeout: float, ranks: int) -> subprocess.CompletedProcess:
        with tempfile.NamedTemporaryFile() as stdout, tempfile.NamedTemporaryFile() as stderr:
            job = {"script": command[0], "args": command[1:], "cwd": str(cwd), "environments": environments(ranks)}
            job |= {"stdout": stdout.name, "stderr": stderr.name}
            self.server.stdin.write(json.dumps(job).encode() + b"\n")
            self.server.stdin.flush()
            pids = json.loads(self.server.stdout.readline())
            watchdog = threading.Timer(timeout, lambda: [os.kill(pid, signal.SIGKILL) for pid in pids])
            watchdog.start()
            code = int(self.server.stdout.readline())
            watchdog.cancel()
            return subprocess.CompletedProcess(command, code, stdout.read().decode(), stderr.read().decode())


def environments(ranks: int) -> list[dict[str, str]]:
    """One for each process: this one's, and for several ranks what torchrun adds to it."""
    if ranks == 1:
        return [dict(os.environ)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def import_settings() -> dict[str, str]:
    """What the environment says to Python, torch and OpenMP, which read it while they are imported."""
    return {k: v for k, v in os.environ.items() if k.startswith(("PYTHON", "TORCH", "OMP", "MKL", "KMP", "LD_"))}


warm_python = None  # started by the first test that needs it


def run_script(script, *args, ok=True, torchrun=0, ranks=1, cwd=None):
    """Run a script of the project in a process of its own; returns it finished. ok: fail the test unless it exits 0.

    torchrun: that many ranks, by torchrun; ranks: the same in a quarter of the time, without it.
    """
    return run_python(ROOT / script, *args, ok=ok, torchrun=torchrun, ranks=ranks, cwd=cwd)


def run_python(script, *args, ok=True, torchrun=0, ranks=1, cwd=None):
    global warm_python
    command = [str(script), *map(str, args)]
    if warm_python is None:
        warm_python = WarmPython()
    # not where other settings were meant for the imports, and not while another thread's script runs
    is_warm = not torchrun and warm_python.settings == import_settings() and warm_python.lock.acquire(blocking=False)
    if is_warm:
        try:
            done = warm_python.run(command, cwd or ROOT, timeout=120, ranks=ranks)
        finally:
            warm_python.lock.release()
    else:
        launcher = []
        if max(torchrun, ranks) > 1:
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={max(torchrun, ranks)}"]
        command = [sys.executable, *launcher, *command]
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd or ROOT, timeout=120)
    assert not ok or done.returncode == 0, done.stdout + done.stderr
    return done


def parameters(config, vocab_size):
    """Of the model that a config file describes, built on the meta device."""
    import torch

    from model import GPT, GPTConfig, LLaMA, LLaMAConfig

    names = ("block_size", "n_layer", "n_head", "n_embd", "n_inner", "tie_word_embeddings")
    model, of = {"gpt": (GPT, GPTConfig), "llama": (LLaMA, LLaMAConfig)}[config["arch"]]
    with torch.device("meta"):
        return model(of(vocab_size=vocab_size, **{k: config[k] for k in names if k in config})).n_params()


def read_log(out_dir, label):
    """{step: value} of the lines `step label value` in a run's log.txt."""
    lines = [line.split() for line in (Path(out_dir) / "log.txt").read_text().splitlines()]
    return {int(step): float(value) for step, name, value in lines if name == label}


def write_dataset(folder, tokens=4000, seed=0, **meta):
    """A data set of bytes with some structure: a Markov chain over 64 ids, so that a model can learn."""
    from common.meta import tokenizer_meta
    from common.tokenizer import ByteTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    following = rng.integers(32, 96, size=(256, 4))
    for split, n in (("train", tokens), ("val", tokens // 4)):
        ids = [40]
        for choice in rng.integers(4, size=n - 1):
            ids.append(int(following[ids[-1], choice]))
        np.array(ids, dtype="<u2").tofile(folder / f"{split}.bin")
    counts = {f"{s}_{what}": n for s, n in (("train", tokens), ("val", tokens // 4)) for what in ("tokens", "bytes")}
    (folder / "meta.json").write_text(json.dumps(tokenizer_meta(ByteTokenizer()) | counts | meta))
    return folder


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "chain")


@pytest.fixture(scope="session")
def teacher(dataset, tmp_path_factory):
    """The out_dir of a tiny trained GPT, wider than the students."""
    out = tmp_path_factory.mktemp("runs") / "teacher"
    run_script(
        "train.py", *TINY, "--arch=gpt", "--n_embd=48", f"--dataset={dataset}", f"--out_dir={out}", "--max_steps=12"
    )
    return out


class Hub(http.server.ThreadingHTTPServer):
    """A server of `files` {path: bytes}, with ranges. `trouble` {path: [behaviours]} is used up request by request:
    a status, "cut" (the connection drops at 40 %), "slow", or "no ranges"; `headers` {path: {…}} are added.
    """

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.files, self.trouble, self.headers, self.requests = files, {}, {}, []
        self.url = f"http://127.0.0.1:{self.server_port}"


class HubHandler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        hub, path = self.server, self.path
        hub.requests.append((path, self.headers.get("Range"), self.headers.get("Authorization")))
        trouble = hub.trouble.get(path)
        trouble = trouble.pop(0) if trouble else None
        if isinstance(trouble, int):
            return self.send_error(trouble)
        if path.startswith("/moved"):
            self.send_response(302)
            for name, value in {"Location": path.removeprefix("/moved"), **hub.headers.get(path, {})}.items():
                self.send_header(name, value)
            return self.end_headers()
        if path not in hub.files:
            return self.send_error(404)
        body, start = hub.files[path], 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked and trouble != "no ranges":
            start = int(asked[1])
            if start >= len(body):
                return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        for name, value in hub.headers.get(path, {}).items():
            self.send_header(name, value)
        self.end_headers()
        if trouble == "slow":
            time.sleep(1)
        self.wfile.write(body[start:][: len(body) * 2 // 5] if trouble == "cut" else body[start:])

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub without files, which HF_ENDPOINT and HF_HOME are set to use; retries do not wait."""
    import common.download

    monkeypatch.setattr(common.download, "WAIT", 0)
    server = Hub({})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield server
    server.shutdown()
    server.server_close()
