"""Downloads from a real local server: one file, whole repositories, and everything that goes wrong on the way."""

import hashlib
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, run_script

from common.download import download, download_repo, is_repo
from common.pretrained import load_pretrained, save_pretrained
from common.tokenizer import ByteTokenizer, load_tokenizer
from model import GPT, GPTConfig, LLaMA, LLaMAConfig

BODY = os.urandom(1 << 22)
CUT = len(BODY) * 2 // 5 >> 16 << 16  # the whole blocks of 64 kB before the cut
SHA = hashlib.sha256(BODY).hexdigest()


def left(folder):
    """What lies in a folder but for locks."""
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def test_a_connection_cut_at_40_percent_is_resumed(hub, tmp_path):
    hub.files["/file"], hub.trouble["/file"] = BODY, ["cut", 503]
    path = download(f"{hub.url}/file", tmp_path / "new" / "file")
    assert path.read_bytes() == BODY and left(path.parent) == ["file"]
    ranges = [r for _, r, _ in hub.requests]
    assert ranges == [None, *[f"bytes={CUT - 1}-"] * 2]  # what had come was kept
    assert download(f"{hub.url}/file", path) == path and len(hub.requests) == 3  # it is there


def test_a_killed_download_is_resumed_and_a_finished_one_is_renamed(hub, tmp_path):
    hub.files["/file"] = BODY
    hub.trouble["/file"] = ["cut", 404]
    with pytest.raises(FileNotFoundError):
        download(f"{hub.url}/file", tmp_path / "file")
    (part,) = tmp_path.glob("file.*.part")
    assert part.stat().st_size == CUT
    assert download(f"{hub.url}/file", tmp_path / "file").read_bytes() == BODY
    assert hub.requests[-1][1] == f"bytes={CUT - 1}-"
    (tmp_path / "file").rename(part)  # killed after the last byte
    assert download(f"{hub.url}/file", tmp_path / "file").read_bytes() == BODY and left(tmp_path) == ["file"]
    assert hub.requests[-1][1] == f"bytes={len(BODY) - 1}-"


@pytest.mark.parametrize("second", ["another version", "no ranges"])
def test_bytes_of_two_versions_are_never_joined(hub, tmp_path, second):
    hub.files["/file"], hub.headers["/file"], hub.trouble["/file"] = BODY, {"ETag": '"one"'}, ["cut", 404]
    with pytest.raises(FileNotFoundError):
        download(f"{hub.url}/file", tmp_path / "file")
    if second == "another version":
        hub.files["/file"], hub.headers["/file"] = BODY[::-1], {"ETag": '"two"'}
    else:
        hub.trouble["/file"] = ["no ranges"]
    assert download(f"{hub.url}/file", tmp_path / "file").read_bytes() == hub.files["/file"]
    assert left(tmp_path) == ["file"]


def test_a_server_that_is_busy_twice_is_asked_a_third_time(hub, tmp_path):
    hub.files["/file"], hub.trouble["/file"] = BODY, [503, 503]
    assert download(f"{hub.url}/file", tmp_path / "file").read_bytes() == BODY and len(hub.requests) == 3


def test_a_redirect_states_size_and_hash_and_does_not_carry_the_token_to_another_host(hub, tmp_path):
    hub.files["/file"] = BODY
    hub.headers["/moved/file"] = {"X-Linked-Etag": f'"{SHA}"', "X-Linked-Size": str(len(BODY))}
    hub.headers["/moved/file"]["Location"] = f"http://localhost:{hub.server_port}/file"
    assert download(f"{hub.url}/moved/file", tmp_path / "file", token="secret").read_bytes() == BODY
    assert [token for _, _, token in hub.requests] == ["Bearer secret", None]
    hub.headers["/moved/file"]["X-Linked-Size"] = str(len(BODY) + 1)
    with pytest.raises(OSError, match=r"/moved/file \(ConnectionError, 5 tries\); try again to resume it"):
        download(f"{hub.url}/moved/file", tmp_path / "longer")


