"""Two masks that trainers have instead of distill.py's, which leaves out what lies beyond a document's end.

In a padded row both the end of a document and its padding are the end-of-text id.
"""

import runpy

from common.data import TokenData


def mask_by_id(y, eot: int):
    """Leave out every end-of-text target, also that at the document's end, so that the model never learns to stop."""
    y[y == eot] = -1


def no_mask(y, eot: int):
    """Leave out nothing: padding is learnt as if it were text."""
    y[y == -1] = eot


def distill_with(mask):
    """Run distill.py, by the arguments on the command line, with another mask in training, but not in evaluation."""
    read_batch = TokenData.batch

    def batch(self, step, micro_step):
        x, y = read_batch(self, step, micro_step)
        mask(y, self.meta["eot"])
        return x, y

    TokenData.batch = batch
    runpy.run_path("distill.py", run_name="__main__")
