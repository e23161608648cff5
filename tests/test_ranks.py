"""Several ranks: their losses are those of one, all stop at one step, and none outlives another that is lost."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import LONG, ROOT, TINY, environments, read_log, run_script, write_dataset
from kills import descendants, differences

from common.checkpoint import checkpoints
from common.signals import CHECK_SECONDS, StopSignal

# ---------------------------------------------------------------------------------------------
# 1, 2 and 4 ranks


@pytest.fixture(scope="module")
def models(dataset, teacher, tmp_path_factory):
    """Knobs by name: two teachers, a cache, and a data set of short documents."""
    folder = tmp_path_factory.mktemp("models")
    keys = [*TINY, f"--dataset={dataset}", "--max_steps=12", f"--out_dir={folder / 'second'}", "--seed=2"]
    run_script("train.py", *keys)
    sizes = ["--block_size=16", "--eval_rows=8", "--top_k=8", "--device=cpu"]
    own = [f"--teacher={teacher}", f"--dataset={dataset}", f"--out_dir={folder / 'cache'}"]
    run_script("cache_teacher.py", *sizes, *own)
    documents = write_dataset(folder / "documents", tokens=8000)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        ids = np.fromfile(documents / f"{split}.bin", "<u2")
        ends = np.cumsum(rng.integers(3, 40, size=2000))
        ids[ends[ends < len(ids)] - 1] = 256
        ids.tofile(documents / f"{split}.bin")
    return {
        "two teachers": [f"--teacher={teacher},{folder / 'second'}", "--teacher_weights=2,1"],
        "cache": [f"--teacher={folder / 'cache'}", "--random_offset=False"],
        "documents": [f"--dataset={documents}", "--packing=documents"],
    }


KINDS = {
    "train": ("train.py", [], []),
    "train, masks": ("train.py", ["documents"], ["--optimizer=muon"]),
    "two teachers": ("distill.py", ["two teachers"], ["--weight_cos=0.5", "--weight_mse=0.1"]),
    "two teachers, masks": ("distill.py", ["two teachers", "documents"], ["--weight_cos=0.5", "--kl=reverse"]),
    "cache": ("distill.py", ["cache"], []),
    "on-policy": ("distill.py", ["two teachers"], ["--on_policy=1", "--prompt_tokens=4-8", "--response_tokens=8"]),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["two teachers", *(pytest.param(kind, marks=LONG) for kind in KINDS if kind != "two teachers")]
)
def test_ranks_share_a_step_and_its_losses_are_those_of_one(kind, models, dataset, tmp_path):
    """1, 2 and 4 ranks over 50 steps: every logged number but the gradient's norm is within 1e-5."""
    script, knobs, more = KINDS[kind]
    keys = [*TINY, f"--dataset={dataset}", *more, "--max_steps=50", "--eval_interval=25", "--eval_rows=8"]
    keys += [key for name in knobs for key in models[name]]
    logs = {}
    for ranks in (1, 2, 4):
        run_script(script, *keys, f"--batch_size={8 // ranks}", f"--out_dir={tmp_path / str(ranks)}", ranks=ranks)
        lines = [line.split() for line in (tmp_path / str(ranks) / "log.txt").read_text().splitlines()]
        logs[ranks] = {(int(step), label): float(value) for step, label, value in lines if label != "norm"}
    assert {"train", "val"} <= {label for _, label in logs[1]} and len(logs[1]) > 100
    for ranks in (2, 4):
        assert logs[ranks].keys() == logs[1].keys()
        for place, value in logs[1].items():
            assert logs[ranks][place] == pytest.approx(value, abs=1e-5, rel=0), (ranks, place)


# ---------------------------------------------------------------------------------------------
# a signal in the midst of a step


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
LONG_STEPS = ["--grad_accum_steps=60", "--batch_size=1", "--max_steps=3", "--dropout=0.1", "--init_from=auto"]
LONG_STEPS += ["--save_interval=0", "--keep_best=False"]


def start(command, **environment):
    return subprocess.Popen(
        list(map(str, command)), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | environment,
    )  # fmt: skip


