"""train.py and distill.py as a user runs them: the three locks of the twins, ranks, kills, bad input."""

import ast
import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, parameters, read_log, run_script, write_dataset
from safetensors.torch import load_file

from benchmarks.plan import make_plan
from common.bpe import BPETokenizer, byte_characters, spec_of_merges
from common.checkpoint import checkpoints
from common.meta import tokenizer_meta
from common.pretrained import find_model, load_pretrained, save_pretrained
from common.tokenizer import load_tokenizer
from configurator import Config, read_config_file
from head import COMPARED

SHAPE = ("--n_layer=", "--n_head=", "--n_embd=")
LOOPS = {"train.py": [], "distill.py": ["--weight_cos=0.5", "--dropout=0.1"]}


@pytest.fixture
def args(dataset, teacher, tmp_path):
    """args(script, name, *more): the command line of a tiny run into tmp_path/name."""

    def make(script, name, *more):
        own = [*LOOPS[script], f"--teacher={teacher}"] if script == "distill.py" else []
        keys = [*TINY, f"--dataset={dataset}", f"--out_dir={tmp_path / name}", "--max_steps=10", *own, *more]
        given = " ".join(map(str, more))
        if ("--init_from=" in given and "--init_from=resume" not in given) or "--init_layers=" in given:
            return [key for key in keys if not key.startswith(SHAPE)]  # a model that is loaded keeps its own
        return keys

    return make


def same_checkpoint(a, b):
    """Whether two checkpoints have the same weights and optimiser state, bit for bit."""
    left, right = (load_file(p / "model.safetensors") for p in (a, b))
    weights = left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
    left, right = (torch.load(p / "trainer.pt", weights_only=True) for p in (a, b))
    for state in (left, right):
        state.pop("config"), state.pop("seconds")
    return weights and str(flatten(left)) == str(flatten(right))


def flatten(value):
    if isinstance(value, torch.Tensor):
        return (value.dtype, value.flatten().view(torch.uint8).tolist())
    if isinstance(value, dict):
        return [(k, flatten(v)) for k, v in value.items()]
    return [flatten(v) for v in value] if isinstance(value, (list, tuple)) else value


# ---------------------------------------------------------------------------------------------
# the locks


@pytest.mark.slow
def test_distill_without_distillation_is_train_bit_for_bit(args, tmp_path):
    more = ["--dropout=0.1", "--eval_interval=5", "--grad_accum_steps=2"]
    run_script("train.py", *args("train.py", "train", *more))
    run_script("distill.py", *args("distill.py", "distill", *more, "--weight_kl=0", "--weight_cos=0"))
    for label in ("train", "val", "norm"):
        a, b = read_log(tmp_path / "train", label), read_log(tmp_path / "distill", label)
        assert a == b and len(a) == (3 if label == "val" else 10)
    weights = [load_file(tmp_path / run / "step_000010" / "model.safetensors") for run in ("train", "distill")]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "headmuon"])
@pytest.mark.parametrize("script", LOOPS)
def test_ten_steps_equal_five_resumed_for_five_more(script, optimizer, args, tmp_path):
    more = [f"--optimizer={optimizer}", "--schedule=constant", "--dropout=0.1", "--eval_interval=5"]
    run_script(script, *args(script, "whole", *more))
    run_script(script, *args(script, "parts", *more, "--max_steps=5"))
    done = run_script(script, *args(script, "parts", *more, "--init_from=resume"))
    assert "resume" in done.stdout and "| max_steps 5 -> 10" in done.stdout
    assert (tmp_path / "whole/log.txt").read_text() == (tmp_path / "parts/log.txt").read_text()
    assert same_checkpoint(tmp_path / "whole/step_000010", tmp_path / "parts/step_000010")
    assert not same_checkpoint(tmp_path / "parts/step_000005", tmp_path / "parts/step_000010")


