"""--compile=on gives what --compile=off gives: block by block, chunk by chunk, and through both scripts.

Most of it goes through the backend "aot_eager", which makes the graph as for the compiler, and then runs it as it is:
where an argument is written to, or lies in another's place, it goes wrong as the compiled one does, in a tenth of the
time.
"""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest
import torch
from conftest import ROOT, read_log, write_dataset
from torch._dynamo.testing import CompileCounterWithBackend

from common.runtime import Runtime
from head import chunked_head
from losses import DIVERGENCES, Objective, Stored, divergence, loss_terms

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a compiler")
V, ROWS, C = 2**15 - 7, 2**15, 8  # so many columns that a block has few rows
BLOCK = 8 * torch.get_num_threads()
N = 4 * BLOCK + 3
CHUNK = 2 * BLOCK + 3  # chunks of two blocks and a ragged one, and a last chunk of one block and a ragged one


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()


def head(body, name, n_teachers, ensemble, dtype, n=N):
    """(loss, ce, kl, gradient of the hidden states, of the head) of n tokens in chunks of CHUNK."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(n, C).requires_grad_(), torch.randn(ROWS, C).requires_grad_()
    targets = torch.randint(V, (n,))
    targets[5] = -1
    teachers = [(torch.randn(n, 6), torch.randn(V, 6)) for _ in range(n_teachers)]
    shares = [(i + 1) / sum(range(n_teachers + 1)) for i in range(n_teachers)]
    terms = divergence(name)
    objective = Objective(0.5, 2.0, terms, temperature=2.0, ensemble=ensemble, shares=tuple(shares))
    loss, ce, kl = chunked_head(
        hidden, weight, targets, n - 1, teachers, objective, vocab_size=V, chunk=CHUNK, dtype=dtype, body=body
    )  # fmt: skip
    return loss, ce, kl, *torch.autograd.grad(loss, (hidden, weight))


def assert_same(got, want, dtype):
    """To the rounding of fp32 sums, whose order differs; bfloat16 gradients to a few that round the other way."""
    for a, b in zip(got[:3], want[:3]):
        assert a.item() == pytest.approx(b.item(), rel=2e-6)
    for a, b in zip(got[3:], want[3:]):
        assert (a - b).norm() <= (2e-6 if dtype == torch.float32 else 1e-4) * b.norm()


CASES = [
    ("forward", 0, "logits", torch.float32),
    ("forward", 1, "logits", torch.float32),
    ("reverse", 1, "logits", torch.bfloat16),
    ("js", 2, "probs", torch.float32),
    ("skew_forward", 3, "logits", torch.bfloat16),
    ("skew_reverse", 2, "probs", torch.bfloat16),
    ("tv", 2, "logits", torch.float32),
]


def test_every_divergence_is_compiled():
    assert {name for name, *_ in CASES} == set(DIVERGENCES), "add a row to CASES"


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}-{case[2]}")
def test_every_block_of_a_chunk_has_its_own_loss_and_gradient(case):
    counter = CompileCounterWithBackend("aot_eager")
    body = torch.compile(loss_terms, backend=counter)
    assert_same(head(body, *case), head(None, *case), case[-1])
    assert counter.frame_count == 1  # full blocks, ragged ones and those of the last chunk are one graph


@pytest.mark.slow
@pytest.mark.parametrize("tail", ["cell", "draws", None])
def test_a_cached_teacher_is_compiled(tail):
    """tail None: the whole distribution. Blocks are one graph, and have the loss and gradient of the eager ones."""
    torch.manual_seed(1)
    log_p = torch.randn(N, V).log_softmax(-1)
    stored = Stored(log_p)
    if tail:
        top = log_p.topk(4, dim=-1)
        rest = log_p.scatter(1, top.indices, -torch.inf)
        cells = torch.cat((top.values, rest.logsumexp(-1, keepdim=True)), dim=1)
        draws = torch.multinomial(rest.exp(), 3, replacement=True)
        stored = Stored(cells, top.indices, draws, -(log_p.exp() * log_p).sum(-1))
    objective = Objective(0.5, 2.0, divergence("forward"), temperature=2.0, tail=tail or "cell")
    counter = CompileCounterWithBackend("aot_eager")
    results = []
    for body in (torch.compile(loss_terms, backend=counter), None):
        torch.manual_seed(0)
        hidden, weight = torch.randn(N, C).requires_grad_(), torch.randn(ROWS, C).requires_grad_()
        loss, ce, kl = chunked_head(
            hidden, weight, torch.randint(V, (N,)), N, [], objective,
            stored=stored, vocab_size=V, chunk=CHUNK, body=body,
        )  # fmt: skip
        results.append((loss, ce, kl, *torch.autograd.grad(loss, (hidden, weight))))
    assert_same(*results, torch.float32)
    assert counter.frame_count == 1


@pytest.mark.slow
@needs_compiler
def test_compiled_blocks_equal_eager_ones():
    """Through the compiler itself in bfloat16; the scripts below do so in float32."""
    case = ("js", 2, "probs", torch.bfloat16)
    assert_same(head(torch.compile(loss_terms), *case), head(None, *case), torch.bfloat16)


@pytest.mark.slow
def test_compilations_are_few_and_none_comes_after_the_first_evaluation():
    """A loop evaluates, with a smaller last batch, then trains; what follows meets nothing new."""
    counter = CompileCounterWithBackend("aot_eager")
    body = torch.compile(loss_terms, backend=counter)

    def evaluate():
        for n in (N, N, BLOCK - 2):
            hidden, weight = torch.randn(n, C), torch.randn(ROWS, C)
            with torch.no_grad():
                chunked_head(hidden, weight, torch.randint(V, (n,)), 1, vocab_size=V, chunk=CHUNK, body=body)

    def train():
        head(body, "forward", 1, "logits", torch.float32)

    evaluate()
    train()
    compiled = counter.frame_count
    assert compiled <= 4
    for step in (train, train, evaluate, train):
        step()
    assert counter.frame_count == compiled


# ---------------------------------------------------------------------------------------------
# the scripts


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run a script on rows of three blocks each with an evaluation, HellaSwag and a checkpoint after ten steps."""
    folder = tmp_path_factory.mktemp("compiled")
    data = write_dataset(folder / "chain", tokens=20_000)  # val.bin has 78 rows: batches of 33, 33 and 12
    (folder / "choices.jsonl").write_text('{"ctx": "ab", "endings": ["c", "de", "f", "cd"], "label": 0}\n' * 3)
    keys = [f"--dataset={data}", f"--eval_tasks={folder / 'choices.jsonl'}", "--n_layer=1", "--n_head=2"]
    keys += ["--n_embd=16", "--block_size=64", f"--batch_size={33 * torch.get_num_threads()}", "--eval_rows=78"]
    keys += ["--eval_interval=10", "--eval_tasks_interval=10", "--save_interval=10", "--log_interval=1"]
    keys += ["--schedule=constant", "--learning_rate=3e-3", "--device=cpu"]
    # a cache of its own: one on this machine may hold a graph of older code; graphs of train.py serve distill.py
    env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"), "TORCH_LOGS": "recompiles"}
    env["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no pool of processes, which takes longer to start than it saves here

    def go(script, out, *more):
        command = [sys.executable, str(ROOT / script), *keys, f"--out_dir={folder / out}", *more]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return folder / out, re.findall(r"Recompiling function (\w+)", done.stderr)

    return go


def assert_same_log(got, want, labels):
    """To 1e-4 after 20 steps: sums in another order differ by 1e-7, which AdamW's division by |g| makes larger."""
    for label in labels:
        values, wanted = read_log(got, label), read_log(want, label)
        assert values.keys() == wanted.keys() and len(values) >= 3
        assert values == pytest.approx(wanted, rel=1e-4, abs=1e-6), label


@pytest.mark.slow
@needs_compiler
def test_both_scripts_train_as_without_the_compiler(run):
    """Twenty steps with two evaluations; distill.py is stopped after ten and resumed."""
    eager, none = run("train.py", "eager", "--max_steps=20", "--compile=off")
    assert none == [] and read_log(eager, "train")[19] < read_log(eager, "train")[0] - 0.1
    compiled, recompiled = run("train.py", "compiled", "--max_steps=20", "--compile=on")
    assert_same_log(compiled, eager, ("train", "norm", "val", "choices.jsonl"))
    assert set(recompiled) == {"loss_terms"} and len(recompiled) <= 3, recompiled

    teach = [f"--teacher={eager}"]
    eager, _ = run("distill.py", "taught", "--max_steps=20", "--compile=off", *teach)
    for length, init_from in ((10, "scratch"), (20, "resume")):
        more = [f"--max_steps={length}", "--compile=on", f"--init_from={init_from}", *teach]
        compiled, recompiled = run("distill.py", "taught_compiled", *more)
        # the student's forward is the teacher's method, with other weights
        times = Counter(recompiled)
        assert times.keys() <= {"loss_terms", "forward"} and times["loss_terms"] <= 3, recompiled
        assert times["forward"] == 1, recompiled
    labels = ("train", "ce", "kl", "norm", "val", "forward_kl", "agree", "choices.jsonl")
    assert_same_log(compiled, eager, labels)


@needs_compiler
@pytest.mark.slow
def test_weights_that_change_from_call_to_call_are_the_ones_computed_with():
    """With torch's variables in the place of floats, gradients have an older weight_ce from the third value on."""
    body = Runtime("cpu", "float32").compile(loss_terms, "on")
    torch.manual_seed(0)
    z, teacher, targets = torch.randn(16, 50), torch.randn(16, 50), torch.randint(50, (16,))
    for weight_ce in (1.0, 0.0, 1.0, 0.5, 0.0, 0.25, 1.0):
        objective = Objective(weight_ce, 4.0, divergence("forward"), temperature=2.0)
        got = body(z.clone(), [teacher], targets, objective, torch.float32)
        want = loss_terms(z.clone(), [teacher], targets, objective, torch.float32)
        for a, b in zip(got, want):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
