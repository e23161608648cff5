"""How much memory a step allocates, without allocating it: the loops' own code on fake tensors, and a count of bytes.

A fake tensor (torch._subclasses.FakeTensorMode) has shape, type and device but no numbers; autograd, autocast and
optimisers treat it as any other. `Allocations` sees every operation, and so when each tensor is made and freed.

A build of torch without CUDA cannot make fake CUDA tensors that autograd accepts. So all are fake CPU tensors, and
where CUDA tensors would take another path through the code, `AsOnCuda` takes it.
"""

import contextlib
import weakref
from collections import Counter

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.plan import Plan, new_model
from common.optim import make_optimizers
from common.pretrained import freeze_parameters
from head import chunked_head
from losses import cosine_distance, hidden_mse, reduce

# what memory is counted as; the last is the head's logits, and whatever lives for a short time
PARTS = ("weights", "gradients", "optimiser", "teachers", "activations", "head and temporaries")
GRANULE = {"cuda": 512, "cpu": 64}  # bytes that an allocation is rounded up to


# ---------------------------------------------------------------------------------------------
# what is allocated


class Allocations(TorchDispatchMode):
    """Counts the bytes of all live tensors, by part, and keeps the counts of the moment with the most.

    A storage counts once, however many views it has, from the operation that makes it until no variable, other tensor
    or graph of a backward pass to come refers to it.
    """

    def __init__(self, granule: int):
        super().__init__()
        self.granule = granule
        self.part = PARTS[-1]  # what new storages are counted as
        self.parts = {}  # storage's address: [part, bytes]
        self.live = Counter()  # part: bytes
        self.total = 0
        self.peak = 0
        self.at_peak = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return result

    def count(self, storage):
        address = storage._cdata
        if address in self.parts:
            return
        n_granules = (storage.nbytes() + self.granule - 1) // self.granule
        n_bytes = n_granules * self.granule
        self.parts[address] = [self.part, n_bytes]
        self.live[self.part] += n_bytes
        self.total += n_bytes
        weakref.finalize(storage, self.forget, address)
        if self.total > self.peak:
            self.peak = self.total
            self.at_peak = self.live.copy()

    def forget(self, address: int):
        part, n_bytes = self.parts.pop(address)
        self.live[part] -= n_bytes
        self.total -= n_bytes

    def count_as(self, part: str, tensor: torch.Tensor):
        """Count a tensor that is counted already as `part` from now on."""
        address = tensor.untyped_storage()._cdata
        part_before, n_bytes = self.parts[address]
        self.live[part_before] -= n_bytes
        self.live[part] += n_bytes
        self.parts[address] = [part, n_bytes]

    @contextlib.contextmanager
    def counted_as(self, part: str):
        """Count what is allocated inside this context as `part`."""
        part_before = self.part
        self.part = part
        yield
        self.part = part_before

    def reset(self):
        self.peak = self.total
        self.at_peak = self.live.copy()


# ---------------------------------------------------------------------------------------------
# CUDA's path through the code


class AsOnCuda(TorchFunctionMode):
    """Fake CPU tensors take the branches, and keep the bytes for backward, that CUDA tensors would."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # head.py and muon.py ask
        if func == torch.Tensor.is_cuda.__get__:
            return True
        # head.py's matmul of bfloat16 into fp32, for which CPUs have no kernel
        if func is torch.mm and "out_dtype" in kwargs:
            a, b = args
            return a.new_empty(len(a), b.size(1), dtype=kwargs["out_dtype"])
        # no T x T matrix also with dropout, for which CPUs have no such kernel
        if func is F.scaled_dot_product_attention:
            kwargs["dropout_p"] = 0.0
        # a mask of one byte a number, where CPUs keep a factor in the numbers' own type
        if func is F.dropout:
            return fused_dropout(*args, **kwargs)
        # in fp32 whatever the input, where autocast on CPUs leaves it as it is
        if func is F.layer_norm and torch.is_autocast_enabled("cpu"):
            return fp32_layer_norm(*args, **kwargs)
        # one kernel that keeps its input, where CPUs keep the steps between
        if func is F.rms_norm:
            return fused_rms_norm(*args, **kwargs)
        return func(*args, **kwargs)


def fused_dropout(x, p, training, inplace=False):
    return torch.native_dropout(x, p, training)[0] if training and p else x


def fp32_layer_norm(x, shape, weight, bias, eps):
    affine = [None if vector is None else vector.float() for vector in (weight, bias)]
    return F.layer_norm(x.float(), shape, *affine, eps)


def fused_rms_norm(x, shape, weight, eps):
    return FusedRMSNorm.apply(x, weight)


class FusedRMSNorm(torch.autograd.Function):
    """Allocates, and keeps for backward, what CUDA's kernel does; it computes nothing."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight, x.new_empty(*x.shape[:-1], 1, dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, upstream):
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


# ---------------------------------------------------------------------------------------------
# a step


