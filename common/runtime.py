"""What both loops need of the machine: device, ranks, number format, schedule, optimisers, log, signals."""

import contextlib
import ctypes
import gc
import math
import os
import re
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from common.writing import write_json


class Runtime:
    """Device, number format and ranks of this process; under torchrun it joins the process group.

    device: "auto" (cuda if there is one), "cpu", "cuda", "cuda:1"; dtype: "auto" (bfloat16 on CUDA,
    float32 on the CPU), "float32" or "bfloat16". Weights stay fp32; `autocast()` computes in dtype.
    """

    def __init__(self, device="auto", dtype="auto", keep_memory=True):
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise ValueError(f"device={device!r} is not one of auto, cpu, cuda, cuda:N")
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device={device!r}, but torch finds no CUDA device; use --device=cpu")
        device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.is_main = self.rank == 0
        if device == "cuda":
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
            torch.cuda.set_device(device)
        self.device = torch.device(device)
        self.cuda = self.device.type == "cuda"
        self.dtype = self.pick_dtype(dtype)
        if keep_memory:
            keep_freed_memory()
        torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in fp32, on CUDA
        if self.world > 1:
            dist.init_process_group("nccl" if self.cuda else "gloo")

    def pick_dtype(self, name: str) -> torch.dtype:
        if name not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"dtype={name!r} is not one of auto, float32, bfloat16")
        return torch.bfloat16 if name == "bfloat16" or (name == "auto" and self.cuda) else torch.float32

    def autocast(self):
        if self.dtype is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def to_device(self, *tensors):
        """The tensors on the device; from pinned memory without waiting, on CUDA."""
        if self.cuda:
            return tuple(t.pin_memory().to(self.device, non_blocking=True) for t in tensors)
        return tensors

    def sum(self, *numbers) -> list[float]:
        """Each number (or scalar tensor) summed over the ranks, in float64."""
        total = torch.stack([torch.as_tensor(n, dtype=torch.float64, device=self.device) for n in numbers])
        if self.world > 1:
            dist.all_reduce(total)
        return total.tolist()

    def all_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor summed over the ranks, on the CPU."""
        if self.world > 1:
            tensor = tensor.to(self.device)
            dist.all_reduce(tensor)
        return tensor.cpu()

    def compile(self, module, compile: str):
        """`module` through torch.compile: "on", "off", or "auto", which is on for CUDA."""
        if compile not in ("auto", "on", "off"):
            raise ValueError(f"compile={compile!r} is not one of auto, on, off")
        return torch.compile(module) if compile == "on" or (compile == "auto" and self.cuda) else module

    def parallel(self, module):
        """`module` with its gradients averaged over the ranks in backward."""
        if self.world == 1:
            return module
        return torch.nn.parallel.DistributedDataParallel(module, [self.device] if self.cuda else None)

    def average_gradients(self, module):
        """Average the gradients of a small module that is not wrapped by `parallel`."""
        for p in module.parameters() if self.world > 1 else ():
            dist.all_reduce(p.grad)
            p.grad /= self.world

    def say(self, *words):
        if self.is_main:
            print(*words, flush=True)

    def seed(self, seed: int, step: int):
        """Random numbers (dropout) as a function of (seed, step, rank), so that resuming needs no state."""
        torch.manual_seed(hash((seed, step, self.rank)) % 2**63)

    def close(self):
        """Leave the process group. The caller has deleted its `parallel` modules: one that outlives the group
        can abort the process at exit (torch 2.13 over gloo, 7 runs of 25)."""
        if self.world > 1:
            gc.collect()
            dist.destroy_process_group()


def keep_freed_memory():
    """Have glibc reuse the memory of freed tensors instead of giving it back to the kernel and faulting it in anew.

    On the CPU that is over half the time of a softmax over a vocabulary: mallopt(M_MMAP_MAX, 0) and
    mallopt(M_TRIM_THRESHOLD, never). Elsewhere than on glibc there is no mallopt, and nothing happens.
    """
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    if hasattr(libc, "mallopt"):
        libc.mallopt(-4, 0)
        libc.mallopt(-1, 2**31 - 1)


class StopSignal:
    """SIGTERM and SIGINT ask the loop to finish its step and save; a second one ends it at once."""

    def __init__(self):
        self.number = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.catch)

    def catch(self, number, frame):
        self.number = number
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print(f"{signal.Signals(number).name}: finishing the step, then saving", file=sys.stderr, flush=True)

    def exit_if_asked(self, stopping):
        """Where the ranks agreed to stop, exit with the conventional code: 143 after SIGTERM, 130 after SIGINT."""
        if stopping:
            sys.exit(128 + (self.number or signal.SIGTERM))


def learning_rate_at(step, schedule, learning_rate, min_lr, warmup_steps, max_steps) -> float:
    """The rate of step 0 … max_steps - 1: linear warm-up over warmup_steps, then the schedule down to min_lr.

    "cosine", "linear", "constant" (min_lr unused), and "wsd" (constant, then linear over the last
    fifth of max_steps; MiniCPM, arXiv:2404.06395, section 4).
    """
    if schedule not in ("cosine", "linear", "constant", "wsd"):
        raise ValueError(f"schedule={schedule!r} is not one of cosine, linear, constant, wsd")
    if step < warmup_steps:
        return learning_rate * (step + 1) / (warmup_steps + 1)
    start = warmup_steps if schedule != "wsd" else max(warmup_steps, max_steps - max_steps // 5)
    done = min(1.0, max(0.0, (step - start) / max(1, max_steps - start)))
    if schedule == "cosine":
        return min_lr + 0.5 * (1 + math.cos(math.pi * done)) * (learning_rate - min_lr)
    if schedule in ("linear", "wsd"):
        return learning_rate + done * (min_lr - learning_rate)
    return learning_rate


def make_optimizers(model, optimizer, learning_rate, weight_decay, beta1, beta2, eps, extra=None) -> list:
    """[AdamW] for "adamw"; [Muon, AdamW] for "muon", with Muon on the matrices of the blocks.

    Frozen parameters are left out. Weight decay on matrices and embeddings, none on vectors (biases and norms).
    `extra`: a module trained beside the model. Muon (kellerjordan.github.io/posts/muon) is torch's, its update scaled
    to AdamW's RMS.
    """
    params = {id(p): p for module in (model, extra) if module for p in module.parameters() if p.requires_grad}
    muon = [p for p in model.h.parameters() if p.dim() == 2 and p.requires_grad] if optimizer == "muon" else []
    if optimizer not in ("adamw", "muon"):
        raise ValueError(f"optimizer={optimizer!r} is not one of adamw, muon")
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1):
        raise ValueError(f"beta1={beta1} and beta2={beta2} must be at least 0 and under 1")
    for p in muon:
        del params[id(p)]
    groups = [{"params": [p for p in params.values() if p.dim() >= 2], "weight_decay": weight_decay},
              {"params": [p for p in params.values() if p.dim() < 2], "weight_decay": 0.0}]  # fmt: skip
    groups = [g for g in groups if g["params"]]
    optimizers = [torch.optim.AdamW(groups, learning_rate, (beta1, beta2), eps, fused=True)] if groups else []
    if muon:
        optimizers.insert(0, torch.optim.Muon(muon, learning_rate, weight_decay, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def matmul_peak(device, dtype) -> float:
    """FLOP/s of the best of a few square matmuls on this device now: what `mfu` is a share of."""
    n = 8192 if device.type == "cuda" else 1536
    a, b, best = torch.randn(n, n, device=device).to(dtype), torch.randn(n, n, device=device).to(dtype), math.inf
    for _ in range(6):
        start = time.perf_counter()
        (a @ b)[0, 0].item()  # .item() waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


class Log:
    """out_dir/log.txt: lines `step label value`, flushed as written. A resumed run drops those it will write again."""

    def __init__(self, out_dir: str, first_step: int, is_main: bool):
        self.out_dir, self.file = Path(out_dir), None
        if is_main:
            self.out_dir.mkdir(parents=True, exist_ok=True)
            path = self.out_dir / "log.txt"
            lines = path.read_text(encoding="utf-8").splitlines() if first_step and path.is_file() else []
            lines = [line for line in lines if line.split()[:1] and line.split()[0].isdecimal()]  # a kill may cut one
            path.write_text("".join(f"{line}\n" for line in lines if int(line.split()[0]) < first_step))
            self.file = open(path, "a", encoding="utf-8")

    def __call__(self, step: int, **values: float):
        if self.file:
            self.file.write("".join(f"{step} {label} {value:.9g}\n" for label, value in values.items()))
            self.file.flush()

    def summary(self, **values):
        """Write out_dir/summary.json: what a finished run took and reached; plot.py prints it as a table."""
        if self.file:
            write_json(self.out_dir / "summary.json", values)


def eta(seconds: float) -> str:
    """3725 -> "1h02m", 125 -> "2m05s"."""
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{seconds:02d}s"
