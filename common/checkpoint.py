"""Checkpoints: out_dir/step_NNNNNN/, each a Hugging Face folder that also continues its run.

config.json, model.safetensors   the model, under its family's Hugging Face names
meta.json, tokenizer.*           its tokenizer
trainer.pt                       step, rows, best, knobs, optimisers …; loads with weights_only=True

Here is what chooses and reads them; common/checkpoint_writer.py writes them. No random state is kept: batches and
dropout are pure functions of (seed, step).
"""

import atexit
import contextlib
import math
import os
from pathlib import Path

import torch

from common.files import by_step, lock
from common.optim import load_optimizer_state
from common.sharding import share_of
from common.weight_files import DAMAGE
from configurator import KINDS, nearest

# What trainer.pt must hold; the rest was added by later versions.
STATE_TYPES = {"step": int, "seconds": float, "config": dict, "optimizers": list}
# What each of its sections must hold, besides knobs.
SECTION_NUMBERS = ("step", "row")
# The types of its numbers, none of which may be negative.
STATE_NUMBERS = {"step": int, "rows": int, "tokens": int, "world": int, "seconds": float}
STATE_NUMBERS |= {"flops": (int, float), "epochs_done": (int, float)}
LARGEST_NUMBER = 1e300  # of these
# The optimiser's state is laid out by these: which parameters are trained, and how.
FIXED_KNOBS = ("freeze", "init_layers", "optimizer")
# Knobs whose change is not reported when a run is resumed: they only say which run that is.
UNREPORTED = ("init_from", "out_dir")
# A change of these changes the rows that the validation loss is measured on.
BEST_DEPENDS_ON = ("block_size", "packing", "random_offset", "eval_rows")
# These decide which rows a step reads.
ROW_KNOBS = ("dataset", "seed", "block_size", "packing", "random_offset", "batch_size", "tokens_per_step")


# ---------------------------------------------------------------------------------------------
# where a run starts


class RunLock:
    """Keeps out_dir for one run as long as it lives: two in one folder would mix their logs and checkpoints.

    A lock of the kernel (flock) on out_dir/.lock, released when its process ends, however that ends. Reading a run
    (teacher=, sample.py, evaluate.py) needs none. `writes` is False for the other ranks, and with eval_only.
    """

    def __init__(self, out_dir: str, writes: bool):
        self.path = Path(out_dir) / ".lock"
        self.file = None  # open, and with it locked
        if not writes:
            return
        check_out_dir(out_dir)
        # innermost first, the order in which they can be removed
        self.new_folders = [folder for folder in self.path.parents if not folder.exists()]
        atexit.register(self.leave_nothing_behind)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.take()
            # The process id tells the user what to wait for.
            self.file.truncate(0)
            self.file.write(str(os.getpid()))
            self.file.flush()
        # read-only, full, beyond a quota, or somebody else's
        except OSError as error:
            remedy = "make room or get the permission there, or choose another --out_dir"
            raise OSError(f"cannot write to {self.path.parent} ({error.strerror}); {remedy}") from None

    def take(self):
        """The locked file. ValueError when another process holds it."""
        while True:
            # not "w": it would empty the file of the process that holds the lock
            file = open(self.path, "a+")
            try:
                lock(file)
            except BlockingIOError:
                file.seek(0)
                # The holder may not have written its id yet.
                holder = file.read().strip() or "unknown"
                problem = f"is in use by another run (process {holder})"
                remedy = "wait for it, stop it, or choose another --out_dir"
                raise ValueError(f"{self.path.parent} {problem}; {remedy}") from None
            # The previous run may have deleted the file after we opened it: then our lock is on a file without a name,
            # and the next process would create and lock a new one.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self.path)):
                    return file
            file.close()

    def leave_nothing_behind(self):
        """At exit: a run that ended before its first log line takes its lock and its empty folders with it."""
        if (self.path.parent / "log.txt").exists():
            return
        # Not the lock of another run, by which this one was refused: without the file a third would get in.
        if self.file:
            # It may be gone already.
            with contextlib.suppress(OSError):
                self.path.unlink()
        for folder in self.new_folders:
            # Somebody else may have put files there: then rmdir fails, as it should.
            with contextlib.suppress(OSError):
                folder.rmdir()


