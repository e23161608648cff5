"""Do the findings change with the size? The main rows of three studies once more, with models of half the width.

    python -m studies.smaller --study=distilgpt2 --corpus=<folder of <domain>.train and <domain>.dev>

Data, steps and seeds are the same, and the models have about a quarter of the parameters, so that a page can say
whether an effect grows or shrinks with the model. Fills studies/<study>/logs_smaller/ and rewrites the study's page,
which has a section on it. What is finished is not run again: stopped at any instant, the same command continues.
"""

# before torch, so that Ctrl-C while it loads ends in one line
from configurator import at_least, configure, one_of  # isort: split

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import studies.distilgpt2.__main__ as distilgpt2
import studies.distilpythia.__main__ as distilpythia
import studies.microlm.__main__ as microlm
from studies.corpus import MEDIUM, MEDIUM_TEST, check_corpus, parse_seeds, prepare_medium, record_corpus
from studies.distilpythia.pretraining import PythiaStudy
from studies.report import read_results
from studies.rows import Row
from studies.runs import Study

# ---------------------------------------------------------------------------------------------
# rows


@dataclass
class Smaller:
    """The second size of a study.

    folder: the study's. rows: those of this size. settings: {row: (learning rate, epochs)} that are not tried.
    write: the function that writes the study's page. trial_rates: {row: the learning rates to try}. bases: the rows
    that trials start or learn from.
    """

    folder: Path
    rows: dict[str, Row]
    settings: dict[str, tuple[float, float]]
    write: Callable
    trial_rates: dict[str, tuple] = field(default_factory=dict)
    bases: tuple[str, ...] = ()
    study_class: type[Study] = Study


def chosen(rows: dict[str, Row], names: tuple[str, ...], shapes: dict[str, tuple[str, ...]]) -> dict[str, Row]:
    """The named rows, some of them with the overrides in `shapes`; a row that starts from another has its shape."""
    smaller_rows = {}
    for name in names:
        overrides = (*rows[name].overrides, *shapes.get(name, ()))
        smaller_rows[name] = replace(rows[name], overrides=overrides)
    return smaller_rows


def as_overrides(shape: dict[str, int]) -> tuple[str, ...]:
    return tuple(f"--{knob}={value}" for knob, value in shape.items())


def smaller_distilgpt2() -> Smaller:
    width = distilgpt2.TEACHER_CONFIG["n_embd"] // 2
    names = ("teacher", "copied", "three", "no_kl", "control", "three_short", "control_short")
    rows = chosen(distilgpt2.ROWS, names, {"teacher": as_overrides({"n_embd": width, "n_head": 2})})
    # equal FLOPs are other steps here, as the head is a larger share of a narrow model
    for name, length, steps in (("", "long", distilgpt2.LONG), ("_short", "short", distilgpt2.SHORT)):
        steps = round(steps * distilgpt2.equal_flops(width))
        row = distilgpt2.student("control", length, steps)
        rows[f"control_flops{name}"] = replace(row, title=f"control, equal FLOPs, {length}")
    return Smaller(
        folder=distilgpt2.HERE,
        rows=rows,
        settings=distilgpt2.SETTINGS,
        trial_rates={name: distilgpt2.TRIAL_RATES[name] for name in ("three", "control")},
        bases=("teacher",),
        write=distilgpt2.write_report,
    )


def smaller_distilpythia() -> Smaller:
    names = ("teacher", "start", "published", "no_mask", "rate_10", "rate_30", "fixed", "control")
    # 24 channels a head, as at the first size
    start = {"n_embd": 48, "n_head": 2}
    teacher = {"n_embd": 72, "n_head": 3}
    return Smaller(
        folder=distilpythia.HERE,
        rows=chosen(distilpythia.ROWS, names, {"teacher": as_overrides(teacher), "start": as_overrides(start)}),
        settings=distilpythia.SETTINGS,
        write=distilpythia.write_report,
        study_class=PythiaStudy,
    )


def smaller_microlm() -> Smaller:
    start = {"n_embd": 48, "n_inner": 128}
    strong = {"n_embd": 80, "n_inner": 224}
    names = ("start", "strong", "ce", "ce_flops", "reverse", "reverse_long", "forward")
    rows = chosen(microlm.ROWS, names, {"start": as_overrides(start), "strong": as_overrides(strong)})
    factor = 1 + microlm.forward_flops("teacher", **strong) / (3 * microlm.forward_flops("pretrain", **start))
    for name in ("ce_flops", "reverse_long"):
        rows[name] = replace(rows[name], epochs_factor=factor)
    return Smaller(folder=microlm.HERE, rows=rows, settings=microlm.SETTINGS, write=microlm.write_report)


SMALLER = {"distilgpt2": smaller_distilgpt2, "distilpythia": smaller_distilpythia, "microlm": smaller_microlm}

# ---------------------------------------------------------------------------------------------
# the study


def main():
    numbers = parse_seeds(seeds)
    check_corpus(corpus)
    size = SMALLER[study]()
    runs = size.study_class(
        rows=size.rows,
        data=MEDIUM,
        out_dir=out_dir or f"out/{study}_smaller",
        jobs=jobs,
        splits={"dev": MEDIUM, "test": MEDIUM_TEST},
        trial_rates=size.trial_rates,
        trial_epochs=(0,),
    )
    # after Study has locked the data: another study may be reading it
    meta = prepare_medium(runs, corpus)
    record_corpus(runs, meta)
    runs.settle(size.settings)
    trials = {}
    if size.trial_rates:
        runs.run([runs.settled(row, seed) for row in size.bases for seed in numbers], scored=False)
        trials = runs.choose(list(size.trial_rates), numbers[0])
    table = runs.run_table(list(size.rows), numbers)
    runs.publish(size.folder / "logs_smaller", table, meta, trials=trials)
    # the page is of both sizes
    if (size.folder / "logs/study.json").exists():
        size.write(read_results(size.folder / "logs"))


if __name__ == "__main__":
    study = ""  # distilgpt2, distilpythia or microlm
    corpus = ""  # folder of <domain>.train and <domain>.dev; "": BabyLM of 2023 is downloaded
    seeds = "0,1,2"  # of weights, order, dropout and teachers
    jobs = 2  # runs at a time, on one core each
    out_dir = ""  # "": out/<study>_smaller
    config = configure(globals())
    at_least(config, 1, "jobs")
    one_of(config, study=tuple(SMALLER))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    main()
