"""On-policy distillation: the expected gradient by enumeration, each usual mistake, and runs as a user has them."""

import doctest
import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from conftest import TINY, read_log, run_script, write_dataset
from safetensors.torch import load_file

from common import own_text
from common.data import TokenData
from common.own_text import OwnText, prompt_lengths_and_uniforms, write_own_text
from common.pretrained import load_pretrained
from common.runtime import Runtime
from common.tokenizer import ByteTokenizer
from head import chunked_head
from losses import Objective, divergence
from model import GPT, GPTConfig, LLaMA, LLaMAConfig


def test_examples_of_the_docstrings():
    found = doctest.testmod(own_text)
    assert found.attempted and not found.failed


@pytest.fixture(scope="module")
def run():
    return Runtime("cpu", "float32")


# ---------------------------------------------------------------------------------------------
# the expected gradient, by enumeration: three ids, of which 2 ends a text, and at most two drawn tokens

EOT = 2
PROMPT = [0, 1]
RESPONSES = [(EOT,), *((first, second) for first in (0, 1) for second in (0, 1, EOT))]


def toy(seed, dtype=torch.float32):
    """A model of three ids whose distributions are far from uniform; with another dtype the same weights."""
    torch.manual_seed(seed)
    shape = GPTConfig(vocab_size=3, block_size=5, n_layer=1, n_head=1, n_embd=4, tie_word_embeddings=False)
    model = GPT(shape)
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.3)
    return model.eval().to(dtype)


def gradient(model):
    grads = [p.grad.flatten().double() for p in model.parameters()]
    model.zero_grad()
    return torch.cat(grads)


def trained_gradient(model, teacher, own: OwnText, objective):
    """What distill.py would get from these rows as a step of their own."""
    hidden = model(own.x, hidden=True)
    heads = [(teacher(own.x, hidden=True).detach(), teacher.lm_head.weight.detach())]
    n_tokens = (own.y >= 0).sum().item()
    loss, _, _ = chunked_head(hidden, model.lm_head.weight, own.y, n_tokens, heads, objective, vocab_size=3)
    loss.backward()
    return gradient(model)


def exact_gradient(kl, unmasked_prompt=False):
    """Sum over responses of q(y) times the gradient of the mean divergence over their tokens, in float64."""
    model, teacher = toy(0, torch.float64), toy(1, torch.float64)
    total = 0.0
    for response in RESPONSES:
        ids = torch.tensor([[*PROMPT, *response]])
        log_q = model(ids[:, :-1]).log_softmax(-1)[0]
        log_p = teacher(ids[:, :-1]).log_softmax(-1)[0].detach()
        first = len(PROMPT) - 1  # the position that predicts the first drawn token
        places = range(first, first + len(response))
        # no gradient through the sampling
        probability = sum(log_q[place, token] for place, token in zip(places, response)).exp().item()
        scored = range(0, first + len(response)) if unmasked_prompt else places
        values = []
        for place in scored:
            p, q = log_p[place].exp(), log_q[place].exp()
            m = (p + q) / 2
            values.append(
                {
                    "forward": (p * (p / q).log()).sum(),
                    "reverse": (q * (q / p).log()).sum(),
                    "js": (p * (p / m).log()).sum() / 2 + (q * (q / m).log()).sum() / 2,
                }[kl]
            )
        (sum(values) / len(values)).backward()
        total = total + probability * gradient(model)
    return total


