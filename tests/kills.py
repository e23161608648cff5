"""Kill -9 at random moments, start again by the same command, and compare with what nobody disturbed, bit for bit.

    python tests/kills.py --kills=60 --seed=1

The work is of seven kinds: train.py, distill.py, distill.py on the student's own text, distill.py from a cache,
cache_teacher.py, prepare_data.py and a small study (tests/small_study.py). Each is done undisturbed. Then it begins
anew, is killed one to four times, at any moment or while it saves, is started again by the same command each time, and
at last left alone. Weights, the optimiser's state, log.txt, token files, caches and records must be the same; what is a
time, and how a run was started, is left out of the comparison. The seed decides what is done to whom; the moment itself
depends on the machine.

A line for each kill and each comparison, then the count. Exit code 1 if anything differs. Linux only.
"""

import argparse
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from conftest import ROOT, TINY, write_dataset

SHARE_OF_SAVES = 0.6  # of the kills, that wait until something is being saved
MOST_CHANGES = 12  # of what is being saved, that such a kill lets pass
MOST_KILLS = 4  # in a row, before the work is left to end
SECONDS = 900  # that a process may take
# What is being written or removed under another name, and the files that say how far the work is.
ASIDE = (".writing", ".removing")
RECORDS = ("done.bin", "state.json", "meta.json", "cache.json", "unfinished.json", "summary.json")
# Locks, times, and what was printed, with its speeds.
FILES_LEFT_OUT = (".lock", ".preparing.lock", "wall.json", "seconds.json", "output.txt")
# Times; and a run that was started again was started from something else.
KEYS_LEFT_OUT = ("seconds", "wall", "init_from")


# ---------------------------------------------------------------------------------------------
# processes


class Starter:
    """Starts scripts, one at a time, in processes forked from one that has imported torch (tests/warm.py)."""

    def __init__(self, folder: Path):
        self.errors = folder / "stderr.txt"
        self.output = folder / "stdout.txt"
        # bufsize: select() sees no line that lies in a buffer
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
        self.server = subprocess.Popen([sys.executable, str(Path(__file__).with_name("warm.py"))], **pipes)

    def start(self, command: list[str]) -> int:
        """The id of a new process."""
        self.errors.write_text("")
        self.output.write_text("")
        job = {"script": command[0], "args": command[1:], "cwd": str(ROOT), "environments": [dict(os.environ)]}
        job |= {"stdout": str(self.output), "stderr": str(self.errors)}
        self.server.stdin.write(json.dumps(job).encode() + b"\n")
        (pid,) = json.loads(self.server.stdout.readline())
        return pid

    def has_ended(self, seconds=0.0) -> bool:
        """Whether the process ends within so many seconds."""
        ready, _, _ = select.select([self.server.stdout], [], [], seconds)
        return bool(ready)

    def wait(self) -> int:
        """The exit code of the process that was started, -9 of one that was killed."""
        if not self.has_ended(SECONDS):
            raise TimeoutError(f"a process takes more than {SECONDS} s")
        return int(self.server.stdout.readline())

    def finish(self, command: list[str]):
        """Run a command to its end. RuntimeError with the last line of its stderr where that is a failure."""
        started = time.perf_counter()
        while True:
            self.start(command)
            code = self.wait()
            if code == 0:
                return
            # a study that was killed alone has left a run behind, which ends by itself
            if not self.is_waiting() or time.perf_counter() - started > SECONDS:
                lines = self.errors.read_text().splitlines() or ["nothing on stderr"]
                raise RuntimeError(f"{' '.join(command)}: exit code {code}: {lines[-1]}")
            time.sleep(0.5)

    def is_waiting(self) -> bool:
        """Whether the process has ended because another still uses its data."""
        return "or by a run it left behind; wait for it" in self.errors.read_text()


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    found = []
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    for child in map(int, children):
        found += [child, *descendants(child)]
    return found


