"""configurator.py from outside: a small script with knobs, run as a user runs it."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, run_script

from configurator import OTHER_NAMES, made_by, meant, read_config_file

SCRIPT = f'''"""A script with knobs."""
import json, sys
sys.path.insert(0, {str(ROOT)!r})
from configurator import configure
# Group of knobs
learning_rate = 1e-3  # the peak, with a "#1" in it
batch_size = 8  # rows
name = "a"  # any text
flag = False  # yes or no
a, b = 1, 2
CONSTANT = 5
config = configure(globals())
assert all(globals()[k] == v for k, v in config.items())
print(json.dumps(config))
'''


@pytest.fixture
def script(tmp_path):
    """run(*args, **config files) -> (exit code, stdout, stderr)"""
    (tmp_path / "script.py").write_text(SCRIPT)

    def run(*args, env=None, **files):
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        command = [sys.executable, "script.py", *args]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | (env or {}))
        return done.returncode, done.stdout, done.stderr

    return run


def test_script_then_config_file_then_keys(script):
    text = (
        "import math  # modules are no knobs\nlearning_rate, batch_size = 5e-4, 5 * 8  # both\n_helper = 3\nflag = True"
    )
    code, out, err = script("c.py", "--batch_size=3", "--name=x=y z", c=text)
    assert (code, err) == (0, "")
    assert json.loads(out) == {"learning_rate": 5e-4, "batch_size": 3, "name": "x=y z", "flag": True, "a": 1, "b": 2}


def test_values_from_text(script):
    code, out, _ = script("--learning_rate=0", "--flag=true", "--batch_size=1_000", "--name=7")
    got = json.loads(out)
    assert code == 0 and got["learning_rate"] == 0.0 and got["flag"] is True
    assert got["batch_size"] == 1000 and got["name"] == "7"
    assert json.loads(script("--flag=False")[1])["flag"] is False
    assert json.loads(script("--flag")[1])["flag"] is True


@pytest.mark.parametrize(
    "args, files, message",
    [
        (["--lerning_rate=1"], {}, "command line: unknown key 'lerning_rate'; did you mean 'learning_rate'?"),
        (["c.py"], {"c": "lerning_rate = 1"}, "c.py: unknown key 'lerning_rate'; did you mean 'learning_rate'?"),
        (["--CONSTANT=6"], {}, "unknown key 'CONSTANT'"),
        (["--batch_size=2.5"], {}, "batch_size must be int (as in batch_size=8), not float 2.5"),
        (["--batch_size=many"], {}, "batch_size must be int (as in batch_size=8), not str 'many'"),
        (["--flag=1"], {}, "flag must be bool"),
        (["--batch_size=True"], {}, "batch_size must be int"),
        (["c.py"], {"c": "name = 3"}, "c.py: name must be str"),
        (["c.py"], {"c": "x = (1"}, "c.py, line 1: SyntaxError"),
        (["c.py"], {"c": "batch_size = 1\nbatch_size = rows"}, "c.py, line 2: NameError: name 'rows'"),
        (["d.py"], {"dd": ""}, "no config file 'd.py'; did you mean 'dd.py'?"),
        (["--name"], {}, "argument '--name': expected --key=value, as in --name=a"),
        (["--flga"], {}, "unknown key 'flga'; did you mean 'flag'?"),
        (["--lr=1e-3"], {}, "unknown key 'lr'; did you mean 'learning_rate'?"),
        (["--lr", "1e-3"], {}, "argument '--lr 1e-3': expected --learning_rate=1e-3, without a blank"),
        (["--learning_rate", "3e-4"], {}, "'--learning_rate 3e-4': expected --learning_rate=3e-4, without a blank"),
        (["--batch_size", "-1"], {}, "argument '--batch_size -1': expected --batch_size=-1, without a blank"),
        (["--flag", "false"], {}, "argument '--flag false': expected --flag=false, without a blank"),
        (["batch_size=4"], {}, "argument 'batch_size=4': expected --batch_size=4"),
        (["bs=4"], {}, "argument 'bs=4': expected --batch_size=4"),
        (["-batch_size=4"], {}, "argument '-batch_size=4': expected --batch_size=4"),
        (["--batch-size=4"], {}, "unknown key 'batch-size'; did you mean 'batch_size'?"),
        (["--start=4"], {}, "unknown key 'start'; --help"),  # this script has no prompt
        (["---batch_size=4"], {}, "unknown key '-batch_size'; did you mean 'batch_size'?"),
        (["--config=c.py"], {"c": ""}, "argument '--config=c.py': a config file stands by itself: c.py"),
        (["-x"], {}, "argument '-x': expected a config file or --key=value"),
        (
            ["c.py"],
            {"c": "tokens = 16 * 1024"},
            "c.py: unknown key 'tokens'; the name of a helper value begins with an underscore, as in _tokens",
        ),
        (["c.py"], {"c": "names = 'b'"}, "c.py: unknown key 'names'; did you mean 'name'?; the name of a helper"),
        (["c.py"], {"c": "import sys\nsys.exit()"}, "c.py, line 2: SystemExit"),
    ],
)
def test_errors_are_one_line_and_exit_2(script, args, files, message):
    code, out, err = script(*args, **files)
    assert (code, out) == (2, "")
    assert message in err and err.count("\n") == 1, err


def test_names_of_other_projects_are_answered_with_ours():
    scripts = {}
    for name in ("train.py", "sample.py"):
        listed = run_script(name, "--help").stdout
        scripts[name] = re.findall(r"^  --(\w+)=", listed, flags=re.MULTILINE)
    known = {*scripts["train.py"], *scripts["sample.py"]}
    assert set(OTHER_NAMES.values()) <= known
    # nanoGPT's own commands
    assert meant("lr_decay_iters", scripts["train.py"]) == "max_steps"
    assert meant("always_save_checkpoint", scripts["train.py"]) == "save_interval"
    assert meant("out_dir", scripts["sample.py"]) == "model"


def test_what_a_config_file_imports_or_defines_is_no_knob(script):
    text = """