@pytest.mark.parametrize("kl", ["forward", "reverse", "js"])
def test_the_mean_gradient_of_sampled_steps_is_the_exact_expectation(kl, run):
    """50,000 steps of one row each, within 4 standard errors of the enumeration in every component."""
    n = 50_000
    model, teacher = toy(0), toy(1)
    x = torch.tensor([[*PROMPT, 0, 0]]).expand(n, -1)
    settings = dict(prompt_tokens=(2, 2), response_tokens=2, temperature=1.0, vocab_size=3, eot=EOT, run=run)
    own = write_own_text(model, x, torch.zeros_like(x), 0, seed=7, **settings)
    objective = Objective(weight_ce=0.0, weight_kl=1.0, terms=divergence(kl))

    # rows of one response have one gradient: it is made once
    outcomes, counts = torch.cat((own.x, own.y), dim=1).unique(dim=0, return_counts=True)
    assert len(outcomes) == len(RESPONSES) and counts.min() > 100
    grads = []
    for outcome in outcomes:
        step = OwnText(outcome[None, :4], outcome[None, 4:], 0, 0)
        grads.append(trained_gradient(model, teacher, step, objective))
    grads = torch.stack(grads)
    shares = counts.double() / n
    mean = shares @ grads
    error = ((shares @ grads.square() - mean.square()).clamp(min=0) / n).sqrt()

    exact = exact_gradient(kl)
    assert ((mean - exact).abs() <= 4 * error + 1e-6).all()
    # and the test can fail: with the prompt scored as an answer it is another gradient
    wrong = exact_gradient(kl, unmasked_prompt=True)
    assert ((mean - wrong).abs() > 20 * error + 1e-3).any()


# ---------------------------------------------------------------------------------------------
# which positions are targets


class Scripted:
    """A student that says what it is told: rows of ids behind their prompts."""

    def __init__(self, *responses):
        self.responses = responses

    def generate(self, prompts, n, lengths, **settings):
        self.settings = settings
        width = int(lengths.max()) + n
        rows = []
        for prompt, length, response in zip(prompts.tolist(), lengths.tolist(), self.responses):
            rows.append((prompt[:length] + response + [settings["eot"]] * width)[:width])
        return torch.tensor(rows)


def written(run, x, responses, n, prompt_tokens, y=None, eot=9):
    x = torch.tensor(x)
    y = torch.zeros_like(x) if y is None else torch.tensor(y)
    settings = dict(seed=0, prompt_tokens=prompt_tokens, response_tokens=n, temperature=1.0, vocab_size=10, eot=eot)
    return write_own_text(Scripted(*responses), x, y, 0, run=run, **settings)


def test_drawn_tokens_are_the_targets_and_nothing_else(run):
    """Rows of 7: one that ends with its second token, one at once, one never."""
    rows = [[1, 9, 3, 4, 5, 6, 7]] * 3
    own = written(run, rows, [[5, 9], [9], [5, 6, 7]], n=3, prompt_tokens=(3, 3))
    assert own.x[:, :3].tolist() == [[1, 9, 3]] * 3
    # the prompt's last token predicts the first drawn one; the end of a text is a target, what follows is none
    assert own.y.tolist() == [
        [-1, -1, 5, 9, -1, -1, -1],
        [-1, -1, 9, -1, -1, -1, -1],
        [-1, -1, 5, 6, 7, -1, -1],
    ]
    # each drawn token is what the next position reads
    assert own.x[0, 3] == 5 and own.x[2, 3:6].tolist() == [5, 6, 7]
    # the end of text in the prompt has ended nothing
    assert own.n_ended == 2 and own.n_computed == 3 * (3 + 3 - 1)
    assert own.x.shape == own.y.shape == (3, 7)


def test_a_short_document_is_a_prompt_without_its_end(run):
    """A document of three tokens and its end of text, in a row of 6: at most three are the prompt."""
    own = written(run, [[1, 2, 3, 9, 9, 9]], [[4, 4]], n=2, prompt_tokens=(4, 4), y=[[2, 3, 9, -1, -1, -1]])
    assert own.x.tolist() == [[1, 2, 3, 4, 4, 9]] and own.y.tolist() == [[-1, -1, 4, 4, -1, -1]]