def kill(pid: int):
    """kill -9, of a process that may have ended."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


# ---------------------------------------------------------------------------------------------
# the work


@dataclass
class Job:
    """A kind of work: its command, the folder that it fills, and how long it takes if nobody disturbs it."""

    name: str
    command: list[str]
    out: Path
    seconds: float = 0.0

    @property
    def undisturbed(self) -> Path:
        return self.out.with_name(f"{self.out.name}_undisturbed")


def make_jobs(work: Path, starter: Starter) -> list[Job]:
    """All kinds of work, with the data and models that they need."""
    data = f"--dataset={write_dataset(work / 'data')}"
    teacher = f"--teacher={work / 'teacher'}"
    cache = ["--block_size=16", "--eval_rows=8", "--device=cpu", "--top_k=4", "--draws=2", teacher]
    loop = [*TINY, "--dropout=0.1", "--eval_interval=7", "--save_interval=3", "--max_steps=40", "--init_from=auto"]
    distil = [data, teacher, *loop, "--weight_cos=0.5"]
    own = [data, teacher, *loop, "--on_policy=0.5", "--grad_accum_steps=2", "--prompt_tokens=4", "--response_tokens=8"]
    cached = [data, f"--teacher={work / 'cache'}", *loop, "--random_offset=False", "--tail=draws"]

    starter.finish(
        [str(ROOT / "train.py"), *TINY, "--arch=gpt", data, "--max_steps=12", f"--out_dir={work / 'teacher'}"]
    )
    starter.finish([str(ROOT / "cache_teacher.py"), *cache, data, f"--out_dir={work / 'cache'}"])
    # so large that writing takes several times as long as what is lost between two flushes
    more = [f"--dataset={write_dataset(work / 'much', tokens=40_000)}", "--batch_size=1"]
    # of which the progress is recorded four times
    (work / "text.txt").write_text(words(2_500_000))
    text = [f"--source={work / 'text.txt'}", "--vocab_size=400", "--shard_tokens=2_000_000"]
    (work / "study").mkdir()
    write_dataset(work / "study/data")

    jobs = []
    for name, script, arguments in (
        ("train", "train.py", [data, *loop, "--optimizer=muon"]),
        ("distill", "distill.py", distil),
        ("distill, own text", "distill.py", own),
        ("distill from a cache", "distill.py", cached),
        ("cache_teacher", "cache_teacher.py", [*cache, *more]),
        ("prepare_data", "prepare_data.py", text),
    ):
        # the same folder each time, as its path is stored
        out = work / name.replace(", ", "_").replace(" ", "_") / "out"
        jobs.append(Job(name, [str(ROOT / script), *arguments, f"--out_dir={out}"], out))
    jobs.append(Job("study", [str(ROOT / "tests/small_study.py"), str(work / "study")], work / "study/out"))
    return jobs


def words(n: int) -> str:
    """A text of n words out of 500."""
    rng = np.random.default_rng(0)
    vocabulary = ["".join(map(chr, rng.integers(97, 123, size=5))) for _ in range(500)]
    chosen = [vocabulary[i] for i in rng.integers(500, size=n)]
    return "\n".join(" ".join(chosen[i : i + 10]) for i in range(0, n, 10)) + "\n"


# ---------------------------------------------------------------------------------------------
# kill and start again


def being_saved(folder: Path) -> set:
    """What a save changes, with the times of its last change."""
    found = set()
    try:
        for path in folder.rglob("*"):
            if path.name.endswith(ASIDE) or path.name in RECORDS:
                found.add((path, path.stat().st_mtime_ns))
    except FileNotFoundError:
        # it was renamed while we looked, which is a change as well
        found.add((folder, time.time_ns()))
    return found


def wait_for_the_moment(job: Job, starter: Starter, rng: random.Random) -> str:
    """Wait until the process is to be killed; says when that is, or "" if the process ended before."""
    if rng.random() > SHARE_OF_SAVES:
        seconds = rng.uniform(0, job.seconds)
        return "" if starter.has_ended(seconds) else f"after {seconds:.2f} s"
    changes = rng.randint(1, MOST_CHANGES)
    before = being_saved(job.out)
    for _ in range(changes):
        while (now := being_saved(job.out)) == before:
            if starter.has_ended():
                return ""
        before = now
    time.sleep(rng.uniform(0, 0.003))
    names = sorted({path.name for path, _ in before if path.name.endswith(ASIDE)})
    return f"in change {changes} of a save" + (f" ({', '.join(names)})" if names else "")


def kill_once(job: Job, starter: Starter, rng: random.Random) -> str:
    """Start the job and kill it; says how, or "" if the process ended before."""
    pid = starter.start(job.command)
    moment = wait_for_the_moment(job, starter, rng)
    if not moment:
        return ""
    # as in a power cut; alone, a study leaves the run behind that it was at
    children = descendants(pid)
    with_children = rng.random() < 0.7
    kill(pid)
    if with_children:
        for child in children:
            kill(child)
    if children:
        moment += " with what it started" if with_children else " alone"
    # it may have ended in between
    return moment if starter.wait() == -signal.SIGKILL else "-"


def disturb(job: Job, starter: Starter, rng: random.Random, most: int) -> int:
    """Do the job anew with kills, at most so many, then let it end. Returns how many there were."""
    shutil.rmtree(job.out, ignore_errors=True)
    wanted = min(most, rng.randint(1, MOST_KILLS))
    n_kills = 0
    while n_kills < wanted:
        moment = kill_once(job, starter, rng)
        if not moment:
            # read the exit code that is there
            code = starter.wait()
            if starter.is_waiting():
                time.sleep(0.5)
                continue
            if code:
                raise RuntimeError(f"{job.name}: exit code {code}: {starter.errors.read_text()}")
        if moment in ("", "-"):
            break
        n_kills += 1
        print(f"{job.name}: kill -9 {moment}", flush=True)
    starter.finish(job.command)
    return n_kills


# ---------------------------------------------------------------------------------------------
# compare


def differences(expected: Path, found: Path) -> list[str]:
    """The files in which two folders differ, or which one of them lacks."""
    names = []
    for folder in (expected, found):
        files = [path for path in folder.rglob("*") if path.is_file() and path.name not in FILES_LEFT_OUT]
        names.append({path.relative_to(folder).as_posix() for path in files})
    different = [f"{name} is missing" for name in sorted(names[0] - names[1])]
    different += [f"{name} is left over" for name in sorted(names[1] - names[0])]
    for name in sorted(names[0] & names[1]):
        if content(expected / name) != content(found / name):
            different.append(f"{name} differs")
    return different


def content(path: Path):
    """What is compared of a file."""
    if path.name == "trainer.pt":
        return compared(torch.load(path, weights_only=True))
    if path.suffix == ".json":
        return compared(json.loads(path.read_text()))
    return path.read_bytes()


def compared(value):
    """A value without what is left out, and with the bits of its tensors."""
    if isinstance(value, dict):
        return {key: compared(part) for key, part in value.items() if key not in KEYS_LEFT_OUT}
    if isinstance(value, (list, tuple)):
        return [compared(part) for part in value]
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    # a NaN is not equal to itself
    return repr(value)


# ---------------------------------------------------------------------------------------------


def run(kills: int, seed: int, work: Path, only="") -> tuple[int, int]:
    """So many kills, spread over all kinds of work or those whose name begins with `only`: (kills, differences)."""
    starter = Starter(work)
    rng = random.Random(seed)
    n_kills = 0
    n_differences = 0
    jobs = [job for job in make_jobs(work, starter) if job.name.startswith(only)]
    for number, job in enumerate(jobs):
        # 60 of 7 kinds: 9 of four of them, 8 of the others
        share = kills // len(jobs) + (number < kills % len(jobs))
        started = time.perf_counter()
        starter.finish(job.command)
        job.seconds = time.perf_counter() - started
        job.out.rename(job.undisturbed)
        remaining = share
        while remaining > 0:
            killed = disturb(job, starter, rng, remaining)
            remaining -= killed
            n_kills += killed
            found = differences(job.undisturbed, job.out)
            n_differences += len(found)
            for difference in found:
                print(f"{job.name}: {difference}", flush=True)
            print(f"{job.name}: ended after {killed} kills, {'DIFFERENT' if found else 'the same bits'}", flush=True)
    starter.server.stdin.close()
    starter.server.wait()
    print(f"{n_kills} kills -9 over {len(jobs)} kinds of work, seed {seed}: {n_differences} differences")
    return n_kills, n_differences


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="the kinds of work whose name begins so")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _, n_differences = run(arguments.kills, arguments.seed, Path(folder), arguments.only)
    sys.exit(1 if n_differences else 0)
