"""A cached teacher for the steps of `bench.py --part=step`: in memory, in the number formats of cache_teacher.py."""

import numpy as np
import torch
from torch.nn import functional as F

from losses import Stored


@torch.no_grad()
def predictions_of(teacher, x, vocab_size: int, temperature: float, k=16) -> dict[str, np.ndarray]:
    """What cache_teacher.py keeps of a teacher's k likeliest ids at each of the n positions of x, and of the others.

    {"log_probs": (n, k) float16, "tail": (n, 1) float32, "ids": (n, k)}
    """
    pieces = []
    # a few positions at a time, as their logits would take more memory than all else
    for hidden in teacher(x, hidden=True).flatten(0, 1).split(256):
        logits = F.linear(hidden, teacher.lm_head.weight).float()[:, :vocab_size]
        log_p = (logits / temperature).log_softmax(-1)
        top = log_p.topk(k, dim=-1)
        tail = log_p.scatter(1, top.indices, -float("inf")).logsumexp(-1, keepdim=True)
        pieces.append((top.values.half().cpu(), tail.cpu(), top.indices.cpu()))
    log_probs, tail, ids = (torch.cat(part).numpy() for part in zip(*pieces))
    id_dtype = np.uint16 if vocab_size <= 65536 else np.uint32
    return {"log_probs": log_probs, "tail": tail, "ids": ids.astype(id_dtype)}


def read_cached(arrays: dict[str, np.ndarray], device) -> Stored:
    """Those predictions as the head takes them."""
    ids = torch.from_numpy(arrays["ids"].astype(np.int64))
    log_p = np.concatenate((arrays["log_probs"], arrays["tail"]), axis=1, dtype=np.float32)  # (n, k + 1)
    return Stored(torch.from_numpy(log_p).to(device), ids.to(device))
