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

from common.one_line import end_in_one_line, script_name

HERE = Path(__file__).resolve().parent
KINDS = (bool, int, float, str)
HELP = ("-h", "--help")
COMMAND_LINE = "command line"
# These say which run is resumed, so they cannot be taken from it.
NEVER_STORED = ("init_from", "out_dir")
# What the same knobs are called in nanoGPT and in Hugging Face's trainers.
OTHER_NAMES = {
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
    "lr_decay_iters": "max_steps",
    "max_grad_norm": "grad_clip",
    "eval_iters": "eval_rows",
    "always_save_checkpoint": "save_interval",
    "seq_len": "block_size",
    "max_length": "block_size",
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "start": "prompt",
    "max_new_tokens": "max_tokens",
    "ckpt": "model",
    "out_dir": "model",
    "hellaswag_interval": "eval_tasks_interval",
    "hellaswag_data": "eval_tasks",
    "hellaswag_limit": "eval_tasks_limit",
}


# ---------------------------------------------------------------------------------------------
# from arguments to knobs


class Config(dict):
    """{knob: value}. `given`: {knob: where it was set} of those that arguments set.

    where: the config file as it was named, or "command line". `untyped`: the values before --key=value was applied.
    """

    def __init__(self, values: dict, given: dict[str, str]):
        super().__init__(values)
        self.given = given
        self.untyped = dict(values)


def configure(knobs: dict, stored=None) -> Config:
    """Override the public names in `knobs`, a script's globals(), from sys.argv; return them.

    Knobs are the lower-case names whose value is a bool, int, float or str. `stored`: a function of
    the Config so far that returns the knobs of the run to resume, or {}; they replace what config
    files say, but not what --key=value does. Raises ValueError or FileNotFoundError naming the file,
    the key, what was expected and the nearest known key.
    """
    end_in_one_line()
    defaults = {}
    for name, value in knobs.items():
        # type(), not isinstance(): the script's functions and modules are public names too
        if is_knob(name) and type(value) in KINDS:
            defaults[name] = value
    config = Config(defaults, given={})
    use_arguments(config, sys.argv[1:], defaults)
    # Only now, so that the help shows what the arguments set.
    if not set(HELP).isdisjoint(sys.argv[1:]):
        # On Unix `--help | head` ends as quietly as other programs do.
        if hasattr(signal, "SIGPIPE"):
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        print_help(Path(sys.argv[0]), config, defaults)
        raise SystemExit(0)
    if stored:
        use_stored(config, stored(config), defaults)
    knobs.update(config)
    return config


def use_arguments(config: Config, args: list[str], defaults: dict):
    """Apply config files and --key=value to `config`; config.given records which of them set a knob."""
    files, keys = split_arguments(args, defaults)
    for path in files:
        values = read_config_file(path)
        check_names(path, values, defaults)
        for key, value in values.items():
            config[key] = check(path, key, value, defaults)
            config.given[key] = path
    config.untyped = dict(config)
    # After all files, wherever they stand among the arguments: the command line has the last word.
    for key, text in keys:
        if key not in defaults:
            suggestion = nearest_key(key, defaults)
            raise ValueError(f"{COMMAND_LINE}: unknown key {key!r}{suggestion}; --help lists every key")
        value = parse(text, type(defaults[key]))
        config[key] = check(COMMAND_LINE, key, value, defaults)
        config.given[key] = COMMAND_LINE


def use_stored(config: Config, stored: dict, defaults: dict):
    """Apply the stored knobs to `config` unless the command line sets them; print which of a file's they replace."""
    for key, value in stored.items():
        # An older version may have stored knobs that are gone, or are of another type now.
        is_known = key in defaults and type(value) is type(defaults[key])
        where = config.given.get(key, "")
        if not is_known or key in NEVER_STORED or where == COMMAND_LINE:
            continue
        # Only the first of several ranks prints it.
        if where and config[key] != value and os.environ.get("RANK", "0") == "0":
            file_says = f"{where} says {key}={config[key]!r}"
            print(f"{file_says}, but the run has {value!r}, which stays; --{key}={config[key]} changes it")
        config[key] = value


def is_knob(name: str) -> bool:
    return name[0] != "_" and name == name.lower()


# ---------------------------------------------------------------------------------------------
# the command line


def split_arguments(args: list[str], defaults: dict) -> tuple[list[str], list[tuple[str, str]]]:
    """(config files, [(key, text), …]). ValueError with the right form for an argument that is neither."""
    files = []
    keys = []
    for arg, following in zip(args, [*args[1:], ""]):
        if arg in HELP:
            continue
        if arg.startswith("--"):
            keys.append(split_key(arg, following, defaults))
            continue
        # What does not look like a key is taken for a file: if it is misspelt, read_config_file suggests one like it.
        looks_like_key = "=" in arg or arg.startswith("-")
        if looks_like_key and not Path(arg).is_file():
            raise ValueError(f"argument {arg!r}: expected {right_form(arg, defaults)}")
        files.append(arg)
    return files, keys


