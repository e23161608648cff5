"""How fast a teacher and a student write: tokens a second of one row, on one core, as one JSON object.

    python -m studies.distilgpt2.speed --teacher=out/teacher --student=out/student

They take turns, so that what else the machine does slows both alike; of each the median counts.
"""

import json
import statistics
import time

import torch

from common.files import read_json
from common.pretrained import load_pretrained
from configurator import at_least, configure


def each_seeds_speed(study, table: dict) -> list[dict]:
    """The JSON object of each seed's teacher and its student of the three losses, kept in the study's folder."""
    found = []
    for taught_by, taught in zip(table["teacher"], table["three"]):
        path = study.out / f"speed_seed{taught.seed}.json"
        if not path.exists():
            # written aside and renamed, so that a kill leaves no half of it under the final name
            aside = path.with_suffix(".writing")
            arguments = [f"--teacher={study.out / taught_by.name}", f"--student={study.out / taught.name}"]
            # one at a time, when no run is at work
            study.call(["-m", "studies.distilgpt2.speed", *arguments], aside)
            aside.rename(path)
        found.append(read_json(path))
    return found


def seconds_to_write(net, n: int) -> float:
    """Of n tokens after a prompt of one."""
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
