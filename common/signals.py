"""Signals that stop or save a run, on all ranks alike; and the end of a rank that has lost the others."""

import os
import signal
import sys
import time

import torch.distributed as dist

# Within a long step, the time after which the ranks ask each other about signals again: short beside the 30 s after
# which torchrun kills.
CHECK_SECONDS = 1
# A scheduler may signal every process, and torchrun signals its own once more: within this time that counts as one.
SAME_SIGNAL_SECONDS = 2


class StopSignal:
    """SIGTERM and SIGINT ask the loop to break off its step, save and end; a second one ends it at once.

    SIGUSR1 asks it to save after the step, and to go on.
    """

    def __init__(self, run):
        self.run = run
        self.number = 0  # of the signal to stop; 0: none came
        self.came_at = 0.0
        self.wants_save = False
        self.check_every = 1  # micro-steps
        for number in (signal.SIGTERM, signal.SIGINT):
            # ignored under nohup, or in a script's background: it stays so
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self.catch)
        # Windows has no such signal.
        if hasattr(signal, "SIGUSR1"):
            signal.signal(signal.SIGUSR1, self.catch_save)

    def catch(self, number, frame):
        if not self.number:
            self.number = number
            self.came_at = time.monotonic()
            print(f"{signal.Signals(number).name}: saving, then stopping", file=sys.stderr, flush=True)
            return
        if self.run.world > 1 and time.monotonic() - self.came_at < SAME_SIGNAL_SECONDS:
            return
        # what the signal does by default
        if number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def set_pace(self, step_seconds: float, micro_steps: int):
        """Set how often `came` asks, by the duration of a step, which all ranks must give alike."""
        self.check_every = max(1, int(CHECK_SECONDS * micro_steps / step_seconds))

    def came(self, micro_step: int) -> bool:
        """Whether a signal came to any rank. To be called before each micro-step, by all ranks alike.

        They exchange it only before some: a short micro-step takes no longer than the exchange, and before the first
        the step's own exchange has just told.
        """
        if micro_step == 0 or micro_step % self.check_every:
            return False
        (n_signals,) = self.run.sum(self.number > 0)
        return n_signals > 0

    def catch_save(self, number, frame):
        self.wants_save = True
        print("SIGUSR1: saving after this step, then going on", file=sys.stderr, flush=True)

    def take_save(self) -> bool:
        """Whether a save was asked for since the last call."""
        wanted = self.wants_save
        self.wants_save = False
        return wanted

    def exit_if_asked(self, stopping):
        """Where the ranks agreed to stop, exit with the conventional code: 143 after SIGTERM, 130 after SIGINT."""
        if stopping:
            # The signal may have come to another rank only: then this one ends as after SIGTERM.
            sys.exit(128 + (self.number or signal.SIGTERM))


def lost_rank_in_one_line(kind, error, trace, otherwise):
    """sys.excepthook of one of several ranks: if another is gone, one line and exit code 2; else `otherwise`."""
    if is_lost_rank(error):
        # gloo adds advice that a killed process does not need
        reason = str(error).splitlines()[0].split(". ")[0]
        problem = "another rank ended, was killed or does not answer, and so this one ends"
        remedy = "the same command continues from the newest checkpoint with --init_from=resume or auto"
        error = ConnectionError(f"{problem} ({reason}); {remedy}")
        kind = ConnectionError
        # torchrun now sends SIGTERM to the ranks that are left; this one is ending anyway, perhaps still saving
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    otherwise(kind, error, trace)


def is_lost_rank(error: BaseException) -> bool:
    """Whether an exchange with the other ranks has failed."""
    # NCCL's errors have a class of their own. Those of gloo have none, but name its source file.
    is_of_gloo = isinstance(error, RuntimeError) and "/gloo/" in str(error)
    return isinstance(error, dist.DistError) or is_of_gloo
