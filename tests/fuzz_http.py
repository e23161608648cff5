"""Answers of servers for tests/fuzz.py: a real server on this machine whose valid answers were spoiled.

An answer is {"status", "headers", "body"} in JSON, the body in hexadecimal; one with "raw" alone is sent as it is.
"""

import io
import json
import os
import socket
import threading
from pathlib import Path

from fuzz_spoil import TEXTS, spoil_bytes, spoil_file
from hypothesis import strategies as st

import common.download
import corpora.sources
from common.download import download, download_config, download_repo
from common.pretrained import load_pretrained
from common.tokenizer import load_tokenizer
from tasks.loading import load_tasks

REPO = "/owner/name/resolve/main"
NAMES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "meta.json")
OSF_FILES = "/osf/files"


def http_files(material) -> dict[str, bytes]:
    """{path on the server: body}: a repository with a model, tables of a task, a listing of OSF."""
    newest = sorted(material.run_folder().glob("step_*"))[-1]
    files = {f"{REPO}/{name}": (newest / name).read_bytes() for name in NAMES}
    length = int.from_bytes(files[f"{REPO}/model.safetensors"][:8], "little")
    names = json.loads(files[f"{REPO}/model.safetensors"][8 : 8 + length]).keys() - {"__metadata__"}
    index = {"weight_map": dict.fromkeys(sorted(names), "model.safetensors")}
    files["/owner/shards/resolve/main/config.json"] = files[f"{REPO}/config.json"]
    files["/owner/shards/resolve/main/model.safetensors.index.json"] = json.dumps(index).encode()
    files["/owner/shards/resolve/main/tokenizer.json"] = files[f"{REPO}/tokenizer.json"]
    files["/owner/shards/resolve/main/model.safetensors"] = files[f"{REPO}/model.safetensors"]
    tables = {"plain_text": {"validation": ["x"]}}
    files["/api/datasets/ybisk/piqa/parquet/plain_text/validation/0.parquet"] = piqa_table()
    files["/api/datasets/ybisk/piqa/parquet"] = json.dumps(tables).encode()
    related = {"files": {"links": {"related": {"href": "http://SERVER" + OSF_FILES}}}}
    top = {"data": [{"attributes": {"name": "text_data"}, "relationships": related}]}
    files["/osf/"] = json.dumps(top).encode()
    item = {"attributes": {"name": "train_10M.zip"}, "links": {"download": "http://SERVER/x"}}
    files[OSF_FILES] = json.dumps({"data": [item]}).encode()
    return files


def piqa_table() -> bytes:
    import pyarrow
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist([{"goal": "g", "sol1": "a", "sol2": "b", "label": 1}] * 4), out)
    return out.getvalue()


HEADERS = ("Content-Length", "Content-Type", "Content-Range", "Content-Encoding", "ETag", "X-Linked-Etag",
           "X-Linked-Size", "Location", "Transfer-Encoding", "Last-Modified", "Connection", "Set-Cookie")  # fmt: skip
HEADER_VALUES = st.one_of(
    st.sampled_from(("0", "-1", "5", "99999999999999999999", "1e3", "x", "", "text/html", "gzip", "br", "chunked",
                     "identity", "bytes 0-4/5", "bytes 5-1/0", "bytes */5", "a" * 64, '"' + "0" * 64 + '"', 'W/"x"',
                     "/owner/name/resolve/main/config.json", "http://SERVER/x", "//", "http://", "http://[", "file:///x",
                     "http://127.0.0.1:9/x", "http://SERVER:99999/x", "../../x", "é", "a\tb")),
    st.sampled_from([text for text in TEXTS if len(text) < 1000 and "\n" not in text]),
)  # fmt: skip


def valid_answers(files: dict[str, bytes]) -> dict[str, dict]:
    answers = {}
    for path, body in files.items():
        answers[path] = {"status": 200, "headers": {}, "body": body.hex()}
    return answers