def knobs(script):
    values = {}
    for node in ast.parse((ROOT / script).read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if node.targets[0].id == "config":
                return values
            values[node.targets[0].id] = ast.literal_eval(node.value)


def test_knobs_of_both_loops_have_the_same_default_and_type():
    train, distill = knobs("train.py"), knobs("distill.py")
    assert set(train) < set(distill)
    assert {k: (type(v), v) for k, v in train.items()} == {k: (type(v), v) for k, v in distill.items() if k in train}


def test_sections_of_both_loops_have_the_same_names_and_order():
    def sections(script):
        lines = (ROOT / script).read_text().splitlines()
        return [line.strip() for before, line in zip(["", *lines], lines)
                if before.startswith("# -----") or line.startswith("    # ---")]  # fmt: skip

    distill = [s.replace("student", "model") for s in sections("distill.py") if s != "# teacher"]
    assert len(distill) > 10
    assert [s.split(":")[0] for s in sections("train.py")] == [s.split(":")[0] for s in distill]


# ---------------------------------------------------------------------------------------------
# ranks


@pytest.mark.slow
@pytest.mark.parametrize("script", LOOPS)
def test_two_ranks_give_the_losses_of_one(script, args, tmp_path):
    more = ["--max_steps=20", "--eval_interval=10", "--dropout=0"]  # dropout draws per rank
    run_script(script, *args(script, "one", *more, "--batch_size=4"))
    run_script(script, *args(script, "two", *more, "--batch_size=2"), torchrun=2)
    labels = {"train": 20, "val": 3} | ({"kl": 20, "cos": 20} if script == "distill.py" else {})
    for label, n in labels.items():
        one, two = read_log(tmp_path / "one", label), read_log(tmp_path / "two", label)
        assert len(one) == len(two) == n
        np.testing.assert_allclose(list(two.values()), list(one.values()), atol=1e-5, rtol=0)


# ---------------------------------------------------------------------------------------------
# being stopped


def start(script, *args):
    return subprocess.Popen([sys.executable, str(ROOT / script), *map(str, args)], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def wait_for(condition, process):
    deadline = time.time() + 60
    while not condition():
        assert process.poll() is None and time.time() < deadline, process.communicate()
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("script", LOOPS)
def test_a_run_killed_at_any_instant_resumes_to_the_same_bits(script, args, tmp_path):
    more = ["--max_steps=60", "--save_interval=3", "--keep_checkpoints=2"]
    run_script(script, *args(script, "whole", *more))
    process = start(script, *args(script, "killed", *more))
    wait_for(lambda: (tmp_path / "killed/step_000009").exists(), process)
    process.kill()
    process.communicate()
    for left in (".step_000099.writing", ".step_000003.removing"):  # as a kill during a save leaves them
        (tmp_path / "killed" / left).mkdir(exist_ok=True)
    run_script(script, *args(script, "killed", *more, "--init_from=resume"))
    assert (tmp_path / "whole/log.txt").read_text() == (tmp_path / "killed/log.txt").read_text()
    assert same_checkpoint(tmp_path / "whole/step_000060", tmp_path / "killed/step_000060")
    assert sorted(p.name for p in (tmp_path / "killed").glob("*step_*")) == ["step_000057", "step_000060"]


@pytest.mark.slow
@pytest.mark.parametrize("script", LOOPS)
def test_a_run_killed_between_its_last_checkpoint_and_its_summary_is_finished_by_resuming(script, args, tmp_path):
    run_script(script, *args(script, "run", "--eval_interval=5"))
    summary, log = tmp_path / "run/summary.json", tmp_path / "run/log.txt"
    was, lines = json.loads(summary.read_text()), log.read_text()
    summary.unlink()
    log.write_text(lines.replace("\n10 val", "\n10 va"))
    done = run_script(script, *args(script, "run", "--eval_interval=5", "--init_from=resume"))
    assert "step 10/10 | val" in done.stdout and log.read_text() == lines
    assert json.loads(summary.read_text()) | {"config": 0} == was | {"config": 0}
    assert "at step 10 already; raise it" in fails(script, *args(script, "run", "--max_steps=9", "--init_from=resume"))


@pytest.mark.slow
def test_a_kill_while_an_old_checkpoint_is_deleted_leaves_no_half_of_it(args, tmp_path):
    """The process dies as soon as the first file of the first checkpoint is gone."""
    die = """import os, runpy, sys
unlink = os.unlink
def last(name, **where):
    unlink(name, **where)
    if str(name).endswith("trainer.pt"):
        os._exit(9)
os.unlink = last
runpy.run_path("train.py", run_name="__main__")"""
    more = ["--max_steps=4", "--save_interval=1", "--keep_checkpoints=1"]
    done = subprocess.run([sys.executable, "-c", die, *args("train.py", "run", *more)], cwd=ROOT, capture_output=True)
    names = sorted(p.name for p in (tmp_path / "run").glob("*step_*"))
    assert done.returncode == 9 and names == [".step_000001.removing", "step_000002"]
    assert (tmp_path / "run/step_000002/trainer.pt").is_file()
    run_script("train.py", *args("train.py", "run", *more, "--init_from=resume"))
    assert [p.name for p in (tmp_path / "run").glob("*step_*")] == ["step_000004"]


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_save_and_exit_with_their_code(number, code, args, tmp_path):
    process = start("train.py", *args("train.py", "run", "--max_steps=100000", "--save_interval=0"))
    wait_for(lambda: (tmp_path / "run/log.txt").exists() and read_log(tmp_path / "run", "train"), process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code and ": saving, then stopping" in err and "Traceback" not in err
    (checkpoint,) = (tmp_path / "run").glob("step_*")
    steps = torch.load(checkpoint / "trainer.pt", weights_only=True)["step"]
    assert steps == max(read_log(tmp_path / "run", "train")) + 1 == int(checkpoint.name.removeprefix("step_"))


# ---------------------------------------------------------------------------------------------
# what a run writes


@pytest.mark.slow
def test_the_log_line_adds_up_and_the_checkpoint_is_a_model_folder(args, dataset, tmp_path):
    loss = ["--weight_ce=0.25", "--weight_kl=0.5", "--weight_cos=0.125", "--temperature=3"]
    done = run_script("distill.py", *args("distill.py", "run", *loss, "--keep_checkpoints=1", "--save_interval=5"))
    line = next(line for line in done.stdout.splitlines() if "step 9/10 | loss" in line)
    assert "= 0.25 ce " in line and " + 0.5*3^2 kl " in line and " + 0.125 cos " in line
    log = {label: read_log(tmp_path / "run", label)[9] for label in ("train", "ce", "kl", "cos")}
    total = 0.25 * log["ce"] + 0.5 * 9 * log["kl"] + 0.125 * log["cos"]
    assert log["train"] == pytest.approx(total, rel=1e-6)
    folder = tmp_path / "run/step_000010"
    assert [p.name for p in (tmp_path / "run").glob("step_*")] == ["step_000010"]
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert not any("projection" in name for name in load_file(folder / "model.safetensors"))
    done = run_script("train.py", *args("train.py", "next", f"--init_from={folder}", "--eval_interval=10"))
    val = read_log(tmp_path / "next", "val")[0]
    assert val == pytest.approx(read_log(tmp_path / "run", "val")[10], rel=1e-6)  # it starts where that one ended


@pytest.mark.slow
def test_scales_of_the_kl_and_terms_of_several_teachers(args, teacher, tmp_path):
    """The logged kl stays in nats per token; sequence / token is exactly block_size = 16, with T**2 = 9 exactly 9."""
    more = [f"--teacher={teacher},{teacher / 'step_000012'}", "--max_steps=1", "--temperature=3", "--weight_cos=0"]
    more += ["--weight_ce=0", "--kl=js", "--ensemble=probs", "--teacher_weights=3,1"]
    token = read_log_line(args, tmp_path, "token", *more, "--t2_scale=False")
    sequence = read_log_line(args, tmp_path, "sequence", *more, "--t2_scale=False", "--kl_norm=sequence")
    scaled = read_log_line(args, tmp_path, "scaled", *more, "--weight_mse=0.5")
    assert "= 0 ce" in token[0] and "+ 1 kl" in token[0] and "+ 1*16 kl" in sequence[0]
    assert "+ 1*3^2 kl" in scaled[0] and "+ 0.5 mse" in scaled[0]
    assert token[1]["kl"] == sequence[1]["kl"] == scaled[1]["kl"] == token[1]["train"] > 0
    for label in ("train", "norm"):
        assert sequence[1][label] == pytest.approx(16 * token[1][label], rel=1e-8)  # logged with 9 digits
    assert scaled[1]["train"] == pytest.approx(9 * token[1]["kl"] + 0.5 * scaled[1]["mse"], rel=1e-6)


def read_log_line(args, tmp_path, name, *more):
    """(the line of step 0, {label: value} of it) of a run of distill.py."""
    done = run_script("distill.py", *args("distill.py", name, *more))
    labels = ("train", "ce", "kl", "cos", "mse", "norm")
    line = next(line for line in done.stdout.splitlines() if "step 0/1 | loss" in line)
    return line, {label: read_log(tmp_path / name, label)[0] for label in labels}


@pytest.mark.slow
def test_every_evaluation_compares_student_and_teacher(args, teacher, tmp_path):
    """Of a student that is its teacher; and of one that is not, whose loss at T = 1 is forward_kl, on other rows."""
    more = [f"--init_from={teacher}", "--learning_rate=0", "--min_lr=0", "--weight_decay=0", "--dropout=0"]
    done = run_script("distill.py", *args("distill.py", "same", *more, "--eval_interval=5"))
    assert done.stdout.count("same top token 100.0% | forward KL 0.0000, reverse KL 0.0000") == 3
    log = {label: read_log(tmp_path / "same", label) for label in COMPARED}
    assert all(list(values) == [0, 5, 10] for values in log.values())
    assert log["agree"][10] == 1 and log["forward_kl"][10] == log["reverse_kl"][10] == 0
    assert log["entropy"] == log["teacher_entropy"] and 1 < log["entropy"][0] < math.log(257)
    run_script("distill.py", *args("distill.py", "other", "--max_steps=1", "--temperature=1", "--eval_interval=1"))
    forward, kl = read_log(tmp_path / "other", "forward_kl")[0], read_log(tmp_path / "other", "kl")[0]
    assert forward == pytest.approx(kl, rel=0.2) and read_log(tmp_path / "other", "agree")[0] < 1


@pytest.mark.slow
def test_training_learns_and_a_student_learns_from_two_teachers(args, dataset, teacher, tmp_path):
    """The chain's next id is one of 4: from log 257 = 5.5 nats towards log 4 = 1.4."""
    more = ["--max_steps=150", "--learning_rate=1e-2", "--warmup_steps=5", "--batch_size=16", "--optimizer=muon"]
    run_script("train.py", *args("train.py", "big", *more))
    val = read_log(tmp_path / "big", "val")[150]
    assert val < 3.0
    both = f"--teacher={tmp_path / 'big'},{tmp_path / 'big/step_000150'}"
    student = [*more, both, "--weight_ce=0", "--weight_cos=0", "--kl=reverse", "--seed=2"]
    run_script("distill.py", *args("distill.py", "student", *student))
    kl = read_log(tmp_path / "student", "kl")
    assert kl[149] < 0.2 * kl[0] and read_log(tmp_path / "student", "val")[150] < 3.5


@pytest.mark.slow
@pytest.mark.parametrize("weight_kl, head", [(1, 1), (0, 0)])
def test_the_flops_are_of_what_is_computed(weight_kl, head, args, teacher, tmp_path):
    """Without the KL the teacher's hidden states are asked for, and its head computes nothing; bench.py agrees."""
    own = [f"--weight_kl={weight_kl}", "--weight_cos=0.5", "--max_steps=2"]
    run_script("distill.py", *args("distill.py", "run", *own))
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    student, taught = load_pretrained(tmp_path / "run"), load_pretrained(teacher)
    per_token = 3 * student.flops_per_token(16) + taught.flops_per_token(16)
    per_token -= 2 * (1 - head) * taught.lm_head.weight.numel()
    assert summary["flops"] == pytest.approx(per_token * summary["tokens"], rel=1e-12)
    plan = make_plan("distill.py", Config(summary["config"], given={}))
    assert plan.flops == pytest.approx(per_token, rel=1e-12)


@pytest.mark.slow
def test_hellaswag_runs_inside_the_loops(args, tmp_path):
    rows = [{"ctx": "abc", "endings": ["d", "ef", "ghi", "jk"], "label": i % 4} for i in range(6)]
    for file in ("hellaswag/hellaswag_val.jsonl", "my_lines.jsonl"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("\n".join(map(json.dumps, rows)))
    more = [f"--eval_tasks=hellaswag,{tmp_path / 'my_lines.jsonl'}", "--eval_tasks_interval=5"]
    more += [f"--eval_tasks_dir={tmp_path}", "--eval_tasks_limit=5"]
    done = run_script("distill.py", *args("distill.py", "run", *more), ranks=2)
    scores = read_log(tmp_path / "run", "hella")
    assert list(scores) == [0, 5, 10] and all(round(s * 5, 6) in range(6) for s in scores.values())
    assert list(read_log(tmp_path / "run", "hella_sum")) == [0, 5, 10]
    assert read_log(tmp_path / "run", "my_lines.jsonl") == scores  # a file of HellaSwag's form, in its convention
    assert f"step 10/10 | hella {scores[10]:.4f} | hella_sum " in done.stdout
    assert "texts are beyond" not in done.stdout


@pytest.mark.slow
def test_texts_that_are_too_long_for_the_model_are_said_once(args, tmp_path):
    """12 of 20: three endings of four are longer than the 16 positions, whenever they are scored."""
    rows = [{"ctx": "abc", "endings": ["d", "e" * 20, "g" * 30, "j" * 40], "label": 0}] * 4
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    more = [f"--eval_tasks={tmp_path / 'long.jsonl'}", "--eval_tasks_interval=5"]
    done = run_script("train.py", *args("train.py", "run", *more), ranks=2)
    line = (
        "long.jsonl: 12 texts are beyond the model's positions; they lose their first; 12 of them are scored without "
        "the beginning of their ending, and do not compare with the others\n"
    )
    assert done.stdout.count(line) == 1


# ---------------------------------------------------------------------------------------------
# bad input: one line, exit code 2, nothing lost


def fails(script, *args):
    done = run_script(script, *args, ok=False)
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith(f"{script}: "), done.stderr
    return lines[0]


def broken(dataset, tmp_path, name="broken", **meta):
    folder = shutil.copytree(dataset, tmp_path / name)
    old = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(old | meta))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "more, message",
    [
        (["--lerning_rate=1"], "unknown key 'lerning_rate'; did you mean 'learning_rate'?"),
        (["--n_layer=two"], "n_layer must be int"),
        (["config/nowhere.py"], "no config file 'config/nowhere.py'"),
        (["--dataset=data/q_0_q"], "data set data/q_0_q is not there; first run: python prepare_data.py"),
        (["--n_head=3"], "n_embd=32 is not divisible by n_head=3"),
        (["--block_size=5000"], "4000 tokens, but one row needs block_size + 1 = 5001"),
        (["--batch_size=0"], "batch_size=0 is too small; it must be at least 1"),
        (["--learning_rate=-1"], "learning_rate=-1.0 is too small; it must be at least 0"),
        (["--learning_rate=5e-5"], "min_lr=0.0001 is over learning_rate=5e-05: the rate would rise; lower it too"),
        (["--epochs=1e300"], "epochs=1e+300 is too large; it must be at most 1e+06"),
        (["--tokens_per_step=64000000000000"], "tokens_per_step=64,000,000,000,000 takes 1,024,000 GB on each rank"),
        (["--seed=-1"], "seed=-1 is too small"),
        (["--dropout=1.5"], "dropout=1.5 must be at least 0 and under 1"),
        (["--beta2=1"], "beta1=0.9 and beta2=1.0 must be at least 0 and under 1"),
        (["--arch=mamba"], "arch='mamba' is not one of gpt, llama"),
        (["--schedule=step"], "schedule='step' is not one of"),
        (["--device=tpu"], "device='tpu' is not one of"),
        (["--init_from=nowhere"], "no folder 'nowhere' here, and from the hub: cannot reach http://127.0.0.1:9"),
        (["--init_from=Resume"], "init_from='Resume' is no folder; did you mean 'resume'?"),
        (["--seed=99999999999999999999"], "seed=99999999999999999999 is beyond 2**63"),
        (["--init_from=../nowhere"], "no model at '../nowhere'"),
        (["--init_layers=0"], "no model to take them from is named in init_from"),
        (["--freeze=wpe"], "no parameter begins with 'wpe'; expected some of wte, h, ln_f, lm_head"),
        (["--init_from=resume"], "has no checkpoint to resume"),
    ],
)
def test_bad_keys(more, message, args):
    assert message in fails("train.py", *args("train.py", "run", *more))


@pytest.mark.slow
@pytest.mark.parametrize(
    "more, message",
    [
        (["--kl=backward"], "kl='backward' is not one of forward, reverse, js, skew_forward, skew_reverse, tv"),
        (["--kl=js", "--kl_beta=1"], "kl_beta=1.0 is out of range; it must be over 0 and under 1"),
        (["--kl_norm=batch"], "kl_norm='batch' is not one of token, sequence"),
        (["--ensemble=votes"], "ensemble='votes' is not one of logits, probs"),
        (["--teacher_weights=1,2"], "teacher_weights='1,2' must be 1 numbers over 0"),
        (["--weight_mse=-1"], "weight_mse=-1.0 is too small"),
        (["--teacher="], "teacher is empty"),
        (["--weight_ce=0", "--weight_kl=0", "--weight_cos=0"], "nothing would be learnt"),
        (["--temperature=0"], "temperature=0.0 is too small"),
        (["--temperature=1e200"], "temperature=1e+200 is too large"),
        (["--teacher=allenai/OLMo-1B-hf"], "no folder 'allenai/OLMo-1B-hf' here, and from the hub"),
        (["--init_layers=0,7"], "has blocks 0 to 1; expected numbers with commas between"),
    ],
)
def test_bad_teachers(more, message, args):
    assert message in fails("distill.py", *args("distill.py", "run", *more))


@pytest.mark.parametrize(
    "name, millions",
    [("gpt", 705), ("llama", 360), ("student", 58.3), ("student_fixed", 58.3), ("control", 58.3)],
)
def test_baby_llamas_published_sizes(name, millions):
    """Built on the meta device with its BPE of 16,000: within 1 % of the published parameters."""
    found = parameters(read_config_file(str(ROOT / f"config/babyllama/{name}.py")), 16000)
    assert found == pytest.approx(millions * 1e6, rel=0.01)


@pytest.mark.slow
def test_errors_of_two_ranks_are_said(args):
    """Once a process group is there, torch puts a hook of its own around ours."""
    done = run_script("train.py", *args("train.py", "run", "--arch=gpt3"), ok=False, torchrun=2)
    assert done.returncode and "train.py: arch='gpt3' is not one of gpt, llama" in done.stderr, done.stderr


@pytest.mark.slow
def test_configs_name_what_to_run_first(tmp_path):
    for script, config, need in [
        ("train.py", "pretrain_124m", "data/fineweb_edu"),
        ("train.py", "pretrain_gpt2_124m", "data/openwebtext"),
        ("distill.py", "rkld_olmo", "data/fineweb_edu"),
        ("train.py", "babyllama/gpt", "data/babylm"),
        ("distill.py", "babyllama/student", "data/babylm"),
        ("distill.py", "babyllama/control", "data/babylm"),
    ]:
        done = run_script(script, ROOT / f"config/{config}.py", ok=False, cwd=tmp_path)
        assert done.returncode == 2 and f"data set {need} is not there; first run: python prepare" in done.stderr
        assert len(done.stderr.splitlines()) == 1 and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_another_tokenizer_is_refused_although_the_shapes_agree(args, dataset, teacher, tmp_path):
    vocab = {character: 255 - byte for character, byte in byte_characters().items()}  # as many ids, other meanings
    reversed_bytes = BPETokenizer(spec_of_merges(vocab | {"<|endoftext|>": 256}, []), eot=256)
    other = broken(dataset, tmp_path, **tokenizer_meta(reversed_bytes))
    reversed_bytes.save(other)
    for script, key in (("distill.py", f"--teacher={teacher}"), ("train.py", f"--init_from={teacher}")):
        line = fails(script, *args(script, "run", f"--dataset={other}", key))
        assert "was trained with tokenizer" in line and f"was made with {reversed_bytes.hash}" in line
    run_script("train.py", *args("train.py", "run", "--max_steps=2"))
    line = fails("train.py", *args("train.py", "run", f"--dataset={other}", "--init_from=resume"))
    assert "was trained with tokenizer" in line
    exchanged = broken(dataset, tmp_path, "exchanged", tokenizer_hash="0123456789abcdef")
    assert "a file was exchanged" in fails("train.py", *args("train.py", "exchanged", f"--dataset={exchanged}"))
    stripped = shutil.copytree(next(teacher.glob("step_*")), tmp_path / "stripped")
    shutil.copyfile(other / "tokenizer.json", stripped / "tokenizer.json")
    for script in ("sample.py", "hellaswag.py"):
        assert "a file was exchanged" in fails(script, f"--model={stripped}", "--device=cpu")
    for name in ("meta.json", "tokenizer.json"):
        (stripped / name).unlink()
    assert "has no tokenizer" in fails("distill.py", *args("distill.py", "run2", f"--teacher={stripped}"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [lambda s: s.pop("step"), lambda s: s.update(optimizers=5), lambda s: s.update(config=[]),
     lambda s: s["optimizers"][0]["state"][0].update(exp_avg=torch.zeros(3)),
     lambda s: s["optimizers"][0]["state"][1].pop("exp_avg_sq")],
)  # fmt: skip
def test_a_trainer_state_of_another_shape_is_refused(change, args, tmp_path):
    """A fused optimiser would read beyond moments that are too short."""
    run_script("train.py", *args("train.py", "run", "--max_steps=1"))
    path = tmp_path / "run/step_000001/trainer.pt"
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    line = fails("train.py", *args("train.py", "run", "--init_from=resume"))
    assert "trainer.pt is damaged or was cut" in line or "trainer.pt is of other optimisers" in line


@pytest.mark.slow
def test_a_padded_and_an_unpadded_copy_of_a_model_are_the_same_teacher_and_student(args, teacher, tmp_path):
    """The padding is filled with what would win every softmax."""
    model, tokenizer = load_pretrained(teacher), load_tokenizer(teacher)
    for name, rows in (("unpadded", 257), ("padded", 384)):
        config = dataclasses.replace(model.config, vocab_size=rows)
        copy = type(model)(config)
        state = model.state_dict()
        for key in ("wte.weight", "lm_head.weight"):
            state[key] = torch.cat((state[key][:257], torch.full((rows - 257, config.n_embd), 3.0)))
        copy.load_state_dict(state)
        save_pretrained(copy, tmp_path / name, tokenizer)
    for role in ("--teacher", "--init_from"):
        losses = []
        for name in ("unpadded", "padded"):
            out = f"{role[2:]}_{name}"
            more = [f"{role}={tmp_path / name}", "--eval_interval=5", "--learning_rate=1e-4"]
            run_script("distill.py", *args("distill.py", out, *more))
            losses.append([read_log(tmp_path / out, label) for label in ("train", "val", "ce", "kl", "entropy")])
        for unpadded, padded in zip(*losses):
            assert len(unpadded) >= 3 and unpadded == pytest.approx(padded, rel=1e-5, abs=1e-6)


@pytest.mark.slow
def test_a_student_starts_from_blocks_of_its_teacher_with_some_of_it_frozen(args, teacher, tmp_path):
    """DistilGPT2's way: blocks, embeddings, final norm and head of the teacher, its positions never trained."""
    more = ["--init_layers=1", "--freeze=wpe,ln_f.bias", "--optimizer=muon", "--weight_decay=0.1"]
    run_script("distill.py", *args("distill.py", "still", *more, "--learning_rate=0", "--min_lr=0", "--max_steps=1"))
    whole, part = (load_file(find_model(run) / "model.safetensors") for run in (teacher, tmp_path / "still"))
    assert len(part) == len(whole) - 12  # a block's tensors
    for name, weight in part.items():
        assert torch.equal(weight, whole[name.replace(".h.0.", ".h.1.")]), name
    assert json.loads((find_model(tmp_path / "still") / "config.json").read_text())["n_layer"] == 1
    run_script("distill.py", *args("distill.py", "run", *more, "--max_steps=5"))
    run_script("distill.py", *args("distill.py", "run", *more, "--max_steps=10", "--init_from=resume"))
    trained = load_file(tmp_path / "run/step_000010/model.safetensors")
    same = {name for name in trained if torch.equal(trained[name], part[name])}
    assert same == {"transformer.wpe.weight", "transformer.ln_f.bias"}
    more = [f"--init_from={teacher}", "--init_layers=1,0", "--max_steps=1", "--learning_rate=0", "--min_lr=0"]
    run_script("train.py", *args("train.py", "swapped", *more))
    swapped = load_file(tmp_path / "swapped/step_000001/model.safetensors")
    assert torch.equal(swapped["transformer.h.0.ln_1.weight"], whole["transformer.h.1.ln_1.weight"])
    line = fails("distill.py", *args("distill.py", "run", "--init_from=resume", "--init_layers=1", "--freeze="))
    assert "freeze='', but" in line and "has freeze='wpe,ln_f.bias'" in line


@pytest.mark.slow
def test_a_teacher_by_its_name_on_the_hub(args, teacher, hub, tmp_path):
    for path in find_model(teacher).iterdir():
        hub.files[f"/org/teacher/resolve/main/{path.name}"] = path.read_bytes()
    for name, key in (("local", str(teacher)), ("hub", "org/teacher")):
        run_script("distill.py", *args("distill.py", name, f"--teacher={key}", "--max_steps=3"))
    assert (tmp_path / "hub/log.txt").read_text() == (tmp_path / "local/log.txt").read_text()


@pytest.mark.slow
def test_rows_beyond_a_learned_position_table_are_refused(args, teacher):
    more = [f"--init_from={teacher}", "--block_size=32"]
    assert "block_size=32 is beyond the 16 positions" in fails("train.py", *args("train.py", "run", *more))
    more = ["--block_size=32", "--weight_cos=0"]
    assert "block_size=32 is beyond the 16 positions" in fails("distill.py", *args("distill.py", "run", *more))


@pytest.mark.slow
def test_damaged_data_is_refused(args, dataset, tmp_path):
    folder = broken(dataset, tmp_path)
    with open(folder / "train.bin", "ab") as file:
        file.write(b"x")
    assert "8001 bytes is no multiple of 2" in fails("train.py", *args("train.py", "run", f"--dataset={folder}"))
    np.full(4000, 9999, dtype="<u2").tofile(folder / "train.bin")
    line = fails("train.py", *args("train.py", "run", f"--dataset={folder}"))
    assert ", train: id 9999 at token" in line and "vocab_size=257" in line


@pytest.mark.slow
def test_a_run_is_not_overwritten_and_not_resumed_beyond_its_end(args, tmp_path):
    run_script("train.py", *args("train.py", "run", "--max_steps=4"))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.name != ".lock"}
    assert "already holds a run, up to step_000004" in fails("train.py", *args("train.py", "run"))
    more = ["--init_from=resume", "--max_steps=3"]
    assert "max_steps=3, but" in fails("train.py", *args("train.py", "run", *more))
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.name != ".lock"}
    for more, message in [
        (["--optimizer=muon"], "has optimizer='adamw'; a resumed run keeps it"),
        (["--n_layer=3"], "n_layer=3, but"),
    ]:
        assert message in fails("train.py", *args("train.py", "run", "--init_from=resume", *more))
    trainer = tmp_path / "run/step_000004/trainer.pt"
    trainer.write_bytes(trainer.read_bytes()[:5000])
    line = fails("train.py", *args("train.py", "run", "--init_from=resume"))
    assert "trainer.pt is damaged or was cut" in line and "delete" in line


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path):
    for step in (999_990, 1_000_020, 5):
        (tmp_path / f"step_{step:06d}").mkdir()
        (tmp_path / f"step_{step:06d}" / "trainer.pt").touch()
        (tmp_path / f"step_{step:06d}" / "config.json").touch()
    assert [p.name for p in checkpoints(tmp_path)] == ["step_000005", "step_999990", "step_1000020"]
    assert find_model(tmp_path).name == "step_1000020"


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_before_the_update(args, tmp_path):
    more = ["--learning_rate=1e30", "--grad_clip=0", "--warmup_steps=0", "--save_interval=1", "--max_steps=20"]
    line = fails("train.py", *args("train.py", "run", *more, "--schedule=constant"))
    assert "loss is" in line and "gradient norm" in line and "--init_from=resume" in line
    bad = int(line.split("step ")[1].split(":")[0])
    assert (tmp_path / "run" / f"step_{bad:06d}").is_dir()
    assert [p.name for p in (tmp_path / "run").glob(".*")] == [".lock"]  # nothing half written


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="needs a small file system of its own")
def test_a_full_disk_ends_in_one_line_and_keeps_the_last_checkpoint(args, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("cannot mount here")
    try:
        more = [f"--out_dir={disk / 'run'}", "--save_interval=2", "--keep_checkpoints=0"]
        line = fails("train.py", *args("train.py", "run", *more))
        assert "No space left" in line or "bytes free" in line
        assert sorted(p.name for p in (disk / "run").iterdir()) == [".lock", "log.txt", "step_000002"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_write_dataset_makes_what_the_loops_read(tmp_path):
    """The tests' own data set differs by seed, so that a run on another one would show."""
    a, b = (write_dataset(tmp_path / str(s), seed=s) / "train.bin" for s in (0, 1))
    assert a.read_bytes() != b.read_bytes() and len(a.read_bytes()) == 8000
