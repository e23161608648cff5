"""Which updates survive: how many weights a run left unchanged, and how far it moved the weights.

    python -m studies.distilpythia.updates --before=<model> --after=<model>

Prints one JSON object.
"""

# before torch, so that Ctrl-C while it loads ends in one line
from configurator import configure  # isort: split

import json

import torch

from common.pretrained import load_pretrained


def flat(net) -> torch.Tensor:
    """All weights of a model as one vector, (parameters,)."""
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def compare(first: torch.Tensor, second: torch.Tensor) -> dict[str, float]:
    """The share of unchanged weights, their size, and their change; first, second: (parameters,)."""
    # Both rounded: a run in bfloat16 begins by rounding, which is no update; runs in float32 are counted the same way.
    same = first.bfloat16() == second.bfloat16()
    return {
        "unchanged": same.float().mean().item(),
        "weight_rms": rms(first),
        "weight_median": first.abs().median().item(),
        "change_rms": rms(second - first),
    }


def rms(x: torch.Tensor) -> float:
    """Root of the mean square."""
    return x.square().mean().sqrt().item()


def main():
    first, second = (load_pretrained(where, dtype=torch.float32) for where in (before, after))
    print(json.dumps(compare(flat(first), flat(second))))


if __name__ == "__main__":
    before = ""  # model folder, or a run's out_dir
    after = ""  # likewise
    configure(globals())
    main()
