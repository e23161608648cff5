"""bench.py --part=fit: what it works out about a run against what the run then takes.

python tests/test_fit.py        # measures the five runs, and prints predicted and measured (results/bench/fit.txt)
"""

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_script, write_dataset
from torch._subclasses import FakeTensorMode

from benchmarks import fit
from benchmarks.footprint import Allocations, AsOnCuda, Step, step_memory
from benchmarks.plan import make_plan, model_shape, new_model, read_knobs, vocabulary
from benchmarks.published import CONFIGS
from common.data import TokenData
from common.families import FAMILIES
from common.pretrained import save_pretrained
from common.tokenizer import ByteTokenizer
from model import GPT, GPTConfig, LLaMA, LLaMAConfig

SMALL = ["--n_layer=2", "--n_head=2", "--n_embd=64", "--block_size=32", "--batch_size=4", "--vocab_multiple=512"]


def plan_of(*args, vocab_size=300):
    return make_plan(*read_knobs(list(map(str, args))), vocab_size)


# ---------------------------------------------------------------------------------------------
# what a run consists of


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("gpt2", 124_439_808),
        ("distilgpt2", 81_912_576),
        ("EleutherAI/pythia-70m", 70_426_624),
        ("EleutherAI/pythia-160m", 162_322_944),
        ("allenai/OLMo-1B-hf", 1_176_764_416),
        ("allenai/OLMo-2-0425-1B", 1_484_916_736),
        ("Qwen/Qwen3-0.6B-Base", 596_049_920),
    ],
)
def test_published_shapes_have_the_published_number_of_parameters(name, parameters):
    if CONFIGS[name]["model_type"] not in FAMILIES:
        pytest.skip("model.py does not compute this family")
    with torch.device("meta"):
        assert new_model(model_shape(name, 0)).n_params() == parameters


def test_documents_count_as_rows(tmp_path):
    """Cut or padded, a document is a row: the loop's tokens, of which plan and FLOPs are made."""
    data = write_dataset(tmp_path / "data", tokens=8000)
    rows = TokenData(data, "train", 32, seed=0, batch_size=4, packing="documents")
    plan = plan_of(*SMALL, f"--dataset={data}", "--packing=documents", "--epochs=2")
    assert plan.n_tokens == 2 * rows.n_rows * 32
    plan = plan_of(*SMALL, f"--dataset={data}", "--epochs=2")
    assert plan.n_tokens == 16000


def test_the_headers_of_the_configs_say_the_same():
    plan = make_plan(*read_knobs(["config/pretrain_124m.py"]))
    assert plan.script == "train.py" and plan.student.n_params() == 123_587_328 and plan.vocab_size == 50280
    assert plan.n_tokens == 19_073 * 512 * 1024 and plan.rows_per_step == 512
    assert plan.flops == plan.flops_plain == 3 * plan.student.flops_per_token(1024)
    plan = make_plan(*read_knobs(["config/babyllama/student.py"]))
    assert plan.script == "distill.py" and [t.n_params() for t in plan.teachers] == [704_732_160, 359_973_888]
    assert plan.student.n_params() == 58_343_936 and plan.vocab_size == 16000
    assert plan.flops == plan.flops_plain + sum(t.flops_per_token(128) for t in plan.teachers)
    # a control has the same config, and no teacher to load
    assert make_plan(*read_knobs(["config/babyllama/control.py"])).teachers == []


def test_init_from_and_init_layers_decide_the_shape():
    plan = make_plan(*read_knobs(["config/rkld_olmo.py"]))
    assert plan.student.n_params() == 123_587_328  # out/pretrain_124m, by its config
    keys = ["--teacher=gpt2", "--init_layers=0,2,4,7,9,11", "--block_size=64"]
    assert plan_of(*keys, vocab_size=50257).student.n_params() == 81_912_576
    with pytest.raises(ValueError, match="n_layer=3, but gpt2 has n_layer=12"):
        plan_of("--init_from=gpt2", "--n_layer=3", vocab_size=50257)


def test_the_ids_of_a_data_set(dataset):
    assert vocabulary(str(dataset), 0) == 257 and vocabulary("data/nowhere", 7) == 7
    assert [vocabulary(f"data/{name}", 0) for name in ("openwebtext", "pile", "babylm")] == [50257, 50277, 16000]
    with pytest.raises(ValueError, match="give --vocab_size="):
        vocabulary("data/nowhere", 0)


