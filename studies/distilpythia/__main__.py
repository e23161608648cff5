"""Why did DistilPythia's student get worse? Its recipe at a small scale, taken apart and fixed, over several seeds.

    python -m studies.distilpythia --corpus=<folder of <domain>.train and <domain>.dev>

A small and a larger model of Pythia's architecture are pretrained on the same text. The small one goes on for 64 steps:
as published, as published with one thing changed, and fixed, with a teacher and without. Writes README.md
beside this file, its picture and logs/. What is finished is not run again: stopped at any instant, the same command
continues.
"""

# before torch, so that Ctrl-C while it loads ends in one line
from configurator import at_least, configure, one_of  # isort: split

import signal
import sys
from dataclasses import replace

from studies.corpus import MEDIUM, MEDIUM_TEST, check_corpus, parse_seeds, prepare_medium, record_corpus
from studies.distilpythia.pretraining import PythiaStudy
from studies.distilpythia.report import HERE, write_report
from studies.report import read_results
from studies.rows import Row, Score, Trained
from studies.runs import Study

CONFIGS = "config/distilpythia_small"

# ---------------------------------------------------------------------------------------------
# rows


def pretrained(title: str, config: str) -> Row:
    return Row(title, script="train.py", config=f"{CONFIGS}/{config}.py", tuned_as=config)


def taught(title: str, config: str, *overrides: str, script="distill.py", tuned_as="published") -> Row:
    """A student that continues from its seed's "start"."""
    return Row(
        title,
        script=script,
        config=f"{CONFIGS}/{config}.py",
        tuned_as=tuned_as,
        overrides=overrides,
        teachers=("teacher",),
        start="start",
    )


def alone(title: str, config: str, *overrides: str, tuned_as="published") -> Row:
    """The same as `taught`, without a teacher."""
    return replace(taught(title, config, *overrides, tuned_as=tuned_as), teachers=())


# for the control: 64 steps with a teacher take 2.12 times the FLOPs of 64 without
EQUAL_FLOPS = "--max_steps=136"

ROWS = {
    "teacher": pretrained("teacher", "teacher"),
    "start": pretrained("student before", "start"),
    "published": taught("as published", "student"),
    "float32": taught("float32 weights", "student", "--weight_dtype=float32"),
    "warmup": taught("warm-up of 8 steps", "student", "--warmup_steps=8"),
    "packed": taught("packed rows", "student_constant"),
    "token_mean": taught("mean over tokens", "student", "--loss_mean=token"),
    # -m and the module in one word, as a row's script is a single argument
    "mask_by_id": taught("end-of-text masked", "student", script="-mstudies.distilpythia.mask_by_id"),
    "no_mask": taught("padding trained on", "student", script="-mstudies.distilpythia.no_mask"),
    "temperature_1": taught("temperature 1", "student", "--temperature=1"),
    "no_teacher": alone("no teacher", "student", "--weight_ce=1", "--weight_kl=0"),
    "rate_0.1": taught("rate / 10", "student", tuned_as="rate_0.1"),
    "rate_3": taught("rate x 3", "student", tuned_as="rate_3"),
    "rate_10": taught("rate x 10", "student", tuned_as="rate_10"),
    "rate_30": taught("rate x 30", "student", tuned_as="rate_30"),
    "fixed": taught("fixed", "student_fixed"),
    "control": alone("fixed, no teacher", "control"),
    "fixed_tuned": taught("fixed, best rate", "student_fixed", tuned_as="fixed_tuned"),
    "control_tuned": alone("fixed, no teacher, best rate", "control", tuned_as="control_tuned"),
    "control_flops": alone("the same, equal FLOPs", "control", EQUAL_FLOPS, tuned_as="control_tuned"),
}

# learning rate and epochs (0: the config's steps) that are not tried
SETTINGS = {"teacher": (3e-3, 2.0), "start": (3e-3, 2.0), "published": (3e-4, 0)}
SETTINGS |= {"rate_0.1": (3e-5, 0), "rate_3": (9e-4, 0), "rate_10": (3e-3, 0), "rate_30": (9e-3, 0)}
TRIAL_RATES = {row: (1e-4, 3e-4, 1e-3) for row in ("fixed_tuned", "control_tuned")}

# ---------------------------------------------------------------------------------------------
# the study


def lambada(study: Study, run: Trained) -> list[str]:
    arguments = [f"--model={study.out / run.name}", "--tasks=lambada", f"--limit={lambada_limit}", "--json"]
    return ["evaluate.py", *arguments, *([f"--data_dir={eval_dir}"] if eval_dir else [])]


def updates(study: Study, run: Trained) -> list[str]:
    """Compares a run with its start; a pretrained model, which has none, is compared with itself."""
    row = study.rows[run.row]
    before = study.folder_of(row.start, run.seed) if row.start else study.out / run.name
    return ["-m", "studies.distilpythia.updates", f"--before={before}", f"--after={study.out / run.name}"]


def main():
    numbers = parse_seeds(seeds)
    check_corpus(corpus)
    study = PythiaStudy(
        rows=ROWS,
        data=MEDIUM,
        out_dir=out_dir,
        jobs=jobs,
        splits={"dev": MEDIUM, "test": MEDIUM_TEST},
        scores=(Score("tasks", lambada, {"limit": lambada_limit}), Score("updates", updates)),
        trial_rates=TRIAL_RATES,
        trial_epochs=(0,),  # the config's 64 steps
    )
    # after Study has locked the data: another study may be reading it
    meta = prepare_medium(study, corpus)
    if only == "data":
        return
    record_corpus(study, meta)
    study.settle(SETTINGS)
    # the trials have the first seed, and need its teacher and start
    study.run([study.settled(row, numbers[0]) for row in ("teacher", "start")])
    trials = study.choose(list(TRIAL_RATES), numbers[0])
    table = study.run_table(list(ROWS), numbers)
    study.publish(HERE / "logs", table, meta, trials=trials, lambada_limit=lambada_limit)
    write_report(read_results(HERE / "logs"))


if __name__ == "__main__":
    corpus = ""  # folder of <domain>.train and <domain>.dev; "": BabyLM of 2023 is downloaded
    eval_dir = ""  # folder with lambada/; "": data/eval, where it is fetched
    lambada_limit = 1000  # its first passages; 0: all 5,153
    seeds = "0,1,2"  # of weights, order and teachers
    jobs = 2  # runs at a time, on one core each
    out_dir = "out/distilpythia_study"
    only = ""  # "data": prepare the data and stop
    config = configure(globals())
    at_least(config, 1, "jobs")
    at_least(config, 0, "lambada_limit")
    one_of(config, only=("", "data"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    main()
