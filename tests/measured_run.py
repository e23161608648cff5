"""Run a loop as a user does, and print what memory its steps took: python tests/measured_run.py train.py --key=value …

Prints a JSON object with bytes resident: "before", as the first model is made or loaded, and "peak", the most up to
the end of the last step. What follows, evaluation and checkpoint, is not in it.

With FREED=back in the environment the loops do not keep freed memory (common/runtime.py); with glibc's
MALLOC_MMAP_THRESHOLD_ set as well, each tensor's memory goes back to the system at once, so that what is resident is
what is allocated, without the gaps of a heap.
"""

import json
import os
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
seen = {"before": 0, "peak": 0}


def first(function):
    """`function`, which notes on the first call how much memory there is before it."""
    from common.files import resident

    def noting(*args, **kwargs):
        seen["before"] = seen["before"] or resident()
        return function(*args, **kwargs)

    return noting


def watch():
    """Put the measurements into the modules that the loops import."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    import common.pretrained
    import common.runtime
    import model
    from common.files import resident

    if os.environ.get("FREED") == "back":
        common.runtime.keep_freed_memory = lambda: None
    model.LanguageModel.__init__ = first(model.LanguageModel.__init__)
    common.pretrained.load_pretrained = first(common.pretrained.load_pretrained)
    register_optimizer_step_post_hook(lambda *_: seen.update(peak=resident(peak=True)))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    watch()
    script = ROOT / sys.argv[1]
    sys.argv = [str(script), *sys.argv[2:]]
    runpy.run_path(str(script), run_name="__main__")
    print(json.dumps(seen))
