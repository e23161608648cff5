"""Scoring equals a straightforward loop over one example at a time."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_script
from torch.nn import functional as F

import hellaswag
from common.pretrained import load_pretrained
from common.runtime import Runtime
from common.tokenizer import ByteTokenizer, load_tokenizer
from hellaswag import load_examples, predict
from model import GPT, GPTConfig, LLaMA, LLaMAConfig
from tasks.loading import draw_shots
from tasks.prompts import hellaswag_example
from tasks.scoring import batch, encode_rows, lay_out, score

DATA = Path(__file__).resolve().parents[2] / "shared/data"
RUN = Runtime("cpu")
WORDS = "the quick brown fox jumps over lazy dogs".split()


@torch.no_grad()
def one_at_a_time(model, groups, n_ids):
    """A text at a time, whole and without padding: summed log-probabilities and numbers of scored tokens."""
    sums, counts = [], []
    for ids, n in (text for group in groups for text in group):
        ids = torch.tensor(ids[-model.config.block_size - 1 :])
        logits = model(ids[None, :-1])[0, -n:, :n_ids]
        n = len(logits)
        sums.append(-F.cross_entropy(logits, ids[-n:], reduction="none").double().sum().item())
        counts.append(n)
    return np.array(sums), np.array(counts)


def predictions(values, sizes):
    """The place of the first largest in each stretch of `values`."""
    return [int(part.argmax()) for part in np.split(values, np.cumsum(sizes)[:-1])]


def some_text(n):
    return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (n,)))


MODELS = [
    LLaMAConfig(320, 48, 2, 4, 2, n_embd=32),
    LLaMAConfig(320, 48, 2, 4, 2, n_embd=32, qk_norm_all_heads=True, norm_after=True),
    GPTConfig(320, 48, 2, 2, 32),
    GPTConfig(320, 48, 2, 2, 32, rotary_pct=0.5),
]


@pytest.mark.parametrize("config", MODELS, ids=["llama", "olmo2", "gpt", "neox"])
def test_scores_equal_the_loop_of_one_text_at_a_time(config):
    """Texts of all lengths, some beyond block_size, endings that are equal or begin alike, and a padded head that would
    win if it were not cut."""
    torch.manual_seed(0)
    model = (LLaMA if isinstance(config, LLaMAConfig) else GPT)(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
        model.lm_head.weight[257:] = 100 * model.lm_head.weight[32]
    examples = [
        {"ctx": some_text(1 + i % 12), "endings": [some_text(1 + (i + j) % 5) for j in range(4)]} for i in range(60)
    ]
    examples[7]["endings"] = ["the fox"] * 4
    examples[8]["endings"] = ["over", "the fox", "the fox", "the foxes"]
    examples[9] = {"ctx": "", "endings": ["", "the", "e"]}
    groups = [encode_rows(ByteTokenizer(), e["ctx"], e["endings"]) for e in examples]
    wanted, counts = one_at_a_time(model, groups, 257)
    got = score(model, groups, 257, RUN, greedy=True)
    np.testing.assert_allclose(got[:, 0], wanted, atol=1e-4)
    assert (got[:, 1] == counts).all()
    sizes = [len(e["endings"]) for e in examples]
    found = predict(model, ByteTokenizer(), examples, RUN)
    assert found == list(zip(predictions(wanted, sizes), predictions(wanted / counts, sizes)))
    assert len(set(found)) > 4 and any(a != b for a, b in found)
    assert found[7] == (0, 0) and len(set(got[28:32, 0])) == 1
    assert got[33, 0] == got[34, 0]
    for text, (ids, _) in zip(got, (text for group in groups for text in group)):  # the last column: greedy
        ids = torch.tensor(ids[-49:])
        likeliest = model(ids[None, :-1])[0, :, :257].argmax(-1)[-int(text[1]) :]
        assert text[2] == (likeliest == ids[-int(text[1]) :]).all().item()


def test_rows_by_hand():
    """1 2 3 4 5, 1 2 3 4 6 7 and 1 2 3 8: their start is computed once, and the last ids are only predicted."""
    texts = [(0, [1, 2, 3, 4, 5], 2), (1, [1, 2, 3, 4, 6, 7], 3), (2, [1, 2, 3, 8], 1)]
    (row,) = lay_out(texts, 6)
    assert row.ids == [1, 2, 3, 4, 4, 6]
    assert row.positions == [0, 1, 2, 3, 3, 4]
    assert row.part == [0, 0, 0, 1, 2, 2]
    assert row.scored == [(2, 4, 0), (3, 5, 0), (2, 4, 1), (4, 6, 1), (5, 7, 1), (2, 8, 2)]
    # two of them share one id more; the third does not fit beside them
    assert [row.ids for row in lay_out(texts, 5)] == [[1, 2, 3, 4, 6], [1, 2, 3]]
    # the second loses its first id, and shares nothing then
    assert [row.ids for row in lay_out(texts, 4)] == [[1, 2, 3, 4], [2, 3, 4, 6], [1, 2, 3]]


def test_masks_by_hand():
    """The row above, padded by two: a column sees the start and its own part, and nobody sees the padding."""
    texts = [(0, [1, 2, 3, 4, 5], 2), (1, [1, 2, 3, 4, 6, 7], 3), (2, [1, 2, 3, 8], 1)]
    ids, positions, mask = batch(lay_out(texts, 6), 8, "cpu")
    assert ids.tolist() == [[1, 2, 3, 4, 4, 6, 0, 0]] and positions.tolist() == [[0, 1, 2, 3, 3, 4, 0, 0]]
    assert mask.shape == (1, 1, 8, 8)
    wanted = ["1.......", "11......", "111.....", "1111....", "111.1...", "111.11.."]
    seen = ["".join(".1"[x] for x in query) for query in mask[0, 0].int().tolist()]
    assert seen[:6] == wanted
    # rows of one text each need no mask
    assert batch(lay_out(texts[:1], 6), 8, "cpu")[1:] == (None, None)


def test_one_text_sees_nothing_of_another():
    """Whatever stands beside it, a text has the same score: rows of one, of four, and of a batch with longer rows."""
    torch.manual_seed(1)
    model = LLaMA(LLaMAConfig(300, 64, 2, 2, n_embd=32)).eval()
    group = encode_rows(ByteTokenizer(), "the quick", ["brown", "fox", "jumps over", "dogs"])
    apart = np.concatenate([score(model, [[text]], 257, RUN) for text in group])
    long = encode_rows(ByteTokenizer(), some_text(9), [some_text(9)])
    np.testing.assert_allclose(score(model, [group, long], 257, RUN)[:4], apart, rtol=1e-6)
    np.testing.assert_allclose(score(model, [group], 257, RUN), apart, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs HellaSwag and the 260K-parameter LLaMA beside the project")
@pytest.mark.parametrize("convention", hellaswag.CONVENTIONS)
def test_200_examples_of_hellaswag_equal_the_loop(convention):
    """From all over the file: WikiHow's are long."""
    folder = DATA / "checkpoints/stories260K_hf"
    model, tokenizer = load_pretrained(folder), load_tokenizer(folder)
    examples = load_examples(str(DATA / "hellaswag/hellaswag_val.jsonl"), convention=convention)[::50]
    groups = [encode_rows(tokenizer, e["ctx"], e["endings"], convention == "harness") for e in examples]
    wanted, counts = one_at_a_time(model, groups, tokenizer.vocab_size)
    np.testing.assert_allclose(score(model, groups, tokenizer.vocab_size, RUN)[:, 0], wanted, atol=1e-4)
    if convention == "harness":
        counts = np.array([len(ending) for e in examples for ending in e["endings"]])
    found, four = predict(model, tokenizer, examples, RUN, convention), [4] * len(examples)
    assert len(found) > 200 and found == list(zip(predictions(wanted, four), predictions(wanted / counts, four)))


