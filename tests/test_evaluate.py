"""evaluate.py: prompts, metrics, windows and files, against brute force and by hand; against lm-evaluation-harness
itself in tests/harness_oracle.py."""

import io
import json
import math
import re
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, read_log, run_script
from torch.nn import functional as F

from common.log import LOG_LABELS
from common.pretrained import load_pretrained, save_pretrained, settle_model, weights_sha256
from common.runtime import Runtime
from common.tokenizer import ByteTokenizer, SentencePieceTokenizer
from hellaswag import accuracy
from model import GPT, GPTConfig, LLaMA, LLaMAConfig
from tasks.files import find_files, read_rows
from tasks.loading import load_tasks
from tasks.metrics import Answer, headlines, metric, run_task, windows
from tasks.prompts import own_label
from tasks.tables import RECIPES, TASKS

DATA = Path(__file__).resolve().parents[2] / "shared/data"
RUN = Runtime("cpu")
CHOICES = {"text": ["red", "blue", "dark green"], "label": ["A", "B", "C"]}


def each(context, *endings):
    return [(context, ending) for ending in endings]


ROWS = {  # one row of each task in its file's columns: (row, [(context, ending), …], label)
    "piqa": ({"goal": "Sew", "sol1": "a", "sol2": "b", "label": 1}, each("Question: Sew\nAnswer:", "a", "b"), 1),
    "winogrande": ({"sentence": "Al saw Bo so _ ran off.", "option1": "Al", "option2": "Bo", "answer": "2"},
                   [("Al saw Bo so Al", "ran off."), ("Al saw Bo so Bo", "ran off.")], 1),
    "arc_easy": ({"question": "Hue?", "choices": CHOICES, "answerKey": "C"},
                 each("Question: Hue?\nAnswer:", *CHOICES["text"]), 2),
    "openbookqa": ({"question_stem": "Hue is", "choices": CHOICES, "answerKey": "B"},
                   each("Hue is", *CHOICES["text"]), 1),
    "commonsense_qa": ({"question": "Hue?", "choices": {"text": list("vwxyz"), "label": list("ABCDE")},
                        "answerKey": "E"}, each("Question: Hue?\nA. v\nB. w\nC. x\nD. y\nE. z\nAnswer:", *"ABCDE"), 4),
    "social_iqa": ({"context": "Al ran.", "question": "Why?", "answerA": "a", "answerB": "b", "answerC": "c",
                    "label": "3"}, each("Q: Al ran. Why?\nA:", *"abc"), 2),
    "sciq": ({"question": "Hue?", "distractor1": "a", "distractor2": "b", "distractor3": "c", "correct_answer": "d",
              "support": " So."}, each("So.\nQuestion: Hue?\nAnswer:", *"abcd"), 3),
    "wsc273": ({"text": "Al hit Bo because [MASK] was mad.", "candidates": ["Al", "The dog"], "label": 0},
               [("Al hit Bo because Al", " was mad."), ("Al hit Bo because the dog", " was mad.")], 0),
    "boolq": ({"passage": "P.", "question": "is it", "answer": True},
              each("P.\nQuestion: is it?\nAnswer:", "no", "yes"), 1),
    "copa": ({"premise": "It rained.", "choice1": "I ran.", "choice2": "We sat.", "question": "effect", "label": 1},
             each("It rained therefore", " i ran.", " we sat."), 1),
    "cb": ({"premise": "P.", "hypothesis": "H", "label": 2},
           each("P.\nQuestion: H. True, False, or Neither?\nAnswer:", "True", "False", "Neither"), 2),
    "rte": ({"sentence1": "P.", "sentence2": "H.", "label": 1},
            each("P.\nQuestion: H. True or False?\nAnswer:", "True", "False"), 1),
    "mrpc": ({"sentence1": "P.", "sentence2": "H.", "label": 0}, each(
        "Sentence 1: P.\nSentence 2: H.\nQuestion: Do both sentences mean the same thing?\nAnswer:", "no", "yes"), 0),
    "sst2": ({"sentence": "fine ", "label": 1},
             each("fine \nQuestion: Is this sentence positive or negative?\nAnswer:", "negative", "positive"), 1),
    "cola": ({"sentence": "It fine.", "label": 0},
             each("It fine.\nQuestion: Does this sentence make sense?\nAnswer:", "no", "yes"), 0),
    "snli": ({"sentence1": "P .", "sentence2": "H .", "gold_label": "contradiction"},
             each("P .\nQuestion: H . True, False, or Neither?\nAnswer:", "True", "Neither", "False"), 2),
    "blimp": ({"sentence_good": "It is.", "sentence_bad": "It are.", "field": "syntax", "UID": "x"},
              each("", "It is.", "It are."), 0),
    "lambada": ({"text": "in the end"}, each("in the", "end"), 0),
    "hellaswag": ({"ctx": "He sat.", "endings": ["a", "b"], "label": "1"}, each("He sat.", "a", "b"), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_rows_become_questions(name):
    row, pairs, label = ROWS[name]
    question = TASKS[name].question(row)
    assert question.choices == pairs and question.label == label


def test_every_task_has_a_row_here_and_every_recipe_its_tasks():
    known = {*ROWS, "arc_challenge", "hellaswag_harness"}
    without_row = [name for name, task in TASKS.items() if task.question and name not in known]
    assert not without_row, f"add an entry to ROWS for {without_row}"
    page = (ROOT / "docs/evaluation.md").read_text()
    unmentioned = [name for name in TASKS if not re.search(rf"\b{name}\b", page)]
    assert not unmentioned, f"add a line to docs/evaluation.md for {unmentioned}"
    for recipe in RECIPES.values():
        names = set(recipe.tasks.split())
        assert names <= set(TASKS)
        for row in recipe.published.values():
            assert {key.split()[0] for key in row} <= names


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("piqa", {"goal": None}, "its goal is null"),
        ("piqa", {"sol1": 3}, "a choice is no text"),
        ("piqa", {"label": 0.7}, "label 0.7 is not a whole number"),
        ("piqa", {"label": ""}, "label '' is not a whole number"),
        ("winogrande", {"sentence": "no mark"}, "its sentence has no _"),
        ("wsc273", {"text": "no mark"}, "its text has no .MASK"),
        ("lambada", {"text": "word"}, "its text has no last word"),
        ("lambada", {"text": "a blank "}, "its text has no last word"),
        ("arc_easy", {"answerKey": ""}, "answerKey '' is not one of 3 choices, A, B, C"),
        ("arc_easy", {"choices": {"text": ["one"], "label": list("ABC")}}, "answerKey 'C' is not one of 1 choices"),
        ("commonsense_qa", {"answerKey": "CD"}, "answerKey 'CD' is not one of 5 choices"),
    ],
)
def test_rows_that_lack_something_are_errors(name, change, message, tmp_path):
    write(tmp_path, TASKS[name].files.split()[0], [ROWS[name][0], ROWS[name][0] | change])
    with pytest.raises(ValueError, match=f"row 2: not an example of {name}, see tasks/prompts.py .{message}"):
        load_tasks(name, str(tmp_path))


