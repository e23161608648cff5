"""bench.py as a user runs it, at a tiny size: what it prints, not how fast anything is."""

import json
import time
from pathlib import Path

import pytest
import torch
from conftest import run_script

from benchmarks import race, sampling, saving
from benchmarks.operations import table
from common.runtime import Runtime
from common.tokenizer import ByteTokenizer
from configurator import made_by, read_config_file
from model import GPT, GPTConfig

TINY = ["--vocab_size=300", "--tokens=64", "--student_width=64", "--teacher_width=64", "--student_layers=1",
        "--teacher_layers=1", "--block_size=16", "--rounds=1", "--repeats=1", "--device=cpu"]  # fmt: skip


@pytest.mark.slow
def test_head_prints_a_table():
    table = run_script("bench.py", *TINY).stdout.splitlines()
    assert table[0].startswith("matmul peak ") and table[2].endswith("1.00x")
    assert [line.split()[0] for line in table[2:]] == ["straightforward", "chunked"]


@pytest.mark.slow
def test_step_prints_json():
    got = json.loads(run_script("bench.py", *TINY, "--part=step", "--json").stdout)
    assert (
        list(got["medians"]) == ["straightforward", "chunked", "cached", "student alone", "own text", "kept"]
        and got["config"]["vocab_size"] == 300
    )
    for m in got["medians"].values():
        assert m["seconds"] > 0 and m["peak_bytes"] > 1e8 and m["tokens_per_s"] == pytest.approx(64 / m["seconds"])


@pytest.mark.slow
def test_tokenizer_compares_with_the_reference(tmp_path):
    pytest.importorskip("tokenizers")
    ByteTokenizer().save(tmp_path)
    (tmp_path / "text.txt").write_text(Path(__file__).read_text() * 5)
    keys = [f"--tokenizer={tmp_path}", f"--text={tmp_path / 'text.txt'}", "--rounds=1", "--repeats=1"]
    table = run_script("bench.py", "--part=tokenizer", *keys).stdout.splitlines()
    assert [line.split()[0] for line in table[1:]] == ["tokenizers", "tiktoken", "nanodistill"]
    medians = json.loads(run_script("bench.py", "--part=bpe", *keys, "--vocab_size=380", "--json").stdout)["medians"]
    assert list(medians) == ["tokenizers", "nanodistill"] and all(m["peak_bytes"] > 1e7 for m in medians.values())


@pytest.mark.slow
def test_hellaswag(teacher, tmp_path):
    """The versions agree, and the shared context leaves fewer FLOPs to do."""
    rows = [{"ctx": f"ab {i}", "endings": ["c", "de", f"{i}", "c d"], "label": 0} for i in range(6)]
    (tmp_path / "h.jsonl").write_text("\n".join(map(json.dumps, rows)))
    keys = [f"--model={teacher}", f"--data={tmp_path / 'h.jsonl'}", "--rounds=1", "--repeats=1", "--examples=6"]
    table = run_script("bench.py", "--part=hellaswag", *keys).stdout.splitlines()
    assert [line.split("  ")[0] for line in table[2:5]] == ["straightforward", "four rows", "nanodistill"]
    assert table[5].startswith("6 examples: 0 predictions by sum and 0 by mean differ; summed log-probabilities by at")
    assert float(table[5].split()[-1]) < 1e-4


@pytest.mark.slow
def test_loader(dataset):
    table = run_script("bench.py", "--part=loader", f"--dataset={dataset}", "--block_size=16", "--rounds=1").stdout
    assert [line.split()[0] for line in table.splitlines()[1:]] == ["nanodistill"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "part, cases, versions",
    [
        ("gqa", ["training", "scoring", "generation"], ["model.py", "expanded"]),
        (
            "muon",
            ["16 of 192 x 192", "8 of 512 x 192", "4 of 192 x 512"],
            ["common/muon.py", "headmuon", "one at a time", "torch"],
        ),
    ],
)
def test_operations(part, cases, versions):
    keys = [f"--part={part}", "--rounds=1", "--repeats=1", "--device=cpu"]
    medians = json.loads(run_script("bench.py", *keys, "--json").stdout)["medians"]
    assert list(medians) == cases
    for seconds in medians.values():
        assert list(seconds) == versions and all(0 < s < 60 for s in seconds.values())


def test_the_table_of_operations():
    lines = table({"training": {"ours": 0.002, "theirs": 0.01}}).splitlines()
    assert lines[0].split() == ["ours", "theirs"] and lines[1].split() == ["training", "2.000", "ms", "10.000", "ms"]


def test_sampling(monkeypatch):
    """On a smaller GPT: which versions there are, and that their figures agree with each other."""
    small = GPTConfig(vocab_size=50304, block_size=64, n_layer=2, n_head=2, n_embd=16)
    monkeypatch.setattr(sampling, "GPTConfig", lambda vocab_size: small)
    monkeypatch.setattr(sampling, "COPIED", 1 << 16)
    figures = sampling.compare_sampling(Runtime("cpu"), n_new=3, n_turns=1)
    versions = ["copy", "cached, 1 row", "recomputed, 1 row", "cached, 16 rows", "recomputed, 16 rows"]
    assert list(figures) == versions
    for name, rows in zip(versions[1:], (1, 1, 16, 16)):
        assert figures[name]["tokens_per_s"] == pytest.approx(3 * rows / figures[name]["seconds"])
    one_row = figures["cached, 1 row"]
    # 12 C**2 a block, and the head
    read_per_token = 4 * (2 * 12 * 16 * 16 + 50304 * 16)
    assert one_row["bytes_per_s"] == pytest.approx(read_per_token * one_row["tokens_per_s"])
    assert one_row["share_of_copy"] == pytest.approx(one_row["bytes_per_s"] / figures["copy"]["bytes_per_s"])
    lines = sampling.table(figures).splitlines()
    assert [line[:20].strip() for line in lines[1:]] == versions and lines[2].endswith("%")


