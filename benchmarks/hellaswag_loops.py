"""HellaSwag as one writes it, which bench.py --part=hellaswag compares with hellaswag.py."""

import numpy as np
import torch
from torch.nn import functional as F


def one_ending(net, group, n_ids, run) -> np.ndarray:
    """Summed log-probability and number of tokens of each ending, (4, 2); one forward pass for each."""
    scores = []
    for ids, n in group:
        ids = torch.tensor(ids, device=run.device)
        with run.autocast(), run.any_shape():
            logits = net(ids[None, :-1])[0, :, :n_ids].float()
        losses = F.cross_entropy(logits, ids[1:], reduction="none")[-n:]
        scores.append((-losses.double().sum().item(), len(losses)))
    return np.array(scores)


def four_endings(net, group, n_ids, run) -> np.ndarray:
    """The same with the endings as rows of one batch, padded: build-nanogpt's way."""
    ids = torch.zeros(len(group), max(len(ids) for ids, _ in group), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, (row, n) in enumerate(group):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, len(row) - n : len(row)] = 1
    ids = ids.to(run.device)
    mask = mask[:, 1:].to(run.device)  # of predictions
    with run.autocast(), run.any_shape():
        logits = net(ids[:, :-1])[:, :, :n_ids].float()
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    losses = losses.view_as(mask) * mask
    return torch.stack((-losses.double().sum(1), mask.sum(1)), dim=1).cpu().numpy()


def compare_scores(turns: dict) -> str:
    """How the versions' predictions by sum and by mean differ, and the sums themselves, in the first turn of each."""
    scores = {name: np.array(turns_of_version[0]["scores"]) for name, turns_of_version in turns.items()}
    sums = {}  # {version: (examples, 4)}
    means = {}
    for name, s in scores.items():
        sums[name] = s[:, 0].reshape(-1, 4)
        means[name] = (s[:, 0] / s[:, 1]).reshape(-1, 4)
    differ = []
    for by in (sums, means):
        predictions = by["straightforward"].argmax(1)
        differ.append(int((predictions != by["nanodistill"].argmax(1)).sum()))
    largest = abs(sums["straightforward"] - sums["nanodistill"]).max()
    return (
        f"{len(predictions):,} examples: {differ[0]} predictions by sum and {differ[1]} by mean differ; "
        f"summed log-probabilities by at most {largest:.1e}"
    )
