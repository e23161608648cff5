"""What is lost with a cached teacher? Students of live teachers and of caches of several sizes, over several seeds.

    python -m studies.cache --corpus=<folder of <domain>.train and <domain>.dev>

The student, the teachers, the data and the settings are those of the study of Baby Llama
(studies/babyllama), which chose them for a live teacher; nothing is chosen here. Writes README.md
beside this file, its picture and logs/. What is finished is not run again: stopped at any instant,
the same command continues the study.
"""

# before torch, so that Ctrl-C while it loads ends in one line
from configurator import at_least, configure  # isort: split

import signal
import statistics
import sys
from pathlib import Path

import numpy as np

from common.files import read_json
from common.teacher_cache import bytes_per_token, layout_of, read_info
from studies.babyllama.__main__ import BOTH, CONTROL_CONFIG, FORMULA_CONFIG, GPT_CONFIG, LLAMA_CONFIG
from studies.cache.report import HERE, write_report
from studies.corpus import DATA, check_corpus, parse_seeds, prepare, record_corpus
from studies.report import read_results
from studies.rows import Cache, Row, Score
from studies.runs import Study

# ---------------------------------------------------------------------------------------------
# rows


def cache(*kept: str) -> Cache:
    """A cache of both teachers. kept: the arguments for what it keeps of a position."""
    return Cache(BOTH, ("--block_size=128", "--eval_rows=64", *kept))  # as in the student's config


CACHES = {
    "whole": cache("--top_k=-1"),
    "k64": cache("--top_k=64"),
    "k16": cache("--top_k=16"),
    "k4": cache("--top_k=4"),
    "k16_draws16": cache("--top_k=16", "--draws=16"),
    "draws50": cache("--top_k=0", "--draws=50"),
}


def student(title: str, *overrides: str, **teacher) -> Row:
    """A student. teacher: teachers=BOTH, or cache=<a name in CACHES>."""
    settings = dict(script="distill.py", config=FORMULA_CONFIG, tuned_as="student")
    return Row(title, **settings, overrides=overrides, **teacher)


KL_ALONE = ("--weight_ce=0", "--weight_kl=1")
DRAWS = "--tail=draws"
DROP = "--tail=drop"
ROWS = {
    "gpt": Row("GPT teacher", script="train.py", config=GPT_CONFIG, tuned_as="gpt"),
    "llama": Row("LLaMA teacher", script="train.py", config=LLAMA_CONFIG, tuned_as="llama"),
    "control": Row("control: no teacher", script="distill.py", config=CONTROL_CONFIG, tuned_as="student"),
    "live": student("live teachers", teachers=BOTH),
    "whole": student("whole distribution", cache="whole"),
    "cell64": student("64 ids, tail as a cell", cache="k64"),
    "cell16": student("16 ids, tail as a cell", cache="k16"),
    "cell4": student("4 ids, tail as a cell", cache="k4"),
    "draws16": student("16 ids and 16 draws", DRAWS, cache="k16_draws16"),
    "draws50": student("50 draws alone", DRAWS, cache="draws50"),
    "drop64": student("64 ids, tail dropped", DROP, cache="k64"),
    "drop16": student("16 ids, tail dropped", DROP, cache="k16"),
    "drop4": student("4 ids, tail dropped", DROP, cache="k4"),
    # Cross-entropy on the data repairs some of the harm of a dropped tail, so these learn from the teachers alone.
    "live_alone": student("live teachers, KL alone", *KL_ALONE, teachers=BOTH),
    "cell16_alone": student("16 ids, tail as a cell, KL alone", *KL_ALONE, cache="k16"),
    "draws16_alone": student("16 ids and 16 draws, KL alone", DRAWS, *KL_ALONE, cache="k16_draws16"),
    "drop16_alone": student("16 ids, tail dropped, KL alone", DROP, *KL_ALONE, cache="k16"),
}

# learning rate and epochs, as the study of Baby Llama chose them; the student's for all students and the control
SETTINGS = {"gpt": (5e-4, 6.0), "llama": (1e-3, 6.0), "student": (3e-3, 6.0)}

CALIBRATION = Score(
    "calibration",
    command=lambda study, run: [
        *("-m", "studies.calibration"),
        f"--model={study.out / run.name}",
        f"--dataset={study.data}",
    ],
)

# ---------------------------------------------------------------------------------------------
# the study


def describe_cache(folders: list[Path]) -> dict:
    """What a cache keeps of a position, and how long it took, from the folders of its seeds."""
    figures = {"bytes": bytes_per_token(layout_of(read_info(folders[0] / "cache.json")))}
    # the teachers' probability beyond the stored ids, mean over the training text; the whole distribution has none
    files = [folder / "train_log_tail.bin" for folder in folders]
    if all(file.exists() for file in files):
        tails = []
        for file in files:
            log_tail = np.fromfile(file, "<f4").astype(np.float64)
            tails.append(np.exp(log_tail).mean())
        figures["tail"] = statistics.mean(tails)
    # seconds of each seed's process, unknown (None) if that was interrupted
    walls = [folder / "wall.json" for folder in folders]
    figures["wall"] = [read_json(path)["seconds"] if path.exists() else None for path in walls]
    return figures


def publish(study: Study, table: dict, meta: dict, numbers: list[int]):
    """Store logs and records of all runs, the figures of each cache, and which row has which cache."""
    caches = {}
    for name in CACHES:
        caches[name] = describe_cache([study.cache_folder(name, seed) for seed in numbers])
    cache_of = {row: declared.cache for row, declared in ROWS.items() if declared.cache}
    study.publish(HERE / "logs", table, meta, caches=caches, cache_of=cache_of)


def main():
    numbers = parse_seeds(seeds)
    check_corpus(corpus)
    study = Study(rows=ROWS, data=DATA, out_dir=out_dir, jobs=jobs, caches=CACHES, scores=(CALIBRATION,))
    # after Study has locked the data: another study may be reading it
    meta = prepare(study, corpus)
    record_corpus(study, meta)
    study.settle(SETTINGS)
    table = study.run_table(list(ROWS), numbers)
    publish(study, table, meta, numbers)
    write_report(read_results(HERE / "logs"))


if __name__ == "__main__":
    corpus = ""  # folder of <domain>.train and <domain>.dev; "": BabyLM of 2023 is downloaded
    seeds = "0,1,2"  # of weights, order and teachers
    jobs = 2  # runs at a time, on one core each
    out_dir = "out/cache_study"
    config = configure(globals())
    at_least(config, 1, "jobs")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    main()
