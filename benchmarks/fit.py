"""The size of a run before it runs: FLOPs, peak memory, and the largest micro-batch that fits.

    python bench.py --part=fit config/pretrain_124m.py --batch_size=32
    python bench.py --part=fit config/rkld_olmo.py --memory=24e9 --device=cuda --json
    python bench.py --part=fit                              # all configs of train.py and distill.py, a line each

Without data, without teachers on the disk and without a GPU: benchmarks/plan.py finds out what the run consists of,
benchmarks/footprint.py what one step allocates. For one rank, without torch.compile, which needs less; under torchrun
DDP keeps a second copy of the gradients in its buckets.
"""

import json

from benchmarks.footprint import PARTS, step_memory
from benchmarks.plan import LOOPS, Plan, loop_for, make_plan, read_knobs
from common.one_line import end_in_one_line
from configurator import (
    COMMAND_LINE,
    HELP,
    HERE,
    Config,
    at_least,
    defaults_of,
    nearest_key,
    read_config_file,
    split_arguments,
    use_arguments,
)

OWN = ("part", "memory", "peak", "mfu", "vocab_size", "json")  # knobs of bench.py that this part has
SHARE = 0.9  # of the memory that may be used; CUDA's context and fragmentation take the rest


def is_asked_for(args: list[str]) -> bool:
    return "--part=fit" in args and set(HELP).isdisjoint(args)


def main(args: list[str]):
    """Print the size of the run that the arguments describe, or, where they name no config, of all configs."""
    end_in_one_line()
    own, others = own_knobs(args)
    if any(not arg.startswith("-") for arg in others):
        script, config = read_knobs(others)
        plan = make_plan(script, config, own["vocab_size"])
        name = " ".join(others)
        result = describe(plan, own)
        print(json.dumps({"config": name} | result) if own["json"] else report(name, plan, result, own))
    else:
        overview(others, own)


def own_knobs(args: list[str]) -> tuple[Config, list[str]]:
    """(this part's knobs, the arguments that are for the loop)."""
    defaults = {name: value for name, value in defaults_of(HERE / "bench.py").items() if name in OWN}
    # 0: that of the data set; bench.py's own default is for its other parts
    defaults["vocab_size"] = 0
    known = dict(defaults)
    for script in LOOPS:
        known |= defaults_of(HERE / script)
    _, keys = split_arguments(args, known)
    for key, _ in keys:
        if key not in known:
            raise ValueError(f"{COMMAND_LINE}: unknown key {key!r}{nearest_key(key, known)}; --help lists every key")
    own_args = []
    others = []
    for arg in args:
        is_own = arg.startswith("--") and arg.removeprefix("--").partition("=")[0] in OWN
        (own_args if is_own else others).append(arg)
    own = Config(defaults, given={})
    use_arguments(own, own_args, defaults)
    at_least(own, 1, "memory peak")
    at_least(own, 0, "vocab_size")
    if not 0 < own["mfu"] <= 1:
        raise ValueError(f"mfu={own['mfu']} is out of range; it must be over 0 and at most 1")
    return own, others


# ---------------------------------------------------------------------------------------------
# the numbers


def describe(plan: Plan, own: Config, all_sizes=True) -> dict:
    """Everything that the report says, as numbers: bytes, FLOPs, hours, rows.

    sizes: {rows of a micro-batch: {part: bytes}}, without all_sizes only those that were needed; largest: rows of the
    largest that fits, 0 where not one row does.
    """
    batch_size = plan.config["batch_size"]
    sizes = {}
    memory_of(plan, batch_size, sizes)
    largest = largest_fit(plan, own["memory"], sizes)
    shown = {batch_size, largest} - {0}
    # powers of two, up to the first that is too large
    for rows in divisors(plan.rows_per_step):
        if all_sizes and rows.bit_count() == 1 and rows <= 2 * max(1, largest):
            memory_of(plan, rows, sizes)
            shown.add(rows)
    sizes = {rows: sizes[rows] for rows in sorted(shown)}
    hours = run_flops = None
    if plan.n_tokens is not None:
        run_flops = plan.flops * plan.n_tokens
        hours = run_flops / (own["peak"] * own["mfu"]) / 3600
    return {
        "script": plan.script,
        "device": plan.device,
        "dtype": str(plan.dtype).removeprefix("torch."),
        "vocab_size": plan.vocab_size,
        "parameters": plan.student.n_params(),
        "teachers": [teacher.n_params() for teacher in plan.teachers],
        "flops_per_token": plan.flops,
        "times_plain": plan.flops / plan.flops_plain,
        "tokens": plan.n_tokens,
        "flops": run_flops,
        "hours": hours,
        "rows_per_step": plan.rows_per_step,
        "batch_size": batch_size,
        "peak_bytes": sum(sizes[batch_size].values()),
        "fits": sum(sizes[batch_size].values()) <= SHARE * own["memory"],
        "largest": largest,
        "sizes": sizes,
    }


