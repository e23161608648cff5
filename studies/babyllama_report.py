"""What studies/babyllama.py writes when its runs are done: tables, pictures and the answer, all from the runs' files."""

import math
import shutil
import statistics
from pathlib import Path

import matplotlib.pyplot as plt

from common.files import read_json
from plot import draw_curves, read_log

HERE = Path("studies")
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}  # Student's t, 95 %, by the number of seeds


def measure(folder: Path) -> dict:
    """What one run took and reached; losses in nats per token of the dev split, at T = 1."""
    run, dev = read_json(folder / "summary.json"), read_json(folder / "dev/summary.json")
    found = {key: run[key] for key in ("parameters", "tokens")}
    found |= {"petaflop": run["flops"] / 1e15, "minutes": run["seconds"] / 60}
    found |= {"dev": dev["val"], "bits": dev["bits_per_byte"]}
    log = read_log(str(folder / "dev"))
    found["domains"] = {label.removeprefix("val/"): v[0] for label, (_, v) in log.items() if label.startswith("val/")}
    if (folder / "blimp.json").exists():
        (blimp,) = read_json(folder / "blimp.json")["results"]
        found["blimp"] = blimp["metrics"]["acc"]["value"]
        found["fields"] = {name: value for name, (value, _) in sorted(blimp["parts"]["field"].items())}
    return found


def mean_sd(values: list[float], form=".4f") -> str:
    return f"{statistics.mean(values):{form}} ± {statistics.stdev(values):{form}}"


def paired(a: list[float], b: list[float]) -> tuple[float, float]:
    """(mean of a - b, its standard error) over seeds.

    >>> [round(x, 4) for x in paired([1.0, 2.0, 4.0], [2.0, 2.0, 3.0])]
    [0.0, 0.5774]
    """
    differences = [x - y for x, y in zip(a, b, strict=True)]
    return statistics.mean(differences), statistics.stdev(differences) / math.sqrt(len(differences))


def verdict(a: list[float], b: list[float]) -> str:
    """ "lower", "higher" or "not told apart", by a paired t-test at 95 %.

    >>> verdict([1.0, 1.1, 1.0], [2.0, 2.2, 2.0]), verdict([1.0, 2.0, 4.0], [2.0, 2.0, 3.0])
    ('lower', 'not told apart')
    """
    mean, error = paired(a, b)
    if abs(mean) <= T95.get(len(a), 2.3) * error:
        return "not told apart"
    return "lower" if mean < 0 else "higher"


def difference(a: list[float], b: list[float]) -> str:
    mean, error = paired(a, b)
    return f"{mean:+.4f} ± {error:.4f}"


