"""Knobs: the names at the top of a script  <  config files  <  --key=value.

A script writes its knobs as plain names, one a line with a comment, then calls
`config = configure(globals())`. `python train.py config/x.py --batch_size=8` runs config/x.py
(plain Python assignments) in a namespace of its own, then applies the key. A name the script
does not define, or a value of another type, is an error of one line and exit code 2.
"""

import ast
import difflib
import re
import runpy
import signal
import sys
import traceback
import types
from pathlib import Path

HERE = Path(__file__).resolve().parent
KINDS = (bool, int, float, str)


def configure(knobs: dict) -> dict:
    """Override the public names in `knobs`, a script's globals(), from sys.argv; return them as a dict.

    Knobs are the lower-case names whose value is a bool, int, float or str. Raises ValueError or FileNotFoundError
    naming the file, the key, what was expected and the nearest known key.
    """
    sys.excepthook = one_line
    config = {k: v for k, v in knobs.items() if is_knob(k) and type(v) in KINDS}
    defaults, keys = dict(config), []
    for arg in sys.argv[1:]:
        if arg in ("-h", "--help"):
            continue
        if arg.startswith("--"):
            key, equals, text = arg[2:].partition("=")
            if not equals and type(defaults.get(key, True)) is not bool:
                raise ValueError(f"argument {arg!r}: expected --key=value")
            keys.append((key, text if equals else "true"))
        else:
            for key, value in read_config_file(arg).items():
                config[key] = check(arg, key, value, defaults)
    for key, text in keys:
        config[key] = check("command line", key, text, defaults, from_text=True)
    if {"-h", "--help"} & set(sys.argv[1:]):
        print_help(Path(sys.argv[0]), config, defaults)
        raise SystemExit(0)
    knobs.update(config)
    return config


def read_config_file(path: str) -> dict:
    """The public names that the Python file `path` assigns."""
    if not Path(path).is_file():
        near = nearest(path, map(str, Path(path).parent.glob("*.py")))
        raise FileNotFoundError(f"no config file {path!r}{near}; arguments are config files or --key=value")
    try:
        names = runpy.run_path(path)
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        line = getattr(error, "lineno", None) or (lines or ["?"])[-1]
        raise ValueError(f"{path}, line {line}: {type(error).__name__}: {error}") from None
    return {k: v for k, v in names.items() if k[0] != "_" and not isinstance(v, types.ModuleType)}


def is_knob(name: str) -> bool:
    return name[0] != "_" and name == name.lower()


def check(where: str, key: str, value, defaults: dict, from_text=False):
    """`value` as the type of the default of `key`; an int does for a float."""
    if key not in defaults:
        raise ValueError(f"{where}: unknown key {key!r}{nearest(key, defaults)}; --help lists every key")
    want = type(defaults[key])
    if from_text and want is not str:
        try:
            value = {"true": True, "false": False}.get(value.lower(), value)
            value = ast.literal_eval(value) if isinstance(value, str) else value
        except (ValueError, SyntaxError):
            value = str(value)
    if want is float and type(value) is int:
        value = float(value)
    if type(value) is int and abs(value) >= 2**63:
        raise ValueError(f"{where}: {key}={value} is beyond 2**63")
    if type(value) is not want:
        got = f"{type(value).__name__} {value!r}"
        raise ValueError(f"{where}: {key} must be {want.__name__} (as in {key}={defaults[key]!r}), not {got}")
    return value


def at_least(config: dict, low: int, names: str):
    """ValueError unless each of the blank-separated keys has a value of `low` or more."""
    for name in names.split():
        if config[name] < low:
            raise ValueError(f"{name}={config[name]} is too small; it must be at least {low}")


def one_of(config: dict, **known):
    """ValueError unless the value of each of the keys is among those given for it."""
    for name, values in known.items():
        if config[name] not in values:
            near = nearest(config[name], values)
            raise ValueError(f"{name}={config[name]!r} is not one of {', '.join(map(str, values))}{near}")


def nearest(name: str, known) -> str:
    match = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {match[0]!r}?" if match else ""


def print_help(script: Path, config: dict, defaults: dict):
    """Every key in the order of the script, with its value and the comment behind it."""
    source = script.read_text()
    print((ast.get_docstring(ast.parse(source)) or script.name) + "\n\nKeys, as the arguments given set them:")
    knobs = source.split("configure(globals())")[0].split('__name__ == "__main__":')[-1]
    for line in knobs.splitlines():
        if heading := re.fullmatch(r"# (\w.*)", line):
            print(f"\n{heading[1]}")
        knob = re.fullmatch(r"\s*(\w+) = .*?(?:\s{2,}# (.*))?", line)
        if knob and knob[1] in config:
            key, value = knob[1], config[knob[1]]
            was = "" if value == defaults[key] else f" (default {defaults[key]!r})"
            print(f"  --{f'{key}={value!r}':<36} {knob[2] or ''}{was}")


def one_line(kind, error, trace):
    """sys.excepthook: what a user can cause ends in one line and exit code 2, the rest in a traceback.

    That is every OSError (missing file, full disk, dead network) and the ValueErrors this project raises.
    """
    frames = [Path(f.filename).resolve() for f in traceback.extract_tb(trace)]
    ours = frames and frames[-1].is_relative_to(HERE) and ".venv" not in frames[-1].parts
    script, stderr = Path(sys.argv[0]).name, sys.__stderr__  # sys.stderr is a buffer within torch.distributed's hook
    if issubclass(kind, KeyboardInterrupt):
        print(f"\n{script}: interrupted", file=stderr)
        sys.exit(128 + signal.SIGINT)
    if issubclass(kind, OSError) or (issubclass(kind, ValueError) and ours):
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(error))  # a file's name may hold anything
        print(f"{script}: {text}", file=stderr, flush=True)
        sys.exit(2)
    sys.__excepthook__(kind, error, trace)