def test_pairs_without_a_gold_label_are_left_out(tmp_path):
    """SNLI's annotators did not always agree."""
    write(tmp_path, "snli/snli_test.jsonl", [ROWS["snli"][0], ROWS["snli"][0] | {"gold_label": "-"}])
    (loaded,) = load_tasks("snli", str(tmp_path))
    assert len(loaded.questions) == 1
    assert TASKS["snli"].question({"premise": "P", "hypothesis": "H", "label": -1}) is None


def test_training_files_are_not_scored_and_texts_keep_apart(tasks_dir, tmp_path):
    for name in ("x", "train"):
        write(tmp_path, f"blimp/{name}.jsonl", [ROWS["blimp"][0]] * 3)
    (blimp,) = load_tasks("blimp", str(tmp_path))
    assert len(blimp.questions) == 3
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text(folder)
        (tmp_path / folder / "piqa").write_text("no task")
    names = [f"{tmp_path}/a/x.txt", f"{tmp_path}/b/x.txt", f"{tmp_path}/a/piqa", "piqa"]
    found = load_tasks(",".join(names), str(tasks_dir))
    assert [t.name for t in found] == names and [len(t.questions) for t in found] == [0, 0, 0, 4]
    for name in ("x y.txt", "x_y.txt"):
        (tmp_path / name).write_text("text")
    with pytest.raises(ValueError, match=r"two of them would be 'x_y\.txt' in the log and in tables; rename a file"):
        load_tasks(f"{tmp_path}/x y.txt,{tmp_path}/x_y.txt", str(tasks_dir))


@pytest.mark.slow
def test_a_perplexity_beyond_numbers_is_inf_in_the_table_and_null_in_json(model_dir, tmp_path):
    (tmp_path / "t.txt").write_text("字" * 400)  # one "word"
    args = [f"--model={model_dir}", f"--tasks={tmp_path / 't.txt'}", "--device=cpu"]
    assert "word_ppl       inf" in run_script("evaluate.py", *args).stdout
    (result,) = json.loads(run_script("evaluate.py", *args, "--json").stdout)["results"]
    assert result["metrics"]["word_ppl"] == {"value": None, "stderr": None} and result["metrics"]["ppl"]["value"] > 1


def test_hub_columns_give_the_same_questions():
    """The hub's parquet files name some columns otherwise than the published files do."""
    wsc = {"text": "Al hit Bo because he was mad.", "pronoun": "he", "pronoun_loc": 18, "label": 0}
    wsc["options"] = ["Al", "The dog"]
    assert TASKS["wsc273"].question(wsc) == TASKS["wsc273"].question(ROWS["wsc273"][0])
    his = {"text": "Al hit Bo. His dog ran.", "pronoun": "His", "pronoun_loc": 11, "options": ["Al", "Bo"], "label": 0}
    assert TASKS["wsc273"].question(his).choices == [("Al hit Bo. Al's", " dog ran."), ("Al hit Bo. Bo's", " dog ran.")]
    # its place is that of the text that is asked about, whose double blanks are gone
    spaced = {"text": "It rained.  Bo saw Al  when [MASK] ran.", "candidates": ["Bo", "Al"], "label": 0}
    ends = [(f"It rained. Bo saw Al when {name}", " ran.") for name in ("Bo", "Al")]
    assert TASKS["wsc273"].question(spaced).choices == ends
    with pytest.raises(ValueError, match="it has a pronoun, but no pronoun_loc"):
        TASKS["wsc273"].question({"text": "The man ran when he could.", "pronoun": "he", "options": ["A", "B"]})
    snli = {"premise": "P .", "hypothesis": "H .", "label": 2}
    assert TASKS["snli"].question(snli) == TASKS["snli"].question(ROWS["snli"][0])
    boolq = {"passage": "P.", "question": "is it", "label": 1}
    assert TASKS["boolq"].question(boolq) == TASKS["boolq"].question(ROWS["boolq"][0])


