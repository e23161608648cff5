"""How fast a teacher and a student write: tokens a second of one row, on one core, as one JSON object.

    python -m studies.distilgpt2.speed --teacher=out/teacher --student=out/student

They take turns, so that other work on the machine slows both alike; the figures are medians.
"""

import json
import statistics
import time

import torch

from common.files import read_json
from common.pretrained import load_pretrained
from configurator import at_least, configure


def each_seeds_speed(study, table: dict) -> list[dict]:
    """The JSON object for each seed's teacher and its student of the three losses, kept in the study's folder."""
    speeds = []
    for teacher_run, student_run in zip(table["teacher"], table["three"]):
        path = study.out / f"speed_seed{student_run.seed}.json"
        if not path.exists():
            # written under another name and renamed, so that a kill leaves no incomplete file under the final one
            aside = path.with_suffix(".writing")
            arguments = [f"--teacher={study.out / teacher_run.name}", f"--student={study.out / student_run.name}"]
            # one at a time, while no other run of the study is at work
            study.call(["-m", "studies.distilgpt2.speed", *arguments], aside)
            aside.rename(path)
        speeds.append(read_json(path))
    return speeds


def seconds_to_write(net, n: int) -> float:
    """Seconds to write n tokens after a prompt of one token."""
    torch.manual_seed(0)
    prompt = torch.zeros(1, 1, dtype=torch.long)
    started = time.perf_counter()
    net.generate(prompt, n)
    return time.perf_counter() - started


def main():
    torch.set_num_threads(1)
    nets = {"teacher": load_pretrained(teacher).eval(), "student": load_pretrained(student).eval()}
    seconds = {name: [] for name in nets}
    for turn in range(turns + 1):
        for name, net in nets.items():
            taken = seconds_to_write(net, tokens)
            # the first turn only warms up
            if turn:
                seconds[name].append(taken)
    speeds = {name: tokens / statistics.median(values) for name, values in seconds.items()}
    print(json.dumps({"tokens": tokens, "turns": turns, **speeds}))


if __name__ == "__main__":
    teacher = ""  # a run's out_dir, or a model's folder
    student = ""  # likewise
    tokens = 120  # written in a turn: a row of 128 has room for them
    turns = 9
    config = configure(globals())
    at_least(config, 1, "tokens turns")
    main()