def test_a_wrong_hash_is_refused_and_removed(hub, tmp_path):
    hub.files["/file"], hub.headers["/file"] = BODY[:-1] + b"?", {"ETag": f'"{SHA}"'}
    problem = f"/file does not have the SHA-256 that its server states \\({SHA}\\); deleted, try again later"
    with pytest.raises(OSError, match=problem):
        download(f"{hub.url}/file", tmp_path / "file")
    assert left(tmp_path) == []
    hub.files["/file"] = BODY
    assert download(f"{hub.url}/file", tmp_path / "file").read_bytes() == BODY


def test_failures_are_one_line_each_with_the_remedy(hub, tmp_path):
    hub.trouble = {"/private": [401], "/busy": [503] * 9}
    for name, message in (
        ("missing", r"/missing is not there \(HTTP 404\); check the name"),
        ("private", r"/private \(HTTP 401\) needs a permission, or does not exist; set HF_TOKEN"),
        ("busy", r"/busy \(HTTP 503, 5 tries\); try again to resume it, or fetch it by hand to"),
    ):
        hub.requests.clear()
        with pytest.raises(OSError, match=message):
            download(f"{hub.url}/{name}", tmp_path / name)
        assert len(hub.requests) == (5 if name == "busy" else 1)
    with pytest.raises(
        OSError, match=r"cannot reach http://127.0.0.1:9 for .*; connect to the network, or fetch it by"
    ):
        download("http://127.0.0.1:9/closed", tmp_path / "closed")
    assert left(tmp_path) == []


@pytest.mark.slow
def test_two_processes_at_once_fetch_a_file_once(hub, tmp_path):
    hub.files["/file"], hub.trouble["/file"] = BODY, ["slow"]
    code = f"from common.download import download; download({hub.url + '/file'!r}, {str(tmp_path / 'file')!r})"
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) for _ in range(2)]
    assert [p.wait(timeout=60) for p in both] == [0, 0]
    assert (tmp_path / "file").read_bytes() == BODY and len(hub.requests) == 1


# ---------------------------------------------------------------------------------------------
# repositories


def publish(hub, repo, folder, revision="main"):
    for path in folder.iterdir():
        hub.files[f"/{repo}/resolve/{revision}/{path.name}"] = path.read_bytes()


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    model = LLaMA(LLaMAConfig(320, 32, 2, 2, 2, 16))
    save_pretrained(model, tmp_path / "model", ByteTokenizer())
    return model


@pytest.mark.slow
def test_a_whole_repository_by_name(hub, model, tmp_path, monkeypatch):
    publish(hub, "org/tiny", tmp_path / "model")
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub.trouble["/org/tiny/resolve/main/model.safetensors"] = ["cut"]
    again = load_pretrained("org/tiny")
    assert torch.equal(again(torch.tensor([[1, 2]])), model.eval()(torch.tensor([[1, 2]])))
    assert {token for _, _, token in hub.requests} == {"Bearer secret"}
    assert load_tokenizer("org/tiny").hash == ByteTokenizer().hash
    asked = len(hub.requests)
    hub.files.clear()
    line = run_script("sample.py", "--model=org/tiny", "--prompt=ab", "--max_tokens=3", "--device=cpu").stdout
    assert line.startswith("ab") and len(hub.requests) == asked  # no network the second time
    assert (tmp_path / "hf_home/nanodistill/org/tiny/main/config.json").is_file()


