"""Schedules, optimisers, downloads against a real local server."""

import http.server
import threading

import pytest
import torch

import common.download
from common.download import download
from common.runtime import learning_rate_at, make_optimizers
from model import GPT, GPTConfig


def test_schedules_by_hand():
    def rates(schedule, steps=(0, 8, 9, 59, 108, 109)):
        return [learning_rate_at(s, schedule, 1.0, 0.1, warmup_steps=9, max_steps=109) for s in steps]

    assert rates("cosine") == pytest.approx([0.1, 0.9, 1.0, 0.55, 0.1002, 0.1], abs=1e-4)
    assert rates("linear") == pytest.approx([0.1, 0.9, 1.0, 0.55, 0.109, 0.1])
    assert rates("constant") == pytest.approx([0.1, 0.9, 1.0, 1.0, 1.0, 1.0])
    assert rates("wsd", (9, 88, 98, 109)) == pytest.approx([1.0, 1.0, 1 - 0.9 * 10 / 21, 0.1])
    with pytest.raises(ValueError, match="schedule='step' is not one of cosine, linear, constant, wsd"):
        rates("step")


@pytest.mark.parametrize("name, matrices_by", [("adamw", torch.optim.AdamW), ("muon", torch.optim.Muon)])
def test_every_parameter_has_one_optimiser_and_vectors_do_not_decay(name, matrices_by):
    model, extra = GPT(GPTConfig(64, 16, 2, 2, 16)), torch.nn.Linear(16, 8, bias=False)
    optimizers = make_optimizers(model, name, 1e-3, 0.1, 0.9, 0.95, 1e-8, extra)
    groups = [(o, g, p) for o in optimizers for g in o.param_groups for p in g["params"]]
    assert len(groups) == len({id(p) for _, _, p in groups}) == len([*model.parameters(), *extra.parameters()])
    for _, group, p in groups:
        assert group["weight_decay"] == (0.1 if p.dim() == 2 else 0.0)
    by = {id(p): type(o) for o, _, p in groups}
    assert by[id(model.h[0].attn.c_attn.weight)] is matrices_by
    assert by[id(model.wte.weight)] is by[id(extra.weight)] is torch.optim.AdamW
    with pytest.raises(ValueError, match="optimizer='sgd' is not one of adamw, muon"):
        make_optimizers(model, "sgd", 1e-3, 0.1, 0.9, 0.95, 1e-8)


BODY = bytes(range(256)) * 5000


class Handler(http.server.BaseHTTPRequestHandler):
    requests = 0

    def do_GET(self):
        type(self).requests += 1
        if self.path == "/missing":
            return self.send_error(404)
        if self.path == "/busy" and self.requests < 3:
            return self.send_error(503)
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[: len(BODY) // 2] if self.path == "/cut" or self.requests < 2 else BODY)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(common.download.time, "sleep", lambda seconds: None)
    Handler.requests = 0
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_download_survives_a_dropped_connection_and_a_busy_server(server, tmp_path):
    path = download(f"{server}/dropped_once", tmp_path / "new" / "file")
    assert path.read_bytes() == BODY and Handler.requests == 2
    assert download(f"{server}/dropped_once", path) == path and Handler.requests == 2  # it is there
    Handler.requests = 0
    assert download(f"{server}/busy", tmp_path / "busy").read_bytes() == BODY and Handler.requests == 3


def test_download_fails_in_one_line_and_leaves_no_file(server, tmp_path):
    with pytest.raises(OSError, match=r"cannot download .*/missing \(HTTP 404\); fetch it by hand to"):
        download(f"{server}/missing", tmp_path / "missing")
    assert Handler.requests == 1  # asking again would not help
    with pytest.raises(OSError, match=r"cannot download .*/cut"):
        download(f"{server}/cut", tmp_path / "cut")
    with pytest.raises(OSError, match=r"cannot download .* \(ConnectionError\)"):
        download("http://127.0.0.1:9/closed", tmp_path / "closed")
    assert not list(tmp_path.glob("[!.]*[!t]"))
