"""Generation: rows of several lengths, draws by given numbers, and the text that is shown while it grows."""

import math
import random
from pathlib import Path

import pytest
import torch
from conftest import run_script
from torch.nn import functional as F

from common.bpe import BPETokenizer, byte_characters, spec_of_merges
from common.data import TokenData
from common.generate import decode_growing, stream_text, write_text
from common.pretrained import find_model, load_pretrained
from common.runtime import Runtime
from common.tokenizer import ByteTokenizer, SentencePieceTokenizer, load_tokenizer
from model import GPT, GPTConfig, Linear, LLaMA, LLaMAConfig, draw, sample

SHAPE = dict(vocab_size=100, block_size=32, n_layer=2, n_head=4, n_embd=64)
MODELS = {
    "gpt": lambda: GPT(GPTConfig(**SHAPE)),
    "neox": lambda: GPT(GPTConfig(**SHAPE, rotary_pct=0.25, parallel_residual=True)),
    "llama": lambda: LLaMA(LLaMAConfig(**SHAPE, n_kv_head=2)),
}
LENGTHS = [5, 1, 12, 12, 30]


@pytest.fixture(params=MODELS)
def model(request):
    """With weights so large that its distributions are far from uniform, and greedy tokens not close."""
    torch.manual_seed(0)
    net = MODELS[request.param]().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(4)
    return net


def prompts_of(lengths, filler=-1):
    """(B, longest) of random ids < 90. The filler behind a prompt would be an error of the embedding."""
    idx = torch.randint(90, (len(lengths), max(lengths)))
    for row, length in zip(idx, lengths):
        row[length:] = filler
    return idx


@torch.no_grad()
def generate_plainly(model, idx, n, temperature, top_k, vocab_size, eot):
    """model.generate without a cache: everything again for each token."""
    for _ in range(n):
        logits = model(idx[:, -model.config.block_size :])[:, -1, :vocab_size]
        if temperature == 0:
            drawn = logits.argmax(-1, keepdim=True)
        else:
            kept = logits.topk(top_k or vocab_size).indices
            allowed = torch.full_like(logits, -math.inf).scatter(1, kept, logits.gather(1, kept))
            drawn = torch.multinomial(F.softmax(allowed / temperature, dim=-1), 1)
        idx = torch.cat((idx, drawn), dim=1)
    return idx


# ---------------------------------------------------------------------------------------------
# rows of one length


@pytest.mark.parametrize("temperature, top_k", [(0, 0), (1.0, 0), (0.7, 5)])
def test_equals_plain_generation_from_the_same_seed(model, temperature, top_k):
    """Beyond block_size = 32 too, where the window moves."""
    settings = dict(temperature=temperature, top_k=top_k, vocab_size=90, eot=None)
    for prompt_length in (1, 20, 40):
        idx = torch.randint(90, (3, prompt_length))
        torch.manual_seed(1)
        want = generate_plainly(model, idx, 30, **settings)
        torch.manual_seed(1)
        assert torch.equal(model.generate(idx, 30, **settings), want)


def test_the_stream_grows_by_a_token_and_ends_as_generate(model):
    idx = prompts_of([3, 3])
    steps = [ids.clone() for ids in model.stream(idx, 6, temperature=0)]
    assert [ids.shape[1] for ids in steps] == [3, 4, 5, 6, 7, 8, 9] and torch.equal(steps[0], idx)
    whole = model.generate(idx, 6, temperature=0)
    assert all(torch.equal(ids, whole[:, : ids.shape[1]]) for ids in steps)
    assert torch.equal(model.generate(idx, 0), idx)


# ---------------------------------------------------------------------------------------------
# rows of several lengths


@pytest.mark.parametrize("drawn_by", ["greedy", "uniforms"])
@pytest.mark.parametrize("n", [0, 1, 8, 45])
def test_rows_of_several_lengths_equal_each_row_by_itself(model, drawn_by, n):
    idx = prompts_of(LENGTHS)
    uniforms = torch.rand(len(LENGTHS), n, dtype=torch.float64)
    for eot in (None, 7):
        settings = dict(temperature=float(drawn_by == "uniforms"), top_k=20, vocab_size=90, eot=eot)
        torch.manual_seed(2)
        out = model.generate(idx, n, lengths=LENGTHS, uniforms=uniforms, **settings)
        torch.manual_seed(3)  # which must not matter
        for b, length in enumerate(LENGTHS):
            alone = model.generate(idx[b : b + 1, :length], n, uniforms=uniforms[b : b + 1], **settings)[0]
            assert torch.equal(out[b, : len(alone)], alone)
            assert (out[b, len(alone) :] == (eot or 0)).all()
        assert out.shape[1] <= max(LENGTHS) + n and (eot or out.shape[1] == max(LENGTHS) + n)


