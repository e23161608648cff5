"""What the published recipes ask of the loops, and their configs."""

import json
import re

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, read_log, run_script, write_dataset
from safetensors.torch import load_file

from benchmarks.footprint import step_memory
from benchmarks.plan import LOOPS, loop_for, make_plan, read_knobs
from benchmarks.published import TOKENIZERS
from common.pretrained import load_pretrained, save_pretrained
from common.tokenizer import ByteTokenizer
from configurator import config_of, read_config_file, script_for
from model import GPT, GPTConfig, LLaMA, LLaMAConfig
from studies.distilpythia.fresh import pythia


def is_bfloat16(tensor):
    return torch.equal(tensor, tensor.bfloat16().float())


@pytest.fixture
def run(dataset, teacher, tmp_path):
    """run(script, name, *keys): a tiny run into tmp_path/name, which is returned."""

    def go(script, name, *keys, **more):
        own = [f"--teacher={teacher}", "--weight_cos=0.5"] if script == "distill.py" else []
        keys = [f"--dataset={dataset}", f"--out_dir={tmp_path / name}", "--max_steps=6", *own, *keys]
        run_script(script, *TINY, *keys, **more)
        return tmp_path / name

    return go


# ---------------------------------------------------------------------------------------------
# weights kept in bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("script, optimizer", [("train.py", "muon"), ("distill.py", "adamw")])
def test_weights_and_moments_of_a_checkpoint_are_bfloat16(script, optimizer, run):
    keys = ["--weight_dtype=bfloat16", f"--optimizer={optimizer}", "--grad_accum_steps=2", "--dropout=0.1"]
    whole = run(script, "whole", *keys)
    weights = load_file(whole / "step_000006/model.safetensors")
    state = torch.load(whole / "step_000006/trainer.pt", weights_only=True)
    moments = [m for o in state["optimizers"] for s in o["state"].values() for k, m in s.items() if k != "step"]
    assert len(moments) > 10 and all(
        map(is_bfloat16, [*weights.values(), *moments, *state.get("projections", {}).values()])
    )
    # another run than that with float32 weights, and resumed the same
    assert read_log(whole, "train") != read_log(run(script, "float32", *keys[1:]), "train")
    run(script, "parts", *keys, "--max_steps=3")
    parts = run(script, "parts", *keys, "--init_from=resume")
    assert (whole / "log.txt").read_text() == (parts / "log.txt").read_text()
    resumed = load_file(parts / "step_000006/model.safetensors")
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


# ---------------------------------------------------------------------------------------------
# the mean over a step


@pytest.fixture
def uneven(tmp_path):
    """A data set of documents of 3 to 40 tokens."""
    folder = write_dataset(tmp_path / "uneven")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        ids = np.fromfile(folder / f"{split}.bin", "<u2")
        ends = np.cumsum(rng.integers(3, 40, size=2000))
        ids[ends[ends < len(ids)] - 1] = 256
        ids.tofile(folder / f"{split}.bin")
    return folder


def documents_of_step_0(folder, batch_size, n_micro_steps, **of):
    from common.data import TokenData

    data = TokenData(
        folder, "train", 16, seed=1337, batch_size=batch_size, grad_accum_steps=n_micro_steps, packing="documents", **of
    )
    return [data.batch(0, micro_step) for micro_step in range(n_micro_steps)]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train.py", "distill.py"])
def test_the_mean_over_micro_steps_is_what_it_says(script, run, uneven):
    """The first loss is the mean of the micro-steps' means, by hand in float64; over tokens it is another number."""
    keys = [f"--dataset={uneven}", "--packing=documents", "--batch_size=2", "--grad_accum_steps=4", "--max_steps=1"]
    keys += ["--weight_kl=0", "--weight_cos=0"] if script == "distill.py" else []
    keys += ["--learning_rate=0", "--min_lr=0"]  # the weights that were scored are those of the checkpoint
    by_token = run(script, "by_token", *keys)
    by_micro_step = run(script, "by_micro_step", *keys, "--loss_mean=micro_step")
    model = load_pretrained(by_token, dtype=torch.float64)
    sums, counts = [], []
    for x, y in documents_of_step_0(uneven, 2, 4):
        logits = model(x)[:, :, :257]
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1, reduction="sum")
        sums.append(losses.item())
        counts.append((y >= 0).sum().item())
    assert len(set(counts)) > 1
    expected = np.mean([s / n for s, n in zip(sums, counts)])
    assert read_log(by_token, "train")[0] == pytest.approx(sum(sums) / sum(counts), abs=2e-6)
    assert read_log(by_micro_step, "train")[0] == pytest.approx(expected, abs=2e-6)
    assert abs(expected - sum(sums) / sum(counts)) > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train.py", "distill.py"])
