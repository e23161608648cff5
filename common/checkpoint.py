"""Checkpoints: out_dir/step_NNNNNN/, each a Hugging Face folder that also continues its run.

config.json, model.safetensors   the model, under its family's Hugging Face names
meta.json, tokenizer.*           its tokenizer
trainer.pt                       step, rows, best, knobs, optimisers …; loads with weights_only=True

A folder is written aside, flushed to the disk and renamed, and renamed again before it is deleted, so
a `step_` folder is a complete one at every instant. No random state is kept: batches and dropout are
pure functions of (seed, step).
"""

import atexit
import contextlib
import fcntl
import os
import shutil
from pathlib import Path

import safetensors
import torch

from common.files import by_step, flush
from common.optim import load_optimizer_state
from common.pretrained import save_pretrained
from common.weight_files import DAMAGE
from configurator import nearest

STATE_TYPES = {"step": int, "seconds": float, "config": dict, "optimizers": list}
UNSAID = ("init_from", "out_dir")  # knobs whose change is no news when a run is resumed
BEST_DEPENDS_ON = ("dataset", "block_size", "packing", "eval_rows")  # another of these is another validation loss


# ---------------------------------------------------------------------------------------------
# where a run starts


class RunLock:
    """out_dir, held by one run for its life: two in one folder would mix their logs and checkpoints.

    A lock of the kernel (flock) on out_dir/.lock, which goes with its process however that ends. Reading a run
    (teacher=, sample.py, evaluate.py) needs none. `writes` is False for the other ranks, and with eval_only.
    """

    def __init__(self, out_dir: str, writes: bool):
        self.path = Path(out_dir) / ".lock"
        self.new_folders = []
        if not writes:
            return
        check_out_dir(out_dir)
        self.new_folders = [folder for folder in self.path.parents if not folder.exists()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.take()
        self.file.truncate(0)
        self.file.write(str(os.getpid()))
        self.file.flush()
        atexit.register(self.leave_nothing_behind)

    def take(self):
        """The locked file. ValueError when another process holds it."""
        while True:
            file = open(self.path, "a+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise ValueError(
                    f"{self.path.parent} is in use by another run (process {file.read().strip() or 'unknown'}); "
                    "wait for it, stop it, or choose another --out_dir"
                ) from None
            # the run before may have deleted the file after we opened it: then the lock would be on nothing
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self.path)):
                    return file
            file.close()

    def leave_nothing_behind(self):
        """At exit: a run that ended before its first log line takes its lock and its empty folders with it."""
        if (self.path.parent / "log.txt").exists():
            return
        self.path.unlink()
        for folder in self.new_folders:  # the innermost first
            with contextlib.suppress(OSError):  # somebody else's files lie there
                folder.rmdir()


def check_out_dir(out_dir: str):
    if not out_dir:
        raise ValueError("out_dir is empty; name a folder for the run")
    if Path(out_dir).is_file():
        raise ValueError(f"out_dir={out_dir!r} is a file; name a folder for the run")


def checkpoints(out_dir: str | Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return [p for p in by_step(out_dir) if (p / "trainer.pt").is_file()]


def starting_point(out_dir: str, init_from: str, eval_only=False) -> Path | None:
    """The folder that a run starts from: None for "scratch", the newest checkpoint for "resume", else init_from.

    Raises ValueError when out_dir already holds a run that is not to be resumed, or none that can be.
    """
    check_out_dir(out_dir)
    existing = checkpoints(out_dir)
    suggestion = nearest(init_from.lower(), ("scratch", "resume"))
    if init_from not in ("scratch", "resume") and suggestion and not Path(init_from).exists():
        raise ValueError(f"init_from={init_from!r} is no folder{suggestion}")
    if init_from == "resume":
        if not existing:
            raise ValueError(f"{out_dir} has no checkpoint to resume; start with --init_from=scratch")
        return existing[-1]
    if existing and not eval_only:
        raise ValueError(
            f"{out_dir} already holds a run, up to {existing[-1].name}; continue it with --init_from=resume, "
            "or choose another --out_dir"
        )
    return None if init_from == "scratch" else Path(init_from)


# ---------------------------------------------------------------------------------------------
# resume


def load_trainer_state(folder: Path, mmap=False) -> dict:
    """What trainer.pt holds: step, rows, seconds, best, config, optimizers (and projections), tensors on the CPU.

    mmap: leave the tensors in the file, for a look at the rest.
    """
    try:
        state = torch.load(folder / "trainer.pt", map_location="cpu", weights_only=True, mmap=mmap)
        for key, kind in STATE_TYPES.items():
            if not isinstance(state[key], kind):
                raise TypeError(f"{key} is {type(state[key]).__name__}")
        return state
    except DAMAGE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{folder}/trainer.pt is damaged or was cut ({reason}); delete {folder} to continue from the one before"
        ) from None


