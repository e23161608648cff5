"""What does a cached teacher cost? Students of a live teacher and of caches of several sizes, over several seeds.

    python -m studies.cache --corpus=<folder of <domain>.train and <domain>.dev>

The student, the teachers, the data and the settings are those of the study of Baby Llama
(studies/babyllama), which chose them for a live teacher; nothing is chosen here. Writes README.md
beside this file, its picture and logs/. What is finished is not run again: stopped at any instant,
the same command continues the study.
"""

# before torch, so that Ctrl-C while it loads ends in one line
from configurator import at_least, configure  # isort: split

import signal
import sys
import time
from contextlib import contextmanager
from functools import partial
from itertools import chain, product
from pathlib import Path

from common.files import write_json
from studies.babyllama.__main__ import BOTH, CONTROL_CONFIG, FORMULA_CONFIG, GPT_CONFIG, LLAMA_CONFIG
from studies.cache.report import write_report
from studies.corpus import DATA, check_corpus, parse_seeds, prepare, record_corpus
from studies.runs import Row, Study, Trained

# ---------------------------------------------------------------------------------------------
# rows

# what each cache keeps of a position
CACHES = {
    "whole": ("--top_k=-1",),
    "k64": ("--top_k=64",),
    "k16": ("--top_k=16",),
    "k4": ("--top_k=4",),
    "k16_draws16": ("--top_k=16", "--draws=16"),
    "draws50": ("--top_k=0", "--draws=50"),
}


def student(title: str, *overrides: str) -> Row:
    """A student of both teachers."""
    return Row(
        title, script="distill.py", config=FORMULA_CONFIG, tuned_as="student", overrides=overrides, teachers=BOTH
    )


KL_ALONE = ("--weight_ce=0", "--weight_kl=1")
ROWS = {
    "gpt": Row("GPT teacher", script="train.py", config=GPT_CONFIG, tuned_as="gpt"),
    "llama": Row("LLaMA teacher", script="train.py", config=LLAMA_CONFIG, tuned_as="llama"),
    "control": Row("control: no teacher", script="distill.py", config=CONTROL_CONFIG, tuned_as="student"),
    "live": student("live teachers"),
    "whole": student("whole distribution"),
    "cell64": student("64 ids, tail as a cell"),
    "cell16": student("16 ids, tail as a cell"),
    "cell4": student("4 ids, tail as a cell"),
    "draws16": student("16 ids and 16 draws", "--tail=draws"),
    "draws50": student("50 draws alone", "--tail=draws"),
    "drop64": student("64 ids, tail dropped", "--tail=drop"),
    "drop16": student("16 ids, tail dropped", "--tail=drop"),
    "drop4": student("4 ids, tail dropped", "--tail=drop"),
    # cross-entropy with the data mends a part of what a dropped tail does: these learn from the teachers alone
    "live_alone": student("live teachers", *KL_ALONE),
    "cell16_alone": student("16 ids, tail as a cell", *KL_ALONE),
    "draws16_alone": student("16 ids and 16 draws", "--tail=draws", *KL_ALONE),
    "drop16_alone": student("16 ids, tail dropped", "--tail=drop", *KL_ALONE),
}

# the cache that a row learns from; the others have live teachers, or none
CACHE_OF = {
    "whole": "whole",
    "cell64": "k64",
    "cell16": "k16",
    "cell4": "k4",
    "draws16": "k16_draws16",
    "draws50": "draws50",
    "drop64": "k64",
    "drop16": "k16",
    "drop4": "k4",
    "cell16_alone": "k16",
    "draws16_alone": "k16_draws16",
    "drop16_alone": "k16",
}

# learning rate and epochs, as the study of Baby Llama chose them; the student's for all students and the control
SETTINGS = {"gpt": (5e-4, 6.0), "llama": (1e-3, 6.0), "student": (3e-3, 6.0)}

# ---------------------------------------------------------------------------------------------
# the study


class CacheStudy(Study):
    """A study whose students may learn from a cache, with the wall time of each run and cache."""

    def teacher(self, run: Trained) -> str:
        """The knob `teacher` of a run: the cache of its row and seed, or the teachers themselves."""
        if run.row in CACHE_OF:
            return str(self.cache(CACHE_OF[run.row], run.seed))
        return super().teacher(run)

    def cache(self, name: str, seed: int) -> Path:
        """The folder of a cache of the teachers of a seed."""
        return self.out / "caches" / f"{name}_seed{seed}"

    def write_cache(self, name: str, seed: int):
        """Run cache_teacher.py for the teachers of a seed."""
        folder = self.cache(name, seed)
        # any student of live teachers names them
        teachers = super().teacher(self.settled("live", seed))
        arguments = [
            f"--teacher={teachers}",
            f"--dataset={self.data}",
            "--block_size=128",
            "--eval_rows=64",  # as the student's config
            f"--out_dir={folder}",
        ]
        started = time.perf_counter()
        # a finished cache says that it is one, and is left as it is
        with timed(folder):
            self.call(["cache_teacher.py", *arguments, *CACHES[name]])
        self.say(folder.name, started)

    def train(self, run: Trained, folder: Path):
        """Start or resume a run, unless it is finished."""
        with timed(folder):
            super().train(run, folder)

    def score_dev(self, folder: Path):
        """The loss on all rows of the dev split, and the calibration there."""
        super().score_dev(folder)
        scores = folder / "calibration.json"
        if scores.exists():
            return
        # written aside and renamed, so that a kill leaves no half of it under the final name
        aside = scores.with_suffix(".writing")
        self.call(["-m", "studies.calibration", f"--model={folder}", f"--dataset={self.data}"], aside)
        aside.rename(scores)


@contextmanager
def timed(folder: Path):
    """Write to wall.json of the folder how long the process took that fills it.

    Not for a folder that is there already: of work that was interrupted the time is not known.
    """
    is_new = not folder.exists()
    started = time.perf_counter()
    yield
    if is_new:
        write_json(folder / "wall.json", {"seconds": time.perf_counter() - started})


def main():
    numbers = parse_seeds(seeds)
    check_corpus(corpus)
    study = CacheStudy(
        rows=ROWS,
        trial_rates={},
        trial_epochs=(),
        data=DATA,
        out_dir=out_dir,
        eval_dir="",
        blimp_limit=0,
        jobs=jobs,
    )
    # after the lock that Study takes: another study may be reading the data
    meta = prepare(study, corpus)
    record_corpus(study, meta)
    for row, (rate, epochs) in SETTINGS.items():
        study.chosen[row] = Trained(row, numbers[0], rate, epochs)
    write_report(study, run_all(study, numbers), CACHE_OF, meta)


def run_all(study: CacheStudy, numbers: list[int]) -> dict[str, list[Trained]]:
    """Train and score everything: {row: its runs}."""
    table = {}
    for row in ROWS:
        table[row] = [study.settled(row, seed) for seed in numbers]
    study.run([run for row in ("gpt", "llama", "control") for run in table[row]], blimp=False)
    study.do([partial(study.write_cache, name, seed) for seed, name in product(numbers, CACHES)])
    # all rows of one seed before the next, so that what is on the machine meanwhile meets all rows alike
    by_seed = chain(*zip(*table.values()))
    study.run(list(by_seed), blimp=False)
    return table


if __name__ == "__main__":
    corpus = ""  # folder of <domain>.train and <domain>.dev; "": BabyLM of 2023 is downloaded
    seeds = "0,1,2"  # of weights, order and teachers
    jobs = 2  # runs at a time, on one core each
    out_dir = "out/cache_study"
    config = configure(globals())
    at_least(config, 1, "jobs")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    main()