def test_the_mean_over_micro_steps_is_the_same_on_two_ranks(script, run, uneven):
    """Two ranks of one micro-step each are two micro-steps of one rank: losses and gradient norms agree."""
    keys = [f"--dataset={uneven}", "--packing=documents", "--batch_size=2", "--loss_mean=micro_step"]
    one = run(script, "one", *keys, "--grad_accum_steps=2")
    two = run(script, "two", *keys, "--grad_accum_steps=1", ranks=2)
    for label in ("train", "norm"):
        a, b = read_log(one, label), read_log(two, label)
        assert list(a) == list(b) and len(a) == 6
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-4)


@pytest.mark.parametrize(
    "key, message",
    [
        ("--loss_mean=row", "loss_mean='row' is not one of token, micro_step"),
        ("--weight_dtype=bf16", "weight_dtype='bf16' is not one of float32, bfloat16"),
    ],
)
def test_knobs_out_of_range(key, message, dataset, tmp_path):
    done = run_script("train.py", f"--dataset={dataset}", f"--out_dir={tmp_path / 'o'}", key, ok=False)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


# ---------------------------------------------------------------------------------------------
# queries and keys that are normalised


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train.py", "distill.py"])
def test_qk_norm_makes_a_qwen3_and_resumes_as_one(script, run):
    folder = run(script, "qk", "--qk_norm=True", "--dropout=0.1", "--max_steps=3")
    assert json.loads((folder / "step_000003/config.json").read_text())["model_type"] == "qwen3"
    run(script, "qk", "--dropout=0.1", "--init_from=resume")
    whole = run(script, "whole", "--qk_norm=True", "--dropout=0.1")
    assert (folder / "log.txt").read_text() == (whole / "log.txt").read_text()


# ---------------------------------------------------------------------------------------------
# each recipe through its own configs, in small


SMALL = ["--device=cpu", "--block_size=32", "--batch_size=2", "--tokens_per_step=128", "--epochs=0", "--max_steps=20"]
SMALL += ["--warmup_steps=4", "--eval_interval=10", "--eval_rows=8", "--save_interval=10", "--log_interval=5"]
# shapes of the families, as small as they go
PYTHIA = {"block_size": 64, "n_head": 2, "rotary_pct": 0.25, "parallel_residual": True, "exact_gelu": True}
PYTHIA |= {"tie_word_embeddings": False}
TEACHERS = {
    "EleutherAI/pythia-70m": lambda: GPT(GPTConfig(vocab_size=304, n_layer=2, n_embd=32, **PYTHIA)),
    "EleutherAI/pythia-160m": lambda: GPT(GPTConfig(vocab_size=304, n_layer=3, n_embd=48, **PYTHIA)),
    "gpt2": lambda: GPT(GPTConfig(vocab_size=257, block_size=64, n_layer=12, n_head=2, n_embd=32)),
    "allenai/OLMo-1B-hf": lambda: LLaMA(
        LLaMAConfig(vocab_size=320, block_size=64, n_layer=3, n_head=4, n_embd=64, parametric_norm=False)
    ),
}
# (script, config) in the order in which a user runs them
CHAINS = {
    "distilpythia": ["data_pile", "distilpythia/student", "distilpythia/student_constant",
                     "distilpythia/student_fixed", "distilpythia/control"],
    "distilgpt2": ["data_openwebtext", "distilgpt2/student", "distilgpt2/student_fixed", "distilgpt2/control"],
    "microlm": ["data_fineweb_edu", "microlm/pretrain", "microlm/reverse_kl", "microlm/forward_kl", "microlm/js",
                "microlm/on_policy", "microlm/control"],
    "modern": ["data_fineweb_edu", "pretrain_124m", "rkld_olmo"],
    "babyllama": ["babyllama/data", "babyllama/gpt", "babyllama/llama", "babyllama/student",
                  "babyllama/student_fixed", "babyllama/control"],
}  # fmt: skip
SMALL_SHAPE = ["--n_layer=2", "--n_head=2", "--n_embd=32", "--n_inner=64"]