from fractions import Fraction
from math import sqrt
from pathlib import PurePath as path  # a class
def rows(n):
    return int(sqrt(n))
batch_size = rows(1600) * Fraction(1, 1).denominator
"""
    code, out, err = script("c.py", c=text)
    assert (code, err) == (0, "") and json.loads(out)["batch_size"] == 40


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, config, key, other",
    [
        ("train.py", "config/rkld_olmo.py", "teacher", "distill.py"),
        ("train.py", "config/data_fineweb_edu.py", "source", "prepare_data.py"),
    ],
)
def test_a_config_of_another_script_names_it(script, config, key, other):
    done = run_script(script, config, ok=False)
    expected = (
        f"{script}: {config}: unknown key {key!r} of {script}; it is a config of {other}: python {other} {config}\n"
    )
    assert (done.returncode, done.stderr) == (2, expected)


def test_made_by_names_the_command_in_the_header_of_every_config():
    """The first config by name with that out_dir; a header says how its config is run."""
    configs = sorted(path for path in (ROOT / "config").rglob("*.py") if path.name != "__init__.py")
    made = {}
    for path in configs:
        name = path.relative_to(ROOT).as_posix()
        command = re.search(rf"^# (python \w+\.py {re.escape(name)})\b", path.read_text(), flags=re.M)
        assert command, f"{name}: its header lacks the line '# python <script>.py {name}'"
        made.setdefault(read_config_file(str(path))["out_dir"], command[1])
    assert len(made) > 15
    for out_dir, command in made.items():
        assert made_by(out_dir) == command
    assert made_by("./data//fineweb_edu/") == "python prepare_data.py config/data_fineweb_edu.py"
    assert made_by((ROOT / "out/rkld_olmo").relative_to(ROOT).absolute()) == "python distill.py config/rkld_olmo.py"
    assert made_by("data/stdlib") == "python prepare_data.py"
    assert made_by("data/nowhere") == made_by("") == ""


STORED = {"learning_rate": 7e-4, "batch_size": 2, "name": "old", "flag": 1, "out_dir": "elsewhere", "gone": 3}
RESUMED = SCRIPT.replace("a, b = 1, 2", 'init_from, out_dir = "scratch", "out"').replace(
    "config = configure(globals())",
    f"""def stored(config):
    print("asked", json.dumps(config), json.dumps(config.given))
    return {STORED} if config["init_from"] == "resume" else {{}}
