"""Scoring equals a straightforward loop over one example at a time."""

import json
from pathlib import Path

import pytest
import torch
from conftest import run_script
from torch.nn import functional as F

from common.pretrained import load_pretrained
from common.tokenizer import ByteTokenizer, load_tokenizer
from hellaswag import encode_rows, load_examples, predict, score_rows
from model import LLaMA, LLaMAConfig

DATA = Path(__file__).resolve().parents[2] / "shared/data"


@torch.no_grad()
def one_at_a_time(model, tokenizer, examples):
    """Karpathy's loop, a row at a time without padding: (prediction by sum, by mean) of each example."""
    predictions = []
    for example in examples:
        sums, means = [], []
        for ending in example["endings"]:
            context, ids = tokenizer.encode(example["ctx"]), tokenizer.encode(f"{example['ctx']} {ending}")
            if ids[: len(context)] != context:
                ids = context + tokenizer.encode(f" {ending}")
            n = len(ids) - len(context)
            ids = torch.tensor(ids[-model.config.block_size - 1 :])
            logits = model(ids[None, :-1])[0, -n:, : tokenizer.vocab_size]
            losses = F.cross_entropy(logits, ids[-n:], reduction="none")
            sums.append(losses.sum())
            means.append(losses.mean())
        predictions.append((torch.stack(sums).argmin().item(), torch.stack(means).argmin().item()))
    return predictions


def test_predictions_equal_the_loop_of_one_example_at_a_time():
    """Examples of all lengths, some beyond block_size; a padded head that would win if it were not cut."""
    torch.manual_seed(0)
    model, words = (
        LLaMA(LLaMAConfig(320, 48, 2, 2, n_embd=32)).eval(),
        "the quick brown fox jumps over lazy dogs".split(),
    )
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
        model.lm_head.weight[257:] = 100 * model.lm_head.weight[32]

    def text(n):
        return " ".join(words[i] for i in torch.randint(len(words), (n,)))

    examples = [{"ctx": text(1 + i % 12), "endings": [text(1 + (i + j) % 5) for j in range(4)]} for i in range(60)]
    got = predict(model, ByteTokenizer(), examples, "cpu")
    assert got == one_at_a_time(model, ByteTokenizer(), examples)
    assert len(set(got)) > 4 and any(a != b for a, b in got)


@pytest.mark.skipif(not DATA.is_dir(), reason="needs HellaSwag and the 260K-parameter LLaMA beside the project")
def test_predictions_on_200_examples_of_hellaswag_equal_the_loop():
    folder = DATA / "checkpoints/stories260K_hf"
    model, tokenizer = load_pretrained(folder), load_tokenizer(folder)
    examples = load_examples(str(DATA / "hellaswag/hellaswag_val.jsonl"), 200)
    got = predict(model, tokenizer, examples, "cpu")
    assert len(got) == 200 and got == one_at_a_time(model, tokenizer, examples)


def test_sum_and_mean_by_hand():
    """A model that finds every id equally likely: n log V in sum, log V in mean."""
    model = LLaMA(LLaMAConfig(64, 16, 1, 1, n_embd=8)).eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    sums, means = score_rows(model, [([1, 2, 3, 4], 2), ([1, 2], 1), (list(range(40)), 3)], 50, "cpu")
    log_v = torch.tensor(50.0).log()
    torch.testing.assert_close(sums, log_v * torch.tensor([2.0, 1.0, 3.0]))
    torch.testing.assert_close(means, log_v.expand(3))


class Merging(ByteTokenizer):
    """Bytes, but "b c" is one token, as a BPE may merge across the end of the context."""

    def encode(self, text):
        return [300 if char == "\0" else ord(char) for char in text.replace("b c", "\0")]


def test_ending_tokens_are_those_beyond_the_context():
    assert encode_rows(ByteTokenizer(), "ab", ["c"]) == [([97, 98, 32, 99], 2)]
    assert encode_rows(ByteTokenizer(), "", ["c"]) == [([256, 32, 99], 2)]  # something must come first
    assert encode_rows(Merging(), "ab", ["cd"]) == [([97, 98, 32, 99, 100], 3)]  # not a prefix: encoded apart


def test_command_line(teacher, tmp_path):
    rows = [{"ctx": "abc", "endings": ["d", "e"], "label": "1"}] * 3  # the official file has labels as text
    (tmp_path / "h.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = run_script("hellaswag.py", f"--model={teacher}", f"--data={tmp_path / 'h.jsonl'}", "--limit=2")
    line = done.stdout.splitlines()[-1]
    assert line.startswith("hellaswag n=2 acc=") and line.endswith("examples/s)") and "acc_norm=" in line


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"ctx": "a", "endings": ["b", "c"]}', "line 1: expected JSON with ctx, endings and label"),
        ('{"ctx": "a", "endings": ["b", "c"], "label": 0}\n{', "line 2: expected JSON"),
        ('{"ctx": "a", "endings": "bcde", "label": 2}', "endings a list of texts"),
        ('{"ctx": "a", "endings": ["b", "c"], "label": 2}', "line 1: label 2 of 2 endings"),
        ("", "has no examples"),
    ],
)
def test_bad_files_are_named(text, message, tmp_path):
    (tmp_path / "h.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_examples(str(tmp_path / "h.jsonl"))
    with pytest.raises(FileNotFoundError, match="no HellaSwag file"):
        load_examples(str(tmp_path / "nowhere.jsonl"))
