"""How a script ends: what a user can cause in one line and exit code 2, Ctrl-C at any time in one line too.

Imported before torch, by configurator.py.
"""

import os
import signal
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHOWN = 1000  # characters that a long error line keeps at its start, and as many at its end
# Functions that say what else went wrong when an error ends a script: a text for its line, or "" for nothing.
ALSO_WRONG = []


def end_in_one_line():
    """From now on an error that a user can cause ends in one line. Call it once all modules are loaded."""
    sys.excepthook = one_line
    # What a terminal or a log file in another encoding cannot show, such as a path, must not end a run.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    # No C code is being imported any more: Ctrl-C may be an exception again.
    if signal.getsignal(signal.SIGINT) is end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def one_line(kind, error, trace):
    """sys.excepthook: what a user can cause ends in one line and exit code 2, the rest in a traceback.

    That is every OSError (missing file, full disk, dead network) and the ValueErrors this project raises.
    """
    script = script_name()
    # not sys.stderr, which is a buffer within torch.distributed's hook
    stderr = sys.__stderr__
    if issubclass(kind, KeyboardInterrupt):
        print(f"\n{script}: interrupted", file=stderr)
        sys.exit(128 + signal.SIGINT)
    # A ValueError raised in a library is most likely a mistake of ours, which the traceback locates.
    if issubclass(kind, OSError) or (issubclass(kind, ValueError) and is_raised_here(trace)):
        text = "; ".join([printable(error), *others_of(error)])
        print(f"{script}: {shortened(text)}", file=stderr, flush=True)
        sys.exit(2)
    sys.__excepthook__(kind, error, trace)
    for text in others_of(error):
        print(f"{script}: {text}", file=stderr, flush=True)


def printable(text) -> str:
    """The text on one line, its control characters escaped: a file's name may hold some that move the cursor."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def others_of(error) -> list[str]:
    """What else went wrong, as texts that differ from the error's own."""
    texts = [printable(describe()) for describe in ALSO_WRONG]
    return [text for text in texts if text and text != printable(error)]


def shortened(text: str) -> str:
    """A message that quotes a very long value, without its middle; the remedy at its end stays."""
    if len(text) <= 2 * SHOWN:
        return text
    return f"{text[:SHOWN]} … {text[-SHOWN:]}"


def is_raised_here(trace) -> bool:
    """Whether an error was raised in a file of this project, not in a library, some of which lie in its .venv."""
    frames = traceback.extract_tb(trace)
    if not frames:
        return False
    path = Path(frames[-1].filename).resolve()
    return path.is_relative_to(ROOT) and ".venv" not in path.parts


def script_name() -> str:
    """The running script, such as train.py; studies.babyllama for its __main__.py."""
    path = Path(sys.argv[0])
    return f"studies.{path.resolve().parent.name}" if path.name == "__main__.py" else path.name


def end_at_once(number, frame):
    """Ctrl-C's handler while modules load, when a KeyboardInterrupt inside C code would become an ImportError."""
    print(f"\n{script_name()}: interrupted", file=sys.stderr, flush=True)
    # not sys.exit(), an exception that the same C code would turn into another
    os._exit(128 + number)


# Our scripts import this module before torch, which takes a second to load. A program that is not ours, such as
# pytest, handles Ctrl-C itself.
_folder = Path(sys.argv[0]).resolve().parent
if _folder == ROOT or _folder.parent == ROOT / "studies":
    # Where Ctrl-C is ignored, as under nohup, it stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_once)
    # asked to save while it loads, a run has nothing to save: it must not end for that
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