def test_metrics_by_hand():
    """Labels 1 1 0 0 1, predictions 1 0 0 1 1: two true positives, one false, one missed."""
    probabilities, greedy = (0.5, 0.25, 0.5, 1, 1), (1, 0, 0, 0, 1)
    answers = []
    for label, prediction, p, g in zip((1, 1, 0, 0, 1), (1, 0, 0, 1, 1), probabilities, greedy):
        answers.append(Answer(label, by_sum=prediction, by_mean=1, log_probability=math.log(p), is_greedy=bool(g)))
    acc, error = metric("acc", answers)
    assert acc == 0.6 and error == pytest.approx(math.sqrt(0.6 * 0.4 / 4))
    assert metric("acc_norm", answers)[0] == 0.6 and metric("word_acc", answers)[0] == 0.4
    assert metric("f1", answers)[0] == pytest.approx(4 / 6)
    assert metric("mcc", answers)[0] == pytest.approx((2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2))
    assert metric("macro_f1", answers)[0] == pytest.approx((2 * 1 / 4 + 4 / 6 + 0) / 3)
    ppl, error = metric("word_ppl", answers)
    logs = np.log([0.5, 0.25, 0.5, 1, 1])
    assert ppl == pytest.approx(2 ** (4 / 5)) and error == pytest.approx(ppl * logs.std(ddof=1) / math.sqrt(5))


def test_windows_score_each_token_once_with_all_the_context_that_fits():
    for n in (1, 2, 9, 10, 11, 30):
        for size, stride in ((10, 10), (10, 5), (10, 3), (10, 1)):
            found, at = list(windows(list(range(n + 1)), size, stride)), 0
            for ids, scored in found:
                at += scored
                assert ids[-1] == at and ids == list(range(max(0, at - size), at + 1)) and 0 < scored <= size
            assert at == n


@pytest.mark.parametrize("stride", [0, 7, 1, 5000])
def test_perplexity_equals_a_float64_brute_force(stride, tmp_path):
    """Token by token, each with its own forward over what its window shows before it."""
    torch.manual_seed(0)
    model, tokenizer, size = GPT(GPTConfig(300, 24, 2, 2, 32)).eval(), ByteTokenizer(), 24
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
    text = "Twenty-three dwarfs,\nso it is said, walked into a bar – and walked out again.\n"
    (tmp_path / "a b.txt").write_text(text)
    (loaded,) = load_tasks(str(tmp_path / "a b.txt"), str(tmp_path))
    result = run_task(loaded, model, tokenizer, RUN, stride)
    # a window scores no more than it holds
    stride = min(stride or size, size)
    assert result["stride"] == stride
    ids, loss, exact = [256, *tokenizer.encode(text)], 0.0, model.double()
    for i in range(1, len(ids)):
        done = i if i <= size else size + math.ceil((i - size) / stride) * stride
        first = max(0, min(done, len(ids) - 1) - size) if i > size else 0  # where the window of token i begins
        logits = exact(torch.tensor([ids[first:i]]))[0, -1, :257]
        loss += F.cross_entropy(logits, torch.tensor(ids[i])).item()
    values = {name: value for name, (value, _) in result["metrics"].items()}
    assert result["task"] == "a_b.txt" and result["n"] == len(ids) - 1 == len(text.encode())
    assert values["ppl"] == pytest.approx(math.exp(loss / (len(ids) - 1)), rel=1e-5)
    assert values["word_ppl"] == pytest.approx(math.exp(loss / 16), rel=1e-5)  # 15 words and what follows the last "\n"
    assert values["bits_per_byte"] == pytest.approx(loss / math.log(2) / len(text.encode()), rel=1e-5)


def test_bits_per_byte_do_not_depend_on_the_tokenizer(tmp_path):
    """A model that is uniform over bytes, read through bytes and through pairs of letters: 8 bits a byte in both.

    The second gives a token of k bytes the probability 256**-k, which is uniform over bytes too.
    """

    class Pairs(ByteTokenizer):
        """Bytes, and two ids for "th" and "e "."""

        vocab_size = 259

        def encode(self, text):
            text = text.replace("th", "\0").replace("e ", "\1")
            return [{0: 257, 1: 258}.get(byte, byte) for byte in text.encode()]

    text = "the thing is that the other theme is there — é\n" * 5
    (tmp_path / "t.txt").write_text(text)
    (loaded,) = load_tasks(str(tmp_path / "t.txt"), str(tmp_path))
    for tokenizer, lengths in ((ByteTokenizer(), [1] * 256), (Pairs(), [1] * 256 + [math.inf, 2, 2])):
        tokenizer.vocab_size = len(lengths)
        model = Uniform(lengths).eval()
        found = {name: value for name, (value, _) in run_task(loaded, model, tokenizer, RUN)["metrics"].items()}
        assert found["bits_per_byte"] == pytest.approx(8.0, abs=0.01), tokenizer
        assert found["byte_ppl"] == pytest.approx(256, rel=0.01)
    assert found["ppl"] > 256


