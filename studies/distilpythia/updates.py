"""Which updates survive: how many weights a run left as they were, and how far it moved them.

    python -m studies.distilpythia.updates --before=<model> --after=<model>

Prints one JSON object.
"""

# before torch, so that Ctrl-C while it loads ends in one line
from configurator import configure  # isort: split

import json

import torch

from common.pretrained import load_pretrained


def flat(net) -> torch.Tensor:
    """All weights of a model in one row: (parameters,)."""
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def compare(first: torch.Tensor, second: torch.Tensor) -> dict[str, float]:
    """What became of the weights (parameters,)."""
    # both rounded: a run in bfloat16 begins with that, which is no update; and those in float32 compare with it
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