def split_key(arg: str, following: str, defaults: dict) -> tuple[str, str]:
    """(key, text) of an argument --key=text, or of a switch --key, which is "true"; `following`: the next argument."""
    key, equals, text = arg.removeprefix("--").partition("=")
    if not equals:
        key = arg.lstrip("-")
        check_has_value(key, following, defaults)
        return key, "true"
    # --config=x.py, as other programs have it
    if key not in defaults and text.endswith(".py") and Path(text).is_file():
        raise ValueError(f"argument {arg!r}: a config file stands by itself: {text}")
    return key, text


def check_has_value(key: str, following: str, defaults: dict):
    """ValueError for `--key` without a value, which only a switch may lack, or with a blank before its value."""
    name = key if key in defaults else meant(key, defaults)
    # An unknown key may be a switch: whether it exists is checked later, with a better message.
    is_switch = type(defaults.get(name, True)) is bool
    is_value = following != ""
    if is_switch:
        is_value = following.lower() in ("true", "false")
    is_other_argument = following.startswith("--") or Path(following).is_file()
    if name and is_value and not is_other_argument:
        raise ValueError(f"argument '--{key} {following}': expected --{name}={following}, without a blank")
    if not is_switch and key in defaults:
        raise ValueError(f"argument '--{key}': expected --key=value, as in --{key}={defaults[key]}")


def right_form(arg: str, defaults: dict) -> str:
    """How an argument should have been written: "--batch_size=8" for batch_size=8 and -batch_size=8."""
    key, equals, text = arg.lstrip("-").partition("=")
    if not equals:
        return "a config file or --key=value"
    name = meant(key, defaults) or key
    return f"--{name}={text}"


def parse(text: str, wanted: type):
    """The value that an argument's text stands for: Python's literals, true and false; else the text as it is."""
    # --name=7 is a name that looks like a number.
    if wanted is str:
        return text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


# ---------------------------------------------------------------------------------------------
# config files


def read_config_file(path: str) -> dict:
    """The public names that the Python file `path` assigns; what it imports or defines is not among them."""
    if not Path(path).is_file():
        suggestion = nearest(path, map(str, Path(path).parent.glob("*.py")))
        raise FileNotFoundError(f"no config file {path!r}{suggestion}; arguments are config files or --key=value")
    try:
        names = runpy.run_path(path)
    except (Exception, SystemExit) as error:
        line = line_of(error, path)
        raise ValueError(f"{path}, line {line}: {type(error).__name__}: {error}") from None
    values = {}
    for name, value in names.items():
        is_helper = callable(value) or isinstance(value, types.ModuleType)
        if name[0] != "_" and not is_helper:
            values[name] = value
    return values


def line_of(error: BaseException, path: str) -> int | str:
    """The line of a config file that raised an error, "?" if there is none."""
    # A file with a SyntaxError never ran and has no frame, but the error knows its line.
    if getattr(error, "lineno", None):
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    return lines[-1] if lines else "?"


def check_names(path: str, values: dict, defaults: dict):
    """ValueError, with the remedy, for the first name in a config file that is not a knob of the script."""
    unknown = [key for key in values if key not in defaults]
    if not unknown:
        return
    key = unknown[0]
    script = script_name()
    other_script = script_for(values)
    # A single key may be another script's by chance.
    if other_script and len(values) > 1:
        remedy = f"it is a config of {other_script}: python {other_script} {path}"
        raise ValueError(f"{path}: unknown key {key!r} of {script}; {remedy}")
    remedy = f"the name of a helper value begins with an underscore, as in _{key}"
    suggestion = nearest_key(key, defaults)
    raise ValueError(f"{path}: unknown key {key!r}{suggestion}; {remedy}; --help lists every key")


def script_for(keys) -> str:
    """The script beside this file that has all the keys, of several the one with the fewest knobs; "" for none."""
    candidates = []
    for script in sorted(HERE.glob("*.py")):
        known = defaults_of(script)
        if known and set(keys) <= set(known):
            candidates.append((len(known), script.name))
    return min(candidates)[1] if candidates else ""


def defaults_of(script: Path) -> dict:
    """{knob: default} of a script, which is not run: the lower-case names it assigns before it calls configure()."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    # Scripts that are imported too have their knobs within `if __name__ == "__main__":`.
    main_blocks = [node.body for node in tree.body if isinstance(node, ast.If)]
    for block in [tree.body, *main_blocks]:
        defaults = {}
        for node in block:
            if not isinstance(node, ast.Assign):
                continue
            called = getattr(node.value, "func", None)
            if getattr(called, "id", "") == "configure":
                return defaults
            for target in node.targets:
                if isinstance(target, ast.Name) and is_knob(target.id):
                    defaults[target.id] = literal(node.value)
    return {}


def literal(node: ast.expr):
    """The value of a literal, which most knobs have; None for any other expression, as nothing is run here."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def made_by(folder: str | Path) -> str:
    """The command that makes the data set or run `folder`, by the config whose out_dir it is; "" for none.

    >>> made_by("data/fineweb_edu")
    'python prepare_data.py config/data_fineweb_edu.py'
    """
    # what prepare_data.py makes without arguments
    if Path(folder).resolve() == Path("data/stdlib").resolve():
        return "python prepare_data.py"
    path, script = config_of(folder)
    return f"python {script} {path.relative_to(HERE).as_posix()}" if path else ""


