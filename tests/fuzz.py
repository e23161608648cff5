"""Spoil what this project reads, and see that each script would still end in one line.

    python tests/fuzz.py --seconds=600 --seed=1
    python tests/fuzz.py --kinds=checkpoint,http --seconds=60
    python tests/fuzz.py --examples=1200              # of each kind, however long that takes

An input is a set of valid files or answers (tests/fuzz_kinds.py), one to three of which were spoiled
(tests/fuzz_spoil.py): bytes flipped, cut or doubled, values of other types, sizes and signs put in. It is read by the
functions that the scripts read it with.
What must hold:

- it is read, or refused with an error that common/one_line.py turns into one line and exit code 2: no traceback
- within 10 s of the processor and 2 GB
- nothing is written but below the folder that is named for output

Each batch of inputs runs in a process of its own, as a hang or a crash of a library can be seen only from outside. A
finding is shrunk by hypothesis, and its files are kept. The exit code is 1 if there was one.
"""

import argparse
import collections
import contextlib
import io
import itertools
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # nobody listens there: no input reaches the network

import hypothesis
import torch._dynamo  # noqa: F401  (which the optimisers load, and which takes seconds: before the processes part)
from fuzz_kinds import KINDS, Material
from hypothesis import strategies as st

from common.files import resident
from common.one_line import SHOWN, one_line

SECONDS = 10  # of the processor that an input may take
PATIENCE = 120  # seconds by the clock, in which it may wait for others: on a machine that is busy those 10 take longer
MEMORY = 2 << 30  # bytes that it may take
BATCH = 200  # inputs of a process
# Events of Python's audit hooks that change files, with the places of the paths among their arguments.
CHANGES = {
    "os.mkdir": [0], "os.rename": [0, 1], "os.remove": [0], "os.rmdir": [0], "os.link": [1], "os.symlink": [1],
    "os.truncate": [0], "os.chmod": [0], "os.utime": [0], "shutil.rmtree": [0], "shutil.copyfile": [1],
}  # fmt: skip


class Finding(AssertionError):
    """An input that did not end as it must."""


# ---------------------------------------------------------------------------------------------
# one input


class Watch:
    """What is written while an input is read, by Python's audit events; `allowed`: the only folder for it."""

    def __init__(self, allowed: Path):
        self.allowed = allowed.resolve()
        self.is_on = False
        self.elsewhere = []  # (event, path)
        sys.addaudithook(self.hear)

    def hear(self, event: str, args: tuple):
        if not self.is_on:
            return
        if event == "open":
            path, _, flags = args
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            paths = [path] if writes else []
        else:
            paths = [args[place] for place in CHANGES.get(event, [])]
        for path in paths:
            # a number is a descriptor, opened before
            if isinstance(path, (str, bytes, os.PathLike)) and not self.is_allowed(os.fsdecode(path)):
                self.elsewhere.append((event, os.fsdecode(path)))

    def is_allowed(self, path: str) -> bool:
        return path == os.devnull or Path(os.path.abspath(path)).is_relative_to(self.allowed)


def read_input(read, folder: Path, out: Path, watch: Watch) -> str:
    """ "read" or "refused", as a script would end. Raises Finding for any other end."""
    stderr = io.StringIO()
    watch.elsewhere.clear()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(PATIENCE)
    outcome = "read"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(stderr), one_line_to(stderr):
        try:
            watch.is_on = True
            read(folder, out)
        except Exception as error:
            watch.is_on = False
            outcome = end_of(error, stderr)
        finally:
            watch.is_on = False
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(0)
    if watch.elsewhere:
        raise Finding(f"written outside of the folder for output: {watch.elsewhere[:3]}")
    return outcome


@contextlib.contextmanager
def one_line_to(stream):
    """common.one_line writes to the stream."""
    before = sys.__stderr__
    sys.__stderr__ = stream
    try:
        yield
    finally:
        sys.__stderr__ = before


def end_of(error: Exception, stderr: io.StringIO) -> str:
    """How a script ends that raises this error. Finding unless that is one line and exit code 2."""
    said_before = stderr.tell()
    try:
        one_line(type(error), error, error.__traceback__)
    except SystemExit as end:
        lines = stderr.getvalue()[said_before:].splitlines()
        if end.code == 2 and len(lines) == 1 and len(lines[0]) <= 2 * SHOWN + 100:
            return "refused"
        raise Finding(f"not one line and exit code 2: {end.code}, {str(lines)[:300]}") from error
    raise Finding(f"a traceback, of {type(error).__name__}: {str(error)[:200]}") from error


# ---------------------------------------------------------------------------------------------
# a batch, in a process of its own


