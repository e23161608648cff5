"""Run train.py as a user does, until a validation loss is reached, and print what that took.

    python -m benchmarks.timed_run 1.88 config/race/shakespeare.py --seed=1

Prints one JSON object: steps, tokens, FLOPs, seconds of training (evaluation and saving are not counted), the last
validation loss, and all of them. A target of 0 is never reached: the run goes to its end.
"""

import contextlib
import json
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Reached(BaseException):
    """The loss is low enough. A BaseException, as the loop might handle an Exception."""


def watch(target: float) -> dict:
    """Make the loop's log record each validation loss, with the steps and seconds so far, and raise Reached.

    Returns the dict that the record goes to.
    """
    from common.log import Log

    seen = {"losses": {}}
    write = Log.__call__

    def write_and_record(log, step, **values):
        write(log, step, **values)
        if "val" in values:
            loop = sys._getframe(1).f_globals  # train.py's names
            seen["losses"][step] = values["val"]
            tokens = step * loop["tokens_per_step"]
            seen.update(
                steps=step, seconds=loop["seconds"], tokens=tokens, flops=tokens * loop["flops"], val=values["val"]
            )
            if values["val"] <= target:
                raise Reached

    Log.__call__ = write_and_record
    return seen


def main():
    target = float(sys.argv[1])
    script = ROOT / "train.py"
    sys.argv = [str(script), *sys.argv[2:]]
    seen = watch(target)
    # stdout is for the JSON object alone: what the loop prints goes to stderr
    answer = sys.stdout
    sys.stdout = sys.stderr
    # a run ends when it reaches the target, or after its last step
    with contextlib.suppress(Reached):
        runpy.run_path(str(script), run_name="__main__")
    print(json.dumps(seen), file=answer)


if __name__ == "__main__":
    main()