def largest_fit(plan: Plan, memory: float, sizes: dict) -> int:
    """The most rows of a micro-batch that fit, of those that divide a step; 0: not even one.

    sizes: {rows: {part: bytes}}, to which those that were tried are added.
    """
    candidates = divisors(plan.rows_per_step)
    # Binary search, as more rows need more memory: the first n_fit candidates fit, the n_too_many-th does not.
    n_fit = 0
    n_too_many = len(candidates) + 1
    while n_too_many - n_fit > 1:
        middle = (n_fit + n_too_many) // 2
        if memory_of(plan, candidates[middle - 1], sizes) <= SHARE * memory:
            n_fit = middle
        else:
            n_too_many = middle
    return candidates[n_fit - 1] if n_fit else 0


def memory_of(plan: Plan, rows: int, sizes: dict) -> int:
    """Peak bytes with micro-batches of `rows` rows; added to `sizes` by part, unless it is there."""
    if rows not in sizes:
        sizes[rows] = step_memory(plan, rows)
    return sum(sizes[rows].values())


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


# ---------------------------------------------------------------------------------------------
# the report


def report(name: str, plan: Plan, result: dict, own: Config) -> str:
    lines = [
        f"{name} ({plan.script}), on {result['device']}, matmuls in {result['dtype']}, one rank, without torch.compile",
        f"parameters       {result['parameters']:,}, {result['vocab_size']:,} ids",
    ]
    if result["teachers"]:
        lines.append("teachers         " + ", ".join(f"{n:,}" for n in result["teachers"]))
    lines.append(
        f"FLOPs per token  {result['flops_per_token'] / 1e6:,.1f} million, {result['times_plain']:.2f} x plain training"
    )
    totals = f"{plan.config['epochs']:g} epochs of {plan.config['dataset']}, which is not there to be counted"
    if result["tokens"] is not None:
        speed = f"{own['mfu']:.0%} of {own['peak'] / 1e12:,.0f} TFLOP/s"
        totals = f"{result['tokens']:,} tokens, {result['flops']:.3g} FLOPs, {result['hours']:,.3g} hours at {speed}"
    lines += [f"the run          {totals}", "", "MB at the peak of a step, by rows of a micro-batch:"]
    widths = [max(10, len(part)) for part in PARTS]
    header = "  ".join(f"{part:>{width}}" for part, width in zip(PARTS, widths))
    lines.append(f"{'rows':>6}  {header}  {'peak':>8}")
    for rows, parts in result["sizes"].items():
        columns = "  ".join(f"{parts[part] / 1e6:>{width},.0f}" for part, width in zip(PARTS, widths))
        mark = "  <- batch_size" if rows == result["batch_size"] else ""
        lines.append(f"{rows:>6}  {columns}  {sum(parts.values()) / 1e6:>8,.0f}{mark}")
    lines += ["", verdict(result, own)]
    return "\n".join(lines)


def verdict(result: dict, own: Config) -> str:
    fits = "fits" if result["fits"] else "does not fit"
    free = f"{own['memory'] / 1e9:g} GB with {1 - SHARE:.0%} left free (CUDA's context, fragmentation)"
    largest = f"the largest micro-batch that does: {result['largest']} of the step's {result['rows_per_step']} rows"
    if not result["largest"]:
        largest = "no micro-batch does, not even one row"
    line = f"batch_size={result['batch_size']} {fits} into {free}; {largest}"
    if result["device"] == "cpu":
        line += "\non a CPU the loops keep freed memory, and hold 1.2 to 1.4 times the peak (results/bench/fit.txt)"
    return line


def overview(others: list[str], own: Config):
    """A line for every config under config/ that a loop runs."""
    for arg in others:
        if not arg.startswith(("--device=", "--dtype=")):
            raise ValueError(f"{arg} is for one run; name its config file too")
    results = {}
    if not own["json"]:
        print(f"{'config':<44} parameters MFLOP/token  x plain      FLOPs    hours   peak MB  batch_size  largest")
    for path in sorted((HERE / "config").rglob("*.py")):
        name = path.relative_to(HERE).as_posix()
        values = read_config_file(str(path))
        if not values or not loop_for(values):
            continue
        try:
            script, config = read_knobs([str(path), *others])
            results[name] = describe(make_plan(script, config, own["vocab_size"]), own, all_sizes=False)
        except (ValueError, OSError) as error:
            # such as a hub model without a network: the other configs are listed all the same
            results[name] = {"error": str(error)}
        if not own["json"]:
            print(line_of(name, results[name]), flush=True)
    if own["json"]:
        print(json.dumps(results))


def line_of(name: str, result: dict) -> str:
    if "error" in result:
        return f"{name:<44} {result['error']}"
    flops_and_hours = f"{'':>11}{'epochs':>9}"
    if result["tokens"] is not None:
        flops_and_hours = f"{result['flops']:>11.2e}{result['hours']:>9.3g}"
    return (
        f"{name:<44}{result['parameters'] / 1e6:>9.1f} M{result['flops_per_token'] / 1e6:>12,.1f}"
        f"{result['times_plain']:>9.2f}{flops_and_hours}"
        f"{result['peak_bytes'] / 1e6:>10,.0f}{result['batch_size']:>12}{result['largest']:>9}"
    )
