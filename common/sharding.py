"""Models divided among the ranks, for what does not fit on one device: FSDP2 (torch's fully_shard).

Each rank keeps a share of every tensor, some of its rows: of weights, gradients and moments alike (DTensors). The
weights of a block are gathered when it computes and dropped after it; backward gathers them once more, and gives each
rank its share of the gradient, averaged over the ranks. So the numbers are those of replicas, up to the order of sums.

All ranks take part in every forward pass: a rank that makes one more than the others waits for ever. Where ranks have
different numbers of passes to make, some make idle ones too, or all weights are gathered first (`whole_weights`).

torch.distributed.tensor is imported where it is needed: the import takes half as long as torch's.
"""

import contextlib

import torch
import torch.distributed as dist


def check_shard(config: dict, world: int):
    """ValueError for knobs that would give a divided student other results than replicas have."""
    if config["shard"] and world > 1 and config["weight_dtype"] != "float32":
        # Replicas round the gradient of each micro-step before it is averaged over the ranks, not after.
        problem = "shard=True goes with weight_dtype='float32' alone, as replicas round other gradients"
        raise ValueError(f"{problem}; leave one of the two out")


# ---------------------------------------------------------------------------------------------
# modules


def shard_module(module, device: torch.device):
    """Divide a module among the ranks, in place, moving it to `device` block by block.

    A language model's blocks (`h`) are gathered one by one, the rest (embedding, final norm and head) together.
    FSDP's own mixed precision is off: autocast casts what was gathered, as it does in replicas, and norms stay float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    blocks = list(getattr(module, "h", []))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    # The chunked head reads lm_head.weight outside of forward, so the rest stays gathered after a forward pass, in
    # training until the end of backward, which distributes the head's gradient too. A tied head is the same tensor as
    # the embedding, so the two must be in one group, as they are here.
    fully_shard(module, mesh=mesh, reshard_after_forward=False)
    # Sum the gradients and divide, rather than average: with some torch versions gloo silently sums when it is asked
    # for an average.
    for part in (*blocks, module):
        part.set_force_sum_reduction_for_comms(True)


def check_trained(model):
    """ValueError where backward would not reach a divided model, whose ranks would then get no gradients."""
    trained = [p for p in model.parameters() if p.requires_grad]
    # FSDP's hooks run when backward arrives at the hidden states
    if all(p is model.lm_head.weight for p in trained) and model.lm_head.weight is not model.wte.weight:
        raise ValueError("shard=True needs a trained parameter below the head; freeze less, or leave shard out")


def is_sharded(model) -> bool:
    return hasattr(model, "unshard")


@contextlib.contextmanager
def whole_weights(model):
    """A context in which each rank holds all weights of a model, and may make as many forward passes as it likes.

    For generation, whose length differs from rank to rank, and which would gather all blocks for every token. Without
    gradients. All ranks enter and leave together. A model that is not divided stays as it is.
    """
    if not is_sharded(model):
        yield
        return
    modules = [module for module in model.modules() if is_sharded(module)]
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    yield
    for module in modules:
        module.reshard()
        # the outermost module, which is the rest, stays gathered after forward, as in shard_module
        module.set_reshard_after_forward(module is not model, recurse=False)


# ---------------------------------------------------------------------------------------------
# tensors


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor gathered from its shares on every rank, so that all call this together; unchanged if not divided."""
    if hasattr(tensor, "full_tensor"):
        return tensor.full_tensor()
    return tensor


def share_of(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This rank's share of a tensor that every rank holds, divided as `like` is; the tensor itself if that is not."""
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # src_data_rank=None: nothing is sent
    share = distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
    # a copy, as the share is a view of the whole, and would keep it in memory
    return share.clone()