def write_answers(files: dict[str, bytes], folder: Path):
    (folder / "answers.json").write_text(json.dumps(valid_answers(files)))


def spoil_http(draw, files: dict[str, bytes], folder: Path):
    """Each path's answer, one to three of them spoiled: status, headers, body, or all of its bytes."""
    answers = valid_answers(files)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(sorted(answers)))
        answers[path] = spoil_answer(draw, path, files[path])
    (folder / "answers.json").write_text(json.dumps(answers))


def spoil_answer(draw, path: str, body: bytes) -> dict:
    headers = {"Content-Length": str(len(body))}
    change = draw(st.sampled_from(("status", "headers", "body", "body", "short", "raw")))
    status = 200
    if change == "status":
        status = draw(st.sampled_from((100, 101, 201, 204, 206, 301, 302, 304, 307, 400, 401, 404, 416, 429, 500, 999)))
    if change == "body":
        name = path if "." in path.rpartition("/")[2] else "x.json"
        body = spoil_file(draw, name, body)
        headers["Content-Length"] = str(len(body))
    if change == "short":
        body = body[: draw(st.integers(0, len(body)))]
    for _ in range(draw(st.integers(0, 2)) + (change == "headers")):
        headers[draw(st.sampled_from(HEADERS))] = draw(HEADER_VALUES)
    if change == "raw":
        answer = as_bytes({"status": status, "headers": headers, "body": body.hex()})
        return {"raw": spoil_bytes(draw, answer).hex()}
    return {"status": status, "headers": headers, "body": body.hex()}


def as_bytes(answer: dict) -> bytes:
    """An answer as it goes over the wire."""
    if "raw" in answer:
        return bytes.fromhex(answer["raw"])
    lines = [f"HTTP/1.1 {answer['status']} X"]
    lines += [f"{name}: {value}" for name, value in answer["headers"].items()]
    head = "\r\n".join(lines).encode("utf-8", errors="replace")
    return head + b"\r\nConnection: close\r\n\r\n" + bytes.fromhex(answer["body"])


class Server(threading.Thread):
    """Answers each request with what `answers` has for its path, else with 404; then closes the connection."""

    def __init__(self):
        super().__init__(daemon=True)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.socket.getsockname()[1]}"
        self.answers = {}

    def run(self):
        while True:
            connection, _ = self.socket.accept()
            with connection:
                connection.settimeout(2)
                try:
                    self.answer(connection)
                except OSError:
                    # the client has gone, as it may
                    continue

    def answer(self, connection: socket.socket):
        request = b""
        while b"\r\n\r\n" not in request:
            received = connection.recv(1 << 16)
            if not received:
                return
            request += received
        path = request.split(b" ")[1].decode().partition("?")[0]
        missing = {"status": 404, "headers": {"Content-Length": "0"}, "body": ""}
        content = as_bytes(self.answers.get(path, missing)).replace(b"SERVER", self.address.encode())
        connection.sendall(content)


def begin_http() -> list:
    """What reads by HTTP, from a server in this process, without waiting between tries."""
    server = Server()
    server.start()
    common.download.WAIT = 0
    corpora.sources.OSF = f"http://{server.address}/osf/"
    os.environ["HF_ENDPOINT"] = f"http://{server.address}"
    os.environ.pop("HF_TOKEN", None)

    def use(read):
        def with_answers(folder: Path, out: Path):
            server.answers = json.loads((folder / "answers.json").read_text())
            os.environ["HF_HOME"] = str(out / "hf")
            read(out)

        return with_answers

    file = f"http://{server.address}{REPO}/model.safetensors"
    return [
        use(lambda out: load_pretrained("owner/name")),
        use(lambda out: load_tokenizer("owner/name")),
        use(lambda out: download_repo("owner/shards")),
        use(lambda out: download_config("owner/name")),
        use(lambda out: load_tasks("piqa", str(out / "eval"))),
        use(lambda out: corpora.sources.osf_url("train_10M.zip")),
        use(lambda out: download(file, out / "x.bin")),
    ]