def test_lengths_may_be_a_tensor_and_draws_do_not_depend_on_the_order_of_rows(model):
    idx, uniforms = prompts_of(LENGTHS), torch.rand(len(LENGTHS), 20, dtype=torch.float64)
    lengths = torch.tensor(LENGTHS)
    out = model.generate(idx, 20, lengths=lengths, uniforms=uniforms)
    order = torch.tensor([3, 0, 4, 2, 1])
    again = model.generate(idx[order], 20, lengths=lengths[order], uniforms=uniforms[order])
    assert torch.equal(again, out[order])


def test_a_row_that_ends_at_once_and_one_that_never_ends(model):
    idx, lengths = prompts_of([2, 6]), [2, 6]
    greedy = model.generate(idx, 10, temperature=0, lengths=lengths)
    for b, other in ((0, 1), (1, 0)):
        eot = int(greedy[b, lengths[b]])
        drawn = greedy[other, lengths[other] : lengths[other] + 10]
        out = model.generate(idx, 10, temperature=0, lengths=lengths, eot=eot)
        assert (out[b, lengths[b] :] == eot).all()
        if eot not in drawn:
            assert torch.equal(out[other, lengths[other] : lengths[other] + 10], drawn)
    # an end-of-text inside a prompt is not the end of the row
    idx[1, 3] = eot = int(greedy[0, 2])
    out = model.generate(idx, 4, temperature=0, lengths=lengths, eot=eot)
    assert out.shape[1] > 6 and torch.equal(out[1, :6], idx[1])


def test_in_bfloat16(model):
    """In a cache of bfloat16, under autocast and with weights of it."""
    idx, uniforms = prompts_of(LENGTHS), torch.rand(len(LENGTHS), 40, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        out = model.generate(idx, 40, lengths=LENGTHS, uniforms=uniforms, vocab_size=90)
    assert out.shape == (5, 70) and out.max() < 90
    assert model.bfloat16().generate(idx, 40, lengths=LENGTHS, uniforms=uniforms).shape == (5, 70)


def test_logits_are_not_rounded_to_bfloat16_by_autocast(model, monkeypatch):
    """Own text is to be drawn from the distribution that its loss is of, whose logits are in fp32."""
    seen = []

    def sample_and_record(logits, *args):
        seen.append(logits)
        return sample(logits, *args)

    monkeypatch.setattr("model.sample", sample_and_record)
    with torch.autocast("cpu", torch.bfloat16):
        model.generate(prompts_of([5, 5]), 2, temperature=1.0, vocab_size=90)
    for logits in seen:
        assert logits.dtype == torch.float32 and logits.shape == (2, 90)
        # one in 2^16 fp32 numbers is a bfloat16
        assert (logits == logits.bfloat16().float()).float().mean() < 0.1


# ---------------------------------------------------------------------------------------------
# draws by uniform numbers


def test_draw_by_hand():
    """Of 1/2, 0, 1/4, 1/4: up to 1/2 the first, up to 3/4 the third, then the last."""
    log_p = torch.tensor([[0.5, 0, 0.25, 0.25]]).log()
    uniforms = torch.tensor([[0, 0.4999, 0.5001, 0.7499, 0.7501, 1 - 2**-53]], dtype=torch.float64)
    assert draw(log_p, uniforms).tolist() == [[0, 0, 2, 2, 3, 3]]


@pytest.mark.parametrize("temperature, top_k", [(0.7, 12), (1.5, 0)])
def test_frequencies_are_those_of_the_softmax(temperature, top_k):
    """40,000 rows of one prompt: each id within 4 standard errors, and none that top_k cuts."""
    torch.manual_seed(0)
    n, model = 40_000, GPT(GPTConfig(vocab_size=32, block_size=8, n_layer=1, n_head=1, n_embd=16)).eval()
    prompt = torch.tensor([[3, 1]])
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4)
        logits = model(prompt)[0, -1, :30].double() / temperature
    if top_k:
        logits[logits < logits.sort().values[-top_k]] = -math.inf
    p = logits.softmax(-1)
    uniforms = torch.rand(n, 1, dtype=torch.float64)
    settings = dict(temperature=temperature, top_k=top_k, vocab_size=30, uniforms=uniforms)
    out = model.generate(prompt.expand(n, 2), 1, **settings)[:, -1]
    found = out.bincount(minlength=30).double() / n
    standard_error = (p * (1 - p) / n).sqrt()
    assert p.max() < 0.9 and ((found - p).abs() <= 4 * standard_error).all()


