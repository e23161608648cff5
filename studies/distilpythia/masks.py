"""Other masks than distill.py's, which leaves out what lies beyond a document's end: two that trainers have.

In a padded row both the end of a document and its padding are the end-of-text id.
"""

import runpy

from common.data import TokenData


def mask_by_id(y, eot: int):
    """Leave out each target that is end-of-text: the end of the document too, and so the model never learns it."""
    y[y == eot] = -1


def no_mask(y, eot: int):
    """Leave out no target: the padding is learnt as if it were text."""
    y[y == -1] = eot


def distill_with(mask):
    """Run distill.py with its command line, and another mask on what it trains on; what it evaluates on is as ever."""
    read_batch = TokenData.batch

    def batch(self, step, micro_step):
        x, y = read_batch(self, step, micro_step)
        mask(y, self.meta["eot"])
        return x, y

    TokenData.batch = batch
    runpy.run_path("distill.py", run_name="__main__")
