"""Where the study's two pretrained models begin: train.py has no GPT-NeoX, but goes on from any model."""

import shutil
from pathlib import Path

from configurator import read_config_file
from studies.rows import Trained
from studies.runs import Study


class PythiaStudy(Study):
    """A study whose pretrained rows begin with weights of Pythia's form, which it makes, a folder for each seed."""

    def fresh(self, run: Trained) -> Path:
        return self.out / "fresh" / f"{run.row}_seed{run.seed}"

    def command(self, run: Trained, folder: Path) -> list[str]:
        command = super().command(run, folder)
        if self.rows[run.row].script == "train.py":
            command.append(f"--init_from={self.fresh(run)}")
        return command

    def train(self, run: Trained, folder: Path):
        if self.rows[run.row].script == "train.py" and not (folder / "summary.json").exists():
            # one that was interrupted begins anew: resumed it would no longer say what it began from
            shutil.rmtree(folder, ignore_errors=True)
            row = self.rows[run.row]
            shape = read_config_file(row.config)
            shape |= dict(override.removeprefix("--").split("=", 1) for override in row.overrides)
            knobs = [f"--{name}={shape[name]}" for name in ("n_layer", "n_head", "n_embd", "block_size", "dataset")]
            knobs += [f"--seed={run.seed}", f"--out_dir={self.fresh(run)}"]
            self.call(["-m", "studies.distilpythia.fresh", *knobs])
        super().train(run, folder)
