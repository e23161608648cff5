"""What a run reports: log.txt, samples, summary.json, the same to Weights & Biases, and its last words."""

from pathlib import Path

from common.files import names_file, replace_text, write_json

# ---------------------------------------------------------------------------------------------
# log.txt and the files beside it

# labels of the loops' own numbers, but for val/<domain>
LOG_LABELS = {"train", "val", "ce", "kl", "cos", "mse", "lr", "norm", "bad_steps", "kl_own", "own_tokens", "own_ended"}
LOG_LABELS |= {"val_kl", "agree", "entropy", "teacher_entropy", "forward_kl", "reverse_kl"}


class Log:
    """out_dir/log.txt: lines `step label value`, flushed as written. A resumed run drops those that it writes again.

    Only the main process writes, and only where `writes` (not with eval_only). With `wandb_project` the same values go
    to Weights & Biases, `config` with them; a resumed run continues the run whose id is in out_dir/wandb_id.txt.
    """

    def __init__(self, out_dir: str, first_step: int, writes: bool, wandb_project="", config=None):
        self.out_dir = Path(out_dir)
        self.file = None
        self.wandb = None
        if not writes:
            return
        self.out_dir.mkdir(parents=True, exist_ok=True)
        # a finished run that goes on is no longer finished
        if config and first_step < config["max_steps"]:
            (self.out_dir / "summary.json").unlink(missing_ok=True)
        path = self.out_dir / "log.txt"
        # The steps between the checkpoint and the kill are made again: they must not be in the log twice.
        replace_text(path, earlier_lines(path, first_step))
        self.file = open(path, "a", encoding="utf-8")
        if wandb_project:
            self.wandb = start_wandb(self.out_dir, wandb_project, first_step, config)

    def __call__(self, step: int, **values: float):
        if self.file:
            # 9 digits identify a float32, so that equal logs mean equal runs.
            lines = [f"{step} {label} {value:.9g}\n" for label, value in values.items()]
            with names_file(self.file.name):
                self.file.write("".join(lines))
                self.file.flush()
        if self.wandb:
            self.wandb.log(values, step=step)

    def sample(self, step: int, text: str):
        """Write out_dir/sample_NNNNNN.txt: a file for each step, so that a resumed run overwrites its own."""
        if self.file:
            path = self.out_dir / f"sample_{step:06d}.txt"
            with names_file(path):
                path.write_text(text + "\n", encoding="utf-8")

    def summary(self, **values):
        """Write out_dir/summary.json, the costs and results of a finished run, which plot.py prints as a table."""
        if self.file:
            write_json(self.out_dir / "summary.json", values)
        if self.wandb:
            # Weights & Biases has had the config from the start.
            results = {name: value for name, value in values.items() if name != "config"}
            self.wandb.summary.update(results)

    def close(self):
        if self.file:
            self.file.close()
        if self.wandb:
            self.wandb.finish()


def earlier_lines(path: Path, first_step: int) -> str:
    """The lines of a log for the steps before `first_step`.

    Where a finished run goes on, this leaves out the evaluation at its end: the log becomes that of a run which was
    never stopped.
    """
    if first_step == 0 or not path.is_file():
        return ""
    # A kill may have cut the last line anywhere, "1234 train 5.1" to "12": only lines with a line end are complete.
    whole_lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    kept = []
    for line in whole_lines:
        columns = line.split()
        # a power cut may have left other bytes
        is_ours = len(columns) == 3 and columns[0].isdecimal()
        if is_ours and int(columns[0]) < first_step:
            kept.append(line + "\n")
    return "".join(kept)


def start_wandb(out_dir: Path, project: str, first_step: int, config: dict):
    """A run of Weights & Biases, online or, with WANDB_MODE=offline, in out_dir/wandb."""
    try:
        # imported here, as only those who ask for it need the package
        import wandb

        # an AttributeError where a folder named wandb, such as its runs leave, was imported as an empty module
        start = wandb.init
    except (ImportError, AttributeError):
        remedy = "pip install wandb, or leave wandb_project empty"
        raise ValueError(f"wandb_project={project!r}, but wandb is not installed: {remedy}") from None
    id_file = out_dir / "wandb_id.txt"
    known_id = None
    if first_step and id_file.is_file():
        known_id = id_file.read_text().strip()
    run = start(project=project, name=out_dir.name, dir=out_dir, config=config, id=known_id, resume="allow")
    id_file.write_text(run.id + "\n")
    return run


# ---------------------------------------------------------------------------------------------
# for the terminal


def loss_as_sum(factors: dict[str, str], means: dict[str, float], own_share: float, own_text: dict) -> str:
    """The terms of a loss with their factors, so that the log line adds up: "0.1 ce 4.0222 + 0.9*1^2 kl 0.1621".

    factors: {term: its factor as text}. means: {term: its mean over the data's tokens}. own_share: the share of the
    step's micro-steps that learn from own text; own_text: their mean, as kl_own. With both the line is
    "0.75 (0.1 ce 4.0222 + …) + 0.25*0.9*1^2 kl_own 0.2".
    """
    summands = []
    if own_share < 1:
        data_terms = " + ".join(f"{factor} {name} {means[name]:.4f}" for name, factor in factors.items())
        summands.append(f"{1 - own_share:g} ({data_terms})" if own_share else data_terms)
    if own_share:
        summands.append(f"{own_share:g}*{factors['kl']} kl_own {own_text['kl_own']:.4f}")
    return " + ".join(summands)


def last_words(script: str, out_dir: str, saved: list[Path], best: tuple[float, int], finished: bool) -> str:
    """Where a run saved, its best checkpoint, and the three commands that make sense next.

    saved: the checkpoints, oldest first; best: (val, step) of the lowest validation loss, step -1 before any.
    """
    if not saved:
        return f"nothing saved: {out_dir} has no checkpoint yet"
    best_val, best_step = best
    best_folder = Path(out_dir) / f"step_{best_step:06d}"
    where = f"saved {saved[-1]}"
    if best_step >= 0:
        where += f" | best val {best_val:.4f} at step {best_step}"
    # with its path, unless it is the newest, whose path is on the line already, or was not kept
    if best_folder in saved[:-1]:
        where += f": {best_folder}"
    resume = f"python {script} --out_dir={out_dir} --init_from=resume"
    # a finished run has no steps left unless there are to be more
    if finished:
        resume += " --max_steps=<more>"
    lines = [
        where,
        f"  write text   python sample.py --model={out_dir}",
        f"  score it     python evaluate.py --model={out_dir} --tasks=hellaswag",
        f"  train on     {resume}",
    ]
    return "\n".join(lines)


def eta(seconds: float) -> str:
    """3725 -> "1h02m", 125 -> "2m05s"."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds:02d}s"
