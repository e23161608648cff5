"""Writing checkpoints, whose files common/checkpoint.py lists and reads.

A folder is written by a thread, from a copy, while the run goes on: under another name, flushed to the disk and
renamed, and renamed again before it is deleted. So whenever the process is killed, a `step_` folder is a complete one.
"""

import shutil
import threading
from pathlib import Path

import safetensors
import torch

from common.checkpoint import checkpoints
from common.files import flush, names_file
from common.one_line import ALSO_WRONG
from common.pretrained import weights_to_store, write_pretrained
from common.sharding import whole


class CheckpointWriter:
    """Writes the checkpoints of a run, one at a time, while the run goes on.

    out_dir: where they go. keep: how many of the newest stay, 0 for all. keep_best: that of the lowest validation loss,
    state["best"], stays as well. writes: False for the other ranks, which only give their shares.
    """

    def __init__(self, out_dir: str, keep=0, keep_best=False, writes=True):
        self.out_dir = Path(out_dir)
        self.keep = keep
        self.keep_best = keep_best
        self.writes = writes
        self.thread = None  # the one that writes now, if any
        self.error = None  # what stopped it
        # reported as well, should the run end by another error before it calls `check`
        ALSO_WRONG.append(self.last_error)

    def save(self, model, tokenizer, state: dict):
        """Copy a run to host memory, then write it as out_dir/step_NNNNNN in the background.

        state: what trainer.pt is to hold, tensors and plain values, after state["step"] steps. tokenizer: of the data,
        saved along with the model. Waits for the checkpoint before, and raises what stopped that one. All ranks call
        it, as a model that they divide is gathered, a tensor at a time: the files are those of one rank.
        """
        self.wait()
        # The next step changes weights and moments in place, so the thread must have copies.
        weights = {name: on_host(weight, self.writes) for name, weight in weights_to_store(model)}
        state = on_host(state, self.writes)
        if not self.writes:
            return
        # Not a daemon: if the run ends by an error, Python still waits until the folder is complete.
        self.thread = threading.Thread(target=self.write, args=(weights, model.config, tokenizer, state))
        self.thread.start()

    def write(self, weights: dict, shape, tokenizer, state: dict):
        """What the thread does."""
        try:
            write_checkpoint(self.out_dir, weights, shape, tokenizer, state)
            if self.keep:
                remove_old(self.out_dir, state, self.keep, self.keep_best)
        # of any kind: the main thread raises it in `check`, which stops the run
        except Exception as error:
            self.error = error

    def check(self):
        """Raise what stopped the writing, if something did."""
        error = self.error
        self.error = None
        if error:
            raise error

    def wait(self):
        """Wait until all is written; raises what stopped it."""
        if self.thread:
            self.thread.join()
            self.thread = None
        self.check()

    def last_error(self) -> str:
        """What stopped the writing, "" if nothing did; waits for what is still being written."""
        if self.thread:
            self.thread.join()
        return str(self.error or "")


def on_host(value, keep=True):
    """A copy in host memory of all tensors in dicts, lists and tuples; other values as they are.

    Tensors that the ranks divide are gathered. keep: False to only take part in the gathering, with None as the copies.
    """
    if isinstance(value, torch.Tensor):
        tensor = whole(value.detach())
        return tensor.to("cpu", copy=True, memory_format=torch.contiguous_format) if keep else None
    if isinstance(value, dict):
        return {key: on_host(item, keep) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(on_host(item, keep) for item in value)
    return value


def write_checkpoint(out_dir: Path, weights: dict, shape, tokenizer, state: dict):
    """Write out_dir/step_NNNNNN: weights by stored names, a model's config, its tokenizer and trainer.pt."""
    final = out_dir / f"step_{state['step']:06d}"
    unfinished = final.with_name(f".{final.name}.writing")
    # A run that was killed while it wrote or deleted leaves a hidden folder.
    for leftover in out_dir.glob(".step_*"):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        with names_file(unfinished):
            write_pretrained(unfinished, weights, shape, tokenizer)
            torch.save(state, unfinished / "trainer.pt")
        # Bytes and names must be on the disk before the folder has its name, should the power fail.
        for path in [*unfinished.iterdir(), unfinished]:
            flush(path)
        # It exists already if it could not be resumed, say, and the run continued from an earlier one.
        if final.exists():
            remove(final)
        unfinished.rename(final)
        flush(final.parent)
    # This is how torch and safetensors report a full disk.
    except (RuntimeError, safetensors.SafetensorError) as error:
        reason = str(error).splitlines()[0]
        free = shutil.disk_usage(out_dir).free
        problem = f"cannot write {final}, with {free:,} bytes free ({reason})"
        raise OSError(f"{problem}; older ones are complete") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def remove_old(out_dir, state: dict, keep: int, keep_best: bool):
    """Delete all checkpoints but the newest `keep` and, with keep_best, that of the lowest validation loss."""
    _, best_step = state["best"]
    best = Path(out_dir) / f"step_{best_step:06d}"
    for old in checkpoints(out_dir)[:-keep]:
        if keep_best and old == best:
            continue
        remove(old)


def remove(folder: Path):
    """Delete a checkpoint."""
    # Renamed first: a kill half-way through would leave a `step_` folder that looks complete and is not.
    hidden = folder.with_name(f".{folder.name}.removing")
    folder.rename(hidden)
    shutil.rmtree(hidden)
