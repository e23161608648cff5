"""Does a student's own text teach it more? Data against own text, at equal FLOPs of the student, over several seeds.

    python -m studies.onpolicy --corpus=<folder of <domain>.train and <domain>.dev>

Models and data are those of the study of Baby Llama (studies/babyllama): a student that was trained
without a teacher goes on from its checkpoint, with cross-entropy, or with a divergence from the LLaMA
teacher, on data alone or with a share of its own text. Writes README.md beside this file, its picture
and logs/. What is finished is not run again: stopped at any instant, the same command continues.
"""

# before torch, so that Ctrl-C while it loads ends in one line
from configurator import at_least, configure  # isort: split

import signal
import sys

from studies.babyllama.__main__ import CONTROL_CONFIG, FORMULA_CONFIG, LLAMA_CONFIG
from studies.corpus import DATA, check_corpus, parse_seeds, prepare, record_corpus
from studies.onpolicy.report import HERE, write_report
from studies.report import read_results
from studies.rows import Row, Score, Trained
from studies.runs import Study

# ---------------------------------------------------------------------------------------------
# rows

DIVERGENCES = {"forward": "forward KL", "reverse": "reverse KL", "js": "JS"}
SHARES = (0.0, 0.25, 0.5)  # of steps on own text
WRITING = 0.28  # what writing adds to a student's step of three passes: one more over 108 of the 128 positions
OWN_TEXT = ("--prompt_tokens=16-48", "--response_tokens=64")


def row_name(kl: str, share: float) -> str:
    return f"{kl}_{share:g}" if share else kl


def continued(kl: str, share: float) -> Row:
    """A student that goes on with a divergence, on its own text in `share` of the steps.

    It has fewer epochs, so that the student's FLOPs are equal in all rows. The teacher's FLOPs fall with the steps.
    """
    alone = ("--weight_ce=0", "--weight_kl=1", "--temperature=1")
    return Row(
        DIVERGENCES[kl] + (f", {share:.0%} own text" if share else ""),
        script="distill.py",
        config=FORMULA_CONFIG,
        tuned_as="continued",
        overrides=(*alone, f"--kl={kl}", f"--on_policy={share:g}", *OWN_TEXT),
        teachers=("llama",),
        start="control",
        epochs_factor=1 / (1 + WRITING * share),
    )


ROWS = {
    "llama": Row("LLaMA teacher", script="train.py", config=LLAMA_CONFIG, tuned_as="llama"),
    "control": Row("the start: no teacher", script="distill.py", config=CONTROL_CONFIG, tuned_as="control"),
    "ce": Row("cross-entropy", script="distill.py", config=CONTROL_CONFIG, tuned_as="continued", start="control"),
}
for kl in DIVERGENCES:
    for share in SHARES:
        ROWS[row_name(kl, share)] = continued(kl, share)

# learning rate and epochs: those of teacher and start as the study of Baby Llama chose them; the others are not tuned
SETTINGS = {"llama": (1e-3, 6.0), "control": (3e-3, 6.0), "continued": (1e-3, 2.0)}


def own_text(study: Study, run: Trained) -> list[str]:
    """The command that scores a run's own text, by the teacher of its seed."""
    teacher = study.folder_of("llama", run.seed)
    arguments = [f"--model={study.out / run.name}", f"--teacher={teacher}", f"--dataset={study.data}"]
    return ["-m", "studies.generation", *arguments]


# ---------------------------------------------------------------------------------------------
# the study


def main():
    numbers = parse_seeds(seeds)
    check_corpus(corpus)
    study = Study(rows=ROWS, data=DATA, out_dir=out_dir, jobs=jobs, scores=(Score("generation", own_text),))
    # after Study has locked the data: another study may be reading it
    meta = prepare(study, corpus)
    record_corpus(study, meta)
    study.settle(SETTINGS)
    # the teachers before all others, even the starts: every run's text is scored by them
    study.run_table(["llama"], numbers)
    table = study.run_table(list(ROWS), numbers)
    study.publish(HERE / "logs", table, meta)
    write_report(read_results(HERE / "logs"))


if __name__ == "__main__":
    corpus = ""  # folder of <domain>.train and <domain>.dev; "": BabyLM of 2023 is downloaded
    seeds = "0,1,2"  # of weights, order, teachers and draws
    jobs = 2  # runs at a time, on one core each
    out_dir = "out/onpolicy_study"
    config = configure(globals())
    at_least(config, 1, "jobs")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    main()
