"""Students and teachers that the ranks divide (FSDP2): the numbers and the files are those of one rank."""

import json

import numpy as np
import pytest
import torch
from conftest import LONG, ROOT, TINY, read_log, run_python, run_script
from safetensors.torch import load_file

from common.pretrained import save_pretrained
from common.sharding import is_sharded, share_of, whole, whole_weights
from common.tokenizer import ByteTokenizer
from model import GPT, GPTConfig, LLaMA, LLaMAConfig

pytestmark = pytest.mark.slow

MUON = ["--optimizer=headmuon", "--grad_clip=0"]
# a text is written before the first forward pass
GPT_ARGS = ["--arch=gpt", "--grad_accum_steps=2", "--grad_clip=0.5", "--sample_interval=25"]
# no width is a multiple of the ranks', so that some shares are smaller than others
LLAMA_ARGS = ["--n_head=3", "--n_embd=30", "--n_inner=50", "--tie_word_embeddings=False", "--vocab_multiple=1"]


@pytest.fixture
def start(dataset, teacher, tmp_path):
    """start(script, name, ranks, *more, steps=…): a tiny run into tmp_path/name, of 4 rows a micro-step in all."""

    def make(script, name, ranks, *more, steps=50, ok=True):
        own = [f"--teacher={teacher}", "--weight_cos=0.5"] if script == "distill.py" else []
        folders = [f"--dataset={dataset}", f"--out_dir={tmp_path / name}"]
        keys = [*TINY, f"--batch_size={4 // ranks}", f"--max_steps={steps}", *folders, *own, *more]
        return run_script(script, *keys, ranks=ranks, ok=ok)

    return make


def check_logs(one, other, *labels, n=50):
    """That two runs logged the same, to 1e-5; norms and losses of hidden states to that of their size."""
    for label in labels:
        a, b = read_log(one, label), read_log(other, label)
        assert list(a) == list(b) and len(a) == n, label
        np.testing.assert_allclose(list(b.values()), list(a.values()), atol=1e-5, rtol=0, err_msg=label)


# ---------------------------------------------------------------------------------------------
# the same numbers


@pytest.mark.parametrize(
    "ranks, more", [(2, GPT_ARGS), (4, LLAMA_ARGS), (2, MUON)], ids=["gpt, tied", "llama, untied, 4 ranks", "headmuon"]
)
def test_a_student_in_shares_trains_as_a_whole_one(ranks, more, start, tmp_path):
    start("train.py", "one", 1, *more)
    start("train.py", "shares", ranks, "--shard=True", *more)
    check_logs(tmp_path / "one", tmp_path / "shares", "train", "norm")
    check_logs(tmp_path / "one", tmp_path / "shares", "val", n=1)


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=LONG)])
def test_teachers_and_students_in_shares_give_the_losses_of_whole_ones(ranks, start, teacher, tmp_path):
    """Two teachers: a GPT that is wider than the student, and a LLaMA of its width whose head is not tied."""
    torch.manual_seed(0)
    llama = LLaMA(LLaMAConfig(259, block_size=16, n_layer=3, n_head=2, n_embd=32, tie_word_embeddings=False))
    save_pretrained(llama, tmp_path / "llama", ByteTokenizer())
    more = [f"--teacher={teacher},{tmp_path / 'llama'}", "--weight_mse=0.5", "--grad_accum_steps=2"]
    start("distill.py", "one", 1, *more)
    for name, which in {
        "teachers": ["--teacher_shard=True"],
        "student": ["--shard=True"],
        "both": ["--shard=True", "--teacher_shard=True"],
    }.items():
        start("distill.py", name, ranks, *which, *more)
        check_logs(tmp_path / "one", tmp_path / name, "train", "ce", "kl", "cos", "mse", "norm")
        check_logs(tmp_path / "one", tmp_path / name, "val", "agree", "forward_kl", "teacher_entropy", n=1)


