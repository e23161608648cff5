"""How the study's two pretrained models begin: train.py cannot make a GPT-NeoX, but can start from one."""

import shutil
from pathlib import Path

from configurator import read_config_file
from studies.rows import Trained
from studies.runs import Study


class PythiaStudy(Study):
    """A study that makes new weights of Pythia's architecture for its pretrained rows, in a folder for each seed."""

    def fresh(self, run: Trained) -> Path:
        return self.out / "fresh" / f"{run.row}_seed{run.seed}"

    def command(self, run: Trained, folder: Path) -> list[str]:
        command = super().command(run, folder)
        if self.rows[run.row].script == "train.py":
            command.append(f"--init_from={self.fresh(run)}")
        return command

    def train(self, run: Trained, folder: Path):
        if self.rows[run.row].script == "train.py" and not (folder / "summary.json").exists():
            # Start again rather than resume: the record of a resumed run does not say what it started from.
            shutil.rmtree(folder, ignore_errors=True)
            row = self.rows[run.row]
            shape = read_config_file(row.config)
            shape |= dict(override.removeprefix("--").split("=", 1) for override in row.overrides)
            knobs = [f"--{name}={shape[name]}" for name in ("n_layer", "n_head", "n_embd", "block_size", "dataset")]
            knobs += [f"--seed={run.seed}", f"--out_dir={self.fresh(run)}"]
            self.call(["-m", "studies.distilpythia.fresh", *knobs])
        super().train(run, folder)
