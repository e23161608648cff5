"""MicroLM at a small scale: does reverse KL from a larger teacher hurt, and when does it not? Over several seeds.

    python -m studies.microlm --corpus=<folder of <domain>.train and <domain>.dev>
    python -m studies.microlm --corpus=<folder> --only=data    # the small configs' data, no runs

Training of a control run goes on from its checkpoint, without a teacher and with several, by several losses. Writes
README.md beside this file, its picture and logs/. What is finished is not run again: stopped at any instant, the
same command continues the study.
"""

# before torch, so that Ctrl-C while it loads ends in one line
from configurator import at_least, configure, one_of, read_config_file  # isort: split

import signal
import sys

from model import LLaMA, LLaMAConfig
from studies.corpus import MEDIUM, MEDIUM_TEST, check_corpus, parse_seeds, prepare_medium, record_corpus
from studies.microlm.report import HERE, write_report
from studies.microlm.trap import TrapStudy, prepare_other
from studies.report import read_results
from studies.rows import Row, Score

# ---------------------------------------------------------------------------------------------
# rows

CONFIGS = "config/microlm_small"
SHAPE = ("n_layer", "n_head", "n_embd", "n_inner")


def forward_flops(config: str, **changed: int) -> float:
    """FLOPs of a token's forward pass through the model of a config, with `changed` knobs."""
    knobs = read_config_file(f"{CONFIGS}/{config}.py") | changed
    shape = {name: knobs[name] for name in SHAPE}
    return LLaMA(LLaMAConfig(vocab_size=2048, block_size=128, **shape)).flops_per_token(128)


# what a live teacher's forward pass adds to the three of a step of the student
EQUAL_FLOPS = 1 + forward_flops("teacher") / (3 * forward_flops("pretrain"))


def second(title: str, config="reverse_kl", *overrides: str, teacher="strong", factor=1.0, tuned_as="second") -> Row:
    """A row of the second stage: training goes on from the start; teacher: its row, "" for none."""
    return Row(
        title,
        script="distill.py",
        config=f"{CONFIGS}/{config}.py",
        tuned_as=tuned_as,
        overrides=overrides,
        teachers=(teacher,) if teacher else (),
        epochs_factor=factor,
        start="start",
    )


def first(title: str, config: str, tuned_as: str, *overrides: str) -> Row:
    """A row of the first stage: the start, or a teacher."""
    return Row(title, script="train.py", config=f"{CONFIGS}/{config}.py", tuned_as=tuned_as, overrides=overrides)


MIXED = ("--weight_ce=0.5", "--weight_kl=0.5")
# a single evaluation, at the end and of all rows, in the teacher's own tokens: afterwards it is given others
OTHER = ("--eval_interval=0", "--eval_rows=0")
ROWS = {
    "start": first("the start: the control run", "pretrain", "start"),
    "strong": first("strong teacher", "teacher", "strong"),
    "medium": first("medium teacher", "teacher", "medium"),
    "weak": first("weak teacher", "teacher", "weak"),
    "other": first("teacher of another tokenizer, read by id", "other_teacher", "medium", *OTHER),
    "ce": second("CE on, same tokens", "control", teacher=""),
    "ce_flops": second("CE on, same FLOPs", "control", teacher="", factor=EQUAL_FLOPS),
    "ce_tuned": second("CE on, tuned rate", "control", teacher="", tuned_as="ce_tuned"),
    "reverse": second("reverse KL (as published)"),
    "reverse_long": second("reverse KL, as many tokens as CE of the same FLOPs", factor=EQUAL_FLOPS),
    "reverse_tuned": second("reverse KL, tuned rate", tuned_as="reverse_tuned"),
    "reverse_t2": second("reverse KL, T = 2", "reverse_kl", "--temperature=2"),
    "reverse_ce": second("0.5 reverse KL + 0.5 CE", "reverse_kl", *MIXED),
    "forward": second("forward KL", "forward_kl"),
    "forward_tuned": second("forward KL, tuned rate", "forward_kl", tuned_as="forward_tuned"),
    "forward_t2": second("forward KL, T = 2", "forward_kl", "--temperature=2"),
    "forward_ce": second("0.5 forward KL + 0.5 CE", "forward_kl", *MIXED),
    "js": second("JS", "js"),
    "reverse_medium": second("reverse KL, medium teacher", teacher="medium"),
    "forward_medium": second("forward KL, medium teacher", "forward_kl", teacher="medium"),
    "reverse_weak": second("reverse KL, weak teacher", teacher="weak"),
    "forward_weak": second("forward KL, weak teacher", "forward_kl", teacher="weak"),
    "reverse_own": second("reverse KL, 25 % own text", "on_policy"),
    "reverse_own_all": second("reverse KL, own text alone", "on_policy", "--on_policy=1"),
    "reverse_other": second("reverse KL, teacher of another tokenizer", teacher="other"),
    "forward_other": second("forward KL, teacher of another tokenizer", "forward_kl", teacher="other"),
}

# learning rate and epochs that are not tried; the second stage starts at the first one's peak rate again, as published
EPOCHS = {"start": 2.0, "strong": 2.0, "medium": 1.0, "weak": 0.5, "second": 0.2}
SETTINGS = {name: (3e-3, epochs) for name, epochs in EPOCHS.items()}
# the control has as many trials as the students
TRIAL_RATES = dict.fromkeys(("ce_tuned", "reverse_tuned", "forward_tuned"), (3e-3, 1e-3, 3e-4))

# ---------------------------------------------------------------------------------------------
# the study


SCORES = (
    Score("compared", lambda study, run: study.beside_strong(run, "studies.microlm.compare")),
    Score("generation", lambda study, run: study.beside_strong(run, "studies.generation", "--samples=200")),
)


def main():
    numbers = parse_seeds(seeds)
    check_corpus(corpus)
    study = TrapStudy(
        rows=ROWS,
        data=MEDIUM,
        out_dir=out_dir,
        jobs=jobs,
        splits={"dev": MEDIUM, "test": MEDIUM_TEST},
        scores=SCORES,
        trial_rates=TRIAL_RATES,
        trial_epochs=(EPOCHS["second"],),
    )
    # after Study has locked the data: another study may be reading it
    meta = prepare_medium(study, corpus)
    meta["same_ids"] = prepare_other(study)
    if only == "data":
        return
    record_corpus(study, meta)
    study.settle(SETTINGS)
    study.run([study.settled(row, numbers[0]) for row in ("start", "strong")], scored=False)
    # together with the starts and teachers of the other seeds, so that no core waits for the last trial
    bases = [study.settled(row, seed) for seed in numbers[1:] for row in ("start", "strong")]
    trials = study.choose(list(TRIAL_RATES), numbers[0], bases)
    table = study.run_table(list(ROWS), numbers)
    more = {"refused": study.refusals(numbers), "own_bits": study.own_bits(numbers), "equal_flops": EQUAL_FLOPS}
    study.publish(HERE / "logs", table, meta, trials=trials, **more)
    write_report(read_results(HERE / "logs"))


if __name__ == "__main__":
    corpus = ""  # folder of <domain>.train and <domain>.dev; "": BabyLM of 2023 is downloaded
    seeds = "0,1,2"  # of weights, order, teachers and draws; learning rates are chosen on the first
    jobs = 2  # runs at a time, on one core each
    out_dir = "out/microlm_study"
    only = ""  # "data": no runs
    config = configure(globals())
    at_least(config, 1, "jobs")
    one_of(config, only=("", "data"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    main()