config = configure(globals(), stored=stored)
assert type(config).__name__ == "Config" and isinstance(config, dict)
print(json.dumps(config.given))""",
)


def test_stored_knobs_replace_those_of_files_but_not_of_the_command_line(script, tmp_path):
    (tmp_path / "script.py").write_text(RESUMED)
    files = {"c": 'batch_size = 32\nname = "old"\nout_dir = "mine"\nlearning_rate = 1e-2'}
    args = ["c.py", "--learning_rate=2e-4", "--init_from=resume"]
    code, out, err = script(*args, **files)
    asked, said, given, final = out.splitlines()
    assert (code, err) == (0, "")
    assert '"batch_size": 32' in asked and '"learning_rate": 0.0002' in asked and '"batch_size": "c.py"' in asked
    assert said == "c.py says batch_size=32, but the run has 2, which stays; --batch_size=32 changes it"
    keys = {"learning_rate": "command line", "init_from": "command line"}
    assert json.loads(given) == {"batch_size": "c.py", "name": "c.py", "out_dir": "c.py"} | keys
    assert json.loads(final) == {
        "learning_rate": 2e-4, "batch_size": 2, "name": "old", "flag": False,  # stored as an int, which is ignored
        "init_from": "resume", "out_dir": "mine",
    }  # fmt: skip
    assert script(*args, env={"RANK": "1"}, **files)[1].splitlines()[1] == given  # only the first rank says it


def test_without_stored_knobs_files_and_keys_hold(script, tmp_path):
    (tmp_path / "script.py").write_text(RESUMED)
    _, out, _ = script("c.py", "--name=z", c="batch_size = 32")
    asked, given, final = out.splitlines()
    assert asked.startswith("asked") and json.loads(given) == {"batch_size": "c.py", "name": "command line"}
    assert json.loads(final)["batch_size"] == 32 and json.loads(final)["name"] == "z"
    assert "asked" not in script("--init_from=resume", "--help")[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["train.py", "distill.py", "prepare_data.py", "sample.py", "evaluate.py", "hellaswag.py", "plot.py", "rows.py"],
)
def test_ctrl_c_while_modules_load_ends_in_one_line(name, tmp_path):
    """A numpy on the path that takes a minute to load, and then finds that its C code was interrupted."""
    slow = (
        'import time\nprint("loading", flush=True)\ntry:\n    time.sleep(60)\nfinally:\n    raise ImportError("C code")'
    )
    for module in ("numpy", "torch", "matplotlib"):
        (tmp_path / f"{module}.py").write_text(slow)
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    script = subprocess.Popen([sys.executable, ROOT / name], env=env, **pipes)
    assert script.stdout.readline() == "loading\n"
    # in the midst of the minute: Python loses a KeyboardInterrupt that comes while a callback of its own runs
    time.sleep(0.3)
    script.send_signal(signal.SIGINT)
    _, err = script.communicate(timeout=20)
    assert (script.returncode, err) == (130, f"\n{name}: interrupted\n")


def test_help_to_a_reader_that_leaves_ends_quietly():
    """As `--help | head` does: the reader is gone before the help is written."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, ROOT / "plot.py", "--help"], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert done.stderr == "" and done.returncode == -signal.SIGPIPE


def test_help_lists_every_key_with_value_and_comment(script):
    code, out, _ = script("c.py", "--help", c="batch_size = 5 * 8")
    assert code == 0 and "A script with knobs." in out and "Group of knobs" in out
    assert "--learning_rate=0.001" in out and 'the peak, with a "#1" in it' in out
    assert "--batch_size=40" in out and "rows (default 8)" in out


@pytest.mark.slow
def test_help_of_train_lists_every_key():
    import ast

    out = run_script("train.py", "config/pretrain_124m.py", "--help").stdout
    tree = ast.parse((ROOT / "train.py").read_text())
    names = []
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            break  # config = configure(globals())
        if isinstance(node, ast.Assign):
            names.append(node.targets[0].id)
    assert len(names) > 35
    for name in names:
        line = next(line for line in out.splitlines() if line.strip().startswith(f"--{name}="))
        assert len(line.split("=", 1)[1].split("  ")) > 1, f"{name} has no comment"
    assert "--n_layer=12" in out and "(default 4)" in out
