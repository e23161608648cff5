"""The trap of MicroLM's second stage: a teacher of another tokenizer, as wide as the student, matched by id.

distill.py refuses it. Here it is tried, the refusal is kept, and then the teacher is given the tokenizer files of the
data, so that it passes for one of the student's tokens.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from common.data import tokenizer_meta
from common.files import read_json, write_json
from common.pretrained import find_model
from common.tokenizer import load_tokenizer
from studies.corpus import MEDIUM, MEDIUM_TEST, MEDIUM_TEXT
from studies.rows import Trained
from studies.runs import Study

SUBTITLES_TEXT = Path("data/babylm_medium_subtitles_text")
OTHER = Path("data/babylm_medium_other")


def prepare_other(study: Study) -> int:
    """Prepare the text of MEDIUM in another tokenizer; how many ids mean the same text in both.

    It is a BPE of one domain. One of all text, prepared another way, would share nine ids in ten.
    """
    SUBTITLES_TEXT.mkdir(parents=True, exist_ok=True)
    for split in ("train", "dev"):
        # copy2 keeps the time, by which prepare_data.py sees that nothing is new
        shutil.copy2(MEDIUM_TEXT / f"open_subtitles.{split}", SUBTITLES_TEXT)
    study.call(["prepare_data.py", "config/microlm_small/other_tokenizer.py"])
    study.call(["prepare_data.py", "config/microlm_small/other_data.py"])
    ours = load_tokenizer(MEDIUM)
    theirs = load_tokenizer(OTHER)
    return sum(ours.decode([i]) == theirs.decode([i]) for i in range(ours.vocab_size))


class TrapStudy(Study):
    """A study whose row "other" is a teacher of another tokenizer."""

    def command(self, run: Trained, folder: Path) -> list[str]:
        # every schedule ends at a tenth of its peak
        return [*super().command(run, folder), f"--min_lr={run.rate / 10:g}"]

    def beside_strong(self, run: Trained, module: str, *arguments: str) -> list[str]:
        """A script that compares a run with the strong teacher of its seed on the test split."""
        folders = [f"--model={self.out / run.name}", f"--teacher={self.folder_of('strong', run.seed)}"]
        return ["-m", module, *folders, f"--dataset={MEDIUM_TEST}", *arguments]

    def train(self, run: Trained, folder: Path):
        super().train(run, folder)
        if run.row == "other":
            self.keep_refusal(folder)
            forge(folder)

    def keep_refusal(self, folder: Path):
        """Ask distill.py to learn from a teacher as it is, and write what it says to refusal.json."""
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
        # the page has no folders of whoever ran the study
        write_json(
            record,
            {"exit_code": done.returncode, "message": message[0].replace(str(find_model(folder)), "the teacher")},
        )

    def refusals(self, seeds: list[int]) -> list[dict]:
        """What distill.py said of the teachers of another tokenizer."""
        return [read_json(self.folder_of("other", seed) / "refusal.json") for seed in seeds]

    def own_bits(self, seeds: list[int]) -> list[float]:
        """Bits per byte of these teachers on the dev text in their own tokens, before they were given others."""
        return [read_json(self.folder_of("other", seed) / "summary.json")["bits_per_byte"] for seed in seeds]


def forge(folder: Path):
    """Give the newest checkpoint of a run the tokenizer files of MEDIUM: its weights know nothing of them."""
    tokenizer = load_tokenizer(MEDIUM)
    checkpoint = find_model(folder)
    tokenizer.save(checkpoint)
    write_json(checkpoint / "meta.json", tokenizer_meta(tokenizer))
