"""Real scripts with odd values of their knobs, for tests/fuzz.py: run as `python script` does, in a process forked from
one that has imported what they import.
"""

import atexit
import contextlib
import json
import os
import resource
import runpy
import signal
import sys
from pathlib import Path

from hypothesis import strategies as st

from configurator import defaults_of

ROOT = Path(__file__).resolve().parents[1]
T = 16  # block_size
MODEL = ["--n_layer=1", "--n_head=1", "--n_embd=8", "--vocab_multiple=1", f"--block_size={T}", "--batch_size=4"]
LOOP = [*MODEL, "--max_steps=2", "--eval_rows=4", "--dataset=DATA", "--out_dir=OUT/run", "--log_interval=1"]
# A short valid command of each; DATA, RUN and OUT stand for folders.
COMMANDS = {
    "train.py": LOOP,
    "distill.py": [*LOOP, "--teacher=RUN"],
    "cache_teacher.py": ["--dataset=DATA", "--teacher=RUN", f"--block_size={T}", "--rows=8", "--eval_rows=4",
                         "--out_dir=OUT/cache"],
    "sample.py": ["--model=RUN", "--max_tokens=3"],
    "evaluate.py": ["--model=RUN", "--tasks=DATA/text.txt", "--limit=2"],
    "prepare_data.py": ["--source=DATA/text.txt", "--tokenizer=bytes", "--out_dir=OUT/data", "--val_fraction=0.3"],
    "plot.py": ["--runs=RUN", "--out=OUT/x.png"],
}  # fmt: skip
# As large as they are asked for, they take as long; and what would be downloaded, compiled or sent.
LEFT_OUT = (
    "n_layer",
    "max_steps",
    "epochs",
    "num_samples",
    "max_tokens",
    "compile",
    "wandb_project",
    "workers",
    "out_dir",
    "out",
)
VALUES = st.sampled_from(
    ("0", "1", "2", "3", "-1", "0.5", "1e-9", "1e30", "1e308", "nan", "inf", "-inf", "", " ", "x", "é", "true", "None",
     "[1]", "1,2", "0,0", "100000", "3000000000", "9" * 30, "a\nb", "RUN", "DATA", "OUT", "RUN,RUN", "RUN/best",
     "/dev/null", "../x", "x" * 300, "resume", "auto", "scratch", "gpt", "muon", "bfloat16", "documents", "cuda:5")
)  # fmt: skip


def make_commands(material) -> dict[str, bytes]:
    text = b"A text of some words.\n" * 30
    files = {f"data/{path.name}": path.read_bytes() for path in material.data().iterdir() if path.is_file()}
    for path in material.run_folder().rglob("*"):
        if path.is_file():
            files[f"run/{path.relative_to(material.run_folder())}"] = path.read_bytes()
    return files | {"data/text.txt": text, "command.json": json.dumps(["sample.py", *COMMANDS["sample.py"]]).encode()}


def spoil_command(draw, files: dict[str, bytes], folder: Path):
    """One to three knobs of a script with odd values."""
    script = draw(st.sampled_from(sorted(COMMANDS)))
    knobs = sorted(set(defaults_of(ROOT / script)) - set(LEFT_OUT))
    command = [script, *COMMANDS[script]]
    for _ in range(draw(st.integers(1, 3))):
        command.append(f"--{draw(st.sampled_from(knobs))}={draw(VALUES)}")
    for name, content in (files | {"command.json": json.dumps(command).encode()}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def run_command(folder: Path, out: Path):
    """ValueError where the script ends with 2 and one line, AssertionError where it ends neither so nor with 0."""
    script, *args = json.loads((folder / "command.json").read_text())
    for name, path in (("DATA", folder / "data"), ("RUN", folder / "run"), ("OUT", out)):
        args = [arg.replace(name, str(path)) for arg in args]
    child = os.fork()
    if child == 0:
        run_as_main(script, args, out)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    lines = (out / "stderr").read_text(errors="replace").splitlines()
    # notes, as of an empty prompt, come in front
    is_refused = code == 2 and lines and lines[-1].startswith(f"{script}: ")
    ends_well = code == 0 or is_refused
    assert ends_well and not any(line.startswith("Traceback") for line in lines), (
        f"{script} {args}: {code}, {lines[-3:]}"
    )
    if is_refused:
        raise ValueError(lines[-1])


def run_as_main(script: str, args: list[str], out: Path):
    """The script, from its first line to its process's end, which comes after 10 s of the processor at the latest."""
    resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
    signal.alarm(100)
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(out / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
    sys.stdout = os.fdopen(1, "w")
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w")
    sys.argv = [str(ROOT / script), *args]
    os.chdir(out)
    code = 0
    with contextlib.suppress(SystemExit):
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
        except BaseException as error:
            code = 2
            # ends in SystemExit after its one line; returns after a traceback
            sys.excepthook(type(error), error, error.__traceback__)
            code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