def check_out_dir(out_dir: str):
    if not out_dir:
        raise ValueError("out_dir is empty; name a folder for the run")
    if Path(out_dir).is_file():
        raise ValueError(f"out_dir={out_dir!r} is a file; name a folder for the run")


def checkpoints(out_dir: str | Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    # Without trainer.pt a folder can be sampled from, but not resumed: a user may have deleted it to save space.
    return [folder for folder in by_step(out_dir) if (folder / "trainer.pt").is_file()]


def starting_point(out_dir: str, init_from: str, eval_only=False) -> Path | None:
    """The folder that a run starts from: None for "scratch", the newest checkpoint for "resume", else init_from.

    Raises ValueError when out_dir already holds a run that is not to be resumed, or none that can be.
    """
    check_out_dir(out_dir)
    is_name = init_from not in ("scratch", "resume")
    if is_name and not Path(init_from).exists():
        # Otherwise "Resume" would be looked for on the hub. A name unlike all of these may exist there.
        suggestion = nearest(init_from.lower(), ("scratch", "resume", "auto"))
        if suggestion:
            raise ValueError(f"init_from={init_from!r} is no folder{suggestion}")
    existing = checkpoints(out_dir)
    if init_from == "resume":
        if not existing:
            raise ValueError(f"{out_dir} has no checkpoint to resume; start with --init_from=scratch")
        return existing[-1]
    if existing and not eval_only:
        remedy = "continue it with --init_from=resume, or choose another --out_dir"
        raise ValueError(f"{out_dir} already holds a run, up to {existing[-1].name}; {remedy}")
    if init_from == "scratch":
        return None
    return Path(init_from)


# ---------------------------------------------------------------------------------------------
# resume


def load_trainer_state(folder: Path, mmap=False) -> dict:
    """What trainer.pt holds: step, rows, seconds, best, config, optimizers (and projections), tensors on the CPU.

    mmap: leave the tensors in the file, for a look at the rest.
    """
    path = folder / "trainer.pt"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        check_state(state)
        return state
    except DAMAGE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        remedy = f"delete {folder} to continue from the one before"
        raise ValueError(f"{path} is damaged or was cut ({reason}); {remedy}") from None


def check_state(state: dict):
    """KeyError, TypeError or ValueError unless a trainer.pt holds what the loops take from it."""
    for key, expected in STATE_TYPES.items():
        if not isinstance(state[key], expected):
            raise TypeError(f"{key} is {type(state[key]).__name__}")
    for key, expected in STATE_NUMBERS.items():
        number = state.get(key, 0)
        # an int of any size is legal in a pickle, but the loops compute with floats as well
        if not isinstance(number, expected) or not 0 <= number < LARGEST_NUMBER:
            raise ValueError(f"{key} is {repr(number)[:40]}")
    for key, value in state["config"].items():
        if not isinstance(key, str) or type(value) not in KINDS:
            raise TypeError(f"its knob {key} is {type(value).__name__}")
    lowest_loss, best_step = state.get("best", (math.inf, -1))
    if not isinstance(lowest_loss, float) or not isinstance(best_step, int):
        raise TypeError(f"best is {state['best']!r}")
    if not isinstance(state.get("data", ""), str):
        raise TypeError(f"data is {type(state['data']).__name__}")
    teachers = state.get("teachers", [])
    if not isinstance(teachers, list) or not all(isinstance(identity, str) for identity in teachers):
        raise TypeError(f"teachers is {repr(teachers)[:40]}")
    for section in state.get("sections", []):
        for key, value in section.items():
            if not isinstance(key, str) or type(value) not in KINDS:
                raise TypeError(f"{key} of its sections is {type(value).__name__}")
        if any(not isinstance(section[key], int) or section[key] < 0 for key in SECTION_NUMBERS):
            raise ValueError(f"a section of its rows begins at {[section[key] for key in SECTION_NUMBERS]}")
    for name, value in state.get("own", {}).items():
        if not isinstance(value, float):
            raise TypeError(f"{name} of own text is {type(value).__name__}")


def stored_knobs(config: dict) -> dict:
    """What `configure` starts from: with init_from="resume" the knobs of out_dir's newest checkpoint, else {}.

    "auto" is resolved first: to "resume" if there is a checkpoint, otherwise to what the config files say.
    """
    if config["init_from"] == "auto":
        config["init_from"] = without_auto(config)
    if config["init_from"] != "resume":
        return {}
    existing = checkpoints(config["out_dir"])
    # no error here: `starting_point` reports that there is nothing to resume
    if not existing:
        return {}
    return with_current_names(load_trainer_state(existing[-1], mmap=True)["config"])


def without_auto(config) -> str:
    """What init_from="auto" stands for, so that the same command starts a run and continues it."""
    if checkpoints(config["out_dir"]):
        return "resume"
    # "auto" given over a config file's "EleutherAI/pythia-70m" starts from that model
    untyped = config.untyped["init_from"]
    if untyped == "auto":
        return "scratch"
    return untyped


def with_current_names(stored: dict) -> dict:
    """Stored knobs under their current names: HellaSwag once had knobs of its own, and is now one of eval_tasks."""
    interval = stored.get("hellaswag_interval", 0)
    if not interval:
        return stored
    # there were two sets of tasks with an interval each, and now there is one
    if stored.get("eval_tasks"):
        print(f"note: the run scored HellaSwag every {interval} steps; add it to --eval_tasks to go on with that")
        return stored
    return stored | {
        "eval_tasks": stored.get("hellaswag_data") or "hellaswag",
        "eval_tasks_interval": interval,
        "eval_tasks_limit": stored.get("hellaswag_limit", 0),
    }


def restore(folder: Path, state: dict, config: dict, optimizers, projections=None, teachers=()):
    """Put a run's state back into optimisers and projections.

    projections: one for each of `teachers`, by name in their order, between the student's width and theirs.
    Raises ValueError naming what may not change when a run is resumed.
    """
    old = state["config"]
    # train.py, which would go on without the teacher
    if projections is None and "projections" in state and not config["eval_only"]:
        remedy = f"resume it with that script, or start anew from its model: --init_from={folder}"
        raise ValueError(f"{folder} is of a run of distill.py; {remedy}")
    for key in FIXED_KNOBS:
        if key in old and old[key] != config[key]:
            problem = f"{key}={config[key]!r}, but {folder} has {key}={old[key]!r}"
            remedy = f"a resumed run keeps it, or start anew from its model: --init_from={folder}"
            raise ValueError(f"{problem}; {remedy}")
    has_projections = projections is not None and len(list(projections.parameters())) > 0
    if has_projections:
        check_teacher_order(folder, str(old.get("teacher", "")), teachers)
    try:
        for optimizer, optimizer_state in zip(optimizers, state["optimizers"], strict=True):
            load_optimizer_state(optimizer, optimizer_state)
        if projections is not None:
            ours = projections.state_dict()
            theirs = state["projections"]
            projections.load_state_dict({name: share_of(theirs[name], ours.get(name)) for name in theirs})
    # What torch raises depends on how they differ: in number, names or shapes.
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError):
        same = "the script, optimizer, freeze, teacher, weight_cos and weight_mse it was trained with"
        raise ValueError(
            f"{folder}/trainer.pt is of other optimisers or teachers; resume with {same}, or start anew from it: "
            f"--init_from={folder}"
        ) from None


