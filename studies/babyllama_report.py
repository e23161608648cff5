"""What studies/babyllama.py writes when its runs are done: the answer, tables and pictures, all from their files."""

import math
import shutil
import statistics
from pathlib import Path

import matplotlib.pyplot as plt

from common.figures import draw_curves
from common.files import read_json
from plot import read_log

HERE = Path("studies")
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}  # Student's t, 95 %, by the number of seeds


def measure(folder: Path) -> dict:
    """What one run took and reached; losses in nats per token of the dev split, at T = 1."""
    run, dev = read_json(folder / "summary.json"), read_json(folder / "dev/summary.json")
    found = {key: run[key] for key in ("parameters", "tokens")}
    found |= {"teraflop": run["flops"] / 1e12, "minutes": run["seconds"] / 60}
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


def bound(n: int) -> float:
    """Standard errors that a mean of n must be away from 0, by Student's t at 95 %."""
    return T95[min(n, max(T95))]


def verdict(a: list[float], b: list[float]) -> str:
    """Whether a is "lower", "higher" than b or "not told apart" from it, by a paired t-test at 95 %.

    >>> verdict([1.0, 1.1, 1.0], [2.0, 2.2, 2.0]), verdict([1.0, 2.0, 4.0], [2.0, 2.0, 3.0])
    ('lower', 'not told apart')
    """
    mean, error = paired(a, b)
    if abs(mean) <= bound(len(a)) * error:
        return "not told apart"
    return "lower" if mean < 0 else "higher"


def difference(a: list[float], b: list[float], form="+.4f") -> str:
    """The mean of a - b and its standard error, as text.

    >>> difference([1.0, 2.0, 4.0], [2.0, 2.0, 3.0], "+.2f")
    '+0.00 ± 0.58'
    """
    mean, error = paired(a, b)
    return f"{mean:{form}} ± {error:{form.removeprefix('+')}}"


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
    head = ["", "parameters", "tokens", "TFLOP", "core minutes", "dev nats/token", "bits/byte", "BLiMP"]
    rows = []
    for row, runs in results.items():
        cost = [f"{runs[0]['parameters']:,}", f"{runs[0]['tokens']:,}", f"{runs[0]['teraflop']:,.0f}"]
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
        dev = of(results, row, "dev")
        cells = [difference(dev, of(results, other, "dev")) for other in ("control", "gpt", "llama")]
        accuracies = ([100 * x for x in of(results, r, "blimp")] for r in (row, "control"))
        rows.append([study.rows[row].title, *cells, difference(*accuracies, "+.2f")])
    return grid(["dev nats/token", "− control", "− GPT teacher", "− LLaMA teacher", "BLiMP, − control"], rows)


def seed_table(study, results: dict, seeds: list[int]) -> str:
    """Dev loss and BLiMP of every row and seed: what the means, differences and errors are made of."""
    head = ["", *(f"{score}, seed {seed}" for score in ("dev", "BLiMP") for seed in seeds)]
    rows = [
        [study.rows[row].title, *(f"{run['dev']:.4f}" for run in runs), *(f"{100 * run['blimp']:.2f}" for run in runs)]
        for row, runs in results.items()
    ]
    return grid(head, rows)


def parts_table(study, results: dict, key: str, form: str, factor=1.0) -> str:
    """Means over seeds of the parts of a score, a column each."""
    names = list(next(iter(results.values()))[0][key])
    rows = []
    for row, runs in results.items():
        means = [factor * statistics.mean(run[key][name] for run in runs) for name in names]
        rows.append([study.rows[row].title, *(f"{mean:{form}}" for mean in means)])
    return grid(["", *names], rows)


def trial_table(study, trials: dict) -> str:
    """Dev loss of every trial, a line a row and learning rate; what was kept in bold."""
    lines = {}
    for row, runs in trials.items():
        for run in runs:
            shown = f"**{study.dev(run):.4f}**" if run == study.chosen[row] else f"{study.dev(run):.4f}"
            lines.setdefault((study.rows[row].title, f"{run.rate:g}"), {})[f"{run.epochs:g} epochs"] = shown
    epochs = list(next(iter(lines.values())))
    rows = [[*line, *cells.values()] for line, cells in lines.items()]
    return grid(["dev nats/token", "learning rate", *epochs], rows)


