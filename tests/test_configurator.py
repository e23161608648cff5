"""configurator.py from outside: a small script with knobs, run as a user runs it."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT, run_script

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

    def run(*args, **files):
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        command = [sys.executable, "script.py", *args]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
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
        (["--name"], {}, "argument '--name': expected --key=value"),
        (["--flga"], {}, "unknown key 'flga'; did you mean 'flag'?"),
    ],
)
def test_errors_are_one_line_and_exit_2(script, args, files, message):
    code, out, err = script(*args, **files)
    assert (code, out) == (2, "")
    assert message in err and err.count("\n") == 1, err


def test_help_lists_every_key_with_value_and_comment(script):
    code, out, _ = script("c.py", "--help", c="batch_size = 5 * 8")
    assert code == 0 and "A script with knobs." in out and "Group of knobs" in out
    assert "--learning_rate=0.001" in out and 'the peak, with a "#1" in it' in out
    assert "--batch_size=40" in out and "rows (default 8)" in out


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
