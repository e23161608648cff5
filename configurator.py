"""Knobs: the names at the top of a script  <  config files  <  --key=value.

A script writes its knobs as plain names, one a line with a comment, then calls
`config = configure(globals())`. `python train.py config/x.py --batch_size=8` runs config/x.py
(plain Python assignments) in a namespace of its own, then applies the key. A name the script does
not define, or a value of another type, is an error of one line and exit code 2.

A run that is resumed starts from the knobs it was stored with: `configure(globals(), stored=…)`.
"""

import ast
import difflib
import math
import os
import re
import runpy
import signal
import sys
import traceback
import types
from pathlib import Path

HERE = Path(__file__).resolve().parent
KINDS = (bool, int, float, str)
HELP = ("-h", "--help")
COMMAND_LINE = "command line"
NEVER_STORED = ("init_from", "out_dir")  # they say which run is resumed
OTHER_NAMES = {  # of the same knobs in nanoGPT and in Hugging Face's trainers
    "lr": "learning_rate",
    "bs": "batch_size",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "grad_accum_steps",
    "max_iters": "max_steps",
    "warmup_iters": "warmup_steps",
    "num_train_epochs": "epochs",
    "wd": "weight_decay",
    "lr_scheduler_type": "schedule",
    "decay_lr": "schedule",
    "max_grad_norm": "grad_clip",
    "eval_iters": "eval_rows",
    "seq_len": "block_size",
    "max_length": "block_size",
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "start": "prompt",
    "max_new_tokens": "max_tokens",
    "ckpt": "model",
}


class Config(dict):
    """{knob: value}, and in `given` {knob: where} of those that arguments set.

    where: the config file as it was named, or "command line".
    """

    def __init__(self, values: dict, given: dict[str, str]):
        super().__init__(values)
        self.given = given


def configure(knobs: dict, stored=None) -> Config:
    """Override the public names in `knobs`, a script's globals(), from sys.argv; return them.

    Knobs are the lower-case names whose value is a bool, int, float or str. `stored`: a function of
    the Config so far that returns the knobs of the run to resume, or {}; they replace what config
    files say, but not what --key=value does. Raises ValueError or FileNotFoundError naming the file,
    the key, what was expected and the nearest known key.
    """
    sys.excepthook = one_line
    if signal.getsignal(signal.SIGINT) is end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    defaults = {k: v for k, v in knobs.items() if is_knob(k) and type(v) in KINDS}
    config = Config(defaults, given={})
    files, keys = split_arguments(sys.argv[1:], defaults)
    for path in files:
        values = read_config_file(path)
        check_names(path, values, defaults)
        for key, value in values.items():
            config[key] = check(path, key, value, defaults)
            config.given[key] = path
    for key, text in keys:
        config[key] = check(COMMAND_LINE, key, text, defaults, from_text=True)
        config.given[key] = COMMAND_LINE
    if not set(HELP).isdisjoint(sys.argv[1:]):
        if hasattr(signal, "SIGPIPE"):  # Unix: `--help | head` ends as quietly as other programs do
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        print_help(Path(sys.argv[0]), config, defaults)
        raise SystemExit(0)
    if stored:
        use_stored(config, stored(config), defaults)
    knobs.update(config)
    return config


def split_arguments(args: list[str], defaults: dict) -> tuple[list[str], list[tuple[str, str]]]:
    """(config files, [(key, text), …]). ValueError that shows the right form of what is neither."""
    files, keys = [], []
    for arg, following in zip(args, [*args[1:], ""]):
        key, equals, text = arg.lstrip("-").partition("=")
        if arg in HELP:
            continue
        if arg.startswith("--") and equals:
            key = arg[2:].partition("=")[0]
            if key not in defaults and text.endswith(".py") and Path(text).is_file():
                raise ValueError(f"argument {arg!r}: a config file stands by itself: {text}")
            keys.append((key, text))
        elif arg.startswith("--"):
            check_has_value(key, following, defaults)
            keys.append((key, "true"))
        elif Path(arg).is_file() or not (equals or arg.startswith("-")):
            files.append(arg)
        else:
            form = f"--{meant(key, defaults) or key}={text}" if equals else "a config file or --key=value"
            raise ValueError(f"argument {arg!r}: expected {form}")
    return files, keys


def check_has_value(key: str, following: str, defaults: dict):
    """ValueError for `--key` alone, or with its value after a blank, unless it is a switch."""
    name = key if key in defaults else meant(key, defaults)
    is_switch = type(defaults.get(name, True)) is bool
    is_value = following.lower() in ("true", "false") if is_switch else following != ""
    if name and is_value and not following.startswith("--") and not Path(following).is_file():
        raise ValueError(f"argument '--{key} {following}': expected --{name}={following}, without a blank")
    if not is_switch and key in defaults:
        raise ValueError(f"argument '--{key}': expected --key=value, as in --{key}={defaults[key]}")


def use_stored(config: Config, stored: dict, defaults: dict):
    """Put the stored knobs into `config`, but for keys of the command line; say which of a file's give way."""
    for key, value in stored.items():
        is_known = key in defaults and type(value) is type(defaults[key])
        where = config.given.get(key, "")
        if not is_known or key in NEVER_STORED or where == COMMAND_LINE:
            continue
        if where and config[key] != value and os.environ.get("RANK", "0") == "0":
            file_says = f"{where} says {key}={config[key]!r}"
            print(f"{file_says}, but the run has {value!r}, which stays; --{key}={config[key]} changes it")
        config[key] = value