def test_a_response_up_to_the_last_position_is_complete(run):
    own = written(run, [[1, 2, 3, 4]], [[5, 6]], n=2, prompt_tokens=(2, 2))
    assert own.y.tolist() == [[-1, 5, 6, -1]]
    own = written(run, [[1, 2, 3, 4]], [[5, 9, 9]], n=2, prompt_tokens=(2, 2))
    assert own.y.tolist() == [[-1, 5, 9, -1]]


def test_lengths_and_draws_belong_to_the_row():
    """Whoever reads row 5 has its length and draws; over many rows all lengths of the range come up."""
    x = y = torch.zeros(8, 100, dtype=torch.long)
    make = partial(prompt_lengths_and_uniforms, seed=3, prompt_tokens=(32, 96), response_tokens=4)
    lengths, uniforms = make(x, y, 0)
    parts = [make(x[:2], y[:2], first) for first in (0, 2, 4, 6)]
    assert torch.equal(torch.cat([part[0] for part in parts]), lengths)
    assert torch.equal(torch.cat([part[1] for part in parts]), uniforms)
    assert not torch.equal(prompt_lengths_and_uniforms(x, y, 0, 4, (32, 96), 4)[1], uniforms)
    big = torch.zeros(3000, 100, dtype=torch.long)
    lengths, uniforms = make(big, big, 0)
    assert lengths.min() == 32 and lengths.max() == 96 and len(lengths.unique()) == 65
    assert 0 <= uniforms.min() and uniforms.max() < 1 and uniforms.unique().numel() == uniforms.numel()


def small_llama(vocab_size=64, seed=0):
    torch.manual_seed(seed)
    shape = LLaMAConfig(vocab_size=vocab_size, block_size=24, n_layer=2, n_head=2, n_embd=32, tie_word_embeddings=False)
    model = LLaMA(shape).eval()
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.5)
    return model


def test_a_batch_of_several_prompt_lengths_is_its_rows_one_by_one(run):
    model = small_llama()
    x = torch.randint(60, (6, 20), generator=torch.Generator().manual_seed(0))
    settings = dict(seed=1, prompt_tokens=(2, 9), response_tokens=8, temperature=1.0, vocab_size=60, eot=5, run=run)
    together = write_own_text(model, x, x, 40, **settings)
    assert len(set((together.y < 0).int().argmin(dim=1).tolist())) > 2  # lengths differ
    for i in range(6):
        alone = write_own_text(model, x[i : i + 1], x[i : i + 1], 40 + i, **settings)
        assert torch.equal(alone.y[0], together.y[i])
        n_read = int((together.y[i] >= 0).nonzero().max()) + 1
        assert torch.equal(alone.x[0, :n_read], together.x[i, :n_read])
    # ids of the padded head are never drawn
    assert together.y.max() < 60


def test_the_draws_follow_the_temperature_of_sampling(run):
    """One prompt, 20,000 rows: the first token's frequencies are softmax(logits / 0.5), within 4 standard errors."""
    model = small_llama(vocab_size=16)
    n = 20_000
    x = torch.full((n, 3), 7)
    settings = dict(prompt_tokens=(2, 2), response_tokens=1, vocab_size=12, eot=0, run=run)
    own = write_own_text(model, x, x, 0, seed=2, temperature=0.5, **settings)
    with torch.no_grad():
        expected = (model(x[:1, :2])[0, -1, :12] / 0.5).softmax(-1)
    frequencies = torch.bincount(own.y[:, 1], minlength=12) / n
    error = (expected * (1 - expected) / n).sqrt()
    assert ((frequencies - expected).abs() <= 4 * error + 1e-9).all()


# ---------------------------------------------------------------------------------------------
# runs

OWN = ["--block_size=24", "--prompt_tokens=4-10", "--response_tokens=12", "--dropout=0"]