def test_a_model_on_the_disk_goes_before_all_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_pretrained(GPT(GPTConfig(64, 16, n_layer=1, n_head=2, n_embd=8)), tmp_path / "gpt2/step_000007")
    assert model_shape("gpt2", 0).n_embd == 8


# ---------------------------------------------------------------------------------------------
# what a step takes


def test_allocations_by_hand():
    counted = Allocations(granule=64)
    with FakeTensorMode(), counted:
        with counted.counted_as("weights"):
            a = torch.empty(10, 10)  # 400 bytes, rounded up to 448
        view = a.t()[2:]
        b = a + 1
        assert counted.live == {"weights": 448, "head and temporaries": 448} and counted.total == 896
        del a, b
        assert counted.total == 448  # for the view
        del view
        assert counted.total == 0 and counted.peak == 896
        c = torch.empty(1)
        counted.count_as("gradients", c)
        counted.reset()
        assert counted.peak == 64 and counted.at_peak["gradients"] == 64


def test_parts_by_hand():
    plan = plan_of(*SMALL, "--device=cpu", "--grad_accum_steps=2")
    parts = step_memory(plan, 4)
    weights = 4 * plan.student.n_params()
    assert parts["weights"] == parts["gradients"] == weights
    assert weights * 2 <= parts["optimiser"] <= weights * 2 + 64 * 40  # and the numbers of steps
    assert parts["teachers"] == 0
    muon = step_memory(plan_of(*SMALL, "--device=cpu", "--optimizer=muon", "--grad_accum_steps=2"), 4)
    matrices = 4 * sum(p.numel() for p in plan.student.h.parameters() if p.dim() == 2)
    assert muon["optimiser"] == pytest.approx(2 * weights - matrices, abs=64 * 40)
    frozen = step_memory(plan_of(*SMALL, "--device=cpu", "--freeze=h", "--grad_accum_steps=2"), 4)
    n_blocks = 4 * sum(p.numel() for p in plan.student.h.parameters())
    assert frozen["gradients"] == weights - n_blocks


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 3])
def test_one_micro_step_tells_as_much_as_whole_steps(accumulate):
    """`Step.start` makes by hand what earlier micro-steps leave; here they are run."""
    keys = ["--teacher=gpt2", "--weight_cos=1", "--block_size=64", f"--grad_accum_steps={accumulate}", "--n_layer=2"]
    plan = plan_of(*keys, "--batch_size=2", "--device=cpu", vocab_size=50257)
    counted = Allocations(granule=64)
    with FakeTensorMode(), counted:
        step = Step(plan, counted)
        for _ in range(2):
            counted.reset()
            for _ in range(accumulate):
                step.micro_step(2)
            step.update()
    assert sum(step_memory(plan, 2).values()) == pytest.approx(counted.peak, rel=1e-3)


@pytest.mark.slow
def test_attention_with_dropout_makes_no_square_on_cuda():
    """From 256 to 512 positions a T x T matrix grows by 4, all else by 2."""
    grown = {}
    for device in ("cpu", "cuda"):
        keys = ["--arch=gpt", "--dropout=0.1", "--n_layer=2", "--n_embd=64", "--n_head=4", f"--device={device}"]
        activations = []
        for T in (256, 512):
            activations.append(step_memory(plan_of(*keys, f"--block_size={T}"), 8)["activations"])
        grown[device] = activations[1] / activations[0]
    assert grown["cuda"] < 2.05 and grown["cpu"] > 3


def test_cuda_computes_the_head_in_whole_chunks():
    q = torch.zeros(2, 2)
    with AsOnCuda():
        assert q.is_cuda
    assert not q.is_cuda


def test_beyond_a_chunk_memory_is_linear():
    plan = plan_of(*SMALL, "--chunk_tokens=64", "--grad_accum_steps=16")
    peaks = [sum(step_memory(plan, rows).values()) for rows in (8, 16, 32)]
    assert peaks[2] - peaks[1] == pytest.approx(2 * (peaks[1] - peaks[0]), rel=0.02)