def grid(head: list[str], rows: list[list]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def collect(study, table: dict) -> dict[str, list[dict]]:
    """{row: what each seed's run took and reached}."""
    return {row: [measure(study.out / run.name) for run in runs] for row, runs in table.items()}


def of(results: dict, row: str, key: str) -> list[float]:
    return [found[key] for found in results[row]]


# ---------------------------------------------------------------------------------------------
# tables


def main_table(study, results: dict) -> str:
    head = ["", "parameters", "tokens", "PFLOP", "core minutes", "dev nats/token", "bits/byte", "BLiMP"]
    rows = []
    for row, runs in results.items():
        cost = [f"{runs[0]['parameters']:,}", f"{runs[0]['tokens']:,}", f"{runs[0]['petaflop']:.1f}"]
        cost.append(f"{statistics.mean(r['minutes'] for r in runs):.1f}")
        scores = [mean_sd(of(results, row, "dev")), mean_sd(of(results, row, "bits"))]
        scores.append(mean_sd([100 * x for x in of(results, row, "blimp")], ".1f"))
        rows.append([study.rows[row].title, *cost, *scores])
    return grid(head, rows)


def difference_table(study, results: dict) -> str:
    """Each student against its control and both teachers, paired by seed."""
    rows = []
    for row in results:
        if row in ("gpt", "llama", "control"):
            continue
        cells = [
            difference(of(results, row, "dev"), of(results, other, "dev")) for other in ("control", "gpt", "llama")
        ]
        accuracies = ([100 * x for x in of(results, r, "blimp")] for r in (row, "control"))
        mean, error = paired(*accuracies)
        rows.append([study.rows[row].title, *cells, f"{mean:+.2f} ± {error:.2f}"])
    return grid(["dev nats/token", "− control", "− GPT teacher", "− LLaMA teacher", "BLiMP, − control"], rows)


def parts_table(study, results: dict, key: str, form: str, factor=1.0) -> str:
    """Means over seeds of the parts of a score: rows are parts, columns the rows of the study."""
    names = list(next(iter(results.values()))[0][key])
    means = [[factor * statistics.mean(run[key][name] for run in runs) for runs in results.values()] for name in names]
    rows = [[name, *(f"{mean:{form}}" for mean in line)] for name, line in zip(names, means)]
    return grid(["", *(study.rows[row].title for row in results)], rows)


def trial_table(study, trials: dict) -> str:
    """Dev loss of every trial; what was kept in bold."""
    pairs = [(run.rate, run.epochs) for run in next(iter(trials.values()))]
    rows = []
    for row, runs in trials.items():
        values = [f"**{study.dev(r):.4f}**" if r == study.chosen[row] else f"{study.dev(r):.4f}" for r in runs]
        rows.append([study.rows[row].title, *values])
    return grid(["dev nats/token", *(f"{rate:g}, {epochs:g} epochs" for rate, epochs in pairs)], rows)


def point_table(study, results: dict, points: dict[str, list[dict]]) -> str:
    """The further points, one seed each, and how they stand to the rows of that seed."""
    first = {row: results[row][0]["dev"] for row in ("control", "gpt", "llama")}
    rows = [
        [study.rows[row].title, f"{found['parameters']:,}", f"{found['tokens']:,}", f"{found['dev']:.4f}"]
        + [f"{found['dev'] - value:+.4f}" for value in first.values()]
        + [f"{100 * found['blimp']:.1f}"]
        for row, (found,) in points.items()
    ]
    compared = ["− control", "− GPT teacher", "− LLaMA teacher"]
    return grid(["", "parameters", "tokens", "dev nats/token", *compared, "BLiMP"], rows)


# ---------------------------------------------------------------------------------------------
# the answer, and the pictures


def answer(results: dict) -> str:
    """The claim, part by part, as the numbers have it."""
    n = len(results["student"])
    student, control, published = (of(results, row, "dev") for row in ("student", "control", "published"))
    said = []
    words = {"lower": "Yes", "higher": "No, it hurts", "not told apart": "Not measurably"}
    said.append(
        f"**Does it distil? {words[verdict(student, control)]}.** Taught by both teachers, with the KL of the formula, "
        f"the student reaches {statistics.mean(student):.4f} nats per token of held-out text; the same model, data, "
        f"order and weights at the start without a teacher reach {statistics.mean(control):.4f}: a difference of "
        f"{difference(student, control)} (standard error over {n} seeds, paired)."
    )
    blimp = [[100 * x for x in of(results, row, "blimp")] for row in ("student", "control")]
    mean, error = paired(*blimp)
    better = {"lower": "worse", "higher": "better", "not told apart": "not told apart"}[verdict(*blimp)]
    said.append(f"On BLiMP the difference is {mean:+.2f} ± {error:.2f} points ({better} at 95 %).")
    for row, name in (("gpt", "GPT"), ("llama", "LLaMA")):
        teacher = of(results, row, "dev")
        won = sum(s < t for s, t in zip(student, teacher))
        said.append(
            f"**Does it beat its {name} teacher?** In {won} of {n} seeds, by {difference(student, teacher)}"
            f" ({verdict(student, teacher)} at 95 %); without any teacher the control stands at "
            f"{difference(control, teacher)} to it."
        )
    said.append(
        f"**The published scale of the KL**, {difference(published, student)} from the formula's, is "
        f"{verdict(published, student)} at 95 %."
    )
    return "\n\n".join(said)


def draw_rows(study, results: dict) -> plt.Figure:
    """A line a row: a mark a seed, and a bar at their mean. Left the dev loss, right BLiMP."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 0.8 + 0.38 * len(results)), sharey=True, layout="constrained")
    for axis, key, factor in zip(axes, ("dev", "blimp"), (1, 100)):
        for place, row in enumerate(results):
            values = [factor * v for v in of(results, row, key)]
            look = {"gpt": "s", "llama": "D", "control": "x", "control_offset": "x"}.get(row, "o")
            axis.plot(values, [place] * len(values), look, color="black", markerfacecolor="none", markersize=6)
            axis.plot([statistics.mean(values)] * 2, [place - 0.3, place + 0.3], color="C0", linewidth=2)
        axis.axvline(factor * statistics.mean(of(results, "control", key)), color="black", linewidth=0.8, linestyle=":")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(results)), [study.rows[row].title for row in results])
    axes[0].invert_yaxis()
    axes[0].set(xlabel="dev loss, nats per token: less is better", title="a mark a seed, a bar their mean")
    axes[1].set(xlabel="BLiMP, % of pairs: more is better", title="dotted: the control's mean")
    return figure


def write_report(study, table: dict, points: dict, trials: dict, meta: dict):
    """studies/babyllama.md, babyllama.png and babyllama_curves.png, and every log in studies/logs/."""
    results, further = collect(study, table), collect(study, points)
    logs = HERE / "logs"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    every = {run for runs in (table | points).values() for run in runs} | {r for runs in trials.values() for r in runs}
    for run in every:
        shutil.copy(study.out / run.name / "log.txt", logs / f"{run.name}.txt")
    draw_rows(study, results).savefig(HERE / "babyllama.png", dpi=120)
    shown = ("gpt", "llama", "control", "student", "published", "reverse")
    curves = {study.rows[row].title: read_log(str(study.out / table[row][0].name)) for row in shown}
    draw_curves(curves, curve="").savefig(HERE / "babyllama_curves.png", dpi=120)

    n, student = len(table["student"]), results["student"][0]
    ratios = [results[row][0]["parameters"] / student["parameters"] for row in ("gpt", "llama")]
    chosen = ", ".join(f"{study.rows[row].title} {r.rate:g} and {r.epochs:g}" for row, r in study.chosen.items())
    (HERE / "babyllama.md").write_text(
        f"""# Does it distil? Baby Llama in small, with controls and error bars

Written by `make study-babyllama` ([studies/babyllama.py](babyllama.py)); the numbers are of the runs in [logs](logs).

{answer(results)}

![dev loss and BLiMP of every row and seed](babyllama.png)

## Rows

Mean ± standard deviation over {n} seeds. A seed has its own teachers, weights and order of rows. PFLOP and minutes, of
one core, are the row's own: a student's hold its teachers' forward passes, not their training. Dev: all
{meta["val_tokens"]:,} held-out tokens in rows of 128. BLiMP: {study.blimp_limit or 1000} pairs of each of 67 paradigms,
chance 50.

{main_table(study, results)}

Differences, paired by seed: mean ± standard error. With {n} seeds one is told apart from 0 at 95 % if it is more than
{T95.get(n, 2.3)} standard errors away.

{difference_table(study, results)}

![loss while training, first seed](babyllama_curves.png)

## What was done

- Data: {meta["train_tokens"]:,} tokens ({meta["train_bytes"]:,} bytes) of ten domains, every {meta["every_train"]}th passage
  of about 4 KB of the training texts, cleaned as Baby Llama's; dev likewise every {meta["every_dev"]}th. BPE of
  {meta["vocab_size"]:,}, trained on the training texts alone.
- Proportions: the GPT has {ratios[0]:.1f} times the student's parameters (published: 12.1), the LLaMA {ratios[1]:.1f}
  (6.2), and {meta["train_tokens"] / student["parameters"]:.2f} tokens of text a parameter of the student
  (published: about 0.23).
- Learning rate and epochs were chosen by the dev loss of the first seed among the same four trials for each of these;
  every student takes those of "student ← both", and a control with random offset those of the control. In bold: kept.
  The table holds that seed too, and the dev split is the one that chose.
- Everything else as in `config/babyllama_*_small.py`: T = 2, CE and KL weigh 0.5 each, cosine to 0, no dropout.

{trial_table(study, trials)}

(Kept: {chosen}.)

Further points, tried with the first seed alone; all are students of both teachers unless they say otherwise:

{point_table(study, results, further)}

## By domain

Dev loss in nats per token, means over seeds:

{parts_table(study, results, "domains", ".3f")}

BLiMP by field, %, means over seeds:

{parts_table(study, results, "fields", ".1f", 100)}

## Time

{study.seconds() / 60:.0f} minutes on {study.jobs} cores, all of it: data, {len(every)} runs, scores.
""",
        encoding="utf-8",
    )
    print(f"studies/babyllama.md, after {study.seconds() / 60:.0f} minutes")