@pytest.fixture(scope="module")
def long_teacher(dataset, tmp_path_factory):
    """A tiny trained GPT of rows of 24, whose head is padded more than the students'."""
    out = tmp_path_factory.mktemp("runs") / "teacher"
    shape = ["--arch=gpt", "--n_embd=48", "--block_size=24", "--vocab_multiple=400"]
    run_script("train.py", *TINY, *shape, f"--dataset={dataset}", f"--out_dir={out}", "--max_steps=12")
    return out


@pytest.fixture
def distil(dataset, long_teacher, tmp_path):
    def go(name, *keys, **more):
        own = [f"--dataset={dataset}", f"--teacher={long_teacher}", f"--out_dir={tmp_path / name}", "--max_steps=8"]
        return run_script("distill.py", *TINY, *OWN, *own, *keys, **more)

    return go


def same_logs(a, b, labels, **tolerance):
    for label in labels:
        left, right = read_log(a, label), read_log(b, label)
        assert list(left) == list(right) and len(left) > 1, label
        np.testing.assert_allclose(list(left.values()), list(right.values()), err_msg=label, **tolerance)


@pytest.mark.slow
def test_the_first_step_is_the_mean_over_all_generated_tokens(distil, dataset, long_teacher, tmp_path, run):
    """kl_own, by hand: own text of the weights at the start, T = 2 in the loss and 1 in the draws, both heads cut."""
    distil("run", "--on_policy=1", "--temperature=2", "--max_steps=1", "--grad_accum_steps=2", "--batch_size=3")
    distil("start", "--on_policy=1", "--max_steps=1", "--learning_rate=0", "--min_lr=0", "--weight_decay=0")
    model = load_pretrained(str(tmp_path / "start")).eval()
    teacher = load_pretrained(str(long_teacher)).eval()
    assert teacher.config.vocab_size > model.config.vocab_size > 257
    data = TokenData(dataset, "train", 24, seed=1337, batch_size=3, grad_accum_steps=2)
    total = n = 0
    for micro_step in range(2):
        x, y = data.batch(0, micro_step)
        own = write_own_text(
            model, x, y, 3 * micro_step, seed=1337, prompt_tokens=(4, 10), response_tokens=12, temperature=1.0,
            vocab_size=257, eot=ByteTokenizer().eot, run=run,
        )  # fmt: skip
        with torch.no_grad():
            log_q = (model(own.x)[..., :257].double() / 2).log_softmax(-1)
            log_p = (teacher(own.x)[..., :257].double() / 2).log_softmax(-1)
        total += (log_p.exp() * (log_p - log_q)).sum(-1)[own.y >= 0].sum().item()
        n += (own.y >= 0).sum().item()
    assert read_log(tmp_path / "run", "kl_own")[0] == pytest.approx(total / n, rel=1e-5)
    assert read_log(tmp_path / "run", "train")[0] == pytest.approx(4 * total / n, rel=1e-5)  # T**2
    assert read_log(tmp_path / "run", "own_tokens")[0] == pytest.approx(n / 6)
    assert n < 6 * 12  # of several lengths: a mean of the rows' means would be another number


@pytest.mark.slow
def test_there_is_no_cross_entropy_on_own_text(distil, tmp_path):
    """At on_policy = 1 weight_ce changes nothing, and nothing is logged of data."""
    for name, weight in (("with", 1), ("without", 0)):
        distil(name, "--on_policy=1", f"--weight_ce={weight}")
    same_logs(tmp_path / "with", tmp_path / "without", ("train", "norm", "kl_own"), rtol=0, atol=0)
    assert read_log(tmp_path / "with", "ce") == {}


@pytest.mark.slow
def test_losses_depend_neither_on_the_split_of_the_batch_nor_on_the_ranks(distil, tmp_path):
    """All rows are own text, whatever the split; of a share, the split decides which rows are."""
    keys = ["--on_policy=1", "--kl=reverse"]
    for name, batch_size, micro_steps in (("8x1", 8, 1), ("4x2", 4, 2), ("2x4", 2, 4)):
        distil(name, *keys, f"--batch_size={batch_size}", f"--grad_accum_steps={micro_steps}")
    distil("ranks", *keys, "--batch_size=4", ranks=2)
    for other in ("4x2", "2x4", "ranks"):
        labels = ("train", "kl_own", "norm", "own_tokens", "own_ended")
        same_logs(tmp_path / "8x1", tmp_path / other, labels, rtol=2e-5, atol=1e-7)