def check_teacher_order(folder: Path, old_teachers: str, teachers):
    """ValueError if a teacher has moved to another's place: projections and their moments are stored by place.

    A teacher with a name that is new to the run (its folder was moved) is taken for the one that it replaces.
    """
    # resolved: out/teacher and ./out/teacher are the same
    old_paths = [Path(name.strip()).resolve() for name in old_teachers.split(",") if name.strip()]
    for place, name in enumerate(teachers):
        path = Path(name).resolve()
        has_its_place = path in old_paths[place : place + 1]
        if path in old_paths and not has_its_place:
            given = ",".join(teachers)
            raise ValueError(
                f"teacher={given!r}, but {folder} has projections to {old_teachers!r}, in that order; "
                "leave teacher out when resuming, or keep the order"
            )


def changes(state: dict, config: dict, world: int, data: str, teachers: list[str] = ()) -> str:
    """What a resumed run does differently from here on: "| learning_rate 0.001 -> 0.0005 | ranks 1 -> 2", or "".

    data: the identity of its data set; teachers: of each of its teachers, or of its cache.
    """
    old = state["config"]
    changed = []
    for key, value in config.items():
        if key in old and old[key] != value and key not in UNREPORTED:
            changed.append(f"| {key} {old[key]!r} -> {value!r}")
    if state.get("world", world) != world:
        changed.append(f"| ranks {state['world']} -> {world}")
    # the same folder may have been prepared anew
    if config["dataset"] == old.get("dataset") and not is_same_data(state, config, data):
        changed.append(f"| {config['dataset']} has other tokens than before")
    # a teacher named by its out_dir may have trained on, and a cache may have been made anew
    before = state.get("teachers")
    # checkpoints from before these were kept have fewer or none
    is_known = before and teachers and len(before) == len(teachers)
    if is_known and before != teachers and config["teacher"] == old.get("teacher"):
        changed.append(f"| teacher {config['teacher']} has other weights than before")
    return " ".join(changed)


