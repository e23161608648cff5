"""Does a student's own text teach it more? Data against own text, at equal FLOPs of the student, over several seeds.

    python -m studies.onpolicy --corpus=<folder of <domain>.train and <domain>.dev>

Models and data are those of the study of Baby Llama (studies/babyllama): a student that was trained
without a teacher goes on from its checkpoint, by cross-entropy, or by a divergence from the LLaMA
teacher on data alone or with a share of its own text. Writes README.md beside this file, its picture
and logs/. What is finished is not run again: stopped at any instant, the same command continues.
"""

# before torch, so that Ctrl-C while it loads ends in one line
from configurator import at_least, configure  # isort: split

import shutil
import signal
import sys
from itertools import chain
from pathlib import Path

from studies.babyllama.__main__ import CONTROL_CONFIG, FORMULA_CONFIG, LLAMA_CONFIG
from studies.corpus import DATA, check_corpus, parse_seeds, prepare, record_corpus
from studies.onpolicy.report import write_report
from studies.runs import Row, Study, Trained

# ---------------------------------------------------------------------------------------------
# rows

DIVERGENCES = {"forward": "forward KL", "reverse": "reverse KL", "js": "JS"}
SHARES = (0.0, 0.25, 0.5)  # of own text
WRITING = 0.28  # what writing adds to a step of the student: 108 of 128 positions once more, of three passes
OWN_TEXT = ("--prompt_tokens=16-48", "--response_tokens=64")


def row_name(kl: str, share: float) -> str:
    return f"{kl}_{share:g}" if share else kl


def continued(kl: str, share: float) -> Row:
    """A student that goes on with a divergence, on its own text in `share` of the steps.

    So that all rows have the student's FLOPs in common, its epochs are fewer. The teacher's are saved with the steps.
    """
    return Row(
        DIVERGENCES[kl] + (f", {share:.0%} own text" if share else ""),
        script="distill.py",
        config=FORMULA_CONFIG,
        tuned_as="continued",
        overrides=(
            "--weight_ce=0",
            "--weight_kl=1",
            "--temperature=1",
            f"--kl={kl}",
            f"--on_policy={share:g}",
            *OWN_TEXT,
        ),
        teachers=("llama",),
        epochs_factor=1 / (1 + WRITING * share),
    )


ROWS = {
    "llama": Row("LLaMA teacher", script="train.py", config=LLAMA_CONFIG, tuned_as="llama"),
    "control": Row("the start: no teacher", script="distill.py", config=CONTROL_CONFIG, tuned_as="control"),
    "ce": Row("cross-entropy", script="distill.py", config=CONTROL_CONFIG, tuned_as="continued"),
}
for kl in DIVERGENCES:
    for share in SHARES:
        ROWS[row_name(kl, share)] = continued(kl, share)

# learning rate and epochs: of teacher and start as the study of Baby Llama chose them; of what follows not tuned
SETTINGS = {"llama": (1e-3, 6.0), "control": (3e-3, 6.0), "continued": (1e-3, 2.0)}

# ---------------------------------------------------------------------------------------------
# the study


class OwnTextStudy(Study):
    """A study whose students go on from the control of their seed, and are judged by their own text as well."""

    def command(self, run: Trained, folder: Path) -> list[str]:
        command = super().command(run, folder)
        if self.rows[run.row].tuned_as == "continued":
            command.append(f"--init_from={self.out / self.settled('control', run.seed).name}")
        return command

    def train(self, run: Trained, folder: Path):
        # one that was interrupted begins anew: resumed it would no longer say what it began from
        if folder.exists() and not (folder / "summary.json").exists():
            shutil.rmtree(folder)
        super().train(run, folder)

    def run_one(self, run: Trained, blimp: bool):
        super().run_one(run, blimp)
        scores = self.out / run.name / "generation.json"
        if scores.exists():
            return
        teacher = self.out / self.settled("llama", run.seed).name
        # written aside and renamed, so that a kill leaves no half of it under the final name
        aside = scores.with_suffix(".writing")
        arguments = [f"--model={self.out / run.name}", f"--teacher={teacher}", f"--dataset={self.data}"]
        self.call(["-m", "studies.generation", *arguments], aside)
        aside.rename(scores)


def main():
    numbers = parse_seeds(seeds)
    check_corpus(corpus)
    study = OwnTextStudy(
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
    table = {}
    for row in ROWS:
        table[row] = [study.settled(row, seed) for seed in numbers]
    # the teachers first: all text is compared with theirs
    study.run(table["llama"], blimp=False)
    study.run(table["control"], blimp=False)
    # all rows of one seed before the next, so that a study that is stopped has whole columns
    study.run(list(chain(*zip(*table.values()))), blimp=False)
    write_report(study, table, meta)


if __name__ == "__main__":
    corpus = ""  # folder of <domain>.train and <domain>.dev; "": BabyLM of 2023 is downloaded
    seeds = "0,1,2"  # of weights, order, teachers and draws
    jobs = 2  # runs at a time, on one core each
    out_dir = "out/onpolicy_study"
    config = configure(globals())
    at_least(config, 1, "jobs")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    main()
