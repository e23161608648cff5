"""What both loops need of the machine: device, ranks, number format, memory."""

import contextlib
import ctypes
import gc
import math
import os
import re
import sys
import time
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from torch.nn.attention import SDPBackend, sdpa_kernel

from common.sharding import check_trained, is_sharded, shard_module
from common.signals import lost_rank_in_one_line
from configurator import COMMAND_LINE

# glibc's names for two of its settings, in malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


# ---------------------------------------------------------------------------------------------
# device, number format, ranks

# how long a rank waits for the others before it gives up: as long as torch lets gloo wait
LONGEST_WAIT = timedelta(minutes=30)


class Runtime:
    """Device, number format and ranks of this process; under torchrun it joins the process group.

    device: "auto" (cuda if there is one, else cpu), "cpu", "cuda", "cuda:1" or "mps"; dtype: "auto" (bfloat16 on a
    GPU that has it, else float32), "float32" or "bfloat16". Weights stay fp32; `autocast()` computes in dtype. mps
    (Apple's GPU) runs in float32, uncompiled, in one process; it is untested.
    """

    def __init__(self, device="auto", dtype="auto", keep_memory=True):
        # torchrun sets these; without it there is one rank.
        self.rank = int(os.environ.get("RANK", 0))
        self.world = int(os.environ.get("WORLD_SIZE", 1))
        self.is_main = self.rank == 0
        self.device = self.pick_device(device)
        self.cuda = self.device.type == "cuda"
        self.mps = self.device.type == "mps"
        if self.cuda:
            # NCCL takes the current device: without this every rank would use GPU 0.
            torch.cuda.set_device(self.device)
        self.dtype = self.pick_dtype(dtype)
        if keep_memory:
            keep_freed_memory()
        # On CUDA "high" is TF32, three digits, for the matmuls that autocast leaves in fp32. With dtype="float32" these
        # are all matmuls, of a run that asked for seven digits.
        torch.set_float32_matmul_precision("highest" if self.dtype is torch.float32 else "high")
        if self.world > 1:
            self.join_ranks()

    def join_ranks(self):
        """Join the process group. OSError where the ranks do not find each other, ValueError where they cannot."""
        # torchrun (torch 2.13) keeps its store when it restarts ranks: there they find the addresses of their
        # predecessors, and wait for these (github.com/pytorch/pytorch/issues/135712)
        is_restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
        is_store_old = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        # gloo keeps the ranks' addresses there; whether NCCL has the same trouble was never tried
        if is_restarted and is_store_old and not self.cuda:
            problem = "torchrun has started this rank again, but with the store of the ranks that are gone"
            remedy = "restarts need TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the environment of torchrun"
            raise ValueError(f"{problem}, for which it would wait; {remedy}")
        try:
            # Given a device, NCCL connects here, where an error is caught, and not in the first exchange.
            dist.init_process_group(
                backend="nccl" if self.cuda else "gloo",
                # for the others, while rank 0 hashes files or joins caches; NCCL's own 10 minutes are too few
                timeout=LONGEST_WAIT,
                device_id=self.device if self.cuda else None,
            )
        except dist.DistError as error:
            address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            reason = str(error).splitlines()[0]
            problem = f"rank {self.rank} of {self.world} cannot meet the others at {address} ({reason})"
            raise OSError(f"{problem}; start all ranks anew, as with torchrun") from None
        sys.excepthook = partial(lost_rank_in_one_line, otherwise=sys.excepthook)

    def pick_device(self, name: str) -> torch.device:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
            raise ValueError(f"device={name!r} is not one of auto, cpu, cuda, cuda:N, mps")
        if name.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device={name!r}, but torch finds no CUDA device; use --device=cpu")
        if name == "mps" and not torch.backends.mps.is_available():
            raise ValueError("device='mps', but torch finds no Apple GPU; use --device=cpu")
        if name == "mps" and self.world > 1:
            raise ValueError("device='mps' runs in one process only; start the script without torchrun")
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if name.startswith("cuda"):
            return self.pick_gpu(name)
        return torch.device(name)

    def pick_gpu(self, name: str) -> torch.device:
        """A GPU for each rank of this machine ("cuda"), or the one that is named. ValueError where there is none."""
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", self.world))
        n_gpus = torch.cuda.device_count()
        if name != "cuda" and ranks_here > 1:
            raise ValueError(f"device={name!r} would be the GPU of all {ranks_here} ranks; use --device=cuda")
        if ranks_here > n_gpus:
            remedy = f"use torchrun --nproc_per_node={n_gpus}"
            raise ValueError(f"{ranks_here} ranks on this machine need a GPU each, but {gpus_found(n_gpus)}; {remedy}")
        number = int(os.environ.get("LOCAL_RANK", 0))
        if name != "cuda":
            number = int(name.removeprefix("cuda:"))
        if number >= n_gpus:
            known = f"cuda:0 to cuda:{n_gpus - 1}"
            raise ValueError(f"device='cuda:{number}' is not there, but {known}: {gpus_found(n_gpus)}")
        return torch.device("cuda", number)

    def pick_dtype(self, name: str) -> torch.dtype:
        if name not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"dtype={name!r} is not one of auto, float32, bfloat16")
        if name == "bfloat16" and self.mps:
            raise ValueError("dtype='bfloat16' is not for device mps; leave it out")
        if name == "auto":
            # GPUs before 2020 (T4, V100) only imitate it: slower than float32, and neither torch.compile nor the fast
            # attention takes it there.
            has_bfloat16 = self.cuda and torch.cuda.is_bf16_supported(including_emulation=False)
            name = "bfloat16" if has_bfloat16 else "float32"
        return getattr(torch, name)

    def autocast(self):
        """A context in which matmuls compute in dtype; what needs the precision stays in fp32."""
        if self.dtype is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def any_shape(self):
        """A context for attention whose shapes change from call to call, as they do while a text grows.

        It excludes cuDNN, which newer torch prefers on CUDA, but which spends some 30 ms on a plan for each new shape.
        """
        if not self.cuda:
            return contextlib.nullcontext()
        return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])

    def to_device(self, *tensors):
        """The tensors on the device."""
        return tuple(to_device(tensor, self.device) for tensor in tensors)

    def sum(self, *numbers) -> list[float]:
        """Each number (or scalar tensor) summed over the ranks, in float64."""
        # plain numbers: no detour over a tensor, which on a GPU would wait for the device
        if self.world == 1 and not any(isinstance(number, torch.Tensor) for number in numbers):
            return [float(number) for number in numbers]
        # Apple's GPUs have no float64.
        device = "cpu" if self.mps else self.device
        # One copy to the device and one message for all of them: the round trips take the time, not the few numbers.
        plain = [number for number in numbers if not isinstance(number, torch.Tensor)]
        copies = iter(torch.tensor(plain, dtype=torch.float64).to(device))
        summands = []
        for number in numbers:
            if isinstance(number, torch.Tensor):
                summands.append(number.detach().to(device).double())
            else:
                summands.append(next(copies))
        totals = torch.stack(summands)
        if self.world > 1:
            dist.all_reduce(totals)
        return totals.tolist()

    def max(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        if self.world == 1:
            return number
        largest = torch.tensor(number, device=self.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return largest.item()

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
        if compile == "on" and self.mps:
            raise ValueError("compile='on' is not for device mps; leave it out")
        if compile == "on" or (compile == "auto" and self.cuda):
            # A Python float that changes, as the weight of the cross-entropy does between data and own text, would
            # become a variable of the graph, and torch up to 2.13 then silently computes with an older value
            # (github.com/pytorch/pytorch/issues/194976). So floats are constants, and each value has its own graph.
            torch._dynamo.config.specialize_float = True
            return torch.compile(module)
        return module

    def parallel(self, model, compile="off", shard=False):
        """`model` on the device, compiled, with its gradients averaged over the ranks in backward.

        shard: divide its weights, gradients and moments among the ranks (common/sharding.py), and return `model`
        itself. With one rank nothing is divided.
        """
        if shard and self.world > 1:
            check_trained(model)
            for block in model.h:
                self.compile_in_training(block, compile)
            return self.shard(model)
        model = self.compile(model.to(self.device), compile)
        if self.world == 1:
            return model
        device_ids = [self.device] if self.cuda else None
        # gradients are views of the buffers that are exchanged; otherwise each would exist twice
        parallel = torch.nn.parallel.DistributedDataParallel(model, device_ids, gradient_as_bucket_view=True)
        if not self.cuda:
            parallel.register_comm_hook(self.world, average_each_gradient)
        return parallel

    def shard(self, module):
        """`module`, its weights divided among the ranks in place; unchanged with one rank."""
        if self.world > 1:
            shard_module(module, self.device)
        return module

    def compile_in_training(self, block, compile: str):
        """Compile a block's forward in place, but not the hooks that gather its weights before and drop them after.

        In training only: evaluation has many shapes (questions, growing text); nor are replicas compiled for it.
        """
        plain = block.forward
        compiled = self.compile(plain, compile)

        def forward(*inputs):
            return compiled(*inputs) if block.training else plain(*inputs)

        if compiled is not plain:
            block.forward = forward

    def average_gradients(self, module):
        """Average the gradients of a small module outside of `parallel`, after the step's last backward.

        A parameter must have a gradient on every rank or on none: all_reduce waits until all ranks call it, in the same
        order.
        """
        # FSDP2 averages in each backward
        if self.world == 1 or any(is_sharded(child) for child in module.children()):
            return
        # Not by DDP: it refuses a module without parameters, such as the projections between equal widths, and it would
        # exchange after every micro-step.
        for p in module.parameters():
            # none in a step without the losses that train it
            if p.grad is not None:
                dist.all_reduce(p.grad)
                p.grad /= self.world

    def say(self, *words):
        if self.is_main:
            print(*words, flush=True)

    def seed(self, seed: int, step: int):
        """Random numbers (dropout) as a function of (seed, step, rank), so that resuming needs no state."""
        # hash() of ints is the same in every process, unlike that of str; it may be negative, which a seed may not.
        torch.manual_seed(hash((seed, step, self.rank)) % 2**63)

    def close(self):
        """Leave the process group. The caller has deleted its `parallel` modules.

        One that outlives the group can abort the process at exit (torch 2.13 over gloo, 7 runs of 25).
        """
        if self.world > 1:
            # What was deleted but is part of a reference cycle still exists.
            gc.collect()
            dist.destroy_process_group()


def to_device(tensor: torch.Tensor, device) -> torch.Tensor:
    """The tensor on a device."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    # From pinned memory the GPU copies by itself, and we need not wait for the work that is queued before.
    return tensor.pin_memory().to(device, non_blocking=True)


def gpus_found(n_gpus: int) -> str:
    """How many GPUs torch finds, and which ones it may look for."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return f"torch finds {n_gpus}"
    # CUDA's rule: of a GPU's instances a process sees one
    note = "; of MIG instances it uses one" if "MIG-" in visible else ""
    return f"torch finds {n_gpus} (CUDA_VISIBLE_DEVICES={visible}{note})"


def average_each_gradient(world: int, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """DDP's hook for gradients on the CPU: their mean over the ranks, each tensor by itself.

    DDP packs gradients into buckets, whose layout it changes after its first step. With three ranks or more, the order
    in which gloo adds numbers depends on their place in a bucket: a resumed run would differ in the last bits.
    """
    for gradient in bucket.gradients():
        gradient /= world
        dist.all_reduce(gradient)
    averaged = torch.futures.Future()
    averaged.set_result(bucket.buffer())
    return averaged


def keep_freed_memory():
    """Have glibc reuse the memory of freed tensors, instead of returning it to the kernel and paging it in anew.

    That paging is over half the time of a softmax over a vocabulary on the CPU. Without glibc nothing happens.
    """
    if os.name != "posix":
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    # Then large tensors come from the heap too, and it never shrinks.
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def matmul_peak(device, dtype, n=0) -> float:
    """FLOP/s of the best of a few matmuls of n x n on this device now: what `mfu` is a share of.

    Measured, as a data sheet knows neither the load of this CPU nor the clock of this GPU when it is warm.
    """
    # large enough to keep the device busy, small enough to take little time: 0.1 s on two CPU cores
    n = n or (8192 if device.type == "cuda" else 1024)
    a = torch.randn(n, n, device=device).to(dtype)
    b = torch.randn(n, n, device=device).to(dtype)
    best = math.inf
    for _ in range(6):
        start = time.perf_counter()
        # On a GPU the matmul is only queued; .item() waits for the result.
        (a @ b)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


# ---------------------------------------------------------------------------------------------
# the batch: micro-steps from tokens, and whether it can fit at all


def split_batch(config, world: int) -> tuple[int, int]:
    """(grad_accum_steps, tokens_per_step) that the knobs batch_size, block_size and these two ask for.

    tokens_per_step decides if it is over 0, so that a recipe gives the same step on any number of ranks; a resumed run
    has that of its checkpoint. grad_accum_steps decides if the command line gives it alone. Raises ValueError when the
    tokens of a step do not split into micro-steps of batch_size rows on each rank.
    """
    tokens_per_micro_step = config["batch_size"] * config["block_size"] * world
    grad_accum_steps = config["grad_accum_steps"]
    tokens_per_step = config["tokens_per_step"]
    typed = []  # on the command line
    for key in ("grad_accum_steps", "tokens_per_step"):
        if config.given.get(key) == COMMAND_LINE:
            typed.append(key)
    # The command line outranks config files and checkpoints.
    if tokens_per_step == 0 or typed == ["grad_accum_steps"]:
        return grad_accum_steps, grad_accum_steps * tokens_per_micro_step

    if tokens_per_step % tokens_per_micro_step:
        factors = f"batch_size {config['batch_size']} * block_size {config['block_size']} * {world} ranks"
        raise ValueError(
            f"tokens_per_step={tokens_per_step:,} is no multiple of {tokens_per_micro_step:,} ({factors}); choose "
            f"another batch_size, or another number of ranks, or --tokens_per_step={tokens_per_micro_step} times "
            "a whole number"
        )
    micro_steps = tokens_per_step // tokens_per_micro_step
    if len(typed) == 2 and grad_accum_steps != micro_steps:
        raise ValueError(
            f"grad_accum_steps={grad_accum_steps}, but tokens_per_step={tokens_per_step:,} makes {micro_steps}; "
            "give one of the two"
        )
    return micro_steps, tokens_per_step


def check_rows_fit(tokens_per_step: int, world: int):
    """ValueError when the rows of a step, which a loop reads before it, cannot fit into the memory of the machine."""
    # inputs and targets, of 8 bytes each
    needed = 16 * tokens_per_step / world
    memory = machine_memory()
    if memory and needed > memory:
        raise ValueError(
            f"tokens_per_step={tokens_per_step:,} takes {needed / 1e9:,.0f} GB on each rank for the ids alone, but the "
            f"machine has {memory / 1e9:,.1f} GB; lower it, or batch_size, or grad_accum_steps"
        )


def check_memory(run: Runtime, shape, config):
    """ValueError when a step cannot fit into the memory of the device, which would otherwise take minutes to show.

    A lower bound: what it refuses cannot run, but what it accepts may still be too large. It needs the shape alone
    (a GPTConfig or LLaMAConfig), so that a model too large for the memory is refused without being made.
    config: the knobs of train.py or distill.py.
    """
    # the embedding, and of each block what all kinds have: query and output matrices, and two of the MLP
    head_dim = getattr(shape, "head_dim", shape.n_embd // shape.n_head)  # a GPTConfig has no head_dim of its own
    attention = 2 * shape.n_embd * shape.n_head * head_dim
    mlp = 2 * shape.n_embd * shape.n_inner
    n_params = shape.vocab_size * shape.n_embd + shape.n_layer * (attention + mlp)
    # frozen weights may be any share of all, and have neither gradients nor moments
    is_trained = not config["eval_only"] and not config["freeze"]
    # numbers of 4 bytes: a weight, its gradient and its moments, of which Muon has one and AdamW two
    numbers_per_weight = 1
    if is_trained:
        numbers_per_weight = 4 if config["optimizer"] == "adamw" else 3
    weights = 4 * numbers_per_weight * n_params
    if config["shard"]:
        weights /= run.world
    # Of the activations of a block only what backward must keep, whatever the compiler recomputes: for each token 4
    # vectors of n_embd and 1 of n_inner.
    numbers_per_token = shape.n_layer * (4 * shape.n_embd + shape.n_inner)
    batch_size, block_size = config["batch_size"], config["block_size"]
    activations = 0
    if is_trained:
        activations = batch_size * block_size * numbers_per_token * run.dtype.itemsize
    needed = weights + activations
    memory = device_memory(run)
    if memory and needed > memory:
        rows = f"batch_size={batch_size} rows of block_size={block_size}"
        remedy = "lower batch_size and raise grad_accum_steps (or set tokens_per_step)"
        if weights > memory:
            remedy = "lower n_layer or n_embd, or divide the model among more ranks with shard"
        kinds = "weights, gradients and moments" if is_trained else "weights"
        raise ValueError(
            f"a step needs at least {needed / 1e9:,.1f} GB, {weights / 1e9:,.1f} of them for {kinds} "
            f"and {activations / 1e9:,.1f} for {rows}, but {run.device} has {memory / 1e9:,.1f} GB; {remedy}"
        )


def device_memory(run: Runtime) -> int:
    """Bytes of memory of the device, shared by the ranks of this machine on a CPU; 0 where it is not known."""
    if run.cuda:
        return torch.cuda.get_device_properties(run.device).total_memory
    return machine_memory()


def machine_memory() -> int:
    """Bytes of memory of this machine for each of its ranks; 0 where it is not known."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        # Not every system has these names.
        return 0
    return memory // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
