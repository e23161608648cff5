"""Does it distil? Baby Llama's claim at a small scale: teachers, students and controls over several seeds.

    python -m studies.babyllama --corpus=<folder of <domain>.train and <domain>.dev>
    python -m studies.babyllama --corpus=<folder> --only=data    # the small configs' data, no runs

Cuts a subset from the corpus, prepares it, tries learning rates and epochs on the first seed,
trains every row with every seed, scores them, and writes README.md beside this file, its pictures and
logs/. What is finished is not run again: stopped at any instant, the same command continues
the study. Every run is one of train.py or distill.py, on one core.
"""

# before torch, so that Ctrl-C while it loads ends in one line
from configurator import at_least, configure, one_of  # isort: split

import signal
import sys
from itertools import chain, product

from studies.babyllama.report import HERE, write_report
from studies.corpus import DATA, EVERY_DEV, EVERY_TRAIN, check_corpus, parse_seeds, prepare, record_corpus
from studies.report import read_results
from studies.rows import Row, Score
from studies.runs import Study
from tasks.loading import load_tasks

# ---------------------------------------------------------------------------------------------
# rows

GPT_CONFIG = "config/babyllama_small/gpt.py"
LLAMA_CONFIG = "config/babyllama_small/llama.py"
CONTROL_CONFIG = "config/babyllama_small/control.py"
FORMULA_CONFIG = "config/babyllama_small/student_fixed.py"  # the KL of the paper's formula
PUBLISHED_CONFIG = "config/babyllama_small/student.py"  # the KL as the published code scales it

BOTH = ("gpt", "llama")
# for rows that ask whether the gap closes with a larger student
LARGER = ("--n_layer=4", "--n_head=4", "--n_embd=128", "--n_inner=256")


def control(title: str, *overrides: str, **more) -> Row:
    """The student without a teacher."""
    settings = dict(script="distill.py", config=CONTROL_CONFIG, tuned_as="control")
    return Row(title, **settings, overrides=overrides, **more)


def student(title: str, *overrides: str, config=FORMULA_CONFIG, teachers=BOTH, **more) -> Row:
    """A student with teachers. All have the learning rate and epochs of "student ← both"."""
    settings = dict(script="distill.py", config=config, tuned_as="student", teachers=teachers)
    return Row(title, **settings, overrides=overrides, **more)


# Each change besides the teacher has a control, as its effect would otherwise pass as distillation.
ROWS = {
    "gpt": Row("GPT teacher", script="train.py", config=GPT_CONFIG, tuned_as="gpt"),
    "llama": Row("LLaMA teacher", script="train.py", config=LLAMA_CONFIG, tuned_as="llama"),
    "control": control("control: no teacher"),
    "from_gpt": student("student ← GPT", teachers=("gpt",)),
    "from_llama": student("student ← LLaMA", teachers=("llama",)),
    "student": student("student ← both"),
    "published": student("student ← both, published scale", config=PUBLISHED_CONFIG),
    "reverse": student("student ← both, reverse KL", "--kl=reverse"),
    "control_offset": control("control, random offset", "--random_offset=True"),
    "offset": student("student ← both, random offset", "--random_offset=True"),
}

# further points, with the first seed only
POINTS = {
    "T1": student("T = 1", "--temperature=1"),
    "T4": student("T = 4", "--temperature=4"),
    "longer": student("half as many epochs again", epochs_factor=1.5),
    "control_longer": control("half as many epochs again, no teacher", epochs_factor=1.5),
    "wider": student("1.8 times the parameters (4 × 128)", *LARGER),
    "control_wider": control("1.8 times the parameters (4 × 128), no teacher", *LARGER),
}

# lower for the GPT, which ended at 5.38 nats/token with 3e-3, and at 4.76 with 1e-3 (6 epochs, LOG.md)
TRIAL_RATES = {"gpt": (5e-4, 1e-3), "llama": (1e-3, 3e-3), "control": (1e-3, 3e-3), "student": (1e-3, 3e-3)}
TRIAL_EPOCHS = (4.0, 6.0)  # those of the published teachers, and of the published student


def blimp(eval_dir: str, limit: int) -> Score:
    """BLiMP on the first `limit` pairs of each paradigm; a run scored with another limit is scored again."""
    arguments = ["--tasks=blimp", f"--data_dir={eval_dir}", f"--limit={limit}", "--json=true"]
    return Score(
        "blimp",
        command=lambda study, run: ["evaluate.py", f"--model={study.out / run.name}", *arguments],
        expected={"limit": limit},
    )


# ---------------------------------------------------------------------------------------------
# the study


def main():
    numbers = parse_seeds(seeds)
    check_corpus(corpus)
    study = Study(
        rows=ROWS | POINTS,
        data=DATA,
        out_dir=out_dir,
        jobs=jobs,
        scores=(blimp(eval_dir, blimp_limit),),
        trial_rates=TRIAL_RATES,
        trial_epochs=TRIAL_EPOCHS,
    )
    # after Study has locked the data: another study may be reading it
    meta = prepare(study, corpus, every_train, every_dev)
    tokens = f"{meta['train_tokens']:,} tokens to learn from, {meta['val_tokens']:,} held out"
    print(f"{DATA}: {tokens}", flush=True)
    if only == "data":
        return
    record_corpus(study, meta)
    load_tasks("blimp", eval_dir, 1)  # downloads it now, not after the first hour

    first, *others = numbers
    trials = study.choose(["gpt", "llama", "control"], first)
    # Students are tried with the teachers of the first seed, which the trials above have trained.
    # The teachers of the other seeds, which the table needs, are trained at the same time.
    teachers = [study.settled(row, seed) for row, seed in product(BOTH, others)]
    trials |= study.choose(["student"], first, teachers)
    table = study.run_table(list(ROWS), numbers)
    points = {row: [study.settled(row, first)] for row in POINTS}
    study.run(list(chain(*points.values())))

    meta |= {"every_train": every_train, "every_dev": every_dev}
    pairs = blimp_limit or 1000  # of each paradigm
    study.publish(HERE / "logs", table, meta, trials=trials, points=points, pairs=pairs)
    write_report(read_results(HERE / "logs"))


if __name__ == "__main__":
    corpus = ""  # folder of <domain>.train and <domain>.dev; "": BabyLM of 2023 is downloaded
    every_train = EVERY_TRAIN  # one of so many passages of the training texts is kept
    every_dev = EVERY_DEV  # likewise of the dev texts
    eval_dir = "data/eval"  # where BLiMP lies, or is downloaded to
    blimp_limit = 200  # minimal pairs of each of the 67 paradigms, of 1,000; 0: all
    seeds = "0,1,2"  # of weights, order, teachers; learning rates and epochs are chosen on the first
    jobs = 2  # runs at a time, on one core each
    out_dir = "out/babyllama_small"
    only = ""  # "data": no runs
    config = configure(globals())
    at_least(config, 1, "every_train every_dev jobs")
    at_least(config, 0, "blimp_limit")
    one_of(config, only=("", "data"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    main()