def stored_knobs(config: dict) -> dict:
    """With init_from="resume" the knobs of out_dir's newest checkpoint, else {}: what `configure` starts from."""
    if config["init_from"] != "resume" or not checkpoints(config["out_dir"]):
        return {}
    return load_trainer_state(checkpoints(config["out_dir"])[-1], mmap=True)["config"]


def restore(folder: Path, state: dict, config: dict, optimizers, projections=None, teachers=()):
    """Put a run's state back into optimisers and projections.

    projections: one for each of `teachers`, by name in their order, between the student's width and theirs.
    Raises ValueError naming what may not change on the way.
    """
    old = state["config"]
    for key in ("freeze", "init_layers", "optimizer"):
        if key in old and old[key] != config[key]:
            raise ValueError(
                f"{key}={config[key]!r}, but {folder} has {key}={old[key]!r}; a resumed run keeps it, or start anew "
                f"from its model: --init_from={folder}"
            )
    if projections is not None and len(list(projections.parameters())):
        check_teacher_order(folder, old.get("teacher", ""), teachers)
    try:
        for optimizer, optimizer_state in zip(optimizers, state["optimizers"], strict=True):
            load_optimizer_state(optimizer, optimizer_state)
        if projections is not None:
            projections.load_state_dict(state["projections"])
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError):
        raise ValueError(
            f"{folder}/trainer.pt is of other optimisers or teachers; resume with the script, optimizer, freeze, "
            "teacher, weight_cos and weight_mse it was trained with, or start anew from it: --init_from=" + str(folder)
        ) from None


def check_teacher_order(folder: Path, old_teachers: str, teachers):
    """ValueError if a teacher has moved to another's place: projections and their moments go by place.

    A teacher under a name that the run did not have (its folder was moved) is taken for the one that it replaces.
    """
    old_names = [str(Path(name.strip()).resolve()) for name in old_teachers.split(",") if name.strip()]
    for place, name in enumerate(teachers):
        resolved = str(Path(name).resolve())
        if resolved in old_names and old_names[place : place + 1] != [resolved]:
            raise ValueError(
                f"teacher={','.join(teachers)!r}, but {folder} has projections to {old_teachers!r}, in that order; "
                "leave teacher out when resuming, or keep the order"
            )


def changes(state: dict, config: dict, world: int) -> str:
    """What a resumed run does differently from here on: "| learning_rate 0.001 -> 0.0005 | ranks 1 -> 2", or ""."""
    old = state["config"]
    parts = []
    for key, value in config.items():
        if key in old and old[key] != value and key not in UNSAID:
            parts.append(f"| {key} {old[key]!r} -> {value!r}")
    if state.get("world", world) != world:
        parts.append(f"| ranks {state['world']} -> {world}")
    return " ".join(parts)


def best_so_far(state: dict, config: dict) -> tuple[float, int]:
    """(lowest validation loss, its step) of a resumed run; (inf, -1) where the loss is measured otherwise now."""
    old = state["config"]
    comparable = all(old.get(key) == config[key] for key in BEST_DEPENDS_ON)
    return tuple(state["best"]) if "best" in state and comparable else (float("inf"), -1)


# ---------------------------------------------------------------------------------------------
# save


def save_checkpoint(out_dir, model, tokenizer, state: dict, keep=0, keep_best=False):
    """Write out_dir/step_NNNNNN for the finished steps state["step"]; then keep only the newest `keep` (0: all).

    state: what trainer.pt is to hold, tensors and plain values; tokenizer: of the data, goes along.
    keep_best: that of the lowest validation loss, state["best"], stays as well.
    """
    final = Path(out_dir) / f"step_{state['step']:06d}"
    aside = final.with_name(f".{final.name}.writing")
    for left in Path(out_dir).glob(".step_*"):  # of a run killed while it wrote or deleted
        shutil.rmtree(left, ignore_errors=True)
    try:
        save_pretrained(model, aside, tokenizer)
        torch.save(state, aside / "trainer.pt")
        for path in [*aside.iterdir(), aside]:
            flush(path)
        if final.exists():  # a checkpoint that could not be resumed, say
            remove(final)
        aside.rename(final)
        flush(final.parent)
    except (RuntimeError, safetensors.SafetensorError) as error:  # how torch and safetensors report a full disk
        reason = str(error).splitlines()[0]
        free = shutil.disk_usage(out_dir).free
        raise OSError(f"cannot write {final}, with {free:,} bytes free ({reason}); older ones are complete") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    best = Path(out_dir) / f"step_{state['best'][1]:06d}"
    for old in checkpoints(out_dir)[:-keep] if keep else []:
        if not (keep_best and old == best):
            remove(old)


def remove(folder: Path):
    """Delete a checkpoint; a kill on the way leaves no `step_` folder that is half there."""
    shutil.rmtree(folder.rename(folder.with_name(f".{folder.name}.removing")))
