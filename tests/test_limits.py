"""Limits of machines, and mix-ups: what a run does on a disk that is full, read-only or without locks, with files that
change under it, with paths in any script, with more ranks than devices, and with a clock that jumps.
"""

import ast
import errno
import fcntl
import os
import resource
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import LONG, ROOT, TINY, read_log, run_script, write_dataset

from common.checkpoint import RunLock, checkpoints, load_trainer_state
from common.data import TokenData
from common.download import locked
from common.pretrained import load_pretrained
from common.runtime import Runtime
from corpora.writing import lock_folder


def refusal(done) -> str:
    """The one line on stderr of a script that ended with exit code 2."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 2 and len(lines) == 1, done.stdout + done.stderr
    return lines[0]


# ---------------------------------------------------------------------------------------------
# the disk


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train.py", pytest.param("distill.py", marks=LONG)])
def test_a_disk_that_is_full_at_any_place_ends_in_one_line_and_loses_nothing(script):
    """tests/full_disk.py fills it at every place; here at some of them."""
    command = [sys.executable, ROOT / "tests/full_disk.py", f"--script={script}", "--every=9"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "tests")
    if done.returncode == 2:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.endswith("0 ended wrong") and " in 0 of them" not in last


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 2_000, 30_000, 150_000])
def test_a_limit_of_files_sizes_ends_in_one_line_and_the_checkpoint_before_it_loads(limit, dataset, tmp_path):
    """As a quota does, the limit comes in the middle of what torch and safetensors write; it is set after two steps."""
    keys = [*TINY, f"--dataset={dataset}", f"--out_dir={tmp_path / 'run'}", "--keep_checkpoints=0", "--save_interval=2"]
    run_script("train.py", *keys, "--max_steps=2")
    command = [sys.executable, ROOT / "train.py", *keys, "--init_from=resume", "--max_steps=6"]
    done = subprocess.run(
        command, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    refusal(done)
    assert [folder.name for folder in checkpoints(tmp_path / "run")] == ["step_000002"]
    load_pretrained(tmp_path / "run")
    assert load_trainer_state(tmp_path / "run/step_000002")["step"] == 2


@pytest.fixture
def read_only(tmp_path):
    """A folder of a file system that is mounted read-only, with a file in it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounts = [["mount", "-t", "tmpfs", "tmpfs", folder], ["mount", "-o", "remount,ro", "tmpfs", folder]]
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("only root can mount")
    if subprocess.run(mounts[0], capture_output=True).returncode:
        pytest.skip("cannot mount here")
    subprocess.run(mounts[1], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_a_read_only_out_dir_is_said_before_anything_is_loaded(read_only, dataset, teacher):
    keys = [*TINY, f"--dataset={dataset}", "--max_steps=1"]
    shape = [f"--dataset={dataset}", "--block_size=16", f"--teacher={teacher}", "--device=cpu"]
    deeper = read_only / "deep/run"
    for script, args, out_dir in (
        ("train.py", keys, read_only),
        ("distill.py", [*keys, f"--teacher={teacher}"], deeper),
        ("cache_teacher.py", shape, deeper),
    ):
        expected = f"cannot write to {out_dir} (Read-only file system); make room or get the permission there"
        assert expected in refusal(run_script(script, *args, f"--out_dir={out_dir}", ok=False))
    source = ["--source=requirements.txt", "--tokenizer=bytes", f"--out_dir={read_only}"]
    assert "Read-only file system" in refusal(run_script("prepare_data.py", *source, ok=False))
    # nothing is written there, so that it does not matter
    run_script("train.py", *keys, f"--out_dir={read_only}", "--eval_only=True")


# ---------------------------------------------------------------------------------------------
# locks


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_without_locks_one_line_says_so_and_the_work_goes_on(number, tmp_path, monkeypatch, capsys):
    def flock(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    RunLock(str(tmp_path / "run"), writes=True)
    lock_folder(tmp_path / "data").close()
    with locked(tmp_path / "download/file"):
        pass
    lines = capsys.readouterr().err.splitlines()
    for name, line in zip(("run", "data", "download"), lines, strict=True):
        assert line.startswith(f"note: {tmp_path / name} is on a file system without locks ({os.strerror(number)})")


def test_any_other_error_of_a_lock_is_an_error(tmp_path, monkeypatch):
    def flock(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match=r"cannot write to .*run \(Input/output error\)"):
        RunLock(str(tmp_path / "run"), writes=True)


def test_a_run_that_is_refused_leaves_the_lock_of_the_one_that_runs(tmp_path):
    """Its file deleted at the exit of the second, a third would have got in."""
    running = RunLock(str(tmp_path), writes=True)
    command = [sys.executable, "-c", f"from common.checkpoint import RunLock; RunLock({str(tmp_path)!r}, writes=True)"]
    for _ in range(2):
        refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert f"is in use by another run (process {os.getpid()})" in refused.stderr
    running.leave_nothing_behind()
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------
# files that change under a run


@pytest.mark.parametrize("size", [0, 100, 7998, 8002])
def test_a_token_file_that_is_cut_or_grows_is_an_error_and_no_sigbus(size, tmp_path):
    write_dataset(tmp_path)
    data = TokenData(tmp_path, "train", block_size=16, seed=1, batch_size=4)
    data.batch(0, 0)
    os.truncate(tmp_path / "train.bin", size)
    with pytest.raises(ValueError, match=f"train.bin had 8,000 bytes when it was opened, and has {size:,} now"):
        for step in range(data.steps(1)):
            data.batch(step, 0)


def test_a_token_file_that_is_replaced_is_read_on_as_it_was(tmp_path):
    write_dataset(tmp_path)
    data = TokenData(tmp_path, "train", block_size=16, seed=1, batch_size=4)
    before = [data.batch(step, 0)[0] for step in range(5)]
    np.zeros(4000, dtype="<u2").tofile(tmp_path / "new.bin")
    (tmp_path / "new.bin").replace(tmp_path / "train.bin")
    assert all(torch.equal(data.batch(step, 0)[0], x) for step, x in enumerate(before))


@pytest.mark.slow
def test_a_run_whose_data_is_cut_ends_in_one_line_with_its_checkpoints(tmp_path):
    data = write_dataset(tmp_path / "data")
    keys = [*TINY, f"--dataset={data}", f"--out_dir={tmp_path / 'run'}", "--max_steps=100000", "--save_interval=5"]
    command = [sys.executable, ROOT / "train.py", *keys]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not checkpoints(tmp_path / "run"):
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.truncate(data / "train.bin", 1000)
    _, err = run.communicate(timeout=120)
    (line,) = err.splitlines()
    assert run.returncode == 2 and "train.bin had 8,000 bytes when it was opened, and has 1,000 now" in line
    load_trainer_state(checkpoints(tmp_path / "run")[-1])


# ---------------------------------------------------------------------------------------------
# paths


@pytest.mark.slow
def test_paths_with_blanks_and_letters_of_any_script(tmp_path):
    """Every knob that is a path, from text to a picture; and a log file in an encoding that has no such letters."""
    place = tmp_path / "Ördner mit Länge 漢字 🙂"
    place.mkdir()
    (place / "ein Text.txt").write_text("Ein Text, den niemand liest.\n" * 400)
    data, teacher, cache = place / "die Daten", place / "der Lehrer", place / "ein Cache"
    small = [*TINY, f"--dataset={data}", "--max_steps=2", "--packing=constant"]
    run_script("prepare_data.py", f"--source={place / 'ein Text.txt'}", "--tokenizer=bytes", f"--out_dir={data}")
    run_script("prepare_data.py", f"--check={data}")
    run_script("train.py", *small, f"--out_dir={teacher}", "--sample_interval=2")
    run_script("train.py", f"--out_dir={teacher}", "--init_from=resume", "--max_steps=3")
    shape = ["--block_size=16", "--batch_size=4", "--eval_rows=8", "--device=cpu"]
    run_script("cache_teacher.py", *shape, f"--dataset={data}", f"--teacher={teacher}", f"--out_dir={cache}")
    for name, source in (("live", teacher), ("cached", cache)):
        more = [f"--teacher={source}", "--random_offset=False", f"--out_dir={place / name}"]
        run_script("distill.py", *small, *more)
    assert read_log(place / "live", "train").keys() == read_log(place / "cached", "train").keys()
    (place / "Fragen 1.jsonl").write_text('{"context": "a", "choices": ["b", "cd"], "label": 1}\n' * 3)
    tasks = f"--tasks={place / 'Fragen 1.jsonl'},{place / 'ein Text.txt'}"
    run_script("evaluate.py", f"--model={teacher}", tasks, "--limit=3", "--device=cpu")
    run_script("sample.py", f"--model={teacher / 'best'}", "--max_tokens=3", "--device=cpu")
    runs = f"--runs={teacher},{place / 'live'}"
    run_script("plot.py", runs, f"--out={place / 'Bild 1.png'}")
    assert (place / "Bild 1.png").is_file()


@pytest.mark.slow
def test_a_path_that_the_log_file_cannot_spell_does_not_end_the_run(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    keys = [*TINY, f"--dataset={dataset}", f"--out_dir={tmp_path / 'Läufe'}", "--max_steps=1"]
    done = run_script("train.py", *keys)
    assert "L\\xe4ufe/step_000001" in done.stdout
    assert "L\\xe4ufe already holds a run" in refusal(run_script("train.py", *keys, ok=False))


# ---------------------------------------------------------------------------------------------
# ranks and devices (no GPU is at hand: torch is told that there are some)


@pytest.mark.parametrize(
    "device, gpus, environment, expected",
    [
        ("cuda", 2, {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "cuda:1"),
        ("auto", 2, {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "cuda:1"),
        ("cuda:1", 2, {}, "cuda:1"),
        # two machines with a rank each
        ("cuda:0", 1, {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}, "cuda:0"),
        ("cuda:0", 2, {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "device='cuda:0' would be the GPU of all 2 ranks; use"),
        ("cuda:2", 2, {}, "device='cuda:2' is not there, but cuda:0 to cuda:1"),
        ("cuda", 1, {"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "2 ranks on this machine need a GPU each, but torch"),
        (
            "cuda", 1, {"WORLD_SIZE": "2", "LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "MIG-5c,MIG-7f"},
            r"torch finds 1 \(CUDA_VISIBLE_DEVICES=MIG-5c,MIG-7f; of MIG instances it uses one\); "
            "use torchrun --nproc_per_node=1",
        ),
    ],
)  # fmt: skip
def test_a_gpu_for_each_rank_or_a_line(device, gpus, environment, expected, monkeypatch):
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    run = Runtime("cpu", keep_memory=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    run.world = int(environment.get("WORLD_SIZE", 1))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if expected.startswith("cuda:"):
        assert run.pick_device(device) == torch.device(expected)
        return
    with pytest.raises(ValueError, match=expected):
        run.pick_device(device)


# ---------------------------------------------------------------------------------------------
# the clock


def test_no_time_is_taken_from_a_clock_that_jumps():
    """time.time() and dates are set by a user, or by a server of the time; perf_counter() only ever goes on."""
    sources = [
        *ROOT.glob("*.py"),
        *(path for folder in ("common", "corpora", "tasks") for path in (ROOT / folder).glob("*.py")),
    ]
    assert len(sources) > 40
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            assert name not in ("time.time", "time.time_ns", "datetime.now", "time.localtime"), (source, node.lineno)