def is_same_data(state: dict, config: dict, data: str) -> bool:
    """Whether the data set, whose identity is `data`, is the one before; older runs stored only the folder's name."""
    if "data" in state:
        return state["data"] == data
    return state["config"].get("dataset") == config["dataset"]


def best_so_far(state: dict, config: dict, data: str) -> tuple[float, int]:
    """(lowest validation loss, its step) of a resumed run; (inf, -1) if the loss is now measured on other rows."""
    old = state["config"]
    is_comparable = all(old.get(key) == config[key] for key in BEST_DEPENDS_ON)
    if "best" in state and is_comparable and is_same_data(state, config, data):
        return tuple(state["best"])
    return (math.inf, -1)


def tokens_so_far(state: dict) -> int:
    """How many tokens a run has trained on."""
    if "tokens" in state:
        return state["tokens"]
    # older runs kept the rows alone, and the oldest only the step
    old = state["config"]
    if "rows" in state:
        return state["rows"] * old["block_size"]
    return state["step"] * old.get("tokens_per_step", 0)


def rows_so_far(state: dict, config: dict, tokens_per_step: int, n_rows: int) -> int:
    """How many rows a run has used, converted to rows of its present block_size and packing, n_rows an epoch."""
    old = state["config"]
    rows = state.get("rows", state["step"] * tokens_per_step // config["block_size"])
    if all(old.get(key) == config[key] for key in ("block_size", "packing")):
        return rows
    # converted by the passes over the data, as a row of another length is another share of an epoch
    if "epochs_done" in state:
        return round(state["epochs_done"] * n_rows)
    return tokens_so_far(state) // config["block_size"]


def sections_of(state: dict | None, config: dict, step: int, row: int) -> list[dict]:
    """Which rows the steps of a run read: for each change of ROW_KNOBS the knobs, and the step and row they begin at.

    step, row: where the run begins or continues. With these rows.py finds what was read before a run was resumed.
    """
    sections = []
    if state:
        sections = list(state.get("sections", []))
    knobs = {name: config[name] for name in ROW_KNOBS}
    if not sections or any(sections[-1].get(name) != value for name, value in knobs.items()):
        sections.append({"step": step, "row": row, **knobs})
    return sections


def best_checkpoint(out_dir: Path) -> Path | None:
    """The checkpoint with a run's lowest validation loss, which the newest one names; None if it is not there."""
    existing = checkpoints(out_dir)
    if not existing:
        return None
    state = load_trainer_state(existing[-1], mmap=True)
    _, best_step = state.get("best", (math.inf, -1))
    best = Path(out_dir) / f"step_{best_step:06d}"
    return best if best in existing else None
