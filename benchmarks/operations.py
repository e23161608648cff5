"""Single operations, each against another way of computing the same; the versions take turns in one process.

`python bench.py --part=gqa` and `--part=muon` run these.
"""

import statistics
import time

import torch

from common.muon import HeadMuon, orthogonalized
from model import attend


def in_turns(case, versions: dict, n_turns: int, run) -> dict[str, float]:
    """{name: median seconds} of case(version)."""
    times = {name: [] for name in versions}
    for _ in range(1 + n_turns):
        for name, version in versions.items():
            start = time.perf_counter()
            case(version)
            # CUDA calls return before their kernels have run
            if run.cuda:
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    # the first is to warm up
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def table(medians: dict[str, dict[str, float]]) -> str:
    versions = list(next(iter(medians.values())))
    lines = [f"{'':<24}" + "".join(f"{version:>16}" for version in versions)]
    for name, seconds in medians.items():
        columns = [f"{1e3 * seconds[version]:13.3f} ms" for version in versions]
        lines.append(f"{name:<24}" + "".join(columns))
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------
# attention with fewer key/value heads than query heads


def compare_gqa(run, n_turns: int) -> dict:
    """Attention with 12 query heads to 4 key/value heads of 64 channels: {case: {version: median seconds}}.

    training: forward and backward of 2 rows of 512 positions. scoring: 3 rows of 512 with a mask.
    generation: the next token of 4 rows after 1,000 others, in a cache of 1,024.
    """
    torch.manual_seed(0)

    def random(B, n, T, **more):
        return torch.randn(B, n, T, 64, device=run.device, dtype=run.dtype, **more)

    def train(attention):
        attention(*trained).sum().backward()

    @torch.no_grad()
    def score(attention):
        attention(*scored, mask)

    @torch.no_grad()
    def generate(attention):
        attention(*generated)

    trained = [random(2, n, 512, requires_grad=True) for n in (12, 4, 4)]
    scored = [random(3, n, 512) for n in (12, 4, 4)]
    # as in rows of several texts, where some keys are hidden from all later queries
    mask = torch.ones(3, 1, 512, 512, dtype=torch.bool, device=run.device).tril()
    mask[..., 100:300] &= torch.eye(512, dtype=torch.bool, device=run.device)[:, 100:300]
    query = random(4, 12, 1)
    keys = random(4, 4, 1024)[:, :, :1000]
    values = random(4, 4, 1024)[:, :, :1000]
    generated = [query, keys, values]

    cases = {"training": train, "scoring": score, "generation": generate}
    versions = {"model.py": attend, "expanded": attend_expanded}
    return {name: in_turns(case, versions, n_turns, run) for name, case in cases.items()}


def attend_expanded(q, k, v, mask=None):
    """model.attend after keys and values have been copied to every query head of their group."""
    group = q.size(1) // k.size(1)
    return attend(q, k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1), mask)


# ---------------------------------------------------------------------------------------------
# Muon


def compare_muon(run, n_turns: int) -> dict:
    """Making the gradients of 4 LLaMA blocks of width 192 orthogonal: {case: {version: median seconds}}.

    As common/muon.py does it, all matrices of one shape together; as its HeadMuon, the square ones in six heads; one
    matrix at a time; and one at a time in bfloat16 whatever the device, as torch.optim.Muon.
    """
    torch.manual_seed(0)
    # the quickstart's teacher: query, key, value, output; gate, up; down
    n_blocks = 4
    matrices = {
        "16 of 192 x 192": torch.randn(4 * n_blocks, 192, 192, device=run.device),
        "8 of 512 x 192": torch.randn(2 * n_blocks, 512, 192, device=run.device),
        "4 of 192 x 512": torch.randn(n_blocks, 192, 512, device=run.device),
    }

    def as_headmuon(stacked):
        # in a model a quarter of the square ones, attention's output, has its heads in columns, which takes as long
        heads = "rows" if stacked.size(1) == stacked.size(2) else ""
        return headmuon.orthogonal(stacked, {"heads": heads, "head_dim": 32})

    def one_at_a_time(stacked):
        return [orthogonalized(matrix[None]) for matrix in stacked]

    def as_torch(stacked):
        return [torch.optim._muon._zeropower_via_newtonschulz(matrix, *settings) for matrix in stacked]

    settings = ((3.4445, -4.7750, 2.0315), 5, 1e-7)
    headmuon = HeadMuon([torch.zeros(1, 1)], lr=0.0, weight_decay=0.0)
    versions = {
        "common/muon.py": orthogonalized,
        "headmuon": as_headmuon,
        "one at a time": one_at_a_time,
        "torch": as_torch,
    }
    medians = {}
    for name, stacked in matrices.items():
        medians[name] = in_turns(lambda version, given=stacked: version(given), versions, n_turns, run)
    return medians