class Uniform(LLaMA):
    """Gives token i, of lengths[i] bytes, the probability 256**-lengths[i], but for the normaliser: 2 / 65,536."""

    def __init__(self, lengths):
        super().__init__(LLaMAConfig(320, 32, 1, 1, n_embd=8, tie_word_embeddings=False))
        self.bias = -math.log(256) * torch.tensor(lengths + [0.0] * (320 - len(lengths)))
        with torch.no_grad():
            self.lm_head.weight.zero_()
            self.lm_head.weight[:, 0] = self.bias.clamp(min=-30)

    def forward(self, idx, **kwargs):
        hidden = super().forward(idx, hidden=True, **{k: v for k, v in kwargs.items() if k != "hidden"})
        return torch.zeros_like(hidden).index_fill(-1, torch.tensor([0]), 1.0)


def write(folder, name, found):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in found))


@pytest.fixture(scope="module")
def tasks_dir(tmp_path_factory):
    """A small file of each task of ROWS, as data_dir is laid out."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, (row, _, _) in ROWS.items():
        if name == "cola":
            (folder / "cola").mkdir()
            (folder / "cola/in.tsv").write_text("gj04\t1\t\tIt is fine.\ngj04\t0\t*\tIt fine.\n")
        else:
            write(folder, TASKS[name].files.split()[-1].replace("*", "x"), [row] * 4)
    write(folder, "blimp/y.jsonl", [ROWS["blimp"][0] | {"field": "syntax/semantics", "UID": "y"}] * 4)
    (folder / "wikitext2").mkdir()
    (folder / "wikitext2/wiki.test.tokens").write_text(
        " \n = Al = \n \n He ran @-@ fast , so . \n\n = Bo = \n \n So ( it ) was . \n"
    )
    return folder


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    torch.manual_seed(0)
    save_pretrained(LLaMA(LLaMAConfig(320, 128, 1, 2, n_embd=16)), folder, ByteTokenizer())
    return folder


@pytest.mark.slow
def test_command_line_scores_every_task(tasks_dir, model_dir):
    names = [*ROWS, "hellaswag_harness", "wikitext", "wikitext_tokens"]
    names.remove("hellaswag")
    write(tasks_dir, "hellaswag/hellaswag_val.jsonl", [ROWS["hellaswag"][0] | {"activity_label": "Sitting"}] * 4)
    args = [f"--model={model_dir}", f"--data_dir={tasks_dir}", f"--tasks={','.join(names)}", "--device=cpu"]
    lines = run_script("evaluate.py", *args).stdout.splitlines()
    assert lines[1].split() == ["task", "metric", "value", "n", "time", "convention", "data"]
    shown = [line.split()[0] for line in lines[2:] if not line.startswith(" ")]
    assert shown == names and any(line.split()[0] == "syntax_semantics" for line in lines)
    found = json.loads(run_script("evaluate.py", *args, "--json", "--limit=3").stdout)
    assert len(found["model_sha256"]) == 64 and found["tokenizer_hash"] == ByteTokenizer().hash
    for result in found["results"]:
        assert list(result["metrics"])[: len(TASKS[result["task"]].metrics)] == list(TASKS[result["task"]].metrics)
        assert (
            result["n"] == {"blimp": 6, "cola": 2}.get(result["task"], result["n"]) and len(result["data_sha256"]) == 64
        )
        assert result["convention"] == ("as it is" if result["task"] == "wikitext_tokens" else "harness")
    blimp = next(result for result in found["results"] if result["task"] == "blimp")
    assert set(blimp["parts"]["UID"]) == {"x", "y"} and set(blimp["parts"]["field"]) == {"syntax", "syntax_semantics"}


@pytest.mark.slow
def test_two_ranks_give_the_values_of_one(tasks_dir, model_dir):
    args = [
        f"--model={model_dir}",
        f"--data_dir={tasks_dir}",
        "--tasks=lambada,arc_easy,wikitext",
        "--json",
        "--device=cpu",
    ]
    one, two = (json.loads(run_script("evaluate.py", *args, ranks=n).stdout)["results"] for n in (1, 2))
    for a, b in zip(one, two):
        for name in a["metrics"]:
            assert a["metrics"][name]["value"] == pytest.approx(b["metrics"][name]["value"], rel=1e-6)


def test_shots_come_from_the_file_itself_or_a_training_file(tasks_dir):
    write(tasks_dir, "sst2/dev.jsonl", [{"sentence": f"s{i}", "label": i % 2} for i in range(9)])
    (loaded,) = load_tasks("sst2", str(tasks_dir), limit=4, shots=3, seed=1)
    assert len(loaded.questions) == 4 and loaded.pool is None
    for i, question in enumerate(loaded.questions):
        shots = question.shots.split("\n\n")[:-1]
        assert len(shots) == 3 and all(shot.split("Answer: ")[1] in ("negative", "positive") for shot in shots)
        assert not any(shot.startswith(f"s{i}\n") for shot in shots)
        assert question.choices[0].context.startswith(f"s{i}\n")
    (again,) = load_tasks("sst2", str(tasks_dir), limit=4, shots=3, seed=1)
    assert again.questions == loaded.questions != load_tasks("sst2", str(tasks_dir), 4, 3, 2)[0].questions
    write(tasks_dir, "sst2/train.jsonl", [{"sentence": f"t{i}", "label": 1} for i in range(3)])
    (loaded,) = load_tasks("sst2", str(tasks_dir), shots=3)
    assert loaded.pool.name == "train.jsonl" and len({question.shots for question in loaded.questions}) == 1
    assert loaded.questions[0].shots.count("positive\n\n") == 3
    (tasks_dir / "sst2/train.jsonl").unlink()


@pytest.mark.slow
def test_recipes_print_what_was_published(tasks_dir, model_dir):
    write(tasks_dir, "arc_challenge/test.jsonl", [ROWS["arc_easy"][0]] * 4)
    args = [f"--model={model_dir}", f"--data_dir={tasks_dir}", "--tasks=distilpythia", "--limit=2", "--device=cpu"]
    out = run_script("evaluate.py", *args).stdout
    assert "pythia-70m  pythia-160m  distilled  constant" in out and "0.5985" in out and "420.7" in out
    assert "SuperGLUE's, 104 sentences" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    "args, message",
    [
        (["--tasks=piqua"], "tasks: 'piqua' is none of piqa, winogrande"),
        (["--tasks=piqua"], "did you mean 'piqa'?"),
        (["--tasks=mine.jsonl"], "tasks: no file 'mine.jsonl'"),
        (["--tasks="], "tasks is empty; name some of piqa"),
        (["--tasks=wikitext", "--shots=2"], "shots=2, but wikitext is a text to read, without questions; leave it out"),
        (["--tasks=arc_easy", "--shots=9"], "shots=9, but there are only 3 other examples to draw from; lower it"),
        (["--tasks=enwik8"], "cannot reach http://mattmahoney.net"),
        (
            ["--tasks=sciq", "--data_dir=broken"],
            "valid.jsonl, row 2: not an example of sciq, see tasks/prompts.py (no 'distractor1')",
        ),
        (
            ["--tasks=piqa", "--data_dir=broken"],
            "valid.jsonl, row 1: not an example of piqa, see tasks/prompts.py (label 2 of 2 choices)",
        ),
        (["--tasks=boolq", "--data_dir=broken"], "val.jsonl, line 2: expected one JSON object a line"),
        (["--tasks=rte", "--data_dir=broken"], "val.jsonl has no rows"),
        (["--tasks={}/gz.txt"], "gz.txt is not UTF-8 (byte 1); decompress or convert it"),
        (["--tasks={}/choices.csv"], "choices.csv is a table, not prose; make a .jsonl of it"),
        (["--tasks=wikitext", "--limit=1"], "wiki.test.tokens has no text in its first 1 lines; raise limit"),
        (["--tasks=piqa", "--model="], "no model is named; give a folder"),
    ],
)
def test_what_a_user_gets_wrong_ends_in_one_line(args, message, tasks_dir, model_dir, tmp_path, monkeypatch):
    broken = tmp_path / "broken"
    write(broken, "sciq/valid.jsonl", [ROWS["sciq"][0], {"a": 1}])
    write(broken, "piqa/valid.jsonl", [ROWS["piqa"][0] | {"label": 2}])
    write(broken, "rte/val.jsonl", [])
    (broken / "boolq").mkdir()
    (broken / "boolq/val.jsonl").write_text(json.dumps(ROWS["boolq"][0]) + "\n{")
    (broken / "choices.csv").write_text("context,label\na,b\n")
    (broken / "gz.txt").write_bytes(b"\x1f\x8b\x08 no text")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody listens there
    args = [arg.replace("=broken", f"={broken}").replace("{}", str(broken)) for arg in args]
    args = [f"--data_dir={tasks_dir}", *args]
    done = run_script("evaluate.py", f"--model={model_dir}", *args, ok=False)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


def find_task(name, folder):
    return find_files(name, TASKS[name].files, TASKS[name].source, str(folder))


def test_files_come_from_the_hub(hub, tmp_path):
    """Its parquet files, by configuration and split, for BLiMP all; what is there already is not asked for again."""
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    for repo, config, split, row in (
        ("ybisk/piqa", "plain_text", "validation", ROWS["piqa"][0]),
        ("nyu-mll/blimp", "x", "train", ROWS["blimp"][0]),
        ("nyu-mll/blimp", "y", "train", ROWS["blimp"][0]),
    ):
        buffer, base = io.BytesIO(), f"/api/datasets/{repo}/parquet"
        parquet.write_table(arrow.Table.from_pylist([row] * 3), buffer)
        hub.files[f"{base}/{config}/{split}/0.parquet"] = buffer.getvalue()
        index = json.loads(hub.files.get(base, b"{}")) | {config: {split: ["elsewhere"]}, "../up": {split: ["no"]}}
        hub.files[base] = json.dumps(index).encode()
    (piqa,) = find_task("piqa", tmp_path)
    assert read_rows(piqa) == [ROWS["piqa"][0]] * 3
    assert [path.name for path in find_task("blimp", tmp_path)] == [
        "x_train.parquet",
        "y_train.parquet",
    ]
    asked = len(hub.requests)
    blimp, piqa = load_tasks("blimp,piqa", str(tmp_path))
    assert len(blimp.questions) == 6 and len(piqa.questions) == 3 and len(hub.requests) == asked
    with pytest.raises(FileNotFoundError, match=r"glue/parquet is not there .* or put rte/val.jsonl into"):
        load_tasks("rte", str(tmp_path))
    hub.files["/api/datasets/nyu-mll/glue/parquet"] = b'{"sst2": {"train": []}}'
    with pytest.raises(ValueError, match=r"no configuration 'rte' with a split 'validation'; put rte/val.jsonl into"):
        load_tasks("rte", str(tmp_path))
    piqa.files[0].write_bytes(piqa.files[0].read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"plain_text_validation.parquet is damaged"):
        load_tasks("piqa", str(tmp_path))


def test_enwik8_is_its_last_five_million_bytes(tmp_path):
    (tmp_path / "enwik8").mkdir()
    with zipfile.ZipFile(tmp_path / "enwik8/enwik8.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("enwik8", "a" * 3_000_000 + "b" * 5_000_000)
    (loaded,) = load_tasks("enwik8", str(tmp_path))
    assert loaded.documents[0][0] == "b" * 5_000_000
    (tmp_path / "enwik8/enwik8.zip").write_bytes(b"PK\3\4 no zip")
    with pytest.raises(ValueError, match=r"enwik8.zip is damaged"):
        load_tasks("enwik8", str(tmp_path))


def test_only_enwik8_is_cut_and_read_from_its_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        archive.writestr("mine.txt", "\xff" * 6_000_000)
    with pytest.raises(ValueError, match=r"mine.zip is not UTF-8 .*; decompress or convert it"):
        load_tasks(str(tmp_path / "mine.zip"), str(tmp_path))


@pytest.mark.parametrize("label", [True, False])
def test_a_boolean_is_no_place(label):
    """["yes", "no"] with true would count "no" as right."""
    with pytest.raises(ValueError, match=f"label {label} is no choice; give its number from 0, its letter or its text"):
        own_label(label, ["yes", "no"])


def test_what_is_hashed_is_what_was_scored(tasks_dir, tmp_path):
    """A run that trains meanwhile saves its next step while its model is being scored."""
    run_dir = tmp_path / "run"
    for step in (1, 2):
        torch.manual_seed(step)
        net = GPT(GPTConfig(vocab_size=257, block_size=32, n_layer=1, n_head=2, n_embd=16))
        save_pretrained(net, run_dir / f"step_{step:06d}", ByteTokenizer())
    later = tmp_path / "later"
    (run_dir / "step_000002").rename(later)
    hashes = [weights_sha256(folder) for folder in (run_dir / "step_000001", later)]
    write(tasks_dir, "sst2/dev.jsonl", [{"sentence": f"s{i}", "label": i % 2} for i in range(4)])

    spy = f"""
