"""Does it distil? Baby Llama's claim in small: teachers, students and controls over several seeds.

    python -m studies.babyllama --corpus=<folder of <domain>.train and <domain>.dev>
    python -m studies.babyllama --corpus=<folder> --only=data       # the data of config/babyllama_*_small.py, no runs

Cuts a subset from the corpus, prepares it, tries learning rates and epochs on the first seed, trains every row with
every seed, scores them, and writes studies/babyllama.md, its pictures and studies/logs/. What is finished is not done
again: stopped at any instant, the same command goes on. Every run is one of train.py or distill.py, on one core.
"""

# before torch, so that Ctrl-C while it loads ends in one line
from configurator import at_least, configure, one_of, read_config_file  # isort: split

import dataclasses
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from common.checkpoint import load_trainer_state
from common.data import read_meta
from common.files import by_step, read_json, write_json
from corpora.sources import find_files
from evaluate import load_tasks
from studies.babyllama_report import write_report

TEXT, DATA, CONFIGS = Path("data/babylm_small_text"), Path("data/babylm_small"), "config/babyllama"
PASSAGE = 4096  # bytes
EPOCHS = 4.0, 6.0  # as the published teachers, as the published student
RATES = {"gpt": (5e-4, 1e-3), "llama": (1e-3, 3e-3), "control": (1e-3, 3e-3), "student": (1e-3, 3e-3)}


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table: a script, a config, what is changed in it, and whose learning rate and epochs it takes."""

    title: str
    script: str
    config: str
    like: str
    changed: tuple = ()
    teachers: tuple = ()


BOTH = ("gpt", "llama")
ROWS = {
    "gpt": Row("GPT teacher", "train.py", "gpt_small", "gpt"),
    "llama": Row("LLaMA teacher", "train.py", "llama_small", "llama"),
    "control": Row("control: no teacher", "distill.py", "small_control", "control"),
    "from_gpt": Row("student ← GPT", "distill.py", "small_fixed", "student", (), ("gpt",)),
    "from_llama": Row("student ← LLaMA", "distill.py", "small_fixed", "student", (), ("llama",)),
    "student": Row("student ← both", "distill.py", "small_fixed", "student", (), BOTH),
    "published": Row("student ← both, published scale", "distill.py", "small", "student", (), BOTH),
    "reverse": Row("student ← both, reverse KL", "distill.py", "small_fixed", "student", ("--kl=reverse",), BOTH),
    "control_offset": Row(
        "control, random offset", "distill.py", "small_control", "control", ("--random_offset=True",)
    ),
    "offset": Row(
        "student ← both, random offset", "distill.py", "small_fixed", "student", ("--random_offset=True",), BOTH
    ),
}
POINTS = {  # the first seed only
    "T1": Row("T = 1", "distill.py", "small_fixed", "student", ("--temperature=1",), BOTH),
    "T4": Row("T = 4", "distill.py", "small_fixed", "student", ("--temperature=4",), BOTH),
    "longer": Row("half as many epochs again", "distill.py", "small_fixed", "student", (), BOTH),
    "control_longer": Row("half as many epochs again, no teacher", "distill.py", "small_control", "control"),
    "wider": Row(
        "1.8 times the parameters (4 × 128)", "distill.py", "small_fixed", "student",
        ("--n_layer=4", "--n_head=4", "--n_embd=128", "--n_inner=256"), BOTH,
    ),
    "control_wider": Row(
        "1.8 times the parameters (4 × 128), no teacher", "distill.py", "small_control", "control",
        ("--n_layer=4", "--n_head=4", "--n_embd=128", "--n_inner=256"),
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Trained:
    """One run: a row, a seed, and the learning rate and epochs it is given."""

    row: str
    seed: int
    rate: float
    epochs: float

    @property
    def name(self) -> str:
        return f"{self.row}_seed{self.seed}_lr{self.rate:g}_epochs{self.epochs:g}"


# ---------------------------------------------------------------------------------------------
# data


def passages(text: str, every: int) -> str:
    """One of every `every` passages, of about PASSAGE bytes and whole lines each, evenly spread.

    >>> passages("a\\n" * PASSAGE * 3 + "end\\n", 6) == "a\\n" * (PASSAGE // 2)
    True
    """
    found, now, size = [], [], 0
    for line in text.splitlines(keepends=True):
        now.append(line)
        size += len(line.encode())
        if size >= PASSAGE:
            found.append("".join(now))
            now, size = [], 0
    return "".join(found[every // 2 :: every])


def corpus_files(corpus: str) -> list:
    """The files of the corpus by domain and split; without a folder they are downloaded."""
    return find_files("babylm", corpus, Path("data/downloads/babylm"))


def cut_corpus(corpus: str, every_train: int, every_dev: int):
    """Write the passages kept of each domain to TEXT, and nothing else; nothing at all where one gives none."""
    texts = {}
    for file in corpus_files(corpus):
        every = {"train": every_train, "val": every_dev}.get(file.split, 0)
        kept = passages(file.path.read_text(encoding="utf-8", errors="replace"), every) if every else ""
        if not kept:
            raise ValueError(
                f"{file.path} gives no passage; corpus is a folder of <domain>.train and <domain>.dev, of more than "
                f"{PASSAGE * (every // 2 + 1):,} bytes, or --every_train and --every_dev are smaller"
            )
        texts[file.path.name] = kept
    TEXT.mkdir(parents=True, exist_ok=True)
    for path in TEXT.iterdir():
        if path.name not in texts:  # of another corpus
            path.unlink()
    for name, kept in texts.items():
        path = TEXT / name
        if not path.exists() or path.read_text(encoding="utf-8") != kept:  # the time of a file tells of a new one
            path.write_text(kept, encoding="utf-8")


# ---------------------------------------------------------------------------------------------
# runs


class Study:
    """The runs, `jobs` of them at a time, each in a folder of out_dir; what is there is not run again."""

    def __init__(self, out_dir: str, eval_dir: str, blimp_limit: int, jobs: int):
        self.out, self.eval_dir, self.blimp_limit, self.jobs = Path(out_dir), eval_dir, blimp_limit, jobs
        self.rows, self.chosen, self.lock = ROWS | POINTS, {}, threading.Lock()
        self.children, self.stopped = set(), False
        DATA.parent.mkdir(parents=True, exist_ok=True)
        self.held = open(f"{DATA}.lock", "w")  # the runs inherit it, and so hold it should this process be killed
        try:
            fcntl.flock(self.held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"{DATA} is in use by another study, or by a run it left behind; wait for it") from None
        self.clock, self.started = self.out / "seconds.json", time.perf_counter()
        self.before = read_json(self.clock)["seconds"] if self.clock.exists() else 0.0

    def seconds(self) -> float:
        """What the study has taken, this time and the times before."""
        return self.before + time.perf_counter() - self.started

    def call(self, command: list[str], log: str | Path = os.devnull):
        """Run a script on one core, its output in a file. ValueError with its last line unless it ends well."""
        settings = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "pass_fds": [self.held.fileno()], "text": True}
        settings["start_new_session"] = True  # Ctrl-C is for the study, which then tells its runs
        with open(log, "w") as out, self.lock:
            if self.stopped:
                raise ValueError("stopped")
            process = subprocess.Popen([sys.executable, *command], stdout=out, stderr=subprocess.PIPE, **settings)
            self.children.add(process)
        _, said = process.communicate()
        self.children.discard(process)
        if process.returncode:
            reason = (said.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
            raise ValueError(f"{' '.join(command)}: {reason}")

    def run(self, runs: list[Trained], blimp: bool):
        """Train and score the runs that are not there yet. One that fails stops the others, which save first."""
        with ThreadPoolExecutor(self.jobs) as pool:
            waiting = [pool.submit(self.run_one, run, blimp) for run in runs]
            try:
                for future in as_completed(waiting):
                    future.result()
            except BaseException:
                with self.lock:
                    self.stopped = True
                for child in list(self.children):
                    child.terminate()
                raise

    def run_one(self, run: Trained, blimp: bool):
        folder, started = self.out / run.name, time.perf_counter()
        command = self.command(run, folder)
        begun = by_step(folder)
        self.check_same(folder, begun, command)
        if not (folder / "summary.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            try:
                self.call(command + ["--init_from=resume"] * bool(begun), folder / "output.txt")
            finally:
                remove_if_empty(folder)
        if not (folder / "dev/summary.json").exists():  # all rows of the dev split, and of each domain
            args = [f"--init_from={folder}", f"--out_dir={folder}/dev", f"--dataset={DATA}", "--max_steps=0"]
            self.call(["train.py", *args, "--block_size=128", "--eval_rows=0", "--batch_size=32"])
        scores = folder / "blimp.json"
        if blimp and not (scores.exists() and read_json(scores)["limit"] == self.blimp_limit):
            args = [f"--model={folder}", "--tasks=blimp", f"--data_dir={self.eval_dir}", f"--limit={self.blimp_limit}"]
            aside = scores.with_suffix(".writing")
            self.call(["evaluate.py", *args, "--json=true"], aside)
            aside.rename(scores)
        with self.lock:
            write_json(self.clock, {"seconds": self.seconds()})
            val = read_json(folder / "dev/summary.json")["val"]
            print(f"{run.name}: dev {val:.4f} nats/token, {time.perf_counter() - started:.0f} s", flush=True)

    def command(self, run: Trained, folder: Path) -> list[str]:
        row = self.rows[run.row]
        args = [f"--out_dir={folder}", f"--seed={run.seed}", f"--learning_rate={run.rate}", f"--epochs={run.epochs}"]
        if row.teachers:
            places = (self.out / dataclasses.replace(self.chosen[t], seed=run.seed).name for t in row.teachers)
            args.append("--teacher=" + ",".join(map(str, places)))
        return [row.script, f"{CONFIGS}_{row.config}.py", *args, *row.changed]

    def check_same(self, folder: Path, begun: list[Path], command: list[str]):
        """ValueError if a run, finished or begun, has other settings, as after a change of the study or a config."""
        if (folder / "summary.json").exists():
            was = read_json(folder / "summary.json")["config"]
        elif begun:
            was = load_trainer_state(begun[-1])["config"]
        else:
            return
        wanted = read_config_file(command[1]) | dict(arg[2:].split("=", 1) for arg in command[2:])
        for key, value in wanted.items():
            if str(was.get(key)) not in (str(value), f"{value}.0"):
                raise ValueError(
                    f"{folder} is of a run with {key}={was.get(key)!r}, not {value}; delete it, or choose another "
                    "--out_dir"
                )

    def dev(self, run: Trained) -> float:
        return read_json(self.out / run.name / "dev/summary.json")["val"]

    def choose(self, rows: list[str], seed: int, others=()):
        """Try RATES and EPOCHS with each of the rows on one seed, keep those of the least dev loss; run the others."""
        trials = {row: [Trained(row, seed, r, epochs) for r in RATES[row] for epochs in EPOCHS] for row in rows}
        self.run([run for row in rows for run in trials[row]] + list(others), blimp=False)
        self.chosen |= {row: min(runs, key=self.dev) for row, runs in trials.items()}
        return trials

    def settled(self, row: str, seed: int) -> Trained:
        """The run of a row with the chosen learning rate and epochs."""
        chosen = self.chosen[self.rows[row].like]
        return Trained(row, seed, chosen.rate, chosen.epochs * (1.5 if row.endswith("longer") else 1))


def remove_if_empty(folder: Path):
    """Delete the folder of a run that failed before it wrote or said anything."""
    output = folder / "output.txt"
    if list(folder.iterdir()) == [output] and output.stat().st_size == 0:
        output.unlink()
        folder.rmdir()


def main():
    numbers = [int(part) for part in seeds.split(",") if part.strip().isdecimal()]
    if len(numbers) < 2 or len(set(numbers)) != len(seeds.split(",")):
        raise ValueError(f"seeds={seeds!r}: expected two or more different whole numbers, as in --seeds=0,1,2")
    if corpus and not Path(corpus).is_dir():
        raise ValueError(f"corpus={corpus!r} is no folder; name one of <domain>.train and <domain>.dev files")
    if corpus:
        corpus_files(corpus)  # what lacks its files fails before anything is written
    study = Study(out_dir, eval_dir, blimp_limit, jobs)
    cut_corpus(corpus, every_train, every_dev)
    study.call(["prepare_data.py", "config/data_babylm_small.py"])
    meta = read_meta(DATA)
    print(f"{DATA}: {meta['train_tokens']:,} tokens to learn from, {meta['val_tokens']:,} held out", flush=True)
    if only == "data":
        return
    meta |= {"every_train": every_train, "every_dev": every_dev, "corpus": Path(corpus or "babylm").name}
    study.out.mkdir(parents=True, exist_ok=True)
    used = study.out / "data.json"  # runs of one out_dir are of one corpus
    if used.exists() and read_json(used) != meta["files"]:
        raise ValueError(
            f"{study.out} holds runs on another corpus than {DATA} has now; delete it, choose another --out_dir, or "
            "give --corpus, --every_train and --every_dev as they were"
        )
    write_json(used, meta["files"])

    load_tasks("blimp", eval_dir, 1)  # fetched now, or missed now
    trials = study.choose(["gpt", "llama", "control"], numbers[0])
    teachers = [study.settled(row, seed) for row in BOTH for seed in numbers[1:]]
    trials |= study.choose(["student"], numbers[0], teachers)
    table = {row: [study.settled(row, seed) for seed in numbers] for row in ROWS}
    study.run([run for i in range(len(numbers)) for runs in table.values() for run in runs[i : i + 1]], blimp=True)
    points = {row: [study.settled(row, numbers[0])] for row in POINTS}
    study.run([run for runs in points.values() for run in runs], blimp=True)
    write_report(study, table, points, trials, meta)


if __name__ == "__main__":
    corpus = ""  # folder of <domain>.train and <domain>.dev; "": BabyLM of 2023 is downloaded
    every_train = 150  # one of so many passages of the training texts is kept
    every_dev = 20  # likewise of the dev texts
    eval_dir = "data/eval"  # where BLiMP lies, or is downloaded to
    blimp_limit = 200  # minimal pairs of each of the 67 paradigms, of 1,000; 0: all
    seeds = "0,1,2"  # of weights, order and teachers; learning rates and epochs are chosen on the first
    jobs = 2  # runs at a time, on one core each
    out_dir = "out/babyllama_small"
    only = ""  # "data": no runs
    config = configure(globals())
    at_least(config, 1, "every_train every_dev jobs")
    at_least(config, 0, "blimp_limit")
    one_of(config, only=("", "data"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    main()