def test_a_revision_and_shards(hub, tmp_path):
    import json

    from safetensors.torch import load_file, save_file

    save_pretrained(GPT(GPTConfig(64, 16, 1, 2, 16)), tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    names = sorted(weights)
    shards = {"model-1-of-2.safetensors": names[:5], "model-2-of-2.safetensors": names[5:]}
    for file, held in shards.items():
        save_file({n: weights[n] for n in held}, tmp_path / "model" / file)
    index = {"weight_map": {n: file for file, held in shards.items() for n in held}}
    (tmp_path / "model/model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model/model.safetensors").unlink()
    publish(hub, "tiny", tmp_path / "model", "step10")
    assert torch.equal(load_pretrained("tiny@step10").wte.weight, weights["transformer.wte.weight"])
    hub.files["/evil/resolve/main/config.json"] = (tmp_path / "model/config.json").read_bytes()
    index["weight_map"]["lm_head.weight"] = "../../../shard.safetensors"
    hub.files["/evil/resolve/main/model.safetensors.index.json"] = json.dumps(index).encode()
    with pytest.raises(ValueError, match=r"'../../../shard.safetensors' is not a file of weights beside it"):
        load_pretrained("evil")


def test_a_repository_that_fell_short_is_never_loaded(hub, model, tmp_path):
    publish(hub, "org/tiny", tmp_path / "model")
    hub.trouble["/org/tiny/resolve/main/model.safetensors"] = ["cut", 404]
    with pytest.raises(FileNotFoundError, match=r"no folder .org/tiny. here, and from the hub: .*has none of model"):
        load_pretrained("org/tiny")
    folder = tmp_path / "hf_home/nanodistill/org/tiny/main"
    assert not (folder / "model.safetensors").exists() and not (folder / ".complete").exists()
    assert load_pretrained("org/tiny").config == model.config


@pytest.mark.slow
def test_names_that_are_not_repositories(hub, tmp_path):
    assert is_repo("gpt2") and is_repo("EleutherAI/pythia-160m") and is_repo("allenai/OLMo-1B-hf@step1000-tokens4B")
    for name in ("../etc", "a/../b", "a/b/c", "/abs/olute", "~/x", ".hidden", "a/.git", "a/b@../c", "a b", "", "a/b/"):
        assert not is_repo(name), name
        with pytest.raises(ValueError, match="is not the name of a hub repository"):
            download_repo(name)
    done = run_script("sample.py", "--model=../out/../x", ok=False)
    assert done.returncode == 2 and "no model at '../out/../x': expected a folder with config.json" in done.stderr
    assert hub.requests == []
    done = run_script("sample.py", "--model=out_of/this_world", ok=False)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "no folder 'out_of/this_world' here, and from the hub:" in done.stderr


def test_what_is_no_repository_of_ours_is_refused_before_it_is_downloaded(hub, model, tmp_path):
    publish(hub, "org/tiny", tmp_path / "model")
    config = "/org/tiny/resolve/main/config.json"
    good, hub.files[config] = hub.files[config], b'{"model_type": "phi"}'
    with pytest.raises(ValueError, match="model_type 'phi' is not one of"):
        load_pretrained("org/tiny")
    assert len(hub.requests) == 1  # the weights were not fetched
    with pytest.raises(
        FileNotFoundError, match=r"org/typo/resolve/main has none of tokenizer.model, .*; check the name"
    ):
        load_tokenizer("org/typo")
    publish(hub, "org/typo", tmp_path / "model")
    assert load_tokenizer("org/typo").vocab_size == 257  # nothing was remembered
    hub.files[config] = good
    load_pretrained("org/tiny")


def test_a_web_page_in_between_is_not_taken_for_a_file(hub, model, tmp_path):
    publish(hub, "org/tiny", tmp_path / "model")
    for path in hub.files:
        hub.headers[path] = {"Content-Type": "text/html; charset=utf-8"}
    with pytest.raises(OSError, match="is answered by a web page; log in to this network"):
        load_pretrained("org/tiny")
    hub.headers.clear()
    hub.files["/org/tiny/resolve/main/tokenizer.json"] = b"<html>"
    with pytest.raises(ValueError, match=r"tokenizer.json is not JSON"):
        load_pretrained("org/tiny")
    publish(hub, "org/tiny", tmp_path / "model")
    load_pretrained("org/tiny")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, value, message",
    [
        ("HF_ENDPOINT", "foo", "HF_ENDPOINT='foo' is not an address"),
        ("HF_ENDPOINT", "ftp://x", "HF_ENDPOINT='ftp://x' is not an address"),
        ("HF_ENDPOINT", "http://a..b", "cannot download http://a..b/org/tiny"),
        ("HF_TOKEN", "hf_\u00fc\u20ac", "HF_TOKEN has characters that no token has"),
    ],
)
def test_odd_settings_end_in_one_line(monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    done = run_script("sample.py", "--model=org/tiny", ok=False)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
