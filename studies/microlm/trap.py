"""The trap of MicroLM's second stage: a teacher of another tokenizer, as wide as the student, matched by id.

distill.py refuses it. Here that is tried and the refusal kept. Then the teacher is given the tokenizer files of the
data, so that it passes for one with the student's tokenizer.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from common.files import read_json, write_json
from common.meta import tokenizer_meta
from common.pretrained import find_model
from common.tokenizer import load_tokenizer
from studies.corpus import MEDIUM, MEDIUM_TEST, MEDIUM_TEXT
from studies.rows import Trained
from studies.runs import Study

SUBTITLES_TEXT = Path("data/babylm_medium_subtitles_text")
OTHER = Path("data/babylm_medium_other")


def prepare_other(study: Study) -> int:
    """Prepare the text of MEDIUM with another tokenizer. Returns how many ids mean the same text in both.

    It is a BPE trained on one domain. One trained on all text would share nine ids in ten.
    """
    SUBTITLES_TEXT.mkdir(parents=True, exist_ok=True)
    for split in ("train", "dev"):
        # copy2 keeps the time of change, by which prepare_data.py recognises an unchanged file
        shutil.copy2(MEDIUM_TEXT / f"open_subtitles.{split}", SUBTITLES_TEXT)
    study.call(["prepare_data.py", "config/microlm_small/other_tokenizer.py"])
    study.call(["prepare_data.py", "config/microlm_small/other_data.py"])
    ours = load_tokenizer(MEDIUM)
    theirs = load_tokenizer(OTHER)
    return sum(ours.decode([i]) == theirs.decode([i]) for i in range(ours.vocab_size))


class TrapStudy(Study):
    """A study whose row "other" is a teacher of another tokenizer."""

    def command(self, run: Trained, folder: Path) -> list[str]:
        # every run's learning rate ends at a tenth of its peak
        return [*super().command(run, folder), f"--min_lr={run.rate / 10:g}"]

    def beside_strong(self, run: Trained, module: str, *arguments: str) -> list[str]:
        """The command of a script that compares a run with its seed's strong teacher on the test split."""
        folders = [f"--model={self.out / run.name}", f"--teacher={self.folder_of('strong', run.seed)}"]
        return ["-m", module, *folders, f"--dataset={MEDIUM_TEST}", *arguments]

    def train(self, run: Trained, folder: Path):
        super().train(run, folder)
        if run.row == "other":
            self.keep_refusal(folder)
            forge(folder)

    def keep_refusal(self, folder: Path):
        """Run distill.py with the unchanged teacher, and write its error to refusal.json."""
        record = folder / "refusal.json"
        if record.exists():
            return
        # from scratch, as the teacher is checked before the student is loaded
        arguments = ["--init_from=scratch", f"--teacher={folder}", f"--out_dir={folder / 'refused'}"]
        command = ["distill.py", "config/microlm_small/reverse_kl.py", "--max_steps=0", *arguments]
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
        message = done.stderr.strip().splitlines()[-1:]
        if done.returncode != 2 or "was trained with tokenizer" not in "".join(message):
            raise ValueError(f"{' '.join(command)}: expected a refusal, got exit code {done.returncode} {message}")
        # without the path, as the page is published
        message_without_path = message[0].replace(str(find_model(folder)), "the teacher")
        write_json(record, {"exit_code": done.returncode, "message": message_without_path})

    def refusals(self, seeds: list[int]) -> list[dict]:
        """distill.py's refusals of the teachers of another tokenizer."""
        return [read_json(self.folder_of("other", seed) / "refusal.json") for seed in seeds]

    def own_bits(self, seeds: list[int]) -> list[float]:
        """Bits per byte of these teachers on the dev text in their own tokens, before the tokenizer was replaced."""
        return [read_json(self.folder_of("other", seed) / "summary.json")["bits_per_byte"] for seed in seeds]


def forge(folder: Path):
    """Replace the tokenizer files of a run's newest checkpoint by those of MEDIUM, which its weights do not fit."""
    tokenizer = load_tokenizer(MEDIUM)
    checkpoint = find_model(folder)
    tokenizer.save(checkpoint)
    write_json(checkpoint / "meta.json", tokenizer_meta(tokenizer))