def step_memory(plan: Plan, batch_size: int) -> dict[str, int]:
    """{part: bytes} at the moment of a step when the most is allocated, with micro-steps of batch_size rows.

    Of any step but the first, at whose start the optimiser's moments do not exist yet. Not counted: evaluation, which
    keeps nothing for backward, other processes, and what libraries allocate for themselves.
    """
    allocations = Allocations(GRANULE[plan.device])
    as_on_cuda = AsOnCuda() if plan.device == "cuda" else contextlib.nullcontext()
    # the counter is entered after FakeTensorMode, so it sees each operation first, and passes it on
    with FakeTensorMode(), allocations, as_on_cuda:
        step = Step(plan, allocations)
        step.start(batch_size)
        allocations.reset()
        step.micro_step(batch_size)
        step.update()
    return {part: allocations.at_peak[part] for part in PARTS}


class Step:
    """The sections of the loops, on fake tensors. tests/test_fit.py compares what they take with the loops' own."""

    def __init__(self, plan: Plan, allocations: Allocations):
        self.plan = plan
        self.config = plan.config
        self.allocations = allocations
        with allocations.counted_as("teachers"):
            self.teachers = [self.new_teacher(teacher) for teacher in plan.teachers]
        with allocations.counted_as("weights"):
            self.model = new_model(plan.student.config).train()
            freeze_parameters(self.model, self.config["freeze"])
            self.projections = self.new_projections()
        names = ("optimizer", "learning_rate", "weight_decay", "beta1", "beta2", "eps")
        settings = {name: self.config[name] for name in names}
        self.optimizers = make_optimizers(self.model, **settings, extra=self.projections)
        everything = (*self.model.parameters(), *self.projections.parameters())
        self.params = [p for p in everything if p.requires_grad]
        for p in self.params:
            p.register_post_accumulate_grad_hook(self.count_gradient)

    def new_teacher(self, teacher):
        # a teacher is loaded in its type, so it is made in it here too
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.plan.teacher_dtype)
        model = new_model(teacher.config).eval().requires_grad_(False)
        torch.set_default_dtype(before)
        return model

    def new_projections(self):
        """From the student's width to each teacher's, where hidden states are compared."""
        projections = nn.ModuleList()
        for teacher in self.teachers if self.has_hidden_terms() else []:
            width, teacher_width = self.model.config.n_embd, teacher.config.n_embd
            projections.append(nn.Identity() if width == teacher_width else nn.Linear(width, teacher_width, bias=False))
        return projections

    def has_hidden_terms(self) -> bool:
        return bool(self.config.get("weight_cos") or self.config.get("weight_mse"))

    def count_gradient(self, parameter):
        self.allocations.count_as("gradients", parameter.grad)

    def start(self, batch_size: int):
        """Allocate what is alive before the last micro-step of any step but the first."""
        self.make_gradients()
        self.update()
        for optimizer in self.optimizers:
            for state in optimizer.state.values():
                for moment in state.values():
                    self.allocations.count_as("optimiser", moment)
        # the sum of the micro-steps so far
        if self.plan.rows_per_step > batch_size:
            self.make_gradients()
        # what the previous micro-step, of this step or the one before, has left in the loops' variables
        rows = (batch_size, self.config["block_size"])
        self.hidden = torch.empty(*rows, self.model.config.n_embd)
        self.read_with_teachers(torch.zeros(rows, dtype=torch.int64))

    def make_gradients(self):
        for p in self.params:
            p.grad = torch.empty_like(p)
            self.count_gradient(p)

    def micro_step(self, batch_size: int):
        """Forward and backward of one micro-step.

        Its tensors are attributes because the loops' are global variables: each is alive until the next micro-step
        replaces it.
        """
        plan, config = self.plan, self.config
        shape = (batch_size, config["block_size"])
        self.x = torch.zeros(shape, dtype=torch.int64)
        self.y = torch.zeros(shape, dtype=torch.int64)
        self.read_with_teachers(self.x)
        with self.autocast(), self.allocations.counted_as("activations"):
            self.hidden = self.model(self.x, hidden=True)  # (B, T, C)
        self.teacher_heads = []
        if plan.objective.weight_kl:
            self.teacher_heads = [(h, t.lm_head.weight) for h, t in zip(self.teacher_hidden, self.teachers)]
        self.loss, _, _ = chunked_head(
            self.hidden, self.model.lm_head.weight, self.y,
            n_tokens=1, teachers=self.teacher_heads, objective=plan.objective,
            vocab_size=plan.vocab_size, chunk=config["chunk_tokens"], dtype=plan.dtype,
        )  # fmt: skip
        valid = self.y.flatten() >= 0
        for weight, distance in (("weight_cos", cosine_distance), ("weight_mse", hidden_mse)):
            if config.get(weight):
                self.loss = self.loss + config[weight] * reduce(self.mean_distance(distance), valid, 1)
        self.loss.backward()

    def read_with_teachers(self, x):
        with self.autocast(), torch.no_grad():
            self.teacher_hidden = [t(x, hidden=True) for t in self.teachers]  # (B, T, C_t) each

    def mean_distance(self, distance):
        """distill.py's: `distance` to each teacher, weighted by its share."""
        total = 0.0
        for share, projection, h in zip(self.plan.objective.shares, self.projections, self.teacher_hidden):
            total = total + share * distance(projection(self.hidden).flatten(0, 1), h.flatten(0, 1))
        return total

    def update(self):
        nn.utils.clip_grad_norm_(self.params, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def autocast(self):
        if self.plan.dtype is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast("cpu", dtype=self.plan.dtype)
