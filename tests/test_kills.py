"""A few kills of each kind of tests/kills.py, which has the whole experiment; and that it would see a difference."""

import json

import pytest
import torch
from conftest import LONG
from kills import differences, run


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        "train",
        "cache_teacher",
        pytest.param("distill", marks=LONG),
        pytest.param("prepare_data", marks=LONG),
        pytest.param("study", marks=LONG),
    ],
)
def test_what_is_killed_and_started_again_ends_with_the_same_bits(kind, tmp_path):
    """Three kinds are called distill."""
    kills = 6 if kind == "distill" else 2
    assert run(kills, seed=1, work=tmp_path, only=kind) == (kills, 0)


def test_a_difference_of_one_bit_is_seen(tmp_path):
    state = {"step": 3, "seconds": 1.5, "config": {"init_from": "scratch"}, "optimizers": [{0: torch.zeros(2)}]}
    for name in ("a", "b"):
        (tmp_path / name / "step_000003").mkdir(parents=True)
        torch.save(state, tmp_path / name / "step_000003/trainer.pt")
        (tmp_path / name / "log.txt").write_text("0 train 5.5\n")
        (tmp_path / name / "summary.json").write_text(json.dumps({"val": 2.0, "seconds": 1.0}))
    a, b = tmp_path / "a", tmp_path / "b"
    # a time is none
    torch.save(state | {"seconds": 2.5, "config": {"init_from": "resume"}}, b / "step_000003/trainer.pt")
    (b / "summary.json").write_text(json.dumps({"val": 2.0, "seconds": 3.0}))
    assert differences(a, b) == []
    torch.save(state | {"optimizers": [{0: torch.tensor([0.0, -0.0])}]}, b / "step_000003/trainer.pt")
    (b / "summary.json").write_text(json.dumps({"val": 2.5, "seconds": 3.0}))
    (b / "log.txt").unlink()
    (b / ".step_000002.removing").write_text("")
    assert differences(a, b) == [
        "log.txt is missing",
        ".step_000002.removing is left over",
        "step_000003/trainer.pt differs",
        "summary.json differs",
    ]