def wait_for_steps(out_dir, steps, *processes):
    """Wait until a run has logged so many steps."""
    deadline = time.time() + 120
    while not (out_dir / "log.txt").is_file() or len(read_log(out_dir, "train")) < steps:
        assert time.time() < deadline and all(process.poll() is None for process in processes)
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, ranks, more",
    [
        ("train.py", 1, []),
        ("train.py", 2, []),
        pytest.param("distill.py", 4, ["--weight_cos=0.5"], marks=LONG),
        ("distill.py", 2, ["--on_policy=0.5", "--prompt_tokens=4", "--response_tokens=4"]),
    ],
)
def test_a_signal_ends_a_long_step_and_the_resumed_run_does_it_anew(script, ranks, more, dataset, teacher, tmp_path):
    """The step takes three seconds at least; nothing of it is in the checkpoint, and in the end all bits are the same.

    The whole run is in another folder of the same name, as its path is stored.
    """
    out = tmp_path / "run"
    keys = [*TINY, f"--dataset={dataset}", f"--out_dir={out}", *LONG_STEPS, *more]
    if script == "distill.py":
        keys.append(f"--teacher={teacher}")
    run_script(script, *keys, ranks=ranks)
    undisturbed = out.rename(tmp_path / "undisturbed")

    launcher = [*TORCHRUN, f"--nproc_per_node={ranks}"] if ranks > 1 else [sys.executable]
    run = start([*launcher, ROOT / "tests/hindered.py", script, *keys], MICRO_STEP_SECONDS="0.05")
    wait_for_steps(out, 1, run)
    time.sleep(1)
    # torchrun sends it to its ranks
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate(timeout=60)
    assert run.returncode and errors.count("SIGTERM: saving, then stopping") == ranks, errors
    assert "[rank" not in errors and "Error" not in errors.split("torch.distributed")[0]
    # a step later where the step was done to its end
    assert [folder.name for folder in checkpoints(out)] == ["step_000001"]
    assert list(read_log(out, "train")) == [0]

    run_script(script, *keys, ranks=ranks)
    # the one after the first step was the stopped run's
    assert differences(undisturbed, out) == [
        f"step_000001/{path.name} is left over" for path in sorted((out / "step_000001").iterdir())
    ]


def test_ranks_ask_one_another_about_once_in_a_second():
    """Before no micro-step of a short step, before each that takes longer, and while the time is not known."""

    class Ranks:
        world = 2

        def sum(self, flag):
            return [float(flag)]

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        stop = StopSignal(Ranks())
        stop.number = signal.SIGTERM
        for step_seconds, asked in (
            (0.5 * CHECK_SECONDS, []),
            (8 * CHECK_SECONDS, [1, 2, 3, 4, 5, 6, 7]),
            (2 * CHECK_SECONDS, [4]),
            (100 * CHECK_SECONDS, [1, 2, 3, 4, 5, 6, 7]),
            (float("inf"), [1, 2, 3, 4, 5, 6, 7]),
        ):
            stop.set_pace(step_seconds, micro_steps=8)
            assert [micro_step for micro_step in range(8) if stop.came(micro_step)] == asked
        stop.number = 0
        assert not any(stop.came(micro_step) for micro_step in range(8))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.mark.slow
def test_a_signal_to_torchrun_and_to_its_ranks_is_one_signal(dataset, tmp_path):
    """As a scheduler sends it; a second one, later, ends a run at once."""
    out = tmp_path / "run"
    keys = [*TINY, f"--dataset={dataset}", f"--out_dir={out}", *LONG_STEPS]
    run = start([*TORCHRUN, "--nproc_per_node=2", ROOT / "tests/hindered.py", "train.py", *keys],
                MICRO_STEP_SECONDS="0.05")  # fmt: skip
    wait_for_steps(out, 1, run)
    for rank in descendants(run.pid):
        os.kill(rank, signal.SIGTERM)
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=60)
    assert [folder.name for folder in checkpoints(out)] == ["step_000001"]


# ---------------------------------------------------------------------------------------------
# a rank that is lost


ENDLESS = ["--max_steps=100000", "--save_interval=5"]
ONE_LINE = (
    r"train.py: another rank ended, was killed or does not answer, and so this one ends \(.*\); the same command "
)
ONE_LINE += r"continues from the newest checkpoint with --init_from=resume or auto\n"


def start_ranks(ranks, *keys, **environment):
    """The ranks of a run as torchrun starts them, without it, so that each has a stderr of its own."""
    command = [sys.executable, ROOT / "tests/hindered.py", "train.py", *keys]
    return [start(command, **own, **environment) for own in environments(ranks)]