def test_the_largest_that_fits(monkeypatch):
    monkeypatch.setattr(fit, "step_memory", lambda plan, rows: {"weights": 100 + 10 * rows})
    plan = plan_of("--batch_size=4", "--grad_accum_steps=15")  # 60 rows
    for memory, largest in [(100, 0), (111 / 0.9, 1), (300 / 0.9, 20), (1e9, 60)]:
        assert fit.largest_fit(plan, memory, {}) == largest
    shown = fit.describe(plan, {"memory": 300 / 0.9, "peak": 1e12, "mfu": 0.5})
    assert list(shown["sizes"]) == [1, 2, 4, 20] and shown["fits"] and shown["largest"] == 20


def test_a_line_for_every_config_of_a_loop(monkeypatch, capsys):
    monkeypatch.setattr(fit, "step_memory", lambda plan, rows: {"weights": 1e9 * rows})
    fit.overview(["--device=cuda"], {"memory": 80e9, "peak": 989e12, "mfu": 0.4, "json": False, "vocab_size": 0})
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[1:]}
    headers = {path: path.read_text() for path in (ROOT / "config").rglob("*.py")}
    runs = [path for path, text in headers.items() if "\n# python train.py" in text or "\n# python distill.py" in text]
    assert set(lines) == {path.relative_to(ROOT).as_posix() for path in runs} and len(runs) > 10
    assert lines["config/pretrain_124m.py"] == "123.6 M 798.1 1.00 7.98e+18 5.6 16,000 16 64".split()


# ---------------------------------------------------------------------------------------------
# as a user runs it


@pytest.mark.slow
def test_report(dataset):
    keys = ["--part=fit", *SMALL, f"--dataset={dataset}", "--max_steps=10", "config/quickstart/teacher.py"]
    lines = run_script("bench.py", *keys, "--optimizer=adamw", "--dtype=float32").stdout.splitlines()
    assert "(train.py), on cuda, matmuls in float32" in lines[0] and lines[1].endswith(" 257 ids")
    assert lines[3].startswith("the run          1,280 tokens, ")
    assert [line.split()[0] for line in lines[6:-2]] == ["rows", "1", "2", "4"]
    assert lines[-1].startswith("batch_size=4 fits into 80 GB") and lines[-1].endswith(": 4 of the step's 4 rows")
    got = json.loads(run_script("bench.py", *keys, "--json", "--memory=1e6").stdout)
    assert got["largest"] == 0 and not got["fits"] and got["tokens"] == 1280
    assert got["peak_bytes"] == sum(got["sizes"]["4"].values()) > 1e6


@pytest.mark.slow
@pytest.mark.parametrize(
    "args, message",
    [
        (["config/pretrain_124m.py", "--memory=0"], "memory=0.0 is too small; it must be at least 1"),
        (["config/pretrain_124m.py", "--mfu=40"], "mfu=40.0 is out of range; it must be over 0 and at most 1"),
        (["config/nowhere.py"], "no config file 'config/nowhere.py'"),
        (["config/data_pile.py"], "config/data_pile.py is a config of prepare_data.py; give one of train.py or"),
        (["config/pretrain_124m.py", "--lerning_rate=1"], "unknown key 'lerning_rate'; did you mean 'learning_rate'?"),
        (["config/pretrain_124m.py", "--memry=1"], "unknown key 'memry'; did you mean 'memory'?"),
        (["config/pretrain_124m.py", "--batch_size", "8"], "expected --batch_size=8, without a blank"),
        (["config/pretrain_124m.py", "--batch_size=7"], "tokens_per_step=524,288 is no multiple of 7,168"),
        (["config/pretrain_124m.py", "--device=mps"], "device='mps' is not one of auto (CUDA), cpu, cuda"),
        (["config/pretrain_124m.py", "--dataset=data/none"], "give --vocab_size=<its ids>"),
        (["config/rkld_olmo.py", "--teacher=./nowhere"], "no model at './nowhere'"),
        (["--batch_size=8"], "--batch_size=8 is for one run; name its config file too"),
    ],
)
def test_bad_input_ends_in_one_line(args, message):
    done = run_script("bench.py", "--part=fit", *args, ok=False)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


# ---------------------------------------------------------------------------------------------
# against what real runs take

