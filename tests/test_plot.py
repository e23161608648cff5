"""plot.py: what its pictures show, read from matplotlib's objects, and how it ends on damaged files."""

import itertools
import json
import math
import runpy
import subprocess
import sys

import matplotlib.pyplot as plt
import pytest
from conftest import ROOT, TINY, run_script

from common.one_line import one_line


@pytest.fixture
def plot(monkeypatch, tmp_path):
    """plot(*args) runs plot.py in this process, as that command line would; returns the figure."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["plot.py", f"--out={tmp_path / 'p.png'}", *map(str, args)])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # configure() sets another
        runpy.run_path(str(ROOT / "plot.py"), run_name="__main__")
        return plt.gcf()

    yield run
    plt.close("all")


def write_run(folder, text="", **curves):
    """A run's folder with a log.txt of `text` and curves {label: {step: value}}."""
    folder.mkdir(exist_ok=True)
    lines = [f"{step} {label} {value}\n" for label, curve in curves.items() for step, value in curve.items()]
    (folder / "log.txt").write_text(text + "".join(lines))
    return folder


def write_results(path, model="out/a", **tasks):
    """evaluate.py's JSON, of {task: {metric: (value, stderr)}}."""
    results = [
        {"task": task, "n": 9, "metrics": {m: {"value": v, "stderr": e} for m, (v, e) in metrics.items()}}
        for task, metrics in tasks.items()
    ]
    path.write_text(json.dumps({"model": model, "model_sha256": "0", "results": results}))
    return path


def drawn(axis):
    """[(steps, values)] of the curves of a panel, without the lines across."""
    found = [(list(map(float, line.get_xdata())), list(line.get_ydata())) for line in axis.lines]
    return [(x, y) for x, y in found if x and x != [0, 1]]


def across(axis):
    """{text: height} of the lines across a panel, which the texts must stand at."""
    heights = sorted(line.get_ydata()[0] for line in axis.lines if list(line.get_xdata()) == [0, 1])
    assert heights == sorted(text.get_position()[1] for text in axis.texts)
    return {text.get_text(): text.get_position()[1] for text in axis.texts}


def legend_texts(figure):
    return [text.get_text().strip() for text in figure.legends[0].get_texts()]


@pytest.mark.slow
def test_plot_draws_and_prints_a_table(dataset, teacher, tmp_path):
    run_script("train.py", *TINY, f"--dataset={dataset}", f"--out_dir={tmp_path / 'b'}", "--max_steps=5")
    args = [f"--runs={teacher},{tmp_path / 'b'}", f"--out={tmp_path / 'p.png'}", "--labels=one,two"]
    lines = run_script("plot.py", *args).stdout.splitlines()
    assert lines[0].split("|")[1].strip() == "run" and len(lines) == 5
    assert lines[4] == f"curves: {tmp_path / 'p.png'}"
    val = json.loads((tmp_path / "b/summary.json").read_text())["val"]
    assert f"{val:.4f}" in lines[3] and "two" in lines[3]
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / "p.png").stat().st_size > 10_000
    for bad, message in [(["--runs=nowhere"], "no log.txt at 'nowhere'"), ([args[0], "--labels=a"], "2 runs need")]:
        done = run_script("plot.py", *bad, f"--out={tmp_path / 'q.png'}", ok=False)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_help_loads_nothing_that_takes_time():
    """`import torch` alone takes ten times as long as all that --help does."""
    code = """
import runpy, sys
sys.argv = ["plot.py", "--help"]
try:
    runpy.run_path("plot.py", run_name="__main__")
except SystemExit:
    heavy = {"torch", "numpy", "sentencepiece", "tiktoken", "requests", "matplotlib"}
    print("loaded:", sorted(heavy & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--runs=''" in done.stdout and done.stdout.endswith("loaded: []\n")


def test_losses_are_the_logs_or_their_log10(plot, tmp_path):
    """Three points are drawn as they are; distill.py's own loss gives way to its ce."""
    a = write_run(tmp_path / "a", train={0: 100, 1: 1, 2: 1}, val={0: 1000, 2: 10})
    b = write_run(tmp_path / "b", train={0: 7, 2: 7}, ce={0: 4, 2: 2}, lr={0: 1e-3}, val={0: 1})
    (axis,) = plot(f"--runs={a},{b}").axes
    assert drawn(axis) == [([0, 1, 2], [100, 1, 1]), ([0, 2], [1000, 10]), ([0, 2], [4, 2]), ([0], [1])]
    assert "log10" not in axis.get_ylabel()
    (axis,) = plot(f"--runs={a},{b}", "--log10").axes
    train, val, ce, one = (y for _, y in drawn(axis))
    assert train == pytest.approx([2, 0, 0]) and val == pytest.approx([3, 1])
    assert ce == pytest.approx([math.log10(4), math.log10(2)]) and one == [0]
    assert axis.get_ylabel() == "cross-entropy, log10 of nats per token"
    assert axis.get_ylim()[1] > 3 and axis.get_ylim()[0] < 0  # the first steps too