def test_sum_and_count_by_hand():
    """A model that finds every id equally likely: -n log V."""
    model = LLaMA(LLaMAConfig(64, 16, 1, 1, n_embd=8)).eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    got = score(model, [[([1, 2, 3, 4], 2), ([1, 2], 1)], [(list(range(40)), 3)]], 50, RUN)
    np.testing.assert_allclose(got[:, 0], -np.log(50) * np.array([2, 1, 3]), rtol=1e-6)
    assert got[:, 1].tolist() == [2, 1, 3]


def test_a_model_that_diverged_is_an_error_and_no_chance_score():
    model = LLaMA(LLaMAConfig(300, 16, 1, 1, n_embd=8)).eval()
    torch.nn.init.constant_(model.h[0].mlp.c_proj.weight, torch.nan)
    with pytest.raises(ValueError, match="not finite; its weights are damaged or diverged"):
        score(model, [[([1, 2, 3], 1)]], 257, RUN)


@pytest.mark.slow
def test_compiled_once_or_twice_for_all_lengths():
    """torch.compile sees one shape, then any: no compilation after the second, whatever the examples."""
    import torch._dynamo.testing as testing

    torch.manual_seed(0)
    torch._dynamo.reset()
    counter = testing.CompileCounter()
    model = LLaMA(LLaMAConfig(300, 96, 1, 1, n_embd=8)).eval()
    compiled = torch.compile(model, backend=counter)
    for seed in range(6):
        endings = [some_text(1 + seed), some_text(2)]
        groups = [encode_rows(ByteTokenizer(), some_text(1 + (seed + i) % 12), endings) for i in range(40 + 7 * seed)]
        got = score(compiled, groups, 257, RUN)
        np.testing.assert_allclose(got, score(model, groups, 257, RUN), rtol=1e-6)
    assert 1 <= counter.frame_count <= 2