# tensors of 400 to 1,000 MB; a head of 8,192 rows, for 257 ids
SIZED = ["--n_layer=4", "--n_head=8", "--n_embd=512", "--block_size=128", "--batch_size=16", "--vocab_multiple=8192"]
TINY_RUN = ["--n_layer=1", "--n_head=2", "--n_embd=32", "--block_size=128", "--batch_size=16"]
RUNS = {
    "train.py, gpt, AdamW": ["train.py", *SIZED, "--arch=gpt"],
    "train.py, llama, Muon": ["train.py", *SIZED, "--optimizer=muon"],
    "train.py, llama, 2 micro-steps": ["train.py", *SIZED, "--grad_accum_steps=2"],
    "distill.py, one teacher": ["distill.py", *SIZED, "--teacher=wide"],
    "distill.py, two teachers, weight_cos": ["distill.py", *SIZED, "--teacher=wide,gpt", "--weight_cos=1"],
}


def make_teachers(folder: Path):
    """Models that lie beside the data: "wide" and "gpt"."""
    torch.manual_seed(0)
    wide = LLaMA(LLaMAConfig(320, 128, n_layer=4, n_head=8, n_embd=768))
    gpt = GPT(GPTConfig(8192, 128, n_layer=4, n_head=8, n_embd=640))
    for name, model in (("wide", wide), ("gpt", gpt)):
        save_pretrained(model, folder / name, ByteTokenizer())


@functools.cache
def resident_bytes(command: tuple[str, ...], folder: Path, freed: str) -> int:
    """What the steps of a run add to the memory that the process holds: "back" is what is allocated, "kept" all."""
    environment = os.environ | {"FREED": freed, "OMP_NUM_THREADS": "1"}
    if freed == "back":
        environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    with tempfile.TemporaryDirectory() as out_dir:
        done = subprocess.run(
            [sys.executable, ROOT / "tests/measured_run.py", *command, f"--out_dir={out_dir}/run"],
            capture_output=True, text=True, cwd=folder, env=environment, check=True,
        )  # fmt: skip
    seen = json.loads(done.stdout.splitlines()[-1])
    return seen["peak"] - seen["before"]


def compare(name: str, folder: Path, kinds: list[str]) -> tuple[int, list[int]]:
    """(predicted bytes, measured ones of each kind) of one of RUNS: three steps on the CPU in float32.

    Measured is what the process holds at most until the end of the last step, less what it held as the first model was
    made, less the same of a tiny run: that is code which is only loaded as it is first used, 0.12 GB.
    """
    script, *keys = RUNS[name]
    fixed = ["--dataset=chain", "--device=cpu", "--max_steps=3", "--eval_interval=0", "--eval_rows=2"]
    before = os.getcwd()
    os.chdir(folder)  # where the teachers' names lead
    plan = plan_of(*keys, *fixed, vocab_size=0)
    os.chdir(before)
    predicted = sum(step_memory(plan, plan.config["batch_size"]).values())
    measured = []
    for freed in kinds:
        code = resident_bytes(("train.py", *TINY_RUN, *fixed), folder, freed)
        measured.append(resident_bytes((script, *keys, *fixed), folder, freed) - code)
    return predicted, measured


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("fit")
    write_dataset(path / "chain")
    make_teachers(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RUNS if "Muon" in name or "distill" in name])
def test_a_real_run_allocates_what_was_predicted(name, folder):
    """Three of RUNS, for the time they take; this file as a script measures all five (results/bench/fit.txt)."""
    if not sys.platform.startswith("linux"):
        pytest.skip("resident memory is read from /proc, and glibc is told to give it back")
    predicted, (measured,) = compare(name, folder, ["back"])
    assert predicted > 4e8 and measured == pytest.approx(predicted, rel=0.1)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        write_dataset(Path(temporary) / "chain")
        make_teachers(Path(temporary))
        print("# python tests/test_fit.py")
        print(f"# torch {torch.__version__}, CPU, one thread, float32; MB")
        print("# allocated: freed memory goes back at once; held: the loops keep it (common/runtime.py), with gaps")
        print(f"{'run':<40}predicted  allocated  ratio     held  ratio")
        for run in RUNS:
            predicted, (allocated, held) = compare(run, Path(temporary), ["back", "kept"])
            print(
                f"{run:<40}{predicted / 1e6:>9,.0f}{allocated / 1e6:>11,.0f}{allocated / predicted:>7.3f}"
                f"{held / 1e6:>9,.0f}{held / predicted:>7.3f}",
                flush=True,
            )
