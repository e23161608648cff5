"""What did DistilGPT2 gain from its teacher? Its recipe at a small scale, loss by loss, and the control nobody ran.

    python -m studies.distilgpt2 --corpus=<folder of <domain>.train and <domain>.dev>
    python -m studies.distilgpt2 --only=data --corpus=<folder>    # the small configs' data, no runs

A GPT of twelve blocks is trained. Students begin as six of its blocks, and learn from the published three losses, from
some of them, or from cross-entropy alone, in a short run and in one eight times as long. Writes README.md beside this
file, its picture and logs/. What is finished is not run again: stopped at any instant, the same command continues.
"""

# before torch, so that Ctrl-C while it loads ends in one line
from configurator import at_least, configure, one_of, read_config_file  # isort: split

import signal
import sys
from dataclasses import replace

from model import GPT, GPTConfig
from studies.corpus import MEDIUM, MEDIUM_TEST, check_corpus, parse_seeds, prepare_medium, record_corpus
from studies.distilgpt2.report import HERE, write_report
from studies.distilgpt2.speed import each_seeds_speed
from studies.report import read_results
from studies.rows import Row, Score, Trained
from studies.runs import Study

CONFIGS = "config/distilgpt2_small"

# ---------------------------------------------------------------------------------------------
# rows

LONG = 480  # steps: half an epoch, a quarter of what the teacher has read
SHORT = LONG // 8
TEACHER_CONFIG = read_config_file(f"{CONFIGS}/teacher.py")
VOCAB_SIZE = read_config_file("config/babylm_medium/data.py")["vocab_size"]
N_COPIED = len(read_config_file(f"{CONFIGS}/student.py")["init_layers"].split(","))  # blocks


def forward_flops(n_layer: int, width: int) -> float:
    """FLOPs of a token's forward pass, through the teacher or, with fewer blocks, a student."""
    shape = {name: TEACHER_CONFIG[name] for name in ("block_size", "n_head")}
    net = GPT(GPTConfig(vocab_size=VOCAB_SIZE, n_layer=n_layer, n_embd=width, **shape))
    return net.flops_per_token(shape["block_size"])


def equal_flops(width=TEACHER_CONFIG["n_embd"]) -> float:
    """The factor by which a control can make more steps than a student with the same FLOPs, the teacher's included."""
    step = 3 * forward_flops(N_COPIED, width)  # backward is twice forward
    return 1 + forward_flops(TEACHER_CONFIG["n_layer"], width) / step


def weights(ce: float, kl: float, cos: float) -> tuple[str, ...]:
    return f"--weight_ce={ce:g}", f"--weight_kl={kl:g}", f"--weight_cos={cos:g}"


# nothing is copied: embeddings, norms and head are random like the blocks, and positions are trained
RANDOM = ("--init_layers=", "--freeze=", "--arch=gpt", "--n_layer=6", "--n_head=4", "--n_embd=96", "--vocab_multiple=1")

# {row: (title, config, tuned_as, overrides)}
STUDENTS = {
    "three": ("three losses, 5/2/1", "student_fixed", "three", ()),
    "no_kl": ("without KL", "student_fixed", "three", weights(ce=2, kl=0, cos=1)),
    "no_ce": ("without CE", "student_fixed", "three", weights(ce=0, kl=5, cos=1)),
    "no_cos": ("without cosine", "student_fixed", "three", weights(ce=2, kl=5, cos=0)),
    "kl": ("KL alone", "student_fixed", "three", weights(ce=0, kl=1, cos=0)),
    "cos": ("cosine alone", "student_fixed", "three", weights(ce=0, kl=0, cos=1)),
    "equal": ("three losses, 1/1/1", "student_fixed", "three", weights(ce=1, kl=1, cos=1)),
    "random": ("random blocks and embeddings", "student_fixed", "random", RANDOM),
    "unfrozen": ("positions trained", "student_fixed", "three", ("--freeze=",)),
    "published": ("rows and mean as published", "student", "three", ()),
    "control": ("control: CE alone", "control", "control", ()),
    "control_flops": ("control, equal FLOPs", "control", "control", ()),
}


def student(name: str, length: str, steps: int) -> Row:
    title, config, tuned_as, overrides = STUDENTS[name]
    if name == "control_flops":
        steps = round(steps * equal_flops())
    return Row(
        f"{title}, {length}",
        script="distill.py",
        config=f"{CONFIGS}/{config}.py",
        tuned_as=tuned_as,
        overrides=(*overrides, f"--max_steps={steps}", f"--warmup_steps={round(0.05 * steps)}"),
        teachers=("teacher",),  # a control only takes its blocks
    )


ROWS = {
    "teacher": Row("teacher", script="train.py", config=f"{CONFIGS}/teacher.py", tuned_as="teacher"),
    "copied": replace(student("control", "", steps=1), title="six blocks, not trained on", tuned_as="copied"),
}
ROWS |= {name: student(name, "long", LONG) for name in STUDENTS}
ROWS |= {f"{name}_short": student(name, "short", SHORT) for name in STUDENTS}

# learning rate and epochs (0: the row's steps)
# "copied" makes one step at a rate of 0, as no checkpoint is written without a step
SETTINGS = {"teacher": (5e-3, 2.0), "copied": (0.0, 0)}
TRIAL_RATES = {row: (3e-4, 1e-3, 3e-3) for row in ("three", "control", "random")}  # in the long runs

# ---------------------------------------------------------------------------------------------
# the study


def tasks(study: Study, run: Trained) -> list[str]:
    arguments = [f"--model={study.out / run.name}", f"--data_dir={eval_dir}", f"--limit={limit}", "--json=True"]
    return ["evaluate.py", "--tasks=wikitext,ptb,lambada", *arguments]


def main():
    numbers = parse_seeds(seeds)
    check_corpus(corpus)
    study = Study(
        rows=ROWS,
        data=MEDIUM,
        out_dir=out_dir,
        jobs=jobs,
        splits={"dev": MEDIUM, "test": MEDIUM_TEST},
        scores=(Score("tasks", tasks, {"limit": limit}),),
        trial_rates=TRIAL_RATES,
        trial_epochs=(0,),  # the row's steps
    )
    # after Study has locked the data: another study may be reading it
    meta = prepare_medium(study, corpus)
    if only == "data":
        return
    record_corpus(study, meta)
    study.settle(SETTINGS)
    study.run([study.settled("teacher", seed) for seed in numbers], scored=False)
    trials = study.choose(list(TRIAL_RATES), numbers[0])  # with the first seed's teacher
    table = study.run_table(list(ROWS), numbers)
    more = {"steps": {"long": LONG, "short": SHORT}, "limit": limit, "speed": each_seeds_speed(study, table)}
    study.publish(HERE / "logs", table, meta, trials=trials, **more)
    write_report(read_results(HERE / "logs"))


if __name__ == "__main__":
    corpus = ""  # folder of <domain>.train and <domain>.dev; "": BabyLM of 2023 is downloaded
    eval_dir = "data/eval"  # where WikiText-2, PTB and LAMBADA lie, or are downloaded to
    limit = 400  # their first lines; 0: all
    seeds = "0,1,2"  # of weights, order, dropout and teachers
    jobs = 2  # runs at a time, on one core each
    out_dir = "out/distilgpt2_study"
    only = ""  # "data": prepare the data and stop
    config = configure(globals())
    at_least(config, 1, "jobs")
    at_least(config, 0, "limit")
    one_of(config, only=("", "data"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    main()
