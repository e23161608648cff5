"""The second size of three studies: which runs, of which shapes, and what the pages make of both sizes."""

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from pretended import Pretending, knobs_of, pretend

from configurator import read_config_file
from studies import second_size, smaller
from studies.distilpythia import pretraining
from studies.report import Results
from studies.runs import Study
from studies.stats import Measured

SEED_PLUS = (0.0, 0.013, 0.021)


class Pretended(Pretending):
    def loss(self, run, split):
        return 4.0 + 0.1 * (run.row == "start") + SEED_PLUS[run.seed] + (split == "dev")

    def printed(self, command, knobs):
        return None


class PretendedStudy(Pretended, Study):
    pass


class PretendedPythia(Pretended, pretraining.PythiaStudy):
    pass


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """run(name): the second size of a study in tmp_path, and the study with its commands."""

    def run(name):
        made = []
        size = smaller.SMALLER[name]()
        class_of = PretendedPythia if name == "distilpythia" else PretendedStudy

        def make_study(**settings):
            made.append(class_of(**settings))
            return made[0]

        monkeypatch.setitem(smaller.SMALLER, name, lambda: replace(size, study_class=make_study))
        knobs = {"study": name, "out_dir": ""}
        pretend(monkeypatch, tmp_path, study=name, main=smaller, study_class=PretendedStudy, knobs=knobs)
        for key, value in (knobs | {"corpus": "", "seeds": "0,1,2", "jobs": 2}).items():
            monkeypatch.setattr(smaller, key, value, raising=False)
        try:
            smaller.main()
        finally:
            made[0].data_lock.close()
        return made[0]

    return run


@pytest.mark.parametrize("name", list(smaller.SMALLER))
def test_models_are_of_half_the_width_and_all_else_is_the_studys(pretended, name):
    study = pretended(name)
    pretrained = [c for c in study.trained() if c[0] == "train.py"]
    assert pretrained
    for command in pretrained:
        wide = read_config_file(command[1])
        knobs = knobs_of(command)
        assert int(knobs["n_embd"]) == wide["n_embd"] / 2
        # whole heads, and even ones where positions are rotated
        assert int(knobs["n_embd"]) % (2 * int(knobs.get("n_head", wide["n_head"]))) == 0
        assert {"n_layer", "dataset", "batch_size", "block_size"}.isdisjoint(knobs)
    # what goes on from another model, or from its blocks, has that one's shape
    for command in study.trained():
        if command[0] != "train.py":
            assert {"n_embd", "n_head", "n_layer"}.isdisjoint(knobs_of(command))
    # each row with each seed, and the trials that are not in the table
    n_trials = sum(len(rates) - 1 for rates in study.trial_rates.values())
    assert len(study.trained()) == 3 * len(study.rows) + n_trials
    about = json.loads(Path(f"studies/{name}/logs_smaller/study.json").read_text())
    assert list(about["table"]) == list(study.rows)


def test_the_new_weights_of_pythias_form_have_that_shape_too(pretended):
    study = pretended("distilpythia")
    made = [knobs_of(c) for c in study.commands if c[:2] == ["-m", "studies.distilpythia.fresh"]]
    shapes = {(knobs["n_layer"], knobs["n_head"], knobs["n_embd"]) for knobs in made}
    assert shapes == {("3", "2", "48"), ("6", "3", "72")} and len(made) == 6


@pytest.mark.parametrize("name, control, taught", [("distilgpt2", "control", "three"), ("microlm", "ce", "reverse")])
def test_the_control_of_equal_flops_is_counted_anew(pretended, name, control, taught):
    """A narrow model has a larger share of its FLOPs in the head, so that its teacher costs less beside it."""
    study = pretended(name)
    # FLOPs of a token by the sizes, by hand: matrices, head, and attention over on average half of 128 tokens
    if name == "distilgpt2":
        student, teacher = (n_layer * (12 * 48**2 + 129 * 48) + 2048 * 48 for n_layer in (6, 12))
    else:
        student = 4 * (4 * 48**2 + 3 * 48 * 128 + 129 * 48) + 2048 * 48
        teacher = 6 * (4 * 80**2 + 3 * 80 * 224 + 129 * 80) + 2048 * 80
    expected = 1 + teacher / (3 * student)
    longer, shorter = (study.settled(row, 0) for row in (f"{control}_flops", control))
    if name == "distilgpt2":
        steps = [int(knobs_of(study.command(run, Path("x")))["max_steps"]) for run in (longer, shorter)]
        assert steps[0] == round(steps[1] * expected)
    else:
        assert longer.epochs / shorter.epochs == pytest.approx(expected)
        assert study.settled("reverse_long", 0).epochs == longer.epochs


def made_up(logs: Path, parameters: int, losses: dict[str, float], noise=0.001) -> Results:
    """Three seeds, whose losses differ from their mean by -noise, 0 and noise, in opposite order for each other row."""
    table = {}
    for place, (row, loss) in enumerate(losses.items()):
        sign = (-1) ** place
        runs = []
        for seed, plus in enumerate((-noise, 0.0, noise)):
            record = {"seed": seed, "parameters": parameters, "test": {"val": loss + sign * plus}}
            runs.append(Measured(record))
        table[row] = runs
    return Results(logs, table, {}, {}, {"titles": {row: row.upper() for row in losses}})


def test_where_a_line_through_both_sizes_is_0_by_hand(tmp_path):
    """0.3 at 100 and 0.1 at 400: a fourfold size takes off 0.2, so that twice 400 takes off the 0.1 that are left."""
    small = made_up(tmp_path, 100_000_000, {"a": 4.3, "b": 4.0})
    large = made_up(tmp_path, 400_000_000, {"a": 4.1, "b": 4.0})
    text = second_size.direction(small, large, ("a", "b"), [100_000_000, 400_000_000])
    assert text.startswith("**A − B** falls with the size (-0.2000 ± ")
    assert text.endswith("it would be 0 at 800.0 million parameters.")
    # each difference scatters by 2 noise over three seeds, and the two of them are independent
    error = math.hypot(*[statistics.stdev([-0.002, 0.0, 0.002]) / math.sqrt(3)] * 2)
    assert f"± {error:.4f})" in text


@pytest.mark.parametrize(
    "small, large, expected",
    [
        (4.1, 4.3, "rises with the size (+0.2000 ± 0.0016); on a line through both it does not become 0"),
        (3.9, 3.7, "falls with the size (-0.2000 ± 0.0016); on a line through both it does not become 0"),
        # it would at 400 e^30
        (4.31, 4.30, "falls with the size (-0.0100 ± 0.0016); on a line through both it does not become 0"),
        (4.3, 4.301, "does not change measurably with the size (+0.0010 ± 0.0016), and is significant at both."),
        (4.0, 4.001, "does not change measurably with the size (+0.0010 ± 0.0016): no size can be named that would"),
    ],
)
def test_what_is_said_of_a_direction(tmp_path, small, large, expected):
    sizes = [100, 400]
    results = [made_up(tmp_path, size, {"a": loss, "b": 4.0}) for size, loss in zip(sizes, (small, large))]
    assert expected in second_size.direction(*results, ("a", "b"), sizes)


def test_without_the_second_size_the_page_says_how_to_run_it(tmp_path):
    first = made_up(tmp_path / "distilgpt2" / "logs", 100, {"a": 1.0, "b": 2.0})
    assert second_size.section(first, [("a", "b")], "a") == "Not run yet: `make study-distilgpt2-smaller`."