def examine(kind: str, material: Material, number: int, examples: int, scratch: Path) -> dict:
    """Read `examples` spoiled inputs of a kind. {"counts": {outcome: n}, "finding": text or ""}; runs in a child."""
    folder = scratch / "input"
    watch = Watch(scratch / "out")
    counts = collections.Counter()
    spoil = KINDS[kind].spoil
    uses = KINDS[kind].uses()

    def begin():
        for leftover in (folder, scratch / "out"):
            shutil.rmtree(leftover, ignore_errors=True)
            leftover.mkdir()

    # the valid input first, by each use: what refuses that would refuse anything
    for read in uses:
        begin()
        KINDS[kind].write(material.files(kind), folder)
        with contextlib.redirect_stdout(io.StringIO()):
            read(folder, scratch / "out")

    def check(data):
        begin()
        spoil(data.draw, material.files(kind), folder)
        read = data.draw(st.sampled_from(uses))
        outcome = read_input(read, folder, scratch / "out", watch)
        counts[outcome] += 1

    phases = [hypothesis.Phase.generate]
    if KINDS[kind].is_fast:
        phases.append(hypothesis.Phase.shrink)
    test = hypothesis.given(st.data())(check)
    test = hypothesis.seed(number)(test)
    test = hypothesis.settings(
        max_examples=examples, deadline=None, database=None, print_blob=False, report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck), phases=phases,
    )(test)  # fmt: skip
    warnings.simplefilter("ignore")
    try:
        test()
    except Finding as finding:
        return {"counts": counts, "finding": describe(finding)}
    return {"counts": counts, "finding": ""}


def describe(finding: Finding) -> str:
    """The finding, and where in the project it came from."""
    lines = [str(finding)]
    trace = finding.__cause__.__traceback__ if finding.__cause__ else None
    root = Path(__file__).resolve().parents[1]
    while trace:
        path = Path(trace.tb_frame.f_code.co_filename).resolve()
        if path.is_relative_to(root) and ".venv" not in path.parts and path.parent.name != "tests":
            lines.append(f"  {path.relative_to(root)}:{trace.tb_lineno}")
        trace = trace.tb_next
    return "\n".join(lines)


def limit_memory():
    """2 GB more than what this process has mapped already, most of which is torch."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))


def run_batch(kind: str, material: Material, number: int, examples: int, scratch: Path) -> dict:
    """`examine` in a child process; one that dies is a finding too."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    reader, writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        code = 1
        try:
            limit_memory()
            result = examine(kind, material, number, examples, scratch)
            os.write(writer, json.dumps(result).encode())
            code = 0
        except BaseException:
            # of this program itself
            traceback.print_exc()
        finally:
            # not sys.exit(): what the parent registered for its exit is the parent's
            os._exit(code)
    os.close(writer)
    with open(reader, "rb") as file:
        text = file.read()
    _, status = os.waitpid(child, 0)
    if text:
        result = json.loads(text)
    else:
        cause = f"ended with {os.waitstatus_to_exitcode(status)}"
        if os.WIFSIGNALED(status):
            cause = f"was killed by {signal.Signals(os.WTERMSIG(status)).name}"
        result = {"counts": {}, "finding": f"the process {cause} (SIGPROF, SIGALRM: it took too long)"}
    if not result["finding"]:
        shutil.rmtree(scratch)
    return result


# ---------------------------------------------------------------------------------------------
# all of them


def fuzz(kinds: list[str], seed: int, seconds: float, examples: int, folder: Path) -> int:
    """Batches of each kind in turn, until time or examples are used up. Prints what came of them; returns findings."""
    started = time.monotonic()
    material = Material(folder / "material")
    counts = {kind: collections.Counter() for kind in kinds}
    findings = []  # (kind, text)
    for turn, kind in batches(kinds, examples):
        if seconds and time.monotonic() - started > seconds:
            break
        scratch = folder / f"{kind}_{turn}"
        number = (seed * 1_000_003 + turn) * len(KINDS) + list(KINDS).index(kind)
        n = min(BATCH, examples - turn * BATCH) if examples else BATCH
        result = run_batch(kind, material, number, n, scratch)
        counts[kind].update(result["counts"])
        finding = (kind, result["finding"])
        if result["finding"] and finding not in findings:
            findings.append(finding)
            print(f"{kind}: {result['finding']}\n  files: {scratch}", flush=True)
    report(counts, findings)
    return len(findings)


def batches(kinds: list[str], examples: int):
    """(turn, kind) of each batch: a batch of each kind in turn."""
    turns = range(ceil_div(examples, BATCH)) if examples else itertools.count()
    for turn in turns:
        for kind in kinds:
            yield turn, kind


def ceil_div(a: int, b: int) -> int:
    return (a + b - 1) // b


def report(counts: dict, findings: dict):
    print(f"{'kind':<14} {'inputs':>7} {'read':>7} {'refused':>8}")
    for kind, count in counts.items():
        print(f"{kind:<14} {count.total():>7,} {count['read']:>7,} {count['refused']:>8,}")
    total = sum(count.total() for count in counts.values())
    print(f"{'all':<14} {total:>7,}, {len(findings)} findings, peak memory {resident(peak=True) / 1e6:,.0f} MB")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", default=",".join(KINDS), help="with commas between")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0, help="0: no limit")
    parser.add_argument("--examples", type=int, default=0, help="of each kind; 0: no limit")
    parser.add_argument("--folder", default="", help="where files of findings are kept; '': a temporary one")
    given = parser.parse_args()
    kinds = [kind.strip() for kind in given.kinds.split(",")]
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not (given.seconds or given.examples):
        parser.error(f"expected some of {', '.join(KINDS)}, and --seconds or --examples")
    folder = Path(given.folder or tempfile.mkdtemp(prefix="nanodistill_fuzz_"))
    n_findings = fuzz(kinds, given.seed, given.seconds, given.examples, folder)
    if not n_findings and not given.folder:
        shutil.rmtree(folder)
    sys.exit(1 if n_findings else 0)


if __name__ == "__main__":
    main()