class Merging(ByteTokenizer):
    """Bytes, but "b c" is one token, as a BPE may merge across the end of the context."""

    def encode(self, text):
        return [300 if char == "\0" else ord(char) for char in text.replace("b c", "\0")]


def test_ending_tokens_are_those_beyond_the_context():
    assert encode_rows(ByteTokenizer(), "ab", ["c"]) == [([97, 98, 32, 99], 2)]
    assert encode_rows(ByteTokenizer(), "", ["c"]) == [([256, 32, 99], 2)]  # something must come first
    assert encode_rows(Merging(), "ab", ["cd"]) == [([97, 98, 32, 99, 100], 3)]  # not a prefix: encoded apart
    assert encode_rows(ByteTokenizer(), "ab", [""]) == [([97, 98, 32], 1)]  # an empty ending is the blank


def test_an_ending_without_tokens_is_the_end_of_text():
    class Trimming(ByteTokenizer):
        """Blanks at the end of a text have no token, as in some SentencePiece models."""

        def encode(self, text):
            return super().encode(text.rstrip())

    assert encode_rows(Trimming(), "ab", ["", "c"]) == [([97, 98, 256], 1), ([97, 98, 32, 99], 2)]


def test_harness_convention():
    """As lm-evaluation-harness 0.4.13 has it: brackets, the label in front, characters, the beginning-of-text id."""
    ctx, title = "[header] How to tile [title] Lay it.  Now", "Tiling:  How to tile. Lay it. Now The man"
    endings = ["rests. [step] Ever", "x"]
    row = {"activity_label": "Tiling", "ctx_a": ctx, "ctx_b": "the man", "ctx": f"{ctx} the man", "endings": endings}
    row["label"] = "1"
    expected = {"ctx": title.replace("  ", " "), "endings": ["rests. Ever", "x"], "label": 1}
    assert hellaswag_example(row, "harness") == expected
    assert hellaswag_example(row) == {"ctx": row["ctx"], "endings": row["endings"], "label": 1}
    tokenizer = ByteTokenizer()
    blank_is_the_endings = encode_rows(tokenizer, "ab ", ["c"], harness=True)
    assert blank_is_the_endings == [([97, 98, 32, 32, 99], 3)]
    tokenizer.bos = 7
    assert encode_rows(tokenizer, "ab", ["c"], harness=True) == [([7, 97, 98, 32, 99], 2)]
    assert encode_rows(tokenizer, "ab", ["c"]) == [([97, 98, 32, 99], 2)]


def test_shots_are_fixed_by_the_seed_and_never_the_question_itself():
    pool = [f"q{i} a{i}" for i in range(6)]
    drawn = draw_shots(pool, 3, 5)
    assert drawn == draw_shots(pool, 3, 5) != draw_shots(pool, 3, 6)
    assert len(set(drawn.split("\n\n"))) == 4 and drawn.endswith("\n\n")
    for i in range(6):
        shots = draw_shots(pool, 3, 5, i).split("\n\n")[:-1]
        assert len(shots) == 3 and pool[i] not in shots
    assert draw_shots(pool, 0, 5) == ""
    assert len(draw_shots(pool, 6, 5).split("\n\n")) == 7
    with pytest.raises(ValueError, match="shots=6, but there are only 5 other examples"):
        draw_shots(pool, 6, 5, 2)


