"""Checkpoints: out_dir/step_NNNNNN/, each a Hugging Face folder that also continues its run.

config.json, model.safetensors   the model, under its family's Hugging Face names
meta.json, tokenizer.*           its tokenizer
trainer.pt                       step, seconds, knobs, optimisers; loads with weights_only=True

A folder is written aside, flushed to the disk and renamed, and renamed again before it is deleted, so
a `step_` folder is a complete one at every instant. No random state is kept: batches and dropout are
pure functions of (seed, step).
"""

import shutil
from pathlib import Path

import safetensors
import torch

from common.files import by_step, flush
from common.pretrained import DAMAGE, save_pretrained
from configurator import nearest

MODEL_KEYS = (
    "freeze",
    "arch",
    "n_layer",
    "n_head",
    "n_kv_head",
    "n_embd",
    "n_inner",
    "tie_word_embeddings",
    "vocab_multiple",
)

MOMENTS = {torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}, torch.optim.Muon: {"momentum_buffer"}}


def checkpoints(out_dir: str | Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return [p for p in by_step(out_dir) if (p / "trainer.pt").is_file()]


def starting_point(out_dir: str, init_from: str) -> Path | None:
    """The folder that a run starts from: None for "scratch", the newest checkpoint for "resume", else init_from.

    Raises ValueError when out_dir already holds a run that is not to be resumed, or none that can be.
    """
    if not out_dir:
        raise ValueError("out_dir is empty; name a folder for the run")
    found = checkpoints(out_dir)
    near = nearest(init_from.lower(), ("scratch", "resume"))
    if init_from not in ("scratch", "resume") and near and not Path(init_from).exists():
        raise ValueError(f"init_from={init_from!r} is no folder{near}")
    if init_from == "resume":
        if not found:
            raise ValueError(f"{out_dir} has no checkpoint to resume; start with --init_from=scratch")
        return found[-1]
    if found:
        raise ValueError(
            f"{out_dir} already holds a run, up to {found[-1].name}; continue it with --init_from=resume, "
            "or choose another --out_dir"
        )
    return None if init_from == "scratch" else Path(init_from)


def load_trainer_state(folder: Path) -> dict:
    """What trainer.pt holds: step, seconds, config, optimizers (and projections), tensors on the CPU."""
    try:
        state = torch.load(folder / "trainer.pt", map_location="cpu", weights_only=True)
        for key, kind in (("step", int), ("seconds", float), ("config", dict), ("optimizers", list)):
            if not isinstance(state[key], kind):
                raise TypeError(f"{key} is {type(state[key]).__name__}")
        return state
    except DAMAGE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{folder}/trainer.pt is damaged or was cut ({reason}); delete {folder} to continue from the one before"
        ) from None


def restore(folder: Path, state: dict, config: dict, optimizers, projections=None):
    """Put a run's state back. ValueError naming the keys that may not change on the way."""
    was = state["config"]
    changed = [k for k in MODEL_KEYS if was.get(k) != config[k]]
    if changed:
        key = changed[0]
        raise ValueError(
            f"{key}={config[key]!r}, but {folder} has {key}={was.get(key)!r}; a resumed model keeps its shape"
        )
    try:
        for o, o_state in zip(optimizers, state["optimizers"], strict=True):
            o.load_state_dict(o_state)
            for p, moments in o.state.items():  # the fused optimiser reads beyond moments that are too short
                if set(moments) != MOMENTS[type(o)] or any(m.shape not in (p.shape, ()) for m in moments.values()):
                    raise ValueError("moments of another shape")
        if projections is not None:
            projections.load_state_dict(state["projections"])
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError):
        raise ValueError(
            f"{folder}/trainer.pt is of other optimisers or teachers; resume with the script, optimizer, freeze, "
            "teacher and weight_cos it was trained with, or start anew from it: --init_from=" + str(folder)
        ) from None


def save_checkpoint(out_dir, model, tokenizer, state: dict, keep=0):
    """Write out_dir/step_NNNNNN for the finished steps state["step"]; then keep only the newest `keep` (0: all).

    state: what trainer.pt is to hold, tensors and plain values; tokenizer: of the data, goes along.
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
        reason, free = str(error).splitlines()[0], shutil.disk_usage(out_dir).free
        raise OSError(f"cannot write {final}, with {free:,} bytes free ({reason}); older ones are complete") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    for old in checkpoints(out_dir)[:-keep] if keep else []:
        remove(old)


def remove(folder: Path):
    """Delete a checkpoint; a kill on the way leaves no `step_` folder that is half there."""
    shutil.rmtree(folder.rename(folder.with_name(f".{folder.name}.removing")))