def point_table(study, results: dict, points: dict[str, list[dict]]) -> str:
    """The further points, one seed each, and how they stand to the rows of that seed."""
    first = {row: results[row][0]["dev"] for row in ("gpt", "llama")}

    def alone(row: str) -> float:
        """The dev loss of the control of the same size and epochs."""
        return points.get(f"control_{row}", results["control"])[0]["dev"]

    rows = [
        [study.rows[row].title, f"{found['parameters']:,}", f"{found['tokens']:,}", f"{found['dev']:.4f}"]
        + [f"{found['dev'] - alone(row):+.4f}" if study.rows[row].teachers else ""]
        + [f"{found['dev'] - value:+.4f}" for value in first.values()]
        + [f"{100 * found['blimp']:.1f}"]
        for row, (found,) in points.items()
    ]
    compared = ["− its control", "− GPT teacher", "− LLaMA teacher"]
    return grid(["", "parameters", "tokens", "dev nats/token", *compared, "BLiMP"], rows)


# ---------------------------------------------------------------------------------------------
# the answer, and the pictures


def answer(results: dict) -> str:
    """The claim, part by part, as the numbers have it."""
    n = len(results["student"])
    dev = {row: of(results, row, "dev") for row in results}
    blimp = {row: [100 * x for x in of(results, row, "blimp")] for row in results}
    student, control = dev["student"], dev["control"]
    yes = {"lower": "Yes", "higher": "No: it hurts", "not told apart": "Not measurably"}[verdict(student, control)]
    better = {"lower": "worse", "higher": "better", "not told apart": "not told apart"}
    cost = {row: statistics.mean(of(results, row, "teraflop")) for row in ("gpt", "llama", "student", "control")}
    said = [
        f"**Does it distil? {yes}.** Taught by both teachers, with the KL of the formula, the student reaches "
        f"{statistics.mean(student):.4f} nats per token of held-out text. Without a teacher the same model, from the "
        f"same weights on the same data, reaches {statistics.mean(control):.4f}; each has the best of its own four "
        "pairs of learning rate and epochs. The difference is "
        f"**{difference(student, control)}** (± standard error, paired over {n} seeds); on BLiMP it is "
        f"{difference(blimp['student'], blimp['control'], '+.2f')} points "
        f"({better[verdict(blimp['student'], blimp['control'])]} at 95 %). In FLOPs the student's run costs "
        f"{cost['student'] / cost['control']:.1f} times the control's, and training its teachers "
        f"{(cost['gpt'] + cost['llama']) / cost['control']:.0f} times, trials not counted."
    ]
    said.append("**Does it beat its teachers?** " + " ".join(beats(dev, row) for row in ("gpt", "llama")))
    scale, reverse = dev["published"], dev["reverse"]
    said.append(
        f"**Does the published scale of the KL matter?** With it the student ends {difference(scale, student)} from "
        f"the formula's ({verdict(scale, student)} at 95 %), and {difference(scale, control)} from the control."
    )
    said.append(
        "**The other choices**, at the student's learning rate and epochs, against it: the GPT alone "
        f"{difference(dev['from_gpt'], student)}, the LLaMA alone {difference(dev['from_llama'], student)}, reverse KL "
        f"{difference(reverse, student)}, a random offset {difference(dev['offset'], student)} (which gives the "
        f"control {difference(dev['control_offset'], control)})."
    )
    return "\n\n".join(said)


