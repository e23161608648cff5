"""A process that has imported torch, and forks one for each script that it is told to run.

Importing torch takes two seconds, and its first optimiser step two more, most of what a test's script needs. A fork
starts with both done. It has imported nothing of the project, and runs the script as `python script` does: as
`__main__`, with its own arguments, folder and output, and the interpreter's own end.

Protocol, by lines of JSON. In: {"script", "args", "cwd", "stdout", "stderr", "environments"}, one process for each of
the environments. Out: their pids, and then the exit code of the first that failed, else 0.
"""

import json
import os
import runpy
import signal
import sys

# what the scripts import; none of it starts a thread
import numpy
import requests
import safetensors.torch
import sentencepiece
import tiktoken
import torch
import torch._dynamo
import torch.distributed.fsdp
import torch.distributed.tensor
import torch.utils.data
import tqdm

LOADED = (numpy, requests, safetensors, sentencepiece, tiktoken, torch, tqdm)


def serve() -> tuple[dict, dict]:
    """Answer requests until stdin ends. Returns in forked processes alone: the job, and the environment for it."""
    while True:
        # byte by byte from the descriptor, as a buffer would be inherited
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(0, 1)
            if not byte:
                sys.exit(0)
            line += byte
        job = json.loads(line)
        pids = []
        for environment in job["environments"]:
            pid = os.fork()
            if pid == 0:
                return job, environment
            pids.append(pid)
        os.write(1, f"{json.dumps(pids)}\n".encode())
        os.write(1, f"{wait_for_all(pids)}\n".encode())


def wait_for_all(pids: list[int]) -> int:
    """The exit code of the first process that failed, else 0. The others are ended with it, as torchrun does."""
    running = set(pids)
    first_failure = 0
    while running:
        pid, status = os.wait()
        running.remove(pid)
        code = os.waitstatus_to_exitcode(status)
        if code and not first_failure:
            first_failure = code
            for other in running:
                os.kill(other, signal.SIGTERM)
    return first_failure


job, environment = serve()
for descriptor, path, flags in (
    (0, os.devnull, os.O_RDONLY),
    (1, job["stdout"], os.O_WRONLY | os.O_APPEND),
    (2, job["stderr"], os.O_WRONLY | os.O_APPEND),
):
    file = os.open(path, flags)
    os.dup2(file, descriptor)
    os.close(file)
os.environ.clear()
os.environ.update(environment)
os.chdir(job["cwd"])
sys.argv = [job["script"], *job["args"]]
sys.path[0] = os.path.dirname(job["script"])
runpy.run_path(job["script"], run_name="__main__")