def read_config_file(path: str) -> dict:
    """The public names that the Python file `path` assigns; what it imports or defines is not among them."""
    if not Path(path).is_file():
        near = nearest(path, map(str, Path(path).parent.glob("*.py")))
        raise FileNotFoundError(f"no config file {path!r}{near}; arguments are config files or --key=value")
    try:
        names = runpy.run_path(path)
    except (Exception, SystemExit) as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        line = getattr(error, "lineno", None) or (lines or ["?"])[-1]
        raise ValueError(f"{path}, line {line}: {type(error).__name__}: {error}") from None
    return {k: v for k, v in names.items() if k[0] != "_" and not (callable(v) or isinstance(v, types.ModuleType))}


def check_names(path: str, values: dict, defaults: dict):
    """ValueError for the first of a config file's names that the script does not know, with what helps."""
    unknown = [key for key in values if key not in defaults]
    if not unknown:
        return
    key, script, other = unknown[0], Path(sys.argv[0]).name, script_for(values)
    if other and len(values) > 1:  # one key alone may stand in any script by chance
        whose = f"it is a config of {other}: python {other} {path}"
        raise ValueError(f"{path}: unknown key {key!r} of {script}; {whose}")
    helper = f"the name of a helper value begins with an underscore, as in _{key}"
    raise ValueError(f"{path}: unknown key {key!r}{nearest_key(key, defaults)}; {helper}; --help lists every key")


def script_for(keys) -> str:
    """The script beside this file that knows all the keys, of several the one with the fewest; "" for none."""
    found = []
    for script in sorted(HERE.glob("*.py")):
        known = knobs_of(script)
        if known and set(keys) <= set(known):
            found.append((len(known), script.name))
    return min(found)[1] if found else ""


def knobs_of(script: Path) -> list[str]:
    """The knobs of a script, which is not run: the lower-case names it assigns before it calls configure()."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    main_blocks = [node.body for node in tree.body if isinstance(node, ast.If)]
    for block in [tree.body, *main_blocks]:
        names = []
        for node in block:
            if not isinstance(node, ast.Assign):
                continue
            called = getattr(node.value, "func", None)
            if getattr(called, "id", "") == "configure":
                return names
            targets = [name.id for name in node.targets if isinstance(name, ast.Name)]
            names += filter(is_knob, targets)
    return []


def made_by(folder: str | Path) -> str:
    """The command that makes the data set or run `folder`, by the config whose out_dir it is; "" for none.

    >>> made_by("data/fineweb_edu")
    'python prepare_data.py config/data_fineweb_edu.py'
    """
    wanted = Path(folder).resolve()
    if wanted == Path("data/stdlib").resolve():  # what prepare_data.py makes without arguments
        return "python prepare_data.py"
    for path in sorted((HERE / "config").rglob("*.py")):
        try:
            values = read_config_file(str(path))
        except ValueError:  # a config that somebody is writing says so where it is used
            continue
        out_dir = values.get("out_dir")
        if isinstance(out_dir, str) and out_dir and Path(out_dir).resolve() == wanted:
            script = script_for(values)
            if script:
                return f"python {script} {path.relative_to(HERE).as_posix()}"
    return ""


def is_knob(name: str) -> bool:
    return name[0] != "_" and name == name.lower()


def check(where: str, key: str, value, defaults: dict, from_text=False):
    """`value` as the type of the default of `key`; an int does for a float."""
    if key not in defaults:
        raise ValueError(f"{where}: unknown key {key!r}{nearest_key(key, defaults)}; --help lists every key")
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
    """ValueError unless each of the blank-separated keys has a finite value of `low` or more."""
    for name in names.split():
        if not math.isfinite(config[name]):
            raise ValueError(f"{name}={config[name]} is out of range; it must be a finite number of at least {low}")
        if config[name] < low:
            raise ValueError(f"{name}={config[name]} is too small; it must be at least {low}")


def one_of(config: dict, **known):
    """ValueError unless the value of each of the keys is among those given for it."""
    for name, values in known.items():
        if config[name] not in values:
            near = nearest(config[name], values)
            raise ValueError(f"{name}={config[name]!r} is not one of {', '.join(map(str, values))}{near}")


def meant(key: str, known) -> str:
    """The known key that was meant by another name for it, or by a misspelt one; "" for none."""
    name = key.replace("-", "_")
    if OTHER_NAMES.get(name) in known:
        return OTHER_NAMES[name]
    close = difflib.get_close_matches(name, list(known), n=1)
    return close[0] if close else ""


def nearest_key(key: str, known) -> str:
    name = meant(key, known)
    return f"; did you mean {name!r}?" if name else ""


def nearest(name: str, known) -> str:
    match = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {match[0]!r}?" if match else ""


def print_help(script: Path, config: dict, defaults: dict):
    """Every key in the order of the script, with its value and the comment behind it."""
    source = script.read_text(encoding="utf-8")
    print((ast.get_docstring(ast.parse(source)) or script.name) + "\n\nKeys, as the arguments given set them:")
    knobs = source.split("configure(globals()")[0].split('__name__ == "__main__":')[-1]
    heading = ""
    for line in knobs.splitlines():
        if comment := re.fullmatch(r"\s*# (\w.*)", line):
            heading = comment[1]  # if knobs follow
        if line.startswith(("from ", "import ")):
            heading = ""
        knob = re.fullmatch(r"\s*(\w+) = .*?(?:\s{2,}# (.*))?", line)
        if knob and knob[1] in config:
            if heading:
                print(f"\n{heading}")
                heading = ""
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


def end_at_once(number, frame):
    """Handler of Ctrl-C while modules load: a KeyboardInterrupt within C code comes out as an ImportError."""
    print(f"\n{Path(sys.argv[0]).name}: interrupted", file=sys.stderr, flush=True)
    os._exit(128 + number)


# Scripts import this module first, as torch takes a second to load. Elsewhere Ctrl-C is not ours, nor if ignored.
if Path(sys.argv[0]).resolve().parent in (HERE, HERE / "studies"):
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_once)