def write_texts(folder):
    """A hundred short files of words, in BabyLM's form as well."""
    rng = np.random.default_rng(0)
    words = ["a", "dog", "cat", "sees", "runs", "the", "house", "and", "then", "sleeps"]
    for i in range(100):
        text = " ".join(rng.choice(words, size=rng.integers(5, 60)))
        (folder / f"text_{i:03}.txt").write_text(f"{text}.\n")
    for split, n in (("train", 300), ("dev", 60)):
        lines = [" ".join(rng.choice(words, size=12)) for _ in range(n)]
        for domain in ("cbt", "qed"):
            (folder / f"{domain}.{split}").write_text("\n".join(lines) + "\n")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", CHAINS)
def test_a_recipe_runs_through_its_own_configs(recipe, tmp_path):
    """Texts -> data -> 20 steps of each config, from folders in the form of the hub -> a score -> a picture.

    Only sizes are overridden. The published teachers are folders of their names, with random weights.
    """
    texts = tmp_path / "texts"
    texts.mkdir()
    write_texts(texts)
    data_config, *configs = CHAINS[recipe]
    prepare = [f"--text_dir={texts}", "--tokenizer=bytes"]
    if recipe == "babyllama":
        prepare = [f"--text_dir={texts}", "--vocab_size=300"]
    else:
        prepare += ["--val_fraction=0.1"]
    run_script("prepare_data.py", ROOT / f"config/{data_config}.py", *prepare, cwd=tmp_path)
    torch.manual_seed(0)
    for name, make in TEACHERS.items():
        save_pretrained(make(), tmp_path / name, ByteTokenizer())
    questions = [{"context": "the dog", "choices": ["runs.", "house."], "label": i % 2} for i in range(8)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))

    out_dirs = []
    for config in configs:
        path = ROOT / f"config/{config}.py"
        knobs = read_config_file(str(path))
        keys = [*SMALL, "--eval_tasks=own.jsonl"]
        if "n_layer" in knobs and "init_from" not in knobs:
            keys += SMALL_SHAPE
        if "on_policy" in knobs:
            keys += ["--prompt_tokens=2-4", "--response_tokens=4"]
        script = script_for(knobs)
        done = run_script(script, path, *keys, cwd=tmp_path)
        assert "step 20/20 | own.jsonl" in done.stdout
        out_dirs.append(knobs["out_dir"])
        summary = json.loads((tmp_path / knobs["out_dir"] / "summary.json").read_text())
        assert summary["steps"] == 20 and np.isfinite(summary["val"])
    if recipe == "distilgpt2":
        published = load_pretrained(tmp_path / "gpt2").state_dict()
        student = load_pretrained(tmp_path / out_dirs[0]).state_dict()
        assert len(load_pretrained(tmp_path / out_dirs[0]).h) == 6
        assert torch.equal(student["wpe.weight"], published["wpe.weight"])
        assert not torch.equal(student["h.1.attn.c_attn.weight"], published["h.2.attn.c_attn.weight"])
    done = run_script("evaluate.py", f"--model={out_dirs[-1]}", "--tasks=own.jsonl", "--device=cpu", cwd=tmp_path)
    assert "own.jsonl" in done.stdout
    run_script("plot.py", f"--runs={','.join(out_dirs)}", "--out=loss.png", cwd=tmp_path)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


# ---------------------------------------------------------------------------------------------
# the published configs


LOOP_CONFIGS = [
    path
    for path in sorted((ROOT / "config").rglob("*.py"))
    if path.name != "__init__.py" and loop_for(read_config_file(str(path)))
]
PUBLISHED = [
    path for path in LOOP_CONFIGS if not path.parent.name.endswith(("quickstart", "race", "_small", "_larger"))
]
# config: (million parameters of the student, of the teachers), as published
SIZES = {
    "pretrain_124m": (124, []),
    "microlm/pretrain": (124, []),
    "pretrain_gpt2_124m": (124, []),
    "rkld_olmo": (124, [1177]),
    "babyllama/gpt": (705, []),
    "babyllama/llama": (360, []),
    "babyllama/student": (58.3, [705, 360]),
    "distilgpt2/student": (82, [124]),
    "distilpythia/student": (70, [162]),
}
# million FLOPs per token of the matrices alone, and times plain training
COSTS = {
    "distilpythia/student": (515, 1.92),
    "distilgpt2/student": (733, 1.51),
    "babyllama/student": (2396, 7.97),
    "microlm/reverse_kl": (3095, 4.17),
}


def plan_of(path):
    script, config = read_knobs([str(path)])
    return make_plan(script, config)


def name_of(path):
    return path.relative_to(ROOT / "config").with_suffix("").as_posix()