@pytest.mark.slow
def test_data_and_own_text_mix_by_their_shares(distil, tmp_path):
    """At a rate of 0: the loss of each step is half that of its data and half that of its own text."""
    still = ["--learning_rate=0", "--min_lr=0", "--weight_decay=0", "--batch_size=2", "--kl=js"]
    out = distil("mixed", *still, "--on_policy=0.5", "--grad_accum_steps=4", "--weight_ce=0.5").stdout
    mixed = {label: read_log(tmp_path / "mixed", label) for label in ("train", "ce", "kl", "kl_own")}
    assert len(mixed["kl_own"]) == 8
    for step, loss in mixed["train"].items():
        data = 0.5 * mixed["ce"][step] + 4 * mixed["kl"][step]
        assert loss == pytest.approx(0.5 * data + 0.5 * 4 * mixed["kl_own"][step], rel=1e-6)
    (line,) = (line for line in out.splitlines() if line.startswith("step 3/"))
    assert "= 0.5 (0.5 ce" in line and "+ 0.5*1*2^2 kl_own" in line and "tokens a row" in line and "% ended" in line
    # own text is that of micro-steps 1 and 3; 0 and 2 have the data that they would have without
    distil("data", *still, "--grad_accum_steps=4", "--weight_ce=0.5")
    assert read_log(tmp_path / "data", "ce")[0] != mixed["ce"][0]
    # a quarter of the steps, where a step has one micro-step
    distil("steps", *still, "--on_policy=0.25", "--weight_cos=0.5")
    kl_own = read_log(tmp_path / "steps", "kl_own")
    assert list(kl_own) == [3, 7] and list(read_log(tmp_path / "steps", "cos")) == [0, 1, 2, 4, 5, 6]
    # also where no line is of such a step: that of the newest since the line before
    distil("seldom", *still, "--on_policy=0.25", "--weight_cos=0.5", "--log_interval=6")
    assert read_log(tmp_path / "seldom", "kl_own") == {6: kl_own[3], 7: kl_own[7]}
    # and with rounded weights, where a projection has no gradient
    distil("rounded", "--on_policy=0.5", "--weight_cos=0.1", "--weight_dtype=bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_is_resumed_continues_to_the_same_bits(ranks, distil, tmp_path):
    keys = ["--on_policy=0.4", "--grad_accum_steps=2", "--dropout=0.1", "--weight_cos=0.1", "--eval_interval=4"]
    keys += [
        "--schedule=constant",
        "--log_interval=5",
        "--save_interval=5",
        "--keep_checkpoints=0",
        "--keep_best=False",
    ]
    distil("whole", *keys, ranks=ranks)
    # as if it had been stopped after step 4, whose own text is logged with step 5, which has none
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts/step_000008")
    (tmp_path / "parts/summary.json").unlink()
    distil("parts", *keys, "--init_from=resume", ranks=ranks)
    assert list(read_log(tmp_path / "parts", "kl_own")) == [5, 7]
    assert (tmp_path / "whole/log.txt").read_text() == (tmp_path / "parts/log.txt").read_text()
    a, b = (load_file(tmp_path / run / "step_000008/model.safetensors") for run in ("whole", "parts"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    flops = [json.loads((tmp_path / run / "summary.json").read_text())["flops"] for run in ("whole", "parts")]
    assert flops[0] == flops[1]
    # without own text from here on, nothing is said of it
    distil("parts", "--init_from=resume", "--on_policy=0", "--max_steps=12", ranks=ranks)
    assert max(read_log(tmp_path / "parts", "kl_own")) < 8


@pytest.mark.slow
def test_own_text_is_counted_in_the_flops(distil, tmp_path):
    """What a step on data costs, and one pass of the student over what it wrote more."""
    flops = {}
    for share in (0, 1):
        distil(f"share{share}", f"--on_policy={share}")
        flops[share] = json.loads((tmp_path / f"share{share}/summary.json").read_text())["flops"]
    assert 1 < flops[1] / flops[0] < 1.25


@pytest.mark.slow
def test_the_student_comes_closer_to_the_teacher_on_its_own_text(distil, tmp_path):
    distil("run", "--on_policy=1", "--max_steps=60", "--weight_ce=0", "--temperature=1", "--log_interval=1")
    kl_own = list(read_log(tmp_path / "run", "kl_own").values())
    assert np.mean(kl_own[-10:]) < 0.7 * np.mean(kl_own[:10])


@pytest.mark.slow
def test_compiled_and_with_rows_of_documents(distil, long_teacher, tmp_path):
    """Documents of 2 to 30 tokens: prompts are shorter where these are; compiled the losses are the same."""
    rng = np.random.default_rng(0)
    documents = write_dataset(tmp_path / "documents")
    for split in ("train", "val"):
        ids = np.fromfile(documents / f"{split}.bin", "<u2")
        ends = np.cumsum(rng.integers(2, 31, size=len(ids)))
        ids[ends[ends < len(ids)]] = ByteTokenizer().eot
        ids.tofile(documents / f"{split}.bin")
    keys = [f"--dataset={documents}", "--packing=documents", "--on_policy=0.5", "--max_steps=4", "--grad_accum_steps=2"]
    # weights that do not move: a last digit of theirs would sooner or later draw another token
    keys += ["--learning_rate=0", "--min_lr=0", "--weight_decay=0"]
    distil("plain", *keys)
    distil("compiled", *keys, "--compile=on")
    same_logs(tmp_path / "plain", tmp_path / "compiled", ("train", "ce", "kl_own", "norm"), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys, message",
    [
        (["--on_policy=1.5"], "on_policy=1.5 is out of range"),
        (["--on_policy=-0.1"], "on_policy=-0.1 is out of range"),
        (["--prompt_tokens=9-4"], "prompt_tokens='9-4': expected a length or a range"),
        (["--prompt_tokens=0"], "prompt_tokens='0': expected a length or a range"),
        (["--prompt_tokens=4-8-9"], "prompt_tokens='4-8-9': expected"),
        (["--prompt_tokens=few"], "prompt_tokens='few': expected"),
        (["--prompt_tokens=4-20"], "are more than block_size=24 together; lower one"),
        (["--response_tokens=0"], "response_tokens=0"),
        (["--sample_temperature=0"], "sample_temperature=0"),
        (["--weight_kl=0", "--weight_cos=1"], "on_policy=0.5, but weight_kl=0"),
        (["--on_policy=1", "--weight_mse=1"], "on_policy=1 leaves no data, which alone weight_mse=1 is of"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(keys, message, distil, tmp_path):
    done = distil("no", "--on_policy=0.5", *keys, ok=False)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "no/log.txt").exists()


@pytest.mark.slow
def test_a_cache_knows_nothing_of_new_text(distil, dataset, long_teacher, tmp_path):
    cache = tmp_path / "cache"
    own = [f"--teacher={long_teacher}", f"--dataset={dataset}", f"--out_dir={cache}", "--device=cpu"]
    run_script("cache_teacher.py", *own, "--block_size=24", "--eval_rows=8")
    keys = [f"--teacher={cache}", "--random_offset=False", "--eval_rows=8"]
    done = distil("no", "--on_policy=0.5", *keys, ok=False)
    assert done.returncode == 2 and "which no cache can know; name the teachers themselves" in done.stderr
