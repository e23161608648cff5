"""A process that has imported torch, and forks one for each script that it is told to run.

Importing torch takes two seconds, and its first optimiser step two more, most of what a test's script needs. A fork
starts with both done. It has imported nothing of the project, and runs the script as `python script` does: as
`__main__`, with its own arguments, folder and output, and the interpreter's own end.

Protocol, by lines of JSON: {"script", "args", "cwd", "env", "stdout", "stderr"} in, its pid and then its exit code out.
"""

import json
import os
import runpy
import sys

# what the scripts import; none of it starts a thread
import numpy
import requests
import safetensors.torch
import sentencepiece
import tiktoken
import torch
import torch._dynamo
import torch.utils.data
import tqdm

LOADED = (numpy, requests, safetensors, sentencepiece, tiktoken, torch, tqdm)


def serve() -> dict:
    """Answer requests until stdin ends. Returns in the forked process alone, with what it is to run."""
    while True:
        # byte by byte from the descriptor, as a buffer would be inherited
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(0, 1)
            if not byte:
                sys.exit(0)
            line += byte
        pid = os.fork()
        if pid == 0:
            return json.loads(line)
        os.write(1, f"{pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        os.write(1, f"{os.waitstatus_to_exitcode(status)}\n".encode())


job = serve()
for descriptor, path, flags in (
    (0, os.devnull, os.O_RDONLY),
    (1, job["stdout"], os.O_WRONLY),
    (2, job["stderr"], os.O_WRONLY),
):
    file = os.open(path, flags)
    os.dup2(file, descriptor)
    os.close(file)
os.environ.clear()
os.environ.update(job["env"])
os.chdir(job["cwd"])
sys.argv = [job["script"], *job["args"]]
sys.path[0] = os.path.dirname(job["script"])
runpy.run_path(job["script"], run_name="__main__")