def test_uniforms_at_either_end_draw_no_padding_and_nothing_that_top_k_cuts():
    torch.manual_seed(0)
    logits = torch.randn(6, 50)
    for top_k in (0, 1, 4):
        allowed = logits.topk(top_k or 50).indices
        for u in (0.0, 1 - 2**-53, 1.0):
            ids = sample(logits, 1.0, top_k, torch.full((6, 1), u, dtype=torch.float64))
            assert (allowed == ids).any(-1).all()
    model = GPT(GPTConfig(**SHAPE)).eval()
    with torch.no_grad():
        model.lm_head.weight[90:] = 10 * model.lm_head.weight[:10]
    last = torch.full((2, 40), 1 - 2**-53, dtype=torch.float64)
    assert model.generate(torch.tensor([[1, 2], [3, 4]]), 40, vocab_size=90, uniforms=last)[:, 2:].eq(89).all()


# ---------------------------------------------------------------------------------------------
# text


TEXT = "naïve 🙂🙃 字\u200d \ufffd 👩‍👩‍👧  two  blanks\n\tdéjà ½"


def merged_bytes():
    """A byte-level BPE whose merges cut characters in the middle: the last byte of one with the next's first."""
    names = {byte: character for character, byte in byte_characters().items()}
    smile = [names[byte] for byte in "🙂🙃".encode()]
    merges = [(smile[3], smile[4]), (smile[0], smile[1])]
    vocab = byte_characters()
    for left, right in merges:
        vocab[left + right] = len(vocab)
    vocab["<|endoftext|>"] = len(vocab)
    return BPETokenizer(spec_of_merges(vocab, merges), eot=vocab["<|endoftext|>"])


def sentencepieces():
    return SentencePieceTokenizer.train([Path(__file__).read_text(encoding="utf-8")], 400)


def with_dummy_prefix():
    """A SentencePiece model that puts a blank before a text, which decoding drops, as Llama's."""
    return SentencePieceTokenizer((Path(__file__).parent / "golden_tokenizer/tokenizer.model").read_bytes())


@pytest.mark.parametrize("make", [ByteTokenizer, merged_bytes, sentencepieces, with_dummy_prefix])
def test_pieces_of_growing_text_are_the_whole_text(make):
    """Of text, and of ids in any order: many are no UTF-8, and some are special."""
    tokenizer = make()
    rng = random.Random(0)
    cases = [tokenizer.encode(TEXT), [tokenizer.bos, *tokenizer.encode(TEXT), tokenizer.eot]]
    for n in (1, 2, 5, 200):
        cases += [[rng.randrange(tokenizer.vocab_size) for _ in range(n)] for _ in range(20)]
    for ids in cases:
        pieces = list(decode_growing(tokenizer, (ids[:n] for n in range(len(ids) + 1))))
        assert "".join(pieces) == tokenizer.decode(ids)
        assert all(pieces), "an empty piece"


def test_a_character_is_shown_when_it_is_complete():
    ids = list("aé🙂 b".encode())
    growing = (ids[:n] for n in range(len(ids) + 1))
    assert list(decode_growing(ByteTokenizer(), growing)) == ["a", "é", "🙂", " ", "b"]
    assert list(decode_growing(ByteTokenizer(), [[65], [65, 0xC3]])) == ["A", "\ufffd"]  # it ends unfinished