def beats(dev: dict[str, list[float]], row: str) -> str:
    """How the student, and the control, stand to a teacher."""
    student, control, teacher = dev["student"], dev["control"], dev[row]
    won = sum(s < t for s, t in zip(student, teacher))
    words = {"lower": "Yes", "higher": "No", "not told apart": "Not told apart from it"}[verdict(student, teacher)]
    alone = {"lower": "beats it", "higher": "does not beat it", "not told apart": "is not told apart from it"}
    name = {"gpt": "GPT", "llama": "LLaMA"}[row]
    return (
        f"The {name}: {words}, {difference(student, teacher)}, lower in {won} of "
        f"{len(student)} seeds; the control, which had no teacher, {alone[verdict(control, teacher)]} "
        f"({difference(control, teacher)})."
    )


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
    every = {run for rows in (table, points, trials) for runs in rows.values() for run in runs}
    for run in every:
        shutil.copy(study.out / run.name / "log.txt", logs / f"{run.name}.txt")
    draw_rows(study, results).savefig(HERE / "babyllama.png", dpi=120)
    shown = ("gpt", "llama", "control", "student", "published", "reverse")
    curves = {study.rows[row].title: read_log(str(study.out / table[row][0].name)) for row in shown}
    draw_curves(curves, curve="").savefig(HERE / "babyllama_curves.png", dpi=120)

    n, size = len(table["student"]), results["student"][0]["parameters"]
    page = PAGE.format(
        answer=answer(results), n=n, bound=bound(n), val=meta["val_tokens"], pairs=study.blimp_limit or 1000,
        rows=main_table(study, results), differences=difference_table(study, results), meta=meta,
        seeds=seed_table(study, results, [run.seed for run in table["student"]]),
        gpt=results["gpt"][0]["parameters"] / size, llama=results["llama"][0]["parameters"] / size,
        share=meta["train_tokens"] / size, trials=trial_table(study, trials),
        points=point_table(study, results, further), domains=parts_table(study, results, "domains", ".3f"),
        fields=parts_table(study, results, "fields", ".1f", 100), runs=len(every), jobs=study.jobs,
        minutes=study.seconds() / 60, names=", ".join(f"`{name}`" for name in meta["domains"]),
    )  # fmt: skip
    (HERE / "babyllama.md").write_text(page, encoding="utf-8")
    print(f"studies/babyllama.md, after {study.seconds() / 60:.0f} minutes")


PAGE = """# Does it distil? Baby Llama in small, with controls and error bars

Written by `make study-babyllama` ([babyllama.py](babyllama.py), [babyllama_report.py](babyllama_report.py)) from the
runs whose logs lie in [logs](logs).

{answer}

![dev loss and BLiMP of every row and seed](babyllama.png)

## Rows

Mean ± standard deviation over {n} seeds. A seed has its own teachers, weights and order of rows. TFLOP and minutes, of
one core, are the row's own: a student's hold its teachers' forward passes, not their training. Dev: {val:,}
held-out tokens in rows of 128 from one offset for all; what fills no row is left out. BLiMP: the first {pairs} pairs of
each of 67 paradigms; chance is 50.

{rows}

Differences, paired by seed: mean ± standard error. With {n} seeds one is told apart from 0 at 95 % where it is more
than {bound} standard errors away; no correction is made for there being many of them.

{differences}

The same, seed by seed:

{seeds}

![loss while training, first seed](babyllama_curves.png)

The picture, as the logs, has the loss of 64 dev rows, which are other rows for the runs with a random offset; the
tables have the whole dev split, scored when a run was done.

## What was done

- **Data**: of the corpus `{meta[corpus]}` {meta[train_tokens]:,} tokens ({meta[train_bytes]:,} bytes): one of every
  {meta[every_train]} passages of about 4 KB of the training texts, and one of every {meta[every_dev]} of the dev texts.
  Domains, cleaned by their names as Baby Llama's: {names}. BPE of {meta[vocab_size]:,}, trained on the training texts
  alone. No loss here compares with one on another corpus or subset.
- **Proportions**: the GPT has {gpt:.1f} times the student's parameters (published: 12.1), the LLaMA {llama:.1f} (6.2),
  with the published ratios of depth to width; {share:.2f} tokens of text for each parameter of the student (about
  0.23).
- **Learning rate and epochs** were chosen by the dev loss of the first seed, among four pairs for each of the rows
  below (in bold: kept). With two values of each, what is kept lies at an edge of what was tried, and better may lie
  beyond. Every student takes those of "student ← both", and the control with a random offset the control's. The table
  above holds the first seed too, and its dev split is the one that chose.
- **All else** as in [config/babyllama_*_small.py](../config): T = 2, CE and KL weigh 0.5 each, cosine to 0, the last
  checkpoint. Unlike the published teachers these have weight decay, the GPT no dropout, and 8 rows a step.

{trials}

Further points, with the first seed alone; students of both teachers unless they say otherwise ("its control" has the
same size and epochs):

{points}

## By domain and by field

Dev loss in nats per token, means over seeds:

{domains}

BLiMP, %, means over seeds:

{fields}

## Time

{minutes:.0f} minutes on {jobs} cores for all of it: data, {runs} runs, scores.
"""