@pytest.mark.parametrize("path", LOOP_CONFIGS, ids=name_of)
def test_the_knobs_models_data_and_teachers_of_a_config_agree(path, monkeypatch, tmp_path):
    """Every key exists and is of its type; models are made on the meta device, with the positions that rows need."""
    monkeypatch.chdir(tmp_path)  # without data and runs that lie in the repository
    # no config makes these: a script of their study does
    fresh = {"out/distilpythia_small/fresh_start": (3, 4, 96), "out/distilpythia_small/fresh_teacher": (6, 6, 144)}
    if path.parent.name == "distilpythia_small":
        for name, (n_layer, n_head, n_embd) in fresh.items():
            net = pythia(vocab_size=2048, block_size=128, n_layer=n_layer, n_head=n_head, n_embd=n_embd)
            save_pretrained(net, name)
    plan = plan_of(path)
    config = plan.config
    data_config, data_script = config_of(config["dataset"])
    if data_script:
        assert data_script == "prepare_data.py"
        tokenizer = read_config_file(str(data_config))["tokenizer"]
        # what the tokenizer of another data set is
        if config_of(tokenizer)[0]:
            tokenizer = read_config_file(str(config_of(tokenizer)[0]))["tokenizer"]
    teachers = [name.strip() for name in config.get("teacher", "").split(",") if name.strip()]
    for name in [*teachers, config["init_from"]]:
        # ids of a published model's tokenizer, of another run the same data
        if name in TOKENIZERS:
            assert TOKENIZERS[name] == TOKENIZERS[tokenizer] == plan.vocab_size
        elif name not in ("scratch", *fresh):
            made_config, script = config_of(name)
            assert script in LOOPS and read_config_file(str(made_config))["dataset"] == config["dataset"]
    # the rows of a step are whole micro-batches, on 8 GPUs as well where the header says so
    assert plan.rows_per_step % config["batch_size"] == 0
    if "nproc_per_node=8" in path.read_text():
        assert plan.rows_per_step % (8 * config["batch_size"]) == 0


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name):
    student, teachers = SIZES[name]
    plan = plan_of(ROOT / f"config/{name}.py")
    assert plan.student.n_params() == pytest.approx(student * 1e6, rel=0.01)
    assert [teacher.n_params() for teacher in plan.teachers] == pytest.approx([n * 1e6 for n in teachers], rel=0.01)


def test_the_best_epochs_of_the_teachers_have_their_shapes():
    best = "--teacher=out/babyllama/gpt_705m/best,out/babyllama/llama_360m/best"
    script, config = read_knobs([str(ROOT / "config/babyllama/student.py"), best])
    assert make_plan(script, config).flops == plan_of(ROOT / "config/babyllama/student.py").flops


@pytest.mark.parametrize("name", COSTS)
def test_published_costs(name):
    """Forward 2, backward 4 FLOPs a weight, heads included and attention not."""

    def matrices(model):
        return sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))

    plan = plan_of(ROOT / f"config/{name}.py")
    plain = 6 * matrices(plan.student)
    total = plain + 2 * sum(map(matrices, plan.teachers))
    assert (total / 1e6, total / plain) == pytest.approx(COSTS[name], rel=0.01)


HEADER = re.compile(
    r"# Hardware: one 80 GB GPU \((?P<gb>[\d.]+) GB used\)\. Cost: (?P<about>about )?(?P<flops>[\d.e]+) FLOPs, "
    r"(?P<hours>[\d.]+) hours of an H100 at 40 % of 989 TFLOP/s\."
)


@pytest.mark.slow
@pytest.mark.parametrize("path", PUBLISHED, ids=name_of)
def test_the_header_of_a_config_has_its_cost(path, monkeypatch, tmp_path):
    """Memory, FLOPs and hours are those that bench.py --part=fit finds; epochs of absent data are said to be about."""
    monkeypatch.chdir(tmp_path)
    header = HEADER.search(path.read_text())
    plan = plan_of(path)
    peak = sum(step_memory(plan, plan.config["batch_size"]).values())
    assert float(header["gb"]) == pytest.approx(peak / 1e9, abs=0.1)
    assert peak < 0.9 * 80e9
    flops = float(header["flops"])
    assert bool(header["about"]) == (plan.n_tokens is None)
    if plan.n_tokens:
        assert flops == pytest.approx(plan.flops * plan.n_tokens, rel=0.03)
        flops = plan.flops * plan.n_tokens
    # two digits
    assert float(header["hours"]) == pytest.approx(flops / (0.4 * 989e12) / 3600, rel=0.05)