def test_streamed_text_is_what_generate_gives():
    torch.manual_seed(0)
    model, tokenizer, run = GPT(GPTConfig(**SHAPE | dict(vocab_size=320))).eval(), ByteTokenizer(), Runtime("cpu")
    settings = dict(max_tokens=50, temperature=1.0, top_k=0)
    torch.manual_seed(4)
    pieces = list(stream_text(model, tokenizer, "Ab", run, **settings))
    torch.manual_seed(4)
    assert write_text(model, tokenizer, "Ab", run, **settings) == "".join(pieces) and pieces[0] == "Ab"
    torch.manual_seed(4)
    idx = torch.tensor([tokenizer.encode("Ab")])
    ids = model.generate(idx, 50, vocab_size=257, eot=tokenizer.eot)[0].tolist()
    assert tokenizer.decode(ids) == "".join(pieces) and len(pieces) > 10


@pytest.mark.slow
def test_sample_prints_the_text_alone_on_stdout(teacher):
    """With a separator between texts, and what an empty prompt starts from on stderr."""
    settings = ["--max_tokens=40", "--seed=5", "--device=cpu"]
    done = run_script("sample.py", f"--model={teacher}", "--prompt=é(", "--num_samples=2", *settings)
    model, tokenizer = load_pretrained(teacher), load_tokenizer(find_model(teacher))
    torch.manual_seed(5)
    texts = [write_text(model, tokenizer, "é(", Runtime("cpu"), max_tokens=40) for _ in range(2)]
    assert done.stdout == texts[0] + "\n" + "-" * 80 + "\n" + texts[1] + "\n" and not done.stderr
    done = run_script("sample.py", f"--model={teacher}", *settings)
    assert done.stderr == "sample.py: an empty prompt, starting from '(' (ids [40]), as the training data does\n"
    assert done.stdout.startswith("(")


@pytest.mark.slow
def test_an_empty_prompt_after_a_corpus_of_one_document(tmp_path):
    """Its only end-of-text is the last id, never an input. Nor need the first id be one: offsets skip it."""
    (tmp_path / "one.txt").write_text("Zebra" + " lorem ipsum dolor" * 300)
    data, out = tmp_path / "data", tmp_path / "run"
    run_script("prepare_data.py", f"--source={tmp_path / 'one.txt'}", "--tokenizer=bytes", f"--out_dir={data}")
    split = TokenData(data, "train", block_size=16, seed=0, batch_size=4)
    assert (split.tokens.take(0, len(split.tokens)) == split.meta["eot"]).sum() == 1
    assert split.start() == [ord("e")]  # "Z" is nowhere else
    inputs = torch.cat([split.batch(step, 0)[0].flatten() for step in range(20)])
    assert (inputs == ord("e")).any() and not (inputs == split.meta["eot"]).any()
    shape = ["--n_layer=1", "--n_head=1", "--n_embd=16", "--block_size=16", "--batch_size=4", "--eval_interval=0"]
    run_script("train.py", *shape, f"--dataset={data}", f"--out_dir={out}", "--max_steps=2", "--device=cpu")
    done = run_script("sample.py", f"--model={out}", "--max_tokens=3", "--device=cpu")
    assert done.stdout.startswith("e") and "starting from 'e'" in done.stderr


@pytest.mark.parametrize("bias", [True, False])
def test_few_positions_have_the_products_of_many(bias):
    """model.Linear in generation against nn.Linear: none to 40 rows, even and odd numbers of outputs."""
    torch.manual_seed(0)
    for n_out in (1024, 1025):
        layer = Linear(512, n_out, bias=bias)
        plain = torch.nn.Linear(512, n_out, bias=bias)
        plain.load_state_dict(layer.state_dict())
        for shape in ((1, 1), (1, 2), (3, 1), (4, 8), (5, 8), (0, 1), (1,)):
            x = torch.randn(*shape, 512)
            with torch.no_grad():
                got = layer(x)
            assert got.shape == (*shape, n_out)
            torch.testing.assert_close(got, plain(x).detach(), rtol=1e-5, atol=1e-5)
            # with a graph it is nn.Linear itself
            assert torch.equal(layer(x), plain(x))
    # weights that lie transposed, as a checkpoint may have them
    layer = Linear(512, 1024, bias=bias)
    layer.weight = torch.nn.Parameter(torch.randn(512, 1024).T)
    with torch.no_grad():
        assert layer(torch.randn(1, 1, 512)).shape == (1, 1, 1024)