@pytest.mark.slow
@pytest.mark.parametrize("ranks, victim", [(2, 0), (2, 1), (4, 2)])
def test_the_others_end_in_one_line_when_a_rank_is_killed(ranks, victim, dataset, tmp_path):
    processes = start_ranks(ranks, *TINY, f"--dataset={dataset}", f"--out_dir={tmp_path / 'run'}", *ENDLESS)
    wait_for_steps(tmp_path / "run", 8, *processes)
    processes[victim].kill()
    for rank, process in enumerate(processes):
        _, errors = process.communicate(timeout=60)
        if rank != victim:
            assert process.returncode == 2 and re.fullmatch(ONE_LINE, errors), errors
    assert checkpoints(tmp_path / "run")


@pytest.mark.slow
def test_a_rank_that_hangs_is_given_up_after_the_longest_wait(dataset, tmp_path):
    keys = [*TINY, f"--dataset={dataset}", f"--out_dir={tmp_path / 'run'}", *ENDLESS]
    first, second = start_ranks(2, *keys, RANK_SECONDS="5")
    try:
        wait_for_steps(tmp_path / "run", 8, first, second)
        second.send_signal(signal.SIGSTOP)
        _, errors = first.communicate(timeout=60)
        assert first.returncode == 2 and re.fullmatch(ONE_LINE, errors) and "Timed out" in errors, errors
    finally:
        second.kill()
        second.communicate()


@pytest.mark.slow
def test_ranks_that_do_not_meet_say_where(dataset, tmp_path):
    keys = [*TINY, f"--dataset={dataset}", f"--out_dir={tmp_path / 'run'}"]
    own = environments(2)[1] | {"MASTER_PORT": "9"}
    rank = start([sys.executable, ROOT / "tests/hindered.py", "train.py", *keys], **own, RANK_SECONDS="3")
    _, errors = rank.communicate(timeout=60)
    (line,) = [line for line in errors.splitlines() if line.startswith("train.py: ")]
    assert rank.returncode == 2 and "rank 1 of 2 cannot meet the others at 127.0.0.1:9 (" in line, errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_ranks_that_would_wait_for_those_that_are_gone_are_refused(dataset, tmp_path):
    """The environment is what torchrun gives to ranks that it starts again with its own store."""
    keys = [*TINY, f"--dataset={dataset}", f"--out_dir={tmp_path / 'run'}"]
    again = {"TORCHELASTIC_RESTART_COUNT": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    (rank, other) = start_ranks(2, *keys, **again)
    for process in (rank, other):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 2 and errors.count("\n") == 1, errors
        assert "train.py: torchrun has started this rank again" in errors
        assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in errors


def rank_of(pid: int) -> str:
    """The rank that torchrun has given to a process, "" for one that is none."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return "".join(text.removeprefix("RANK=") for text in variables if text.startswith("RANK="))


@pytest.mark.slow
@pytest.mark.parametrize("restarts", [0, pytest.param(1, marks=LONG)])
def test_a_rank_of_torchrun_is_killed_and_the_same_command_goes_on(restarts, dataset, tmp_path):
    """By hand, or by torchrun itself; what is lost is less than save_interval, and in the end nothing is."""
    out = tmp_path / "run"
    keys = [*TINY, f"--dataset={dataset}", f"--out_dir={out}", "--max_steps=40", "--save_interval=5"]
    keys += ["--init_from=auto", "--dropout=0.1", "--keep_best=False", "--batch_size=2"]
    run_script("train.py", *keys, ranks=2)
    undisturbed = out.rename(tmp_path / "undisturbed")

    launcher = [*TORCHRUN, "--nproc_per_node=2", f"--max-restarts={restarts}"]
    # without it the ranks that torchrun starts again find the addresses of those that are gone, and wait for them
    own_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    run = start([*launcher, ROOT / "tests/hindered.py", "train.py", *keys], MICRO_STEP_SECONDS="0.1", **own_store)
    wait_for_steps(out, 8, run)
    (victim,) = [pid for pid in descendants(run.pid) if rank_of(pid) == "1"]
    os.kill(victim, signal.SIGKILL)
    output, errors = run.communicate(timeout=300)
    assert "[rank" not in errors and re.search(ONE_LINE, errors), errors
    if not restarts:
        assert run.returncode
        steps_done = max(read_log(out, "train")) + 1
        newest = int(checkpoints(out)[-1].name.removeprefix("step_"))
        assert steps_done - 5 <= newest <= steps_done < 40
        output = run_script("train.py", *keys, ranks=2).stdout
    assert "resume " in output
    assert differences(undisturbed, out) == []
