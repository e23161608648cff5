"""The lines of docs/distributed.md: two "machines", two launchers on this one, give what one machine gives."""

import re
import shlex
import socket
import subprocess
import sys

import pytest
from conftest import ROOT, TINY, run_script

PAGE = (ROOT / "docs/distributed.md").read_text()


def documented(beginning):
    """The command on the page that begins so, in one line."""
    joined = PAGE.replace("\\\n", " ")
    (line,) = [line for line in joined.splitlines() if line.startswith(beginning)]
    return line


def on_this_machine(line, port, args):
    """The arguments of a torchrun line for two machines, with one rank on each, over loopback."""
    line = re.sub(r"--nproc_per_node=\d+", "--nproc_per_node=1", line)
    line = re.sub(r"--rdzv_endpoint=\S+", f"--rdzv_endpoint=127.0.0.1:{port}", line)
    launcher, script, _ = line.partition("train.py")
    assert script
    return [sys.executable, "-m", "torch.distributed.run", *shlex.split(launcher)[1:], str(ROOT / "train.py"), *args]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.slow
def test_two_nodes_give_the_log_of_one_with_two_ranks(dataset, tmp_path):
    """Byte for byte, by the documented line, given on both."""

    def args(name):
        more = ["--max_steps=8", "--eval_interval=4", "--tokens_per_step=256", "--init_from=auto"]
        return [*TINY, *more, f"--dataset={dataset}", f"--out_dir={tmp_path / name}"]

    command = on_this_machine(documented("torchrun --nnodes=2"), free_port(), args("two"))
    assert {"--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", "--max-restarts=3"} <= set(command)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    nodes = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(2)]
    try:
        outputs = [node.communicate(timeout=300)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], outputs
    # only the first rank speaks, and both are of one run
    assert sorted("| 2 x cpu" in output for output in outputs) == [False, True], outputs
    run_script("train.py", *args("one"), ranks=2)
    log = (tmp_path / "two/log.txt").read_text()
    assert log == (tmp_path / "one/log.txt").read_text() and log.count(" train ") == 8


def test_the_commands_of_the_page_are_those_of_the_scripts():
    """Every script that a line names is there, and so are its configs."""
    lines = re.findall(r"^(?:torchrun|python|srun) .*", PAGE.replace("\\\n", " "), re.MULTILINE)
    assert len(lines) >= 5
    for line in lines:
        scripts = re.findall(r"\S+\.py", line)
        assert scripts and all((ROOT / script).is_file() for script in scripts), line
