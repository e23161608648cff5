"""Run a loop as a user does, with micro-steps that take longer and ranks that wait less for one another.

    python tests/hindered.py train.py --key=value …

MICRO_STEP_SECONDS in the environment: how long a micro-step takes at least. RANK_SECONDS: how long a rank waits for
another before it gives up; 30 minutes are too long for a test.
"""

import os
import runpy
import sys
import time
from datetime import timedelta
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def hinder():
    from common import runtime
    from common.runtime import Runtime

    if "RANK_SECONDS" in os.environ:
        runtime.LONGEST_WAIT = timedelta(seconds=float(os.environ["RANK_SECONDS"]))
    to_device = Runtime.to_device

    def slowly(run, *tensors):
        time.sleep(float(os.environ.get("MICRO_STEP_SECONDS", 0)))
        return to_device(run, *tensors)

    # each micro-step calls it once
    Runtime.to_device = slowly


sys.argv = sys.argv[1:]
sys.argv[0] = str(ROOT / sys.argv[0])
sys.path[0] = str(ROOT)
# as a script does, so that Ctrl-C while torch loads is answered as there
import configurator  # noqa: E402, F401

hinder()
runpy.run_path(sys.argv[0], run_name="__main__")