def test_the_training_curve_ends_where_the_log_does(plot, tmp_path):
    """A loss that falls from 7: short logs as they are, a long one as the mean over a 40th of its points."""
    for n, distance in [(3, 0), (12, 0), (79, 0), (400, 0.05)]:
        losses = [7 - 3 * i / n for i in range(n)]
        run = write_run(tmp_path / f"r{n}", train=dict(enumerate(losses)))
        ((_, values),) = drawn(plot(f"--runs={run}").axes[0])
        assert values[-1] == pytest.approx(losses[-1], abs=distance)
        assert distance or values == losses
    assert values[399] == pytest.approx(sum(losses[390:400]) / 10) and values[1] == pytest.approx(sum(losses[:2]) / 2)


@pytest.mark.parametrize("end", ["12", "1234 train 3.", "1234 train 3.2", "12 val"])
def test_a_log_that_a_kill_cut_lacks_its_last_line(end, plot, tmp_path):
    """`3.2` may be half of 3.25. A line that is damaged elsewhere stays an error, see below."""
    run = write_run(tmp_path / "a", val={0: 3, 5: 2})
    with open(run / "log.txt", "a") as log:
        log.write(end)
    assert drawn(plot(f"--runs={run}").axes[0]) == [([0, 5], [3, 2])]


def test_best_val_has_a_column_where_a_run_has_it(plot, tmp_path, capsys):
    old, new = (write_run(tmp_path / name, val={0: 3}) for name in ("old", "new"))
    (old / "summary.json").write_text('{"val": 4.5}')
    plot(f"--runs={old},{new}")
    assert "best val" not in capsys.readouterr().out
    (new / "summary.json").write_text('{"val": 4.3, "best_val": 4.29491, "best_step": 750}')
    plot(f"--runs={old},{new}")
    title, _, *rows = (
        [cell.strip() for cell in row.split("|")[1:-1]] for row in capsys.readouterr().out.splitlines()[:4]
    )
    assert title[3:6] == ["val nats/token", "best val (step)", "bits/byte"]
    assert [row[3:6] for row in rows] == [["4.5000", "-", "-"], ["4.3000", "4.2949 (step 750)", "-"]]


def test_runs_that_were_scored_on_other_rows_are_said(plot, tmp_path, capsys):
    runs = [write_run(tmp_path / name, val={0: 3}) for name in "abc"]
    for run, more in zip(runs, ({}, {"eval_rows": 64}, {})):
        config = {"dataset": "data/x", "block_size": 128, "eval_rows": 16}
        (run / "summary.json").write_text(json.dumps({"val": 3.0, "config": config | more}))
    plot(f"--runs={runs[0]},{runs[1]}")
    assert "losses do not compare: eval_rows is 16 in a, 64 in b\n" in capsys.readouterr().out
    plot(f"--runs={runs[0]},{runs[2]}")
    assert "compare" not in capsys.readouterr().out


def test_frame_leaves_out_the_fall_and_holds_the_rest(plot, tmp_path):
    val = {step: 3 + 8 * (step == 0) + 1 / (1 + step) for step in range(0, 500, 100)}
    run = write_run(tmp_path / "a", val=val, train=dict.fromkeys(range(500), 2.5))
    low, high = plot(f"--runs={run}").axes[0].get_ylim()
    assert low < 2.5 and max(list(val.values())[1:]) < high < 5
    low, high = plot(f"--runs={run}", "--log10").axes[0].get_ylim()
    assert low < math.log10(2.5) and math.log10(12) < high  # which is there to show the fall


