"""The engine of a study: runs of train.py and distill.py, a few at a time, each on one core.

A study names the rows of its table. The engine tries learning rates and epochs for some of them,
trains every row with every seed, and scores each run on the whole dev split and on BLiMP. What is
finished is not run again: stopped at any instant, the same command continues the study.
"""

import dataclasses
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from itertools import chain, product
from pathlib import Path

from common.checkpoint import load_trainer_state
from common.files import by_step, read_json, write_json
from configurator import read_config_file


@dataclass(frozen=True)
class Row:
    """A row of the table: a script, its config, and what is changed in it.

    tuned_as: the row whose trials choose its learning rate and epochs.
    teachers: the rows whose runs of the same seed teach it.
    """

    title: str
    script: str
    config: str
    tuned_as: str
    overrides: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    epochs_factor: float = 1.0


@dataclass(frozen=True)
class Trained:
    """One run: a row, a seed, and the learning rate and epochs it is given."""

    row: str
    seed: int
    rate: float
    epochs: float

    @property
    def name(self) -> str:
        """The name of its folder and of its log."""
        return f"{self.row}_seed{self.seed}_lr{self.rate:g}_epochs{self.epochs:g}"


class Study:
    """The runs of a study, `jobs` at a time, each in a folder of out_dir.

    rows: {name: Row}. trial_rates: {row: the learning rates to try}. trial_epochs: the epochs to
    try with each of them. data: the folder of the prepared data set. blimp_limit: as --limit of
    evaluate.py.
    Raises OSError while another study, or a run it left behind, uses the data.
    """

    def __init__(
        self,
        *,
        rows: dict[str, Row],
        trial_rates: dict[str, tuple],
        trial_epochs: tuple,
        data: Path,
        out_dir: str,
        eval_dir: str,
        blimp_limit: int,
        jobs: int,
    ):
        self.rows = rows
        self.trial_rates = trial_rates
        self.trial_epochs = trial_epochs
        self.data = data
        self.out = Path(out_dir)
        self.eval_dir = eval_dir
        self.blimp_limit = blimp_limit
        self.jobs = jobs

        # a study that continues finds them again, from the files of its trials
        self.chosen = {}  # {row: its trial with the lowest dev loss}
        self.children = set()  # the processes at work
        self.stopping = False
        self.lock = threading.Lock()  # of the two above, and of the clock's file

        self.data_lock = lock_data(data)
        self.clock = self.out / "seconds.json"
        self.started = time.perf_counter()
        self.seconds_before = 0.0
        if self.clock.exists():
            self.seconds_before = read_json(self.clock)["seconds"]

    # -----------------------------------------------------------------------------------------
    # which runs

    def choose(self, rows: list[str], seed: int, others: list[Trained] = ()) -> dict:
        """Try each of the rows with one seed and choose its settings; run the `others` beside.

        Returns {row: its trials}.
        """
        trials = {row: self.trials(row, seed) for row in rows}
        # in one call with the others, so that no core waits for the last trial
        self.run([*chain(*trials.values()), *others], blimp=False)
        for row, runs in trials.items():
            self.chosen[row] = min(runs, key=self.dev_loss)
        return trials

    def trials(self, row: str, seed: int) -> list[Trained]:
        """A run for each pair of learning rate and epochs."""
        # all pairs, as the best learning rate depends on the number of epochs
        settings = product(self.trial_rates[row], self.trial_epochs)
        return [Trained(row, seed, rate, epochs) for rate, epochs in settings]

    def settled(self, row: str, seed: int) -> Trained:
        """The run of a row with the chosen learning rate and epochs."""
        # tuning takes several runs a row, so that a variant has the settings of the row it varies
        chosen = self.chosen[self.rows[row].tuned_as]
        return Trained(row, seed, chosen.rate, chosen.epochs * self.rows[row].epochs_factor)

    # -----------------------------------------------------------------------------------------
    # running them

    def run(self, runs: list[Trained], blimp: bool):
        """Train and score the runs that are not there yet."""
        self.do([partial(self.run_one, run, blimp) for run in runs])

    def do(self, tasks: list[Callable]):
        """Call the tasks, `jobs` at a time.

        One that fails stops the others, which save first; its error is raised.
        """
        # threads, as each only waits for a process
        with ThreadPoolExecutor(self.jobs) as pool:
            waiting = [pool.submit(task) for task in tasks]
            try:
                for future in as_completed(waiting):
                    future.result()
            # Ctrl-C too: no run may outlive its study
            except BaseException:
                with self.lock:
                    self.stopping = True
                for child in list(self.children):
                    child.terminate()
                raise

    def run_one(self, run: Trained, blimp: bool):
        """Train, then score; each step is skipped where its result is there."""
        folder = self.out / run.name
        started = time.perf_counter()
        self.train(run, folder)
        self.score_dev(folder)
        # trials are chosen by the dev loss alone
        if blimp:
            self.score_blimp(folder)
        self.say(f"{run.name}: dev {self.dev_loss(run):.4f} nats/token", started)

    def say(self, done: str, started: float):
        """A line on what is done, with the seconds that it took."""
        with self.lock:
            # the clock is kept on disk, so that the time of a stopped study counts as well
            write_json(self.clock, {"seconds": self.seconds()})
            print(f"{done}, {time.perf_counter() - started:.0f} s", flush=True)

    def train(self, run: Trained, folder: Path):
        """Start or resume a run, unless it is finished."""
        # before anything is skipped: a finished run of other settings must not enter the table
        command = self.command(run, folder)
        checkpoints = by_step(folder)
        self.check_same(folder, checkpoints, command)
        if (folder / "summary.json").exists():
            return
        if checkpoints:
            command = [*command, "--init_from=resume"]
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self.call(command, folder / "output.txt")
        # so that a config that was refused leaves nothing that looks like a run
        finally:
            remove_if_empty(folder)

    def command(self, run: Trained, folder: Path) -> list[str]:
        """The script and its arguments."""
        row = self.rows[run.row]
        arguments = [
            f"--out_dir={folder}",
            f"--seed={run.seed}",
            f"--learning_rate={run.rate}",
            f"--epochs={run.epochs}",
        ]
        if row.teachers:
            arguments.append(f"--teacher={self.teacher(run)}")
        return [row.script, row.config, *arguments, *row.overrides]

    def teacher(self, run: Trained) -> str:
        """The knob `teacher` of a run."""
        # a seed has its own teachers, of the learning rate and epochs chosen on the first seed
        folders = []
        for name in self.rows[run.row].teachers:
            teacher = dataclasses.replace(self.chosen[name], seed=run.seed)
            folders.append(str(self.out / teacher.name))
        return ",".join(folders)

    def check_same(self, folder: Path, checkpoints: list[Path], command: list[str]):
        """ValueError if a run, finished or begun, has other settings than its command.

        So it is after a change of the study or of a config.
        """
        if (folder / "summary.json").exists():
            stored = read_json(folder / "summary.json")["config"]
        elif checkpoints:
            stored = load_trainer_state(checkpoints[-1])["config"]
        else:
            return
        # the config as the run's script would read it, and the arguments, which come after it
        _, config, *arguments = command
        wanted = read_config_file(config)
        wanted |= dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
        for key, value in wanted.items():
            # a config may say 6 where the run stores 6.0
            if str(stored.get(key)) not in (str(value), f"{value}.0"):
                raise ValueError(
                    f"{folder} is of a run with {key}={stored.get(key)!r}, not {value}; "
                    "delete it, or choose another --out_dir"
                )

    def score_dev(self, folder: Path):
        """The loss on all rows of the dev split, and of each domain."""
        if (folder / "dev/summary.json").exists():
            return
        # no step, only the evaluation that ends a run, of all rows (eval_rows=0)
        arguments = [
            f"--init_from={folder}",
            f"--out_dir={folder}/dev",
            f"--dataset={self.data}",
            "--max_steps=0",
            "--block_size=128",
            "--eval_rows=0",
            "--batch_size=32",
        ]
        self.call(["train.py", *arguments])

    def score_blimp(self, folder: Path):
        # another limit scores other pairs
        scores = folder / "blimp.json"
        if scores.exists() and read_json(scores)["limit"] == self.blimp_limit:
            return
        arguments = [
            f"--model={folder}",
            "--tasks=blimp",
            f"--data_dir={self.eval_dir}",
            f"--limit={self.blimp_limit}",
            "--json=true",
        ]
        # written aside and renamed, so that a kill leaves no half of it under the final name
        aside = scores.with_suffix(".writing")
        self.call(["evaluate.py", *arguments], aside)
        aside.rename(scores)

    def call(self, command: list[str], log: str | Path = os.devnull):
        """Run a script on one core, its output in a file.

        Raises ValueError with the last line of its stderr unless it exits with 0.
        """
        with open(log, "w") as output, self.lock:
            # a run that waited for its turn must not start once the study stops
            if self.stopping:
                raise ValueError("stopped")
            process = subprocess.Popen(
                [sys.executable, *command],
                stdout=output,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                # the script inherits the lock, and so holds it should this process be killed
                pass_fds=[self.data_lock.fileno()],
                # Ctrl-C reaches the study alone, which then stops its runs
                start_new_session=True,
            )
            self.children.add(process)
        _, errors = process.communicate()
        self.children.discard(process)
        # the scripts say in their last line what is wrong
        if process.returncode:
            lines = errors.strip().splitlines() or [f"exit code {process.returncode}"]
            raise ValueError(f"{' '.join(command)}: {lines[-1]}")

    # -----------------------------------------------------------------------------------------
    # what came of them

    def dev_loss(self, run: Trained) -> float:
        """In nats per token of the whole dev split."""
        return read_json(self.out / run.name / "dev/summary.json")["val"]

    def seconds(self) -> float:
        """What the study has taken, this time and the times before."""
        return self.seconds_before + time.perf_counter() - self.started


def lock_data(data: Path):
    """The open file whose lock says that the data set is in use.

    A lock of the kernel, which goes with the last process that holds it, however that ends.
    """
    data.parent.mkdir(parents=True, exist_ok=True)
    file = open(f"{data}.lock", "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = "another study, or by a run it left behind"
        raise OSError(f"{data} is in use by {holder}; wait for it") from None
    return file


def remove_if_empty(folder: Path):
    """Delete the folder of a run that failed before it wrote anything."""
    output = folder / "output.txt"
    if list(folder.iterdir()) == [output] and output.stat().st_size == 0:
        output.unlink()
        folder.rmdir()