def test_shares_in_bfloat16_have_the_numbers_of_replicas(start, tmp_path):
    """Autocast casts what was gathered: norms and the sums of gradients stay in float32, on as many ranks as before."""
    more = ["--dtype=bfloat16", "--teacher_dtype=bfloat16"]
    start("distill.py", "replicas", 2, *more, steps=10)
    start("distill.py", "shares", 2, "--shard=True", "--teacher_shard=True", *more, steps=10)
    check_logs(tmp_path / "replicas", tmp_path / "shares", "train", "kl", "norm", n=10)


@pytest.mark.long
@pytest.mark.parametrize("shard", [False, True])
def test_compiled_students_of_two_ranks_compute_the_same(shard, start, tmp_path):
    """The whole student under DDP, and the blocks of one in shares."""
    more = [f"--shard={shard}", "--eval_interval=2"]
    start("train.py", "eager", 2, *more, steps=4)
    start("train.py", "compiled", 2, "--compile=on", *more, steps=4)
    check_logs(tmp_path / "eager", tmp_path / "compiled", "train", "norm", n=4)


def test_ranks_that_have_different_work_do_not_wait_for_ever(start, tmp_path):
    """Texts that end early, a text of the first rank alone, three questions and three rows of validation."""
    rows = [{"ctx": "abc" * i, "endings": ["d", "ef", "ghi", "jk"], "label": i} for i in range(3)]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    more = ["--on_policy=0.5", "--prompt_tokens=2-8", "--response_tokens=8", "--eval_rows=3", "--eval_interval=2"]
    more += ["--sample_interval=2", f"--eval_tasks={tmp_path / 'questions.jsonl'}", "--eval_tasks_interval=2"]
    more += ["--weight_cos=0.5", "--dropout=0"]
    start("distill.py", "one", 1, *more, steps=4)
    start("distill.py", "both", 2, "--shard=True", "--teacher_shard=True", *more, steps=4)
    check_logs(tmp_path / "one", tmp_path / "both", "train", "norm", n=4)
    check_logs(tmp_path / "one", tmp_path / "both", "val", "agree", "questions.jsonl", n=3)
    check_logs(tmp_path / "one", tmp_path / "both", "kl_own", "own_tokens", n=2)
    for step in (0, 2, 4):
        texts = [(tmp_path / run / f"sample_{step:06d}.txt").read_bytes() for run in ("one", "both")]
        assert texts[0] == texts[1] and len(texts[0]) > 1


# ---------------------------------------------------------------------------------------------
# the same files


def shapes_of(value):
    """The same with the type, shape and dtype of each tensor in its place."""
    if isinstance(value, torch.Tensor):
        return type(value), value.dtype, value.shape
    if isinstance(value, dict):
        return {key: shapes_of(item) for key, item in value.items()}
    return [shapes_of(item) for item in value] if isinstance(value, (list, tuple)) else type(value)


@pytest.mark.parametrize("optimizer", ["adamw", "headmuon"])
def test_a_checkpoint_of_shares_is_that_of_one_rank(optimizer, start, tmp_path):
    more = [f"--optimizer={optimizer}", "--eps=1e-4"]
    start("distill.py", "one", 1, *more, steps=3)
    start("distill.py", "shares", 4, "--shard=True", "--teacher_shard=True", *more, steps=3)
    one, shares = tmp_path / "one/step_000003", tmp_path / "shares/step_000003"
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in shares.iterdir())
    assert (one / "config.json").read_bytes() == (shares / "config.json").read_bytes()
    weights = [load_file(folder / "model.safetensors") for folder in (one, shares)]
    assert list(weights[0]) == list(weights[1])
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-5, rtol=0)
    states = [torch.load(folder / "trainer.pt", weights_only=True) for folder in (one, shares)]
    assert shapes_of(states[0]) == shapes_of(states[1])
    torch.testing.assert_close(states[1]["projections"], states[0]["projections"], atol=1e-5, rtol=0)
    for a, b in zip(*(state["optimizers"] for state in states), strict=True):
        torch.testing.assert_close(b["state"], a["state"], atol=1e-5, rtol=0)