def test_chain_starts_each_run_where_the_one_before_ended(plot, tmp_path):
    """The first ends at 300, by its training; the second at 300 + 40; the third goes on from 340."""
    a = write_run(tmp_path / "a", val={0: 3, 200: 2}, train={300: 2}, hella={200: 0.3})
    b = write_run(tmp_path / "b", val={0: 2, 40: 1}, hella={0: 0.31, 40: 0.32})
    c = write_run(tmp_path / "c", val={0: 1, 10: 1})
    left, right = plot(f"--runs={a},{b},{c}", "--chain").axes
    assert [x for x, _ in drawn(left)] == [[300], [0, 200], [300, 340], [340, 350]]
    assert drawn(right) == [([200], [0.3]), ([300, 340], [0.31, 0.32])]
    left, _ = plot(f"--runs={a},{b},{c}").axes
    assert [x for x, _ in drawn(left)] == [[300], [0, 200], [0, 40], [0, 10]]


def test_curve_and_the_lines_across(plot, tmp_path):
    """Chance is 0.25 for HellaSwag alone: 0.25 across piqa would be wrong."""
    run = write_run(tmp_path / "a", val={0: 3}, hella={0: 0.3}, hella_sum={0: 0.28}, piqa={0: 0.6, 5: 0.7})
    _, right = plot(f"--runs={run}").axes
    assert across(right) == {"chance 0.25": 0.25} and right.get_ylabel() == "acc_norm"
    _, right = plot(f"--runs={run}", "--gpt2=0.2955").axes
    assert across(right) == {"chance 0.25": 0.25, "GPT-2 0.2955": 0.2955}
    _, right = plot(f"--runs={run}", "--gpt2=0.2955", "--chance=0").axes
    assert across(right) == {"GPT-2 0.2955": 0.2955}
    _, right = plot(f"--runs={run}", "--curve=piqa").axes
    assert across(right) == {} and drawn(right) == [([0, 5], [0.6, 0.7])] and right.get_ylabel() == "piqa"
    _, right = plot(f"--runs={run}", "--curve=piqa", "--chance=0.5").axes
    assert across(right) == {"chance 0.5": 0.5}
    assert len(plot(f"--runs={run}", "--curve=").axes) == 1


def test_names_of_close_lines_do_not_overlap(plot, tmp_path):
    figure = plot(f"--runs={write_run(tmp_path / 'a', hella={0: 0, 1: 1})}", "--chance=0.29", "--gpt2=0.2955")
    figure.canvas.draw()
    chance, gpt2 = (text.get_window_extent() for text in figure.axes[0].texts)
    assert chance.y1 <= gpt2.y0 and figure.bbox.containsx(gpt2.x1) and chance.x0 > figure.axes[0].bbox.x1


def test_bars_are_the_first_metrics_with_their_errors(plot, tmp_path):
    """Shares on the left; what is no share on the right, of which word_ppl is known by its end; b has no rte."""
    a = {
        "piqa": {"acc": (0.6, 0.1), "acc_norm": (0.9, 0.1)},
        "rte": {"acc": (0.5, None)},
        "enwik8": {"bits": (0.9, None)},
    }
    b = {"piqa": {"acc": (0.7, 0.05)}, "enwik8": {"bits": (0.8, None)}, "wikitext": {"word_ppl": (30, 2)}}
    files = write_results(tmp_path / "a.json", "out/a", **a), write_results(tmp_path / "b.json", "hub/b", **b)
    figure = plot(f"--bars={files[0]},{files[1]}")
    left, right = figure.axes
    assert legend_texts(figure) == ["a", "b"]
    assert [t.get_text() for t in left.get_xticklabels()] == ["piqa\nacc", "rte\nacc"]
    assert [t.get_text() for t in right.get_xticklabels()] == ["enwik8\nbits", "wikitext\nword_ppl"]
    assert left.get_yscale() == "linear" and right.get_yscale() == "log"
    heights = [bar.get_height() for bar in left.patches + right.patches]
    assert heights == pytest.approx([0.6, 0.5, 0.7, math.nan, 0.9, math.nan, 0.8, 30], nan_ok=True)
    centres = [bar.get_x() + bar.get_width() / 2 for bar in left.patches]
    assert centres == pytest.approx([-0.2, 0.8, 0.2, 1.2])
    assert right.get_ylim()[0] < 0.8 and right.get_ylim()[1] > 30
    bars = [error for error in left.containers if hasattr(error, "has_yerr")]
    ends = [
        s[:, 1].tolist() for error in bars for s in error.lines[2][0].get_segments() if len(s) and s[0, 1] == s[0, 1]
    ]
    assert ends == [pytest.approx([0.5, 0.7]), pytest.approx([0.65, 0.75])]  # none of rte's
    figure = plot(f"--bars={files[0]},{files[1]}", "--labels=one,_two")
    assert legend_texts(figure) == ["one", "_two"]
    hatches = {p.get_hatch() for p in figure.legends[0].get_patches()}
    assert len(hatches) == 2 and hatches == {bar.get_hatch() for bar in figure.axes[0].patches}