def write_rows(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.slow
def test_command_line(teacher, tmp_path):
    rows = [{"ctx": "abc", "endings": ["d", "e"], "label": "1"}] * 3  # the official file has labels as text
    args = [f"--model={teacher}", f"--data={write_rows(tmp_path / 'h.jsonl', rows)}", "--device=cpu"]
    (tmp_path / "h.jsonl").write_text((tmp_path / "h.jsonl").read_text().replace("\n", "\r\n\r\n") + "\r\n \n")
    line = run_script("hellaswag.py", *args, "--limit=2").stdout.splitlines()[-1]
    assert line.startswith("hellaswag n=2 acc=") and line.endswith("examples/s)") and "±0.0000 acc_norm=" in line
    pool = write_rows(tmp_path / "train.jsonl", [{"ctx": f"{i}", "endings": ["x", "y"], "label": 0} for i in range(9)])
    args += ["--shots=2", f"--shots_data={pool}"]
    said, line = run_script("hellaswag.py", *args).stdout.splitlines()[-2:]
    assert said == f"convention completion, 2 shots of {pool} drawn with seed 1337" and line.startswith("hellaswag n=3")
    found = json.loads(run_script("hellaswag.py", *args, "--json").stdout)
    (result,) = found["results"]
    assert found["tokenizer_hash"] == load_tokenizer(teacher).hash and len(found["model_sha256"]) == 64
    assert result["shots"] == 2 and len(result["data_sha256"]) == 64 and result["metrics"]["acc"]["value"] in (0, 1)


@pytest.mark.slow
def test_texts_beyond_the_window_are_announced(teacher, tmp_path):
    data = write_rows(tmp_path / "h.jsonl", [{"ctx": "abc" * 20, "endings": ["d", "e"], "label": 0}] * 2)
    for more in ([], ["--json"]):
        done = run_script("hellaswag.py", f"--model={teacher}", f"--data={data}", "--device=cpu", *more)
        assert "hellaswag: 4 of 4 texts are beyond the model's 16 positions; they lose their first" in done.stderr


@pytest.mark.slow
def test_two_ranks_share_the_examples(teacher, tmp_path):
    torch.manual_seed(2)
    rows = [{"ctx": some_text(3), "endings": [some_text(2) for _ in range(4)], "label": i % 4} for i in range(31)]
    args = [f"--model={teacher}", f"--data={write_rows(tmp_path / 'h.jsonl', rows)}", "--device=cpu"]
    one, two = (run_script("hellaswag.py", *args, ranks=n).stdout.splitlines()[-1] for n in (1, 2))
    assert one.split(" (")[0] == two.split(" (")[0] and "n=31" in one


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"ctx": "a", "endings": ["b", "c"]}', "line 1: expected JSON with ctx, endings and label"),
        ('{"ctx": "a", "endings": ["b", "c"], "label": ""}', "line 1: expected JSON with ctx, endings and label"),
        ('{"ctx": "a", "endings": ["b", "c"], "label": 0}\n{', "line 2: expected JSON"),
        ('{"ctx": "a", "endings": "bcde", "label": 2}', "endings a list of texts"),
        ('{"ctx": "a", "endings": ["b", "c"], "label": 2}', "line 1: label 2 of 2 endings"),
        ("", "has no examples"),
    ],
)
def test_bad_files_are_named(text, message, tmp_path):
    (tmp_path / "h.jsonl").write_text("\ufeff" + text)
    with pytest.raises(ValueError, match=message):
        load_examples(str(tmp_path / "h.jsonl"))
    with pytest.raises(FileNotFoundError, match="no HellaSwag file"):
        load_examples(str(tmp_path / "nowhere.jsonl"))


@pytest.mark.slow
def test_bad_settings_end_in_one_line(teacher, tmp_path):
    data = write_rows(tmp_path / "h.jsonl", [{"ctx": "a", "endings": ["b", "c"], "label": 0}])
    for args, message in [
        (["--convention=karpathy"], "convention='karpathy' is not one of completion, harness"),
        (["--convention=harness"], "line 1: expected JSON with ctx, endings and label, and activity_label (KeyError"),
        (["--shots=1", f"--shots_data={data}"], "shots=1, but there are only 0 other examples to draw from; lower it"),
        (["--split=dev"], "split='dev' is not one of val, train, test"),
    ]:
        done = run_script("hellaswag.py", f"--model={teacher}", f"--data={data}", *args, ok=False)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
