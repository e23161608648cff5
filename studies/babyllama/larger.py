"""Does the claim hold at a larger scale? Baby Llama with four times the text and the parameters, from cached teachers.

    python -m studies.babyllama.larger --corpus=<folder of <domain>.train and <domain>.dev>
    python -m studies.babyllama.larger --corpus=<folder> --only=data    # the larger configs' data, no runs

The LLaMA is the only teacher: at the first size (studies/babyllama/__main__.py) it taught as well as both, and a GPT of
twelve times this student would take all of the time. Fills logs_larger/ beside this file, from which
studies/babyllama/README.md has a section. What is finished is not run again: stopped at any instant, the same command
continues.
"""

# before torch, so that Ctrl-C while it loads ends in one line
from configurator import at_least, configure, one_of  # isort: split

import signal
import sys

from studies.babyllama.__main__ import blimp
from studies.babyllama.report import HERE, write_report
from studies.corpus import (
    EVERY_DEV,
    EVERY_TRAIN_LARGER,
    LARGER,
    check_corpus,
    parse_seeds,
    prepare,
    record_corpus,
)
from studies.report import read_results
from studies.rows import Cache, Row
from studies.runs import Study
from tasks.loading import load_tasks

# ---------------------------------------------------------------------------------------------
# rows

CONFIGS = "config/babyllama_larger"


# arguments of cache_teacher.py for whole distributions
WHOLE = ("--block_size=128", "--eval_rows=64", "--top_k=-1", "--temperature=2")
CACHES = {"llama": Cache(teachers=("llama",), arguments=WHOLE)}


def student(title: str, config: str) -> Row:
    """A student of the LLaMA. Both have the learning rate of "student ← LLaMA"."""
    return Row(title, script="distill.py", config=f"{CONFIGS}/{config}.py", tuned_as="student", cache="llama")


ROWS = {
    "llama": Row("LLaMA teacher", script="train.py", config=f"{CONFIGS}/llama.py", tuned_as="llama"),
    "control": Row("control: no teacher", script="distill.py", config=f"{CONFIGS}/control.py", tuned_as="control"),
    "student": student("student ← LLaMA", "student_fixed"),
    "published": student("student ← LLaMA, published scale", "student"),
}

EPOCHS = 3.0  # half an hour for a teacher
# the control has one more: of two the lower was better, at the edge of what was tried
TRIAL_RATES = {"control": (7.5e-4, 1.5e-3, 3e-3), "student": (7.5e-4, 1.5e-3)}

# ---------------------------------------------------------------------------------------------
# the study


def main():
    numbers = parse_seeds(seeds)
    check_corpus(corpus)
    study = Study(
        rows=ROWS,
        data=LARGER,
        out_dir=out_dir,
        jobs=jobs,
        caches=CACHES,
        scores=(blimp(eval_dir, blimp_limit),),
        trial_rates=TRIAL_RATES,
        trial_epochs=(EPOCHS,),
    )
    # after Study has locked the data: another study may be reading it
    meta = prepare(study, corpus, EVERY_TRAIN_LARGER, EVERY_DEV, config=f"{CONFIGS}/data.py")
    if only == "data":
        return
    record_corpus(study, meta)
    load_tasks("blimp", eval_dir, 1)  # downloads it now, not after the first hour

    study.settle({"llama": (1e-3, EPOCHS)})
    # the control's trials together with the teachers, so that no core is idle if these are an odd number
    teachers = [study.settled("llama", seed) for seed in numbers]
    study.run([*teachers, *study.trials("control", numbers[0])], scored=False)
    # the students' trials have the first seed, and learn from its cache
    study.write_caches(["llama"], numbers[:1])
    trials = study.choose(list(TRIAL_RATES), numbers[0])
    table = study.run_table(list(ROWS), numbers)
    meta["every_train"] = EVERY_TRAIN_LARGER
    study.publish(HERE / "logs_larger", table, meta, trials=trials, pairs=blimp_limit or 1000)
    # the page is of both sizes
    if (HERE / "logs/study.json").exists():
        write_report(read_results(HERE / "logs"))


if __name__ == "__main__":
    corpus = ""  # folder of <domain>.train and <domain>.dev; "": BabyLM of 2023 is downloaded
    eval_dir = "data/eval"  # where BLiMP lies, or is downloaded to
    blimp_limit = 200  # minimal pairs of each of the 67 paradigms, of 1,000; 0: all
    seeds = "0,1,2"  # of weights, order and teachers; learning rates are chosen on the first
    jobs = 2  # runs at a time, on one core each
    out_dir = "out/babyllama_larger"
    only = ""  # "data": no runs
    config = configure(globals())
    at_least(config, 1, "jobs")
    at_least(config, 0, "blimp_limit")
    one_of(config, only=("", "data"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    main()
