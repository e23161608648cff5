"""Studies whose scripts are not run: what the tests of all studies share.

A test of a study mixes `Pretending` into the class of that study, and says what its runs reach and its scores print.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from conftest import ROOT

from configurator import read_config_file


def knobs_of(command: list[str]) -> dict[str, str]:
    """{name: text} of the --name=text of a command."""
    return dict(argument[2:].split("=", 1) for argument in command if "=" in argument)


@dataclass(frozen=True)
class Named:
    """What the name of a run says."""

    row: str
    seed: int
    rate: float
    epochs: float


def named(folder: str | Path) -> Named:
    """What the folder of a run is called."""
    row, rest = Path(folder).name.rsplit("_seed", 1)
    seed, rest = rest.split("_lr")
    rate, epochs = rest.split("_epochs")
    return Named(row, int(seed), float(rate), float(epochs))


class Pretending:
    """Writes the files that the scripts would, and keeps their commands."""

    def loss(self, run: Named, split: str) -> float:
        """What a run ends at, or a split of it ("dev", "test"; "" while training)."""
        raise NotImplementedError

    def printed(self, command: list[str], knobs: dict[str, str]) -> dict | None:
        """The JSON object that a score prints; None for a script that prints none."""
        raise NotImplementedError

    def fill_cache(self, folder: Path, knobs: dict[str, str]):
        """What cache_teacher.py writes."""

    def call(self, command, log="unused"):
        self.commands = [*getattr(self, "commands", []), command]
        knobs = knobs_of(command)
        if command[0] == "prepare_data.py":
            return
        if command[0] in ("-m", "evaluate.py"):
            printed = self.printed(command, knobs)
            if printed is not None:
                Path(log).write_text(json.dumps(printed))
            return
        folder = Path(knobs["out_dir"])
        folder.mkdir(parents=True, exist_ok=True)
        if command[0] == "cache_teacher.py":
            self.fill_cache(folder, knobs)
            return
        is_split = "--max_steps=0" in command
        run = named(folder.parent if is_split else folder)
        val = self.loss(run, folder.name if is_split else "")
        config = {} if is_split else read_config_file(command[1])
        # a run stores numbers
        config |= {key: float(text) if key in ("learning_rate", "epochs") else text for key, text in knobs.items()}
        summary = {"parameters": 100, "tokens": 6000, "seconds": 60.0, "flops": 2e12, "val": val, "bits_per_byte": 2.0}
        (folder / "summary.json").write_text(json.dumps(summary | {"config": config}))
        (folder / "log.txt").write_text(f"0 val {val}\n0 val/cbt {val}\n0 train {val}\n9 val {val}\n9 train {val}\n")

    def trained(self) -> list[list[str]]:
        """The commands that train, not those that score a split."""
        scripts = ("train.py", "distill.py")
        return [c for c in self.commands if c[0].startswith((*scripts, "-mstudies")) and "--max_steps=0" not in c]


def pretend(monkeypatch, tmp_path, *, study: str, main, study_class: type, knobs: dict, meta=None):
    """make(**changed): the study in tmp_path, followed to its page; each call as a new process would.

    study: its folder under studies/. main: its __main__. study_class: a Pretending one, in the place of that which main
    names. knobs: of main. meta: more of the data's meta.json.
    """
    monkeypatch.chdir(tmp_path)
    folder = Path("studies") / study
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / folder / "page.md", folder)
    if not Path("config").exists():
        Path("config").symlink_to(ROOT / "config")
    found = {"train_tokens": 23, "train_bytes": 50, "val_tokens": 9, "vocab_size": 1500, "files": {}} | (meta or {})
    for cut in ("cut_corpus", "cut_documents"):
        monkeypatch.setattr(f"studies.corpus.{cut}", lambda *a: None)
    monkeypatch.setattr("studies.corpus.read_meta", lambda folder: dict(found))
    knobs = {"corpus": "", "seeds": "0,1,2", "jobs": 2, "out_dir": "out"} | knobs
    # the class of the study, by the name that main has for it
    name = next(base.__name__ for base in study_class.__mro__ if hasattr(main, base.__name__))

    def make(**changed):
        made = []
        for key, value in (knobs | changed).items():
            monkeypatch.setattr(main, key, value, raising=False)
        monkeypatch.setattr(main, name, lambda **settings: made.append(study_class(**settings)) or made[0])
        try:
            main.main()
        finally:
            made[0].data_lock.close()
        return made[0]

    return make