import sys
from pathlib import Path
import tasks.loading
load = tasks.loading.load_tasks
def save_and_load(*args, **settings):
    Path({str(later)!r}).rename({str(run_dir / "step_000002")!r})
    return load(*args, **settings)
tasks.loading.load_tasks = save_and_load
sys.argv = ["evaluate.py", "--model={run_dir}", "--data_dir={tasks_dir}", "--tasks=sst2", "--json", "--device=cpu"]
import runpy
runpy.run_path({str(ROOT / "evaluate.py")!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", spy], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (run_dir / "step_000002").is_dir()
    found = json.loads(done.stdout)
    assert found["model_sha256"] == hashes[0] != hashes[1]
    (loaded,) = load_tasks("sst2", str(tasks_dir))
    expected = run_task(loaded, load_pretrained(run_dir / "step_000001"), ByteTokenizer(), RUN)
    assert found["results"][0]["metrics"]["acc"]["value"] == expected["metrics"]["acc"].value
    (tasks_dir / "sst2/dev.jsonl").unlink()


def test_ranks_that_found_different_checkpoints_are_told(model_dir):
    """As rank 0 finds another name than this one: the sum of both is not twice this one's."""

    class TwoRanks:
        world = 2

        def __init__(self, other):
            self.other = other

        def sum(self, number):
            return [float(number + zlib.crc32(self.other.encode()))]

    assert settle_model(model_dir, TwoRanks(Path(model_dir).name)) == Path(model_dir)
    with pytest.raises(ValueError, match="the ranks found different checkpoints, as a run saves there"):
        settle_model(model_dir, TwoRanks("step_000002"))


def test_common_gen_is_its_sentences(tmp_path):
    rows = [{"concepts": ["dog", "run"], "target": "A dog runs. "}, {"concepts": ["cat"], "target": "The cat sat."}]
    write(tmp_path, "common_gen/validation.jsonl", rows)
    (loaded,) = load_tasks("common_gen", str(tmp_path))
    assert [seen for _, seen in loaded.documents] == ["A dog runs.", "The cat sat."]
    write(tmp_path, "common_gen/validation.jsonl", [*rows, {"concepts": []}])
    with pytest.raises(ValueError, match=r"validation.jsonl, row 3: expected a target"):
        load_tasks("common_gen", str(tmp_path))


def test_wikitext_is_read_page_by_page_without_its_blanks(tasks_dir):
    (loaded, tokens) = load_tasks("wikitext,wikitext_tokens", str(tasks_dir))
    assert [seen for _, seen in loaded.documents] == [" = Al =\n\nHe ran-fast, so.\n\n", " = Bo =\n\nSo (it) was.\n"]
    assert all(text == seen for text, seen in tokens.documents) and tokens.documents[0][0].startswith(" = Al = \n")
    # with the line ends of Windows too
    path = tasks_dir / "wikitext2/wiki.test.tokens"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert load_tasks("wikitext", str(tasks_dir))[0].documents == loaded.documents


OWN = [
    {"context": "One and one is", "choices": ["one", "two"], "label": 1},
    {"context": "One and two is", "choices": ["three", "two", "one"], "label": "three"},
    {"context": "", "choices": {"text": ["No.", "Two."]}, "label": "B", "more": None},
    {"context": "Two is", "choices": {"text": ["even", "odd"], "label": ["1", "2"]}, "label": "2"},
    {"context": "Three is", "choices": ["5", "3"], "label": "1"},
]
OWN_ANSWERS = [1, 0, 1, 1, 1]


@pytest.mark.slow
def test_multiple_choice_of_ones_own_is_scored_as_choices(model_dir, tmp_path):
    """By the command line, with columns of other names, and with shots from the file; against a forward for each."""
    names = {"context": "q", "choices": "options", "label": "right"}
    write(tmp_path, "my own.jsonl", [{names.get(key, key): value for key, value in row.items()} for row in OWN])
    columns = ["--context_column=q", "--choices_column=options", "--label_column=right"]
    args = [f"--model={model_dir}", f"--tasks={tmp_path / 'my own.jsonl'}", "--device=cpu", "--json"]
    (result,) = json.loads(run_script("evaluate.py", *args, *columns).stdout)["results"]
    model, tokenizer = load_pretrained(model_dir).eval(), ByteTokenizer()
    hits = {"acc": 0, "acc_norm": 0}
    for row, answer in zip(OWN, OWN_ANSWERS):
        texts = row["choices"]["text"] if isinstance(row["choices"], dict) else row["choices"]
        sums = [likelihood(model, tokenizer, row["context"], text) for text in texts]
        means = [total / len(text) for total, text in zip(sums, texts)]
        hits["acc"] += sums.index(max(sums)) == answer
        hits["acc_norm"] += means.index(max(means)) == answer
    found = {name: score["value"] for name, score in result["metrics"].items()}
    assert (result["task"], result["n"]) == ("my_own.jsonl", 5) and list(found) == ["acc", "acc_norm"]
    assert found == {name: pytest.approx(n / 5) for name, n in hits.items()}
    (loaded,) = load_tasks(str(tmp_path / "my own.jsonl"), str(tmp_path), limit=2, shots=2, seed=3, columns=names)
    assert [question.label for question in loaded.questions] == OWN_ANSWERS[:2]
    solved = {"One and one is two", "One and two is three", " Two.", "Two is odd", "Three is 3"}
    for question in loaded.questions:
        shots = question.shots.split("\n\n")[:-1]
        context = question.choices[0].context
        assert len(shots) == 2 and set(shots) <= solved and not any(shot.startswith(context) for shot in shots)


def likelihood(model, tokenizer, context, text) -> float:
    """Summed log-probability of " " + text after a context, before an empty one the end-of-text id."""
    ids = [*(tokenizer.encode(context) or [tokenizer.eot]), *tokenizer.encode(f" {text}")]
    n = len(tokenizer.encode(f" {text}"))
    with torch.no_grad():
        logits = model(torch.tensor([ids[:-1]]))[0, -n:, : tokenizer.vocab_size]
    return -F.cross_entropy(logits, torch.tensor(ids[-n:]), reduction="sum").item()


@pytest.mark.parametrize(
    "row, message",
    [
        ({"text": "prose"}, r"has the columns text, but not context, choices, label; name its own with "
         r"--context_column=<name> --choices_column=<name> --label_column=<name>"),
        (OWN[0] | {"label": 2}, r"row 1: not an example of x.jsonl, see the form .* \(label 2 of 2 choices\)"),
        (OWN[0] | {"label": "C"}, "label 'C' is none of the choices one, two; give its number from 0, its letter or"),
        (OWN[0] | {"label": None}, "its label is null"),
        (OWN[0] | {"label": 0.5}, "label 0.5 is none of the choices"),
        (OWN[0] | {"choices": ["1", "5"], "label": "1"}, "label '1' could be several of the choices 1, 5"),
        (OWN[0] | {"choices": ["B", "A"], "label": "A"}, "label 'A' could be several of the choices B, A"),
        (OWN[3] | {"label": 1}, "label 1 could be several of the choices even, odd"),
        (OWN[0] | {"choices": ["one"]}, "its choices are not a list of two texts or more"),
        (OWN[0] | {"choices": "one"}, "its choices are not a list of two texts or more"),
        (OWN[0] | {"choices": [1, 2], "label": 0}, "a choice is no text"),
        ([1, 2], "its first row is not a JSON object; expected one with context, choices, label"),
        (None, "x.jsonl has no rows"),
    ],
)  # fmt: skip
def test_a_jsonl_that_is_not_multiple_choice_is_refused(row, message, tmp_path):
    write(tmp_path, "x.jsonl", [] if row is None else [row])
    with pytest.raises(ValueError, match=message):
        load_tasks(str(tmp_path / "x.jsonl"), str(tmp_path))


@pytest.mark.slow
def test_loops_log_tasks(dataset, tasks_dir, tmp_path):
    from conftest import TINY

    write(tmp_path, "own.jsonl", OWN)
    args = [*TINY, f"--dataset={dataset}", "--max_steps=4", "--eval_tasks_interval=2"]
    args += [f"--eval_tasks=lambada,arc_easy,{tmp_path / 'own.jsonl'}"]
    args += [f"--eval_tasks_dir={tasks_dir}", "--eval_tasks_limit=3"]
    alone = ["--weight_kl=0", "--weight_ce=1"]
    run_script("train.py", *args, f"--out_dir={tmp_path / 't'}")
    run_script("distill.py", *args, f"--out_dir={tmp_path / 'd'}", f"--teacher={tmp_path / 't'}", *alone)
    tasks_of_the_run = set()
    for label in ("lambada", "arc_easy", "own.jsonl"):
        logged = read_log(tmp_path / "t", label)
        assert list(logged) == [0, 2, 4] and logged == read_log(tmp_path / "d", label)
        tasks_of_the_run.add(label)
    for run in ("t", "d"):
        labels = {line.split()[1] for line in (tmp_path / run / "log.txt").read_text().splitlines()}
        assert labels - LOG_LABELS == tasks_of_the_run
    done = run_script("train.py", *args, "--eval_tasks=piqua", f"--out_dir={tmp_path / 'e'}", ok=False)
    assert done.returncode == 2 and "did you mean 'piqa'?" in done.stderr and not (tmp_path / "e").exists()


def test_a_file_does_not_take_the_label_of_a_loss(tmp_path):
    (tmp_path / "train").write_text("some text")
    (tmp_path / "other").write_text("some text")
    tasks = load_tasks(f"{tmp_path / 'train'},{tmp_path / 'other'}", str(tmp_path))
    assert [task.name for task in tasks] == ["./train", "other"]


def test_hellaswag_has_its_two_labels_in_the_log_and_files_of_its_form_their_name(tmp_path):
    """`hella` is acc_norm in the completion convention, `hella_sum` acc: the values of hellaswag.py, on both files."""
    model, tokenizer = GPT(GPTConfig(300, 64, 2, 2, 32)).eval(), ByteTokenizer()
    torch.nn.init.zeros_(model.lm_head.weight)  # all ids are equally likely: the shortest ending wins by sum
    examples = []
    for i in range(20):
        endings = ["one", "twenty-one", f"{i}", "2"]
        examples.append({"ctx": f"{i} and", "endings": endings, "label": 0 if i % 3 else 2})
    write(tmp_path, "hellaswag/hellaswag_val.jsonl", examples)
    write(tmp_path, "my lines.jsonl", examples)
    names = f"hellaswag,piqa,{tmp_path / 'my lines.jsonl'}"
    write(tmp_path, "piqa/valid.jsonl", [ROWS["piqa"][0]] * 4)
    tasks = load_tasks(names, str(tmp_path), limit=12)
    acc, acc_norm = accuracy(model, tokenizer, examples[:12], RUN)
    assert (acc, acc_norm) == (4 / 12, 8 / 12)
    piqa = run_task(tasks[1], model, tokenizer, RUN)["metrics"]["acc"].value
    wanted = {"hella": acc_norm, "hella_sum": acc, "piqa": piqa, "my_lines.jsonl": acc_norm}
    assert headlines(tasks, model, tokenizer, RUN) == wanted
    own = run_task(tasks[2], model, tokenizer, RUN)
    assert own["convention"] == "completion" and {k: v.value for k, v in own["metrics"].items()} == {
        "acc_norm": acc_norm,
        "acc": acc,
    }


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the tasks' files and the 260K-parameter LLaMA beside the project")
def test_all_files_are_read_and_lambada_is_what_a_loop_finds():
    absent = {"enwik8", "common_gen"}
    tasks = load_tasks(",".join(name for name in TASKS if name not in absent), str(DATA), limit=20)
    assert {t.name for t in tasks} == set(TASKS) - absent
    blimp, lambada = (next(t for t in tasks if t.name == name) for name in ("blimp", "lambada"))
    assert len(blimp.questions) == 67 * 20 and len({q.parts["UID"] for q in blimp.questions}) == 67
    folder = DATA / "checkpoints/stories260K_hf"
    model, tokenizer = load_pretrained(folder), SentencePieceTokenizer((folder / "tokenizer.model").read_bytes())
    sums, hits = [], []
    for row in read_rows(lambada.files[0])[:20]:
        context = [tokenizer.bos, *tokenizer.encode(row["text"].rpartition(" ")[0])]
        ids = torch.tensor([tokenizer.bos, *tokenizer.encode(row["text"])])[-513:]
        n = len(tokenizer.encode(row["text"])) + 1 - len(context)
        logits = model(ids[None, :-1])[0, -n:, : tokenizer.vocab_size]
        sums.append(-F.cross_entropy(logits, ids[-n:], reduction="sum").item())
        hits.append((logits.argmax(-1) == ids[-n:]).all().item())
    result = run_task(lambada, model, tokenizer, RUN)["metrics"]
    assert result["word_ppl"][0] == pytest.approx(math.exp(-np.mean(sums)), rel=1e-4)
    assert result["word_acc"][0] == np.mean(hits)