def test_bars_of_other_questions_or_conventions_are_told(plot, tmp_path, capsys):
    files = []
    for name, how in (("a", {"convention": "harness", "shots": 0}), ("b", {"convention": "completion", "shots": 0})):
        path = write_results(tmp_path / f"{name}.json", name, hellaswag={"acc": (0.3, 0.1)}, rte={"acc": (0.5, 0.1)})
        content = json.loads(path.read_text())
        content["results"][0] |= how
        path.write_text(json.dumps(content))
        files.append(str(path))
    plot(f"--bars={','.join(files)}")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "hellaswag: its bars do not compare: convention is harness in a, completion in b"
    assert len(said) == 2 and said[1].startswith("bars: ")


def test_bars_of_other_windows_or_shots_are_told(plot, tmp_path, capsys):
    files = []
    for name, stride, seed in (("a", 64, 1), ("b", 128, 2)):
        path = write_results(tmp_path / f"{name}.json", name, copa={"acc": (0.3, 0.1)}, mine={"ppl": (30, None)})
        content = json.loads(path.read_text())
        content["results"][0] |= {"shots": 2, "seed": seed}
        content["results"][1] |= {"stride": stride, "shots": 0, "seed": seed}
        path.write_text(json.dumps(content))
        files.append(str(path))
    plot(f"--bars={','.join(files)}")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "copa: its bars do not compare: seed is 1 in a, 2 in b"
    assert said[1] == "mine: its bars do not compare: stride is 64 in a, 128 in b"
    # without shots nothing was drawn by the seed
    assert len(said) == 3


def test_curves_differ_without_colours(plot, tmp_path):
    paths = [write_run(tmp_path / f"r{i}", val={0: i + 1, 1: i + 2}) for i in range(30)]
    (axis,) = plot(f"--runs={','.join(map(str, paths))}").axes
    assert len({(line._unscaled_dash_pattern, line.get_marker()) for line in axis.lines if len(line.get_xdata())}) == 30