def config_of(folder: str | Path) -> tuple[Path | None, str]:
    """The config under config/ that makes the data set or run `folder`, and its script; (None, "") for none."""
    wanted = Path(folder).resolve()
    for path in sorted((HERE / "config").rglob("*.py")):
        try:
            values = read_config_file(str(path))
        except ValueError:
            # Half-written, perhaps: whoever runs that config gets its error.
            continue
        out_dir = values.get("out_dir")
        # "" would be the current folder.
        if isinstance(out_dir, str) and out_dir and Path(out_dir).resolve() == wanted:
            script = script_for(values)
            if script:
                return path, script
    return None, ""


# ---------------------------------------------------------------------------------------------
# checks of values, and suggestions


def check(where: str, key: str, value, defaults: dict):
    """`value` in the type of the default of `key`; an int is accepted for a float. ValueError for another type."""
    wanted = type(defaults[key])
    # type(), not isinstance(): a bool is an int as well, and batch_size=True is a mistake.
    # An int too large for a float stays an int, and is refused below.
    if wanted is float and type(value) is int and abs(value) < 1 << 1000:
        value = float(value)
    # torch and numpy hold integers in 64 bits.
    if type(value) is int and abs(value) >= 2**63:
        raise ValueError(f"{where}: {key}={value} is beyond 2**63")
    if type(value) is not wanted:
        expected = f"{wanted.__name__} (as in {key}={defaults[key]!r})"
        raise ValueError(f"{where}: {key} must be {expected}, not {type(value).__name__} {value!r}")
    return value


def at_least(config: dict, low: int, names: str):
    """ValueError unless each of the blank-separated keys has a finite value of `low` or more."""
    for name in names.split():
        value = config[name]
        # NaN is not less than anything: it would pass the check below.
        if not math.isfinite(value):
            expected = f"a finite number of at least {low}"
            raise ValueError(f"{name}={value} is out of range; it must be {expected}")
        if value < low:
            raise ValueError(f"{name}={value} is too small; it must be at least {low}")


def at_most(config: dict, high: float, names: str):
    """ValueError unless each of the blank-separated keys is `high` or less."""
    for name in names.split():
        if config[name] > high:
            raise ValueError(f"{name}={config[name]} is too large; it must be at most {high:g}")


def one_of(config: dict, **known):
    """ValueError unless the value of each of the keys is among those given for it."""
    for name, values in known.items():
        value = config[name]
        if value not in values:
            listed = ", ".join(map(str, values))
            raise ValueError(f"{name}={value!r} is not one of {listed}{nearest(value, values)}")


def meant(key: str, known) -> str:
    """The known key that `key` is another name for, or a misspelling of; "" for none."""
    # argparse's habit: --batch-size
    name = key.replace("-", "_")
    if OTHER_NAMES.get(name) in known:
        return OTHER_NAMES[name]
    matches = difflib.get_close_matches(name, list(known), n=1)
    return matches[0] if matches else ""


def nearest_key(key: str, known) -> str:
    name = meant(key, known)
    return f"; did you mean {name!r}?" if name else ""


def nearest(name: str, known) -> str:
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


# ---------------------------------------------------------------------------------------------
# --help


def print_help(script: Path, config: dict, defaults: dict):
    """Print every key in the order of the script, with its value and the comment behind it."""
    # The source has a comment for every knob, so there is no second list of options to keep up to date.
    source = script.read_text(encoding="utf-8")
    about = ast.get_docstring(ast.parse(source)) or script.name
    print(f"{about}\n\nKeys, with their values for the arguments given:")
    above_configure = source.split("configure(globals()")[0]
    knob_lines = above_configure.split('__name__ == "__main__":')[-1].splitlines()
    heading = ""
    for line in knob_lines:
        # A comment on a line of its own is a heading if knobs follow, and not imports.
        comment = re.fullmatch(r"\s*# (\w.*)", line)
        if comment:
            heading = comment[1]
        if line.startswith(("from ", "import ")):
            heading = ""
        knob = re.fullmatch(r"\s*(\w+) = .*?(?:\s{2,}# (.*))?", line)
        if not knob or knob[1] not in config:
            continue
        if heading:
            print(f"\n{heading}")
            heading = ""
        key = knob[1]
        meaning = knob[2] or ""  # the comment
        assignment = f"{key}={config[key]!r}"
        if config[key] != defaults[key]:
            meaning += f" (default {defaults[key]!r})"
        print(f"  --{assignment:<36} {meaning}")