def test_saving(monkeypatch):
    """On a smaller GPT: nothing is saved where nothing should be, and the loop waits where it should."""
    small = GPTConfig(vocab_size=4096, block_size=128, n_layer=1, n_head=2, n_embd=16)
    monkeypatch.setattr(saving, "GPTConfig", lambda vocab_size: small)
    monkeypatch.setattr(saving, "STEPS", 1)
    writers = []

    class Writer(saving.CheckpointWriter):
        """Takes its time and writes nothing."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            writers.append(self)
            self.n_saved = 0

        def write(self, *args):
            time.sleep(0.2)
            self.n_saved += 1

    monkeypatch.setattr(saving, "CheckpointWriter", Writer)
    figures = saving.compare_saving(Runtime("cpu"), n_turns=1)
    assert list(figures) == ["pause, 2.6 M", "1 steps, 2.6 M", "pause, 124 M"]
    # two versions that save, in two turns, of each case
    assert [writer.n_saved for writer in writers] == [8, 4]
    for case in figures.values():
        assert list(case) == ["no save", "in the loop", "by a thread"] and case["in the loop"] >= 0.2


@pytest.mark.parametrize("name", race.COURSES)
def test_each_course_says_how_its_data_are_made_and_scores_its_last_step(name):
    course = race.COURSES[name]
    config = read_config_file(course.config)
    assert made_by(config["dataset"]).startswith("python prepare_data.py config/race/")
    for settings in (config, config | course.plain):
        # all that the straightforward loop is told, and an evaluation where the schedule ends
        assert {*race.SHARED, "learning_rate", "max_steps", "warmup_steps"} <= settings.keys()
        assert settings["max_steps"] % settings["eval_interval"] == 0


@pytest.mark.slow
def test_race(dataset, tmp_path, monkeypatch):
    """Both runners stop where they reach the loss, and say what it took; one that cannot has lost."""
    config = tmp_path / "course.py"
    config.write_text(
        f"dataset = {str(dataset)!r}\nout_dir = {str(tmp_path / 'run')!r}\nn_layer, n_head, n_embd = 1, 2, 32\n"
        "block_size, batch_size, max_steps, warmup_steps = 16, 8, 60, 5\neval_interval, eval_rows = 10, 16\n"
        "learning_rate, save_interval, keep_best, device = 1e-2, 0, False, 'cpu'\n"
    )
    plain = {"learning_rate": 1e-2, "max_steps": 60, "warmup_steps": 5}
    monkeypatch.setitem(race.COURSES, "short", race.Course(str(config), target=4.5, plain=plain))
    # twice, as a run in the same folder must not stop the next race
    for _ in range(2):
        results = race.run_race("short", target=0.0, n_seeds=1)
    for (result,) in results.values():
        steps = result["steps"]
        assert result["losses"].keys() == {str(step) for step in range(0, steps + 1, 10)}
        assert result["val"] <= 4.5 < min(loss for step, loss in result["losses"].items() if step != str(steps))
        assert result["tokens"] == steps * 8 * 16 and result["flops"] > result["tokens"] and result["seconds"] > 0
    # the untrained models differ by little, as they are scored on the same rows
    (plain_run,), (ours,) = results.values()
    assert abs(plain_run["losses"]["0"] - ours["losses"]["0"]) < 0.1
    lines = race.table(results, 4.5).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["straightforward", "train.py"] and "1.00" in lines[1]
    lost = {name: [result | {"val": 4.6}] for name, (result,) in results.items()}
    assert race.table(lost, 4.5).count("not reached") == 2


def test_generation_that_is_measured_without_a_cache_gives_the_tokens_of_the_cached():
    torch.manual_seed(0)
    net = GPT(GPTConfig(vocab_size=50304, block_size=64, n_layer=2, n_head=2, n_embd=16)).eval()
    idx = torch.randint(50257, (2, 5))
    torch.manual_seed(1)
    want = net.generate(idx, 9, vocab_size=50257)
    torch.manual_seed(1)
    assert torch.equal(sampling.generate_recomputed(net, idx, 9), want)


@pytest.mark.slow
def test_one_divergence_alone_and_errors():
    table = run_script("bench.py", *TINY, "--kl=js").stdout.splitlines()
    assert [line.split()[0] for line in table[2:]] == ["chunked"]
    for key, message in [
        ("--part=body", "part='body' is not one of head, step, hellaswag, tokenizer, bpe, loader, gqa, muon, sample"),
        ("--kl=x", "kl='x' is not one of"),
    ]:
        done = run_script("bench.py", key, ok=False)
        assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1
    for key in ("--student_width=65", "--tokens=40"):  # 40 tokens are no rows of 16
        done = run_script("bench.py", *TINY, "--part=step", key, ok=False)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
