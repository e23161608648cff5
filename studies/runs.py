"""The runs of a study: those of train.py and distill.py, a few at a time, each on one core.

A study names the rows of its table. The engine tries learning rates and epochs for some of them,
trains every row with every seed, and scores each run. What is finished is not run again: stopped at
any instant, the same command continues the study. `publish` stores all that a page is made from.
"""

import fcntl
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from itertools import chain, product
from pathlib import Path

from common.checkpoint import load_trainer_state
from common.files import by_step, file_sha256, read_json, write_json
from configurator import read_config_file
from studies.rows import Cache, Row, Score, Trained

# in the folder of a run: what the runs were that it learns or starts from
SOURCES = "sources.json"


class Study:
    """The runs of a study, `jobs` at a time, each in a folder of out_dir.

    rows: {name: Row}. caches: {name: Cache}. splits: {name: a data set, on whose held-out split every run is scored};
    trials are chosen by "dev". scores: further scores. trial_rates: {row: the learning rates to try}. trial_epochs:
    the epochs to try with each of them. data: the folder of the prepared data set.
    Raises OSError while another study, or a run that one has left behind, uses the data.
    """

    def __init__(
        self,
        *,
        rows: dict[str, Row],
        data: Path,
        out_dir: str,
        jobs: int,
        caches: dict[str, Cache] | None = None,
        splits: dict[str, Path] | None = None,
        scores: tuple[Score, ...] = (),
        trial_rates: dict[str, tuple] | None = None,
        trial_epochs: tuple = (),
    ):
        self.rows = rows
        self.data = data
        self.out = Path(out_dir)
        self.jobs = jobs
        self.caches = caches or {}
        self.splits = splits or {"dev": data}
        self.scores = scores
        self.trial_rates = trial_rates or {}
        self.trial_epochs = trial_epochs

        # {row: its trial with the lowest dev loss}; a study that continues chooses again, from its trials' files
        self.chosen = {}
        self.children = set()  # the running processes
        self.stopping = False
        self.lock = threading.Lock()  # for the two above, and for the clock's file

        self.data_lock = lock_data(data)
        self.clock = self.out / "seconds.json"
        self.started = time.perf_counter()
        self.seconds_before = 0.0
        if self.clock.exists():
            self.seconds_before = read_json(self.clock)["seconds"]

    # -----------------------------------------------------------------------------------------
    # which runs

    def choose(self, rows: list[str], seed: int, others: list[Trained] = ()) -> dict:
        """Try each of the rows with one seed and choose its settings; `others` are run at the same time.

        Returns {row: its trials}.
        """
        trials = {row: self.trials(row, seed) for row in rows}
        # in one call with the others, so that no core waits for the last trial
        self.run([*chain(*trials.values()), *others], scored=False)
        for row, runs in trials.items():
            # a NaN would be the smallest or the largest, whichever comes first
            finite = [run for run in runs if math.isfinite(self.dev_loss(run))]
            if not finite:
                raise ValueError(f"{row}: no trial has a finite dev loss")
            self.chosen[row] = min(finite, key=self.dev_loss)
        return trials

    def trials(self, row: str, seed: int) -> list[Trained]:
        """A run for each pair of learning rate and epochs."""
        # all pairs, as the best learning rate depends on the number of epochs
        settings = product(self.trial_rates[row], self.trial_epochs)
        return [Trained(row, seed, rate, epochs) for rate, epochs in settings]

    def settle(self, settings: dict[str, tuple[float, float]]):
        """Give rows a learning rate and epochs that are not tried: {row: (learning rate, epochs)}."""
        for row, (rate, epochs) in settings.items():
            self.chosen[row] = Trained(row, 0, rate, epochs)

    def settled(self, row: str, seed: int) -> Trained:
        """The run of a row with the chosen learning rate and epochs."""
        # tuning takes several runs for a row, so a variant has the settings of the row that it varies
        chosen = self.chosen[self.rows[row].tuned_as]
        return Trained(row, seed, chosen.rate, chosen.epochs * self.rows[row].epochs_factor)

    # -----------------------------------------------------------------------------------------
    # running them

    def run(self, runs: list[Trained], scored: bool = True):
        """Train the runs that are not finished, and score them: by all scores, or only on the dev split."""
        self.do([partial(self.run_one, run, scored) for run in runs])

    def run_table(self, rows: list[str], seeds: list[int]) -> dict[str, list[Trained]]:
        """Train and score these rows with every seed, teachers and starts before the rows that need them.

        Caches are written as soon as their teachers are trained. Returns {row: its runs}.
        """
        table = {row: [self.settled(row, seed) for seed in seeds] for row in rows}
        waiting = list(rows)
        caches = {self.rows[row].cache for row in rows} - {""}
        unwritten = [name for name in self.caches if name in caches]
        while waiting:
            # each cache once, after the last of its teachers
            ready_caches = [name for name in unwritten if not set(self.caches[name].teachers) & set(waiting)]
            self.write_caches(ready_caches, seeds)
            unwritten = [name for name in unwritten if name not in ready_caches]

            ready = [row for row in waiting if not self.needs(row) & set(waiting)]
            assert ready, f"these rows wait for one another: {waiting}"
            # all rows of one seed before the next: a study that is stopped has complete seeds, and whatever slows the
            # machine down slows all rows alike
            by_seed = zip(*(table[row] for row in ready))
            self.run(list(chain(*by_seed)))
            waiting = [row for row in waiting if row not in ready]
        return table

    def needs(self, row: str) -> set[str]:
        """The rows whose runs this one learns from or starts from."""
        declared = self.rows[row]
        needed = {*declared.teachers, declared.start} - {""}
        if declared.cache:
            needed |= set(self.caches[declared.cache].teachers)
        return needed

    def do(self, tasks: list[Callable]):
        """Call the tasks, `jobs` at a time. If one fails, the others save and stop, and its error is raised."""
        # threads, as each task only waits for a process
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

    def run_one(self, run: Trained, scored: bool):
        """Train, then score; a step whose result exists is skipped."""
        folder = self.out / run.name
        started = time.perf_counter()
        self.train(run, folder)
        self.score_split("dev", folder)
        # trials are chosen by the dev loss alone
        if scored:
            for name in self.splits:
                self.score_split(name, folder)
            for score in self.scores:
                self.write_score(score, run)
        self.say(f"{run.name}: dev {self.dev_loss(run):.4f} nats/token", started)

    def say(self, done: str, started: float):
        """Print what is done, with the seconds that it took."""
        with self.lock:
            # the clock is kept on disk, so that a study that continues counts the time before
            write_json(self.clock, {"seconds": self.seconds()})
            print(f"{done}, {time.perf_counter() - started:.0f} s", flush=True)

    def train(self, run: Trained, folder: Path):
        """Start or resume a run, unless it is finished."""
        command = self.command(run, folder)
        checkpoints = by_step(folder)
        # Start again rather than resume: the record of a resumed run does not say what it started from.
        if self.rows[run.row].start and checkpoints and not (folder / "summary.json").exists():
            shutil.rmtree(folder)
            checkpoints = []
        # before a finished run is skipped: one with other settings must not enter the table
        self.check_same(folder, checkpoints, command)
        sources = self.sources(run)
        check_sources(folder, sources)
        if (folder / "summary.json").exists():
            return
        if checkpoints:
            command = [*command, "--init_from=resume"]
        started = time.perf_counter()
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SOURCES, sources)
        try:
            self.call(command, folder / "output.txt")
        # so that a refused config leaves nothing that looks like a run
        finally:
            remove_if_empty(folder)
        self.note_time(folder, started, is_new)

    def note_time(self, folder: Path, started: float, is_new: bool):
        """Write how long the process took that filled the folder; unknown where it was interrupted."""
        if is_new:
            write_json(folder / "wall.json", {"seconds": time.perf_counter() - started})

    def command(self, run: Trained, folder: Path) -> list[str]:
        """The script and its arguments."""
        row = self.rows[run.row]
        arguments = [f"--out_dir={folder}", f"--seed={run.seed}", f"--learning_rate={run.rate}"]
        if run.epochs:
            arguments.append(f"--epochs={run.epochs}")
        if row.start:
            arguments.append(f"--init_from={self.folder_of(row.start, run.seed)}")
        if row.teachers or row.cache:
            arguments.append(f"--teacher={self.teacher(run)}")
        return [row.script, row.config, *arguments, *row.overrides]

    def folder_of(self, row: str, seed: int) -> Path:
        """The folder of a row's run with the chosen settings."""
        return self.out / self.settled(row, seed).name

    def teacher(self, run: Trained) -> str:
        """The knob `teacher` of a run: its teachers of the same seed, or their cache."""
        row = self.rows[run.row]
        if row.cache:
            return str(self.cache_folder(row.cache, run.seed))
        return ",".join(str(self.folder_of(name, run.seed)) for name in row.teachers)

    def cache_folder(self, name: str, seed: int) -> Path:
        return self.out / "caches" / f"{name}_seed{seed}"

    def write_caches(self, names: list[str], seeds: list[int]):
        """Run cache_teacher.py for these caches, and each seed."""
        self.do([partial(self.write_cache, name, seed) for seed, name in product(seeds, names)])

    def write_cache(self, name: str, seed: int):
        folder = self.cache_folder(name, seed)
        cache = self.caches[name]
        teachers = ",".join(str(self.folder_of(row, seed)) for row in cache.teachers)
        started = time.perf_counter()
        is_new = not folder.exists()
        # cache_teacher.py leaves a finished cache as it is
        arguments = [f"--teacher={teachers}", f"--dataset={self.data}", f"--out_dir={folder}", *cache.arguments]
        self.call(["cache_teacher.py", *arguments])
        self.note_time(folder, started, is_new)
        self.say(folder.name, started)

    def check_same(self, folder: Path, checkpoints: list[Path], command: list[str]):
        """ValueError if a run, finished or not, has other settings than its command, as after a change of a config."""
        if (folder / "summary.json").exists():
            stored = read_json(folder / "summary.json")["config"]
        elif checkpoints:
            stored = load_trainer_state(checkpoints[-1])["config"]
        else:
            return
        # as the run's script reads them: the config, then the arguments, which override it
        _, config, *arguments = command
        wanted = read_config_file(config)
        wanted |= dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
        for key, value in wanted.items():
            # a config may have 6 where the run has stored 6.0
            if str(stored.get(key)) not in (str(value), f"{value}.0"):
                raise ValueError(
                    f"{folder} is of a run with {key}={stored.get(key)!r}, not {value}; "
                    "delete it, or choose another --out_dir"
                )

    def sources(self, run: Trained) -> dict[str, str]:
        """{row: hash of the log} of the runs that a run learns or starts from."""
        row = self.rows[run.row]
        names = [*row.teachers]
        if row.cache:
            names += self.caches[row.cache].teachers
        if row.start:
            names.append(row.start)
        # A log has each step's loss and nothing of the machine: the same training has the same log.
        return {name: file_sha256(self.folder_of(name, run.seed) / "log.txt") for name in names}

    def score_split(self, name: str, folder: Path):
        """The loss on all rows of the held-out split of a data set, and of each domain."""
        if (folder / name / "summary.json").exists():
            return
        # no step, only the evaluation that ends a run, of all rows (eval_rows=0)
        arguments = [
            f"--init_from={folder}",
            f"--out_dir={folder / name}",
            f"--dataset={self.splits[name]}",
            "--max_steps=0",
            "--block_size=128",
            "--eval_rows=0",
            "--batch_size=32",
        ]
        self.call(["train.py", *arguments])

    def write_score(self, score: Score, run: Trained):
        """Score a run, unless it has been scored with the same settings."""
        path = self.out / run.name / f"{score.name}.json"
        if path.exists():
            kept = read_json(path)
            if all(kept[key] == value for key, value in score.expected.items()):
                return
        # written under another name and renamed, so that a kill leaves no incomplete file under the final one
        aside = path.with_suffix(".writing")
        self.call(score.command(self, run), aside)
        aside.rename(path)

    def call(self, command: list[str], log: str | Path = os.devnull):
        """Run a script on one core, its output in a file.

        Raises ValueError with the last line of its stderr unless it exits with 0.
        """
        with open(log, "w") as output, self.lock:
            # a run that was waiting must not start once the study stops
            if self.stopping:
                raise ValueError("stopped")
            process = subprocess.Popen(
                [sys.executable, *command],
                stdout=output,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                # the script inherits the data's lock, and so keeps it if this process is killed
                pass_fds=[self.data_lock.fileno()],
                # Ctrl-C reaches only the study, which then stops its runs
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
    # results

    def dev_loss(self, run: Trained) -> float:
        """Nats per token of the whole dev split."""
        return read_json(self.out / run.name / "dev/summary.json")["val"]

    def record(self, run: Trained) -> dict:
        """All that a page may report about a run, in one object."""
        folder = self.out / run.name
        summary = read_json(folder / "summary.json")
        record = {"row": run.row, "seed": run.seed, "learning_rate": run.rate, "epochs": run.epochs}
        record |= {name: summary[name] for name in ("parameters", "tokens", "flops", "seconds")}
        if (folder / "wall.json").exists():
            record["wall"] = read_json(folder / "wall.json")["seconds"]
        # trials have only the dev split
        for name in self.splits:
            if (folder / name / "summary.json").exists():
                record[name] = split_record(folder / name)
        for score in self.scores:
            if (folder / f"{score.name}.json").exists():
                record[score.name] = without_folders(read_json(folder / f"{score.name}.json"))
        return record

    def publish(self, folder: Path, table: dict, meta: dict, *, trials=None, points=None, **more):
        """Fill `folder` with the logs and records of all runs, and study.json, which says what they are.

        table, trials, points: {row: its runs}. meta: of the data. more: further entries of study.json.
        """
        groups = {"table": table, "trials": trials or {}, "points": points or {}}
        check_same_texts([(self.out / run.name, self.record(run)) for run in chain(*table.values())])
        # emptied first, as the log of a run that is no longer in the table would look like evidence for it
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        about = {"titles": {row: declared.title for row, declared in self.rows.items()}}
        for group, runs_of in groups.items():
            about[group] = {row: [run.name for run in runs] for row, runs in runs_of.items()}
            for run in chain(*runs_of.values()):
                shutil.copy(self.out / run.name / "log.txt", folder / f"{run.name}.txt")
                write_json(folder / f"{run.name}.json", self.record(run))
        about["chosen"] = {row: run.name for row, run in self.chosen.items()}
        about |= {"jobs": self.jobs, "seconds": self.seconds(), "meta": meta, **more}
        write_json(folder / "study.json", about)

    def seconds(self) -> float:
        """How long the study has run, this time and the times before."""
        return self.seconds_before + time.perf_counter() - self.started


def split_record(folder: Path) -> dict:
    """The results on a whole split: nats per token and bits per byte, and nats per token of each domain."""
    summary = read_json(folder / "summary.json")
    domains = {}
    for line in (folder / "log.txt").read_text(encoding="utf-8").splitlines():
        _, label, value = line.split()
        if label.startswith("val/"):
            domains[label.removeprefix("val/")] = float(value)
    return {"val": summary["val"], "bits_per_byte": summary["bits_per_byte"], "domains": domains}


def without_folders(scored: dict) -> dict:
    """evaluate.py's JSON with file names instead of paths: records are published, and paths mean nothing to others."""
    for result in scored.get("results", []):
        result["data"] = [Path(file).name for file in result.get("data", [])]
    return scored


def lock_data(data: Path):
    """The open file whose lock marks the data set as in use.

    The kernel releases it when the last process that holds it ends, however it ends.
    """
    data.parent.mkdir(parents=True, exist_ok=True)
    file = open(f"{data}.lock", "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = "another study, or by a run it left behind"
        raise OSError(f"{data} is in use by {holder}; wait for it") from None
    return file


def check_sources(folder: Path, sources: dict[str, str]):
    """ValueError if a run in `folder` has learnt from, or started from, other runs than those there are now."""
    path = folder / SOURCES
    # it has none from before these were kept
    if not path.is_file():
        return
    kept = read_json(path)
    for row, log_hash in sources.items():
        if kept.get(row) != log_hash:
            raise ValueError(f"{folder} is of a run with another {row} than there is now; delete it, and its followers")


def check_same_texts(records: list[tuple[Path, dict]]):
    """ValueError if a task's scores are of other files in one record than in another. records: (folder, its record)."""
    first_of = {}  # {(score, task): (folder, hash of the task's files)}
    for folder, record in records:
        for name, score in record.items():
            results = score.get("results", []) if isinstance(score, dict) else []
            for result in results:
                task = result.get("task", name)
                data_hash = result.get("data_sha256")
                first, expected = first_of.setdefault((name, task), (folder, data_hash))
                if data_hash != expected:
                    remedy = f"delete {folder / name}.json to score it again"
                    raise ValueError(f"{task} of {folder} was scored on other files than that of {first}; {remedy}")


def remove_if_empty(folder: Path):
    """Delete the folder of a run that failed before it wrote anything."""
    output = folder / "output.txt"
    names = {path.name for path in folder.iterdir()}
    if names == {output.name, SOURCES} and output.stat().st_size == 0:
        shutil.rmtree(folder)