@pytest.mark.parametrize("models, tasks", [(2, 3), (4, 18)])
def test_no_text_of_the_bars_overlaps(models, tasks, plot, tmp_path):
    names = [f"task_with_a_name_{i}" for i in range(tasks)]
    found = {name: {"acc_norm": (0.5, 0.01)} for name in names} | {"w": {"ppl": (20.0, None)}}
    files = [write_results(tmp_path / f"{i}.json", f"m{i}", **found) for i in range(models)]
    labels = ",".join(f"a rather long name of model {i}" for i in range(models))
    figure = plot(f"--bars={','.join(map(str, files))}", f"--labels={labels}")
    figure.canvas.draw()
    ticks = [t.get_window_extent() for axis in figure.axes for t in axis.get_xticklabels()]
    titles = [part.get_window_extent() for axis in figure.axes for part in (axis.title, axis.yaxis.label)]
    boxes = [*ticks, *titles, figure.legends[0].get_window_extent()]
    assert not [1 for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
    assert all(figure.bbox.containsx(x) and figure.bbox.containsy(y) for b in boxes for x, y in (b.min, b.max))


def test_odd_logs_that_can_be_drawn(plot, tmp_path, capsys):
    """NaN and infinite values, one point, training alone, HellaSwag alone, a summary without keys, odd names."""
    odd = write_run(tmp_path / "_$a", "0 val nan\n1 val 1e999\n2 val 3\n0 train nan\n1 train 2\n0 hella nan\n")
    point = write_run(tmp_path / "a$b$", train={7: 3})
    hella = write_run(tmp_path / r"$\frac$", hella={0: 0.3})
    (odd / "summary.json").write_text('{"tokens": 5, "seconds": 0, "val": NaN, "parameters": "many"}')
    for options in ([], ["--log10"], ["--chain", "--title=$x_$ of $"]):
        figure = plot(f"--runs={odd},{point},{hella}", *options)
        assert legend_texts(figure) == [odd.name, point.name, hella.name]
    row = [cell.strip() for cell in capsys.readouterr().out.splitlines()[2].split("|")]
    assert row[1:-1] == ["_$a", "-", "5", "-", "-", "-", "-", "0m00s"]
    (alone,) = plot(f"--runs={hella}").axes
    assert alone.get_ylabel() == "acc_norm"


RESULT = '{{"model": "a", "results": [{}]}}'
SCORE = '{{"task": "piqa", "metrics": {{"acc": {{"value": {}}}}}}}'


@pytest.mark.parametrize(
    "args, text, message",
    [
        ([], "0 val 3\n", "give either runs or bars"),
        (["--runs={}", "--bars={}"], "0 val 3\n", "give either runs or bars"),
        (["--runs={}"], "", "is empty: the run has logged nothing yet"),
        (["--runs={}"], "0 val 3", "is empty: the run has logged nothing yet"),
        (["--runs={}"], "0 val 3\n5 val\n", "line 2: expected `step label value`, found '5 val'"),
        (["--runs={}"], "0 val 3\n5 val\n6 val 3", "line 2: expected `step label value`, found '5 val'"),
        (["--runs={}"], f"1{'0' * 400} val 3\n", "line 1: expected `step label value`"),
        (
            ["--runs={}"],
            "0 lr 1\n0 norm 2\n",
            "no finite val, train, ce, hella, only lr, norm; leave it out",
        ),
        (["--runs={}"], "0 val nan\n0 train inf\n", "no finite val"),
        (["--runs={}", "--log10"], "0 val 3\n9 val 0\n", "its val has 0, of which there is no log10"),
        (["--runs={}", "--curve=pica"], "0 val 3\n0 piqa 1\n", "no run has a curve 'pica'; did you mean 'piqa'?"),
        (["--runs={}", "--out=a.jpg"], "0 val 3\n", "out='a.jpg' must end in .png"),
        (["--bars={}.json"], "", "no results at"),
        (["--bars={}"], "0 val 3\n", "is damaged: expected one JSON object; write it again with evaluate.py"),
        (["--bars={}"], "[" * 100_000, "is damaged"),
        (["--bars={}"], "[]", "is damaged"),
        (["--bars={}"], "{}", 'expected {"model": …'),
        (["--bars={}"], RESULT.format(""), 'expected {"model": …'),
        (["--bars={}"], RESULT.format("7"), 'expected {"model": …'),
        (["--bars={}"], RESULT.format('{"task": "piqa", "metrics": {}}'), 'expected {"model": …'),
        (["--bars={}"], RESULT.format('{"task": "piqa", "metrics": {"acc": 1}}'), 'expected {"model": …'),
        (["--bars={}"], RESULT.format(SCORE.format("null")), "acc of piqa is None, not a finite number"),
        (["--bars={}"], RESULT.format(SCORE.format('"1"')), "acc of piqa is '1', not a finite number"),
        (["--bars={}"], RESULT.format(", ".join([SCORE.format(1)] * 2)), "acc of piqa is there twice"),
        (
            ["--bars={}"],
            RESULT.format(SCORE.format(0).replace("acc", "ppl")),
            "ppl of 0 is not on its axis, of more than 0",
        ),
        (["--bars={}"], RESULT.format(SCORE.format(61)), "piqa: acc of 61 is not on its axis, of at most 1"),
        (["--bars={},{}"], RESULT.format(SCORE.format(1)), "2 bars need as many different labels, not a, a"),
    ],
)
def test_errors_are_one_line(args, text, message, plot, tmp_path, capfd):
    (tmp_path / "x").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        plot(*(arg.format(*[tmp_path / "x"] * 2) for arg in args))
    with pytest.raises(SystemExit) as left:  # what a process would do with it
        one_line(caught.type, caught.value, caught.tb)
    stderr = capfd.readouterr().err
    assert left.value.code == 2 and message in stderr and stderr.count("\n") == 1, stderr
    assert not (tmp_path / "p.png").exists()


@pytest.mark.parametrize("text", ["", "[]", '{"val": 3', "\udcff"])
def test_damaged_summary_is_an_error(text, plot, tmp_path):
    run = write_run(tmp_path / "a", val={0: 3})
    (run / "summary.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"summary\.json is damaged: expected one JSON object; delete it"):
        plot(f"--runs={run}")
    assert not (tmp_path / "p.png").exists()