def test_four_ranks_in_shares_resume_on_one_and_back(start, tmp_path):
    more = ["--schedule=constant", "--eval_interval=4"]
    start("distill.py", "one", 1, *more, steps=12)
    start("distill.py", "moved", 4, *more, "--shard=True", "--teacher_shard=True", steps=4)
    done = start("distill.py", "moved", 1, *more, "--init_from=resume", steps=8)
    assert "ranks 4 -> 1" in done.stdout
    done = start("distill.py", "moved", 4, *more, "--init_from=resume", steps=12)
    assert "ranks 1 -> 4" in done.stdout
    check_logs(tmp_path / "one", tmp_path / "moved", "train", "norm", "kl", "cos", n=12)
    check_logs(tmp_path / "one", tmp_path / "moved", "val", n=4)


def test_a_run_in_shares_that_was_killed_resumes_to_the_same_bits(start, dataset, tmp_path):
    more = ["--shard=True", "--schedule=constant", "--save_interval=2", "--dropout=0.1"]
    start("train.py", "whole", 2, *more, steps=8)
    die = f"""import os, runpy, sys
rename = os.rename
def last(old, new, **where):
    rename(old, new, **where)
    if str(new).endswith("step_000004"):
        os._exit(9)
os.rename = last
sys.argv[0] = {str(ROOT / "train.py")!r}
sys.path[0] = {str(ROOT)!r}
runpy.run_path(sys.argv[0], run_name="__main__")"""
    (tmp_path / "die.py").write_text(die)
    folders = [f"--dataset={dataset}", f"--out_dir={tmp_path / 'killed'}"]
    done = run_python(tmp_path / "die.py", *TINY, "--batch_size=2", "--max_steps=8", *folders, *more, ranks=2, ok=False)
    # 9, or the 2 of the other rank, whichever of the two is seen to end first
    assert done.returncode in (9, 2) and max(read_log(tmp_path / "killed", "train")) < 7
    done = start("train.py", "killed", 2, "--init_from=auto", steps=8)
    assert "resume" in done.stdout and "step_000004" in done.stdout
    for label in ("train", "norm"):
        whole_run, killed_run = read_log(tmp_path / "whole", label), read_log(tmp_path / "killed", label)
        assert whole_run == killed_run and len(whole_run) == 8
    weights = [load_file(tmp_path / run / "step_000008/model.safetensors") for run in ("whole", "killed")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


# ---------------------------------------------------------------------------------------------
# what is refused, and one rank


def test_what_does_not_go_with_shares_is_refused(start):
    for more, message in [
        (["--weight_dtype=bfloat16"], "shard=True goes with weight_dtype='float32' alone"),
        (["--tie_word_embeddings=False", "--freeze=wte,h,ln_f"], "shard=True needs a trained parameter below the head"),
    ]:
        done = start("train.py", "run", 2, "--shard=True", *more, ok=False)
        assert done.returncode == 2 and f"train.py: {message}" in done.stderr
        assert "Traceback" not in done.stderr
    done = run_script("bench.py", "--part=fit", "config/pretrain_124m.py", "--shard=True", ok=False)
    assert done.returncode == 2 and "counts a rank that holds all weights" in done.stderr


def test_a_bad_step_of_shares_names_the_parameter(start):
    more = ["--shard=True", "--learning_rate=1e30", "--warmup_steps=0", "--schedule=constant", "--grad_clip=0"]
    done = start("train.py", "run", 2, *more, ok=False)
    assert done.returncode == 2
    assert "are not finite themselves" in done.stderr or "not finite first in" in done.stderr


def test_of_one_rank_nothing_is_divided(start, tmp_path):
    start("train.py", "plain", 1, steps=3)
    start("train.py", "shares", 1, "--shard=True", steps=3)
    assert (tmp_path / "plain/log.txt").read_bytes() == (tmp_path / "shares/log.txt").read_bytes()


def test_a_plain_model_passes_through():
    model = GPT(GPTConfig(vocab_size=64, block_size=8, n_layer=1, n_head=2, n_embd=8))
    tensor = torch.ones(3)
    assert not is_sharded(model) and whole(tensor) is tensor and share_of(tensor, tensor) is tensor
    with whole_weights(model), torch.no_grad():
        assert model(torch.zeros(1, 1, dtype=torch.long)).isfinite().all()
