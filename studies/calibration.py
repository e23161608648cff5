"""Is a model right as often as it is confident? The expected calibration error of its likeliest tokens.

    python -m studies.calibration --model=out/student --dataset=data/mine --block_size=128

Each position of the validation split has a likeliest token, and the model's probability of it: its
confidence. Positions are sorted into 15 bins of equal width by confidence. In each, the share of
positions where that token is the right one is compared with the mean confidence:

    ECE = sum over bins of (positions in the bin / all positions) * |share right - mean confidence|

(Guo et al. 2017, arXiv:1706.04599, section 2). Prints one JSON object.
"""

# before torch, so that Ctrl-C while it loads ends in one line
from configurator import at_least, configure  # isort: split

import json

import torch

from common.data import TokenData
from common.pretrained import check_fits, find_model, load_pretrained
from common.runtime import Runtime
from common.tokenizer import check_same_tokenizer

BINS = 15


def calibration_error(confidence: torch.Tensor, is_right: torch.Tensor) -> float:
    """ECE, in 0 … 1, of N positions, from their confidence in 0 … 1 and whether they are right, (N,) each.

    Two of confidence 0.9, one of them right, are off by 0.4:

    >>> round(calibration_error(torch.tensor([0.9, 0.9]), torch.tensor([True, False])), 4)
    0.4
    """
    # a confidence of 1 belongs to the last bin
    bins = (confidence.double() * BINS).long().clamp(max=BINS - 1)
    # positions * |share right - mean confidence| is |number right - sum of confidence|
    n_right = torch.zeros(BINS, dtype=torch.float64).index_add(0, bins, is_right.double())
    sum_of_confidence = torch.zeros(BINS, dtype=torch.float64).index_add(0, bins, confidence.double())
    return ((n_right - sum_of_confidence).abs().sum() / len(confidence)).item()


@torch.no_grad()
def confidences(net, data: TokenData, run: Runtime) -> tuple[torch.Tensor, torch.Tensor]:
    """Confidence, and whether the likeliest token is right, (N,) each, at all N positions with a target."""
    confidence = []
    is_right = []
    for x, y in data.eval_batches(0):
        x, y = run.to_device(x, y)
        with run.autocast():
            logits = net(x)  # (B, T, rows)
        # without the head's padding; in one expression, so that the probabilities are freed at once
        largest, likeliest = logits[..., : data.vocab_size].float().softmax(dim=-1).max(dim=-1)
        valid = y >= 0
        confidence.append(largest[valid].cpu())
        is_right.append((likeliest == y)[valid].cpu())
    return torch.cat(confidence), torch.cat(is_right)


def main():
    run = Runtime(device, dtype)
    check_same_tokenizer(dataset, find_model(model))
    data = TokenData(dataset, "val", block_size, seed=0, batch_size=batch_size, random_offset=False)
    net = load_pretrained(model, run.device, torch.float32).eval()
    check_fits(net, model, block_size, data.vocab_size)
    confidence, is_right = confidences(net, data, run)
    result = {
        "ece": calibration_error(confidence, is_right),
        "confidence": confidence.mean().item(),
        "accuracy": is_right.float().mean().item(),
        "positions": len(confidence),
    }
    print(json.dumps(result))
    run.close()


if __name__ == "__main__":
    model = ""  # model folder or a run's out_dir
    dataset = "data/stdlib"  # folder with val.bin and meta.json
    block_size = 128  # tokens in a row
    batch_size = 32  # rows a forward
    device = "auto"  # "auto", "cpu" or "cuda"
    dtype = "auto"  # of the matmuls: bfloat16 on a GPU that has it, else float32
    config = configure(globals())
    at_least(config, 1, "block_size batch_size")
    main()
