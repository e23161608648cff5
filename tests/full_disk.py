"""Fill the disk at every place of a run where it can become full, one after the other.

    python tests/full_disk.py --script=train.py
    python tests/full_disk.py --script=distill.py --every=5       # each fifth place

A run writes to a file system of its own, in memory (tmpfs), which has room for n pages and m files. With n = 0, 1, 2, …
each page that the run ever needs is the first that it does not get, whichever library asks for it: Python, torch in
C++, safetensors in Rust; then likewise each file. That is the kernel's own "No space left on device", in the middle of
what a library writes, which no patch of Python's functions would reach. For each size:

- the run ends with exit code 2 and one line on stderr, or, with enough room, as it should
- every checkpoint in its folder loads, and so does its optimiser's state
- given room, the same command goes on, and ends with the weights and the log of a run that was not disturbed

It needs Linux, and a user who may mount: root, or anyone where `unshare --user --map-root-user --mount` is allowed.
The exit code is 0 if all of that holds, 2 where nothing can be mounted.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from conftest import run_script, write_dataset
from safetensors.torch import load_file

from common.checkpoint import checkpoints, load_trainer_state
from common.pretrained import load_pretrained

PAGE = os.sysconf("SC_PAGE_SIZE")
UNSHARE = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
MODEL = [
    "--n_layer=1",
    "--n_head=1",
    "--n_embd=4",
    "--n_inner=4",
    "--vocab_multiple=1",
    "--block_size=8",
    "--device=cpu",
]
STEPS = ["--max_steps=3", "--save_interval=1", "--keep_checkpoints=0", "--eval_interval=2", "--eval_rows=4",
         "--batch_size=2", "--log_interval=1", "--sample_interval=2", "--init_from=auto"]  # fmt: skip
MANY = 1 << 20  # of pages and of files: as good as no limit


class Disk:
    """A file system with room for so many pages and files."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()

    def mount(self, pages: int, files: int):
        # 0 would mean no limit
        limits = f"nr_blocks={max(1, pages)},nr_inodes={max(2, files)}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", limits, "tmpfs", self.folder], check=True)

    def make_room(self):
        limits = f"remount,nr_blocks={MANY},nr_inodes={MANY}"
        subprocess.run(["mount", "-o", limits, "tmpfs", self.folder], check=True)

    def used(self) -> tuple[int, int]:
        """(pages, files)"""
        there = os.statvfs(self.folder)
        return there.f_blocks - there.f_bfree, there.f_files - there.f_ffree

    def unmount(self):
        subprocess.run(["umount", "--lazy", self.folder], check=True)


class Runs:
    """A command of a loop, and what it writes undisturbed."""

    def __init__(self, script: str, folder: Path, disk: Disk):
        self.script = script
        self.disk = disk
        self.out_dir = disk.folder / "run"
        data = write_dataset(folder / "data", tokens=400)
        self.command = [*MODEL, *STEPS, f"--dataset={data}", f"--out_dir={self.out_dir}"]
        if script == "distill.py":
            teacher = folder / "teacher"
            run_script("train.py", *MODEL, "--max_steps=1", f"--dataset={data}", f"--out_dir={teacher}")
            self.command += [f"--teacher={teacher}", "--weight_cos=1"]
        disk.mount(MANY, MANY)
        self.run()
        self.weights, self.log = self.result()
        self.pages, self.files = disk.used()
        disk.unmount()

    def run(self, ok=True):
        return run_script(self.script, *self.command, ok=ok)

    def result(self) -> tuple[dict, str]:
        """(weights, log.txt) of a finished run."""
        weights = load_file(self.out_dir / "step_000003/model.safetensors")
        return weights, (self.out_dir / "log.txt").read_text()

    def check(self, pages: int, files: int) -> bool:
        """Run with so much room, then go on with more. Returns whether the disk was full.

        AssertionError, or an error of what reads checkpoints, where it did not end well.
        """
        self.disk.mount(pages, files)
        done = self.run(ok=False)
        is_full = done.returncode != 0
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        if is_full:
            assert done.returncode == 2 and len(lines) == 1, (done.returncode, done.stderr)
            assert lines[0].startswith(f"{self.script}: "), lines
        for folder in checkpoints(self.out_dir):
            load_pretrained(folder)
            assert load_trainer_state(folder)["step"] == int(folder.name.removeprefix("step_"))
        self.disk.make_room()
        self.run()
        weights, log = self.result()
        assert log == self.log and weights.keys() == self.weights.keys()
        assert all(torch.equal(weights[name], self.weights[name]) for name in weights)
        assert not list(self.out_dir.glob(".step_*"))
        self.disk.unmount()
        return is_full


def fill(script: str, every: int) -> int:
    """Each place in turn; prints a line for what went wrong. Returns how many places did."""
    folder = Path(tempfile.mkdtemp(prefix="nanodistill_full_disk_"))
    runs = Runs(script, folder, Disk(folder / "disk"))
    sizes = [(pages, MANY) for pages in range(0, runs.pages + 1, every)]
    sizes += [(MANY, files) for files in range(1, runs.files + 1, every)]
    n_full = 0
    n_wrong = 0
    for pages, files in sizes:
        try:
            n_full += runs.check(pages, files)
        except (AssertionError, ValueError, OSError) as error:
            n_wrong += 1
            print(f"{script}, {pages} pages, {files} files: {type(error).__name__} {error}", flush=True)
            subprocess.run(["umount", "--lazy", runs.disk.folder], check=True)
    print(f"{script}: {len(sizes)} runs, in {n_full} of them the disk was full; {n_wrong} ended wrong", flush=True)
    return n_wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--script", default="train.py", choices=("train.py", "distill.py"))
    parser.add_argument("--every", type=int, default=1, help="each so many-th place")
    given = parser.parse_args()
    if os.environ.get("FULL_DISK") != "mounts":
        # once more, in a place where it may mount, and whose mounts go with it
        if subprocess.run([*UNSHARE, "true"], capture_output=True).returncode:
            print("nothing can be mounted here", file=sys.stderr)
            sys.exit(2)
        os.environ["FULL_DISK"] = "mounts"
        os.execvp(UNSHARE[0], [*UNSHARE, sys.executable, *sys.argv])
    sys.exit(1 if fill(given.script, given.every) else 0)


if __name__ == "__main__":
    main()
