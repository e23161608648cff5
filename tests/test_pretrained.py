"""Hugging Face folders: logits equal those that transformers computed (tests/golden), in and out."""

import dataclasses
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_script
from safetensors.torch import load_file, save_file

from common.hf_config import read_config
from common.pretrained import freeze_parameters, keep_blocks, load_pretrained, save_pretrained
from common.tokenizer import ByteTokenizer, load_tokenizer
from model import GPT, GPTConfig, LLaMA, LLaMAConfig

GOLDEN = sorted(p for p in (Path(__file__).parent / "golden").iterdir() if p.is_dir())
STORIES = Path(__file__).resolve().parents[2] / "shared/data/checkpoints/stories260K_hf"


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda p: p.name)
def test_logits_of_every_family_equal_transformers(folder, tmp_path):
    golden = load_file(folder / "golden.safetensors")
    model = load_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        difference = (model(golden["idx"]) - golden["logits"]).abs().max()
        assert difference < 1e-5 * golden["logits"].abs().max() and difference < 1e-4
        save_pretrained(model, tmp_path / "again")
        again = load_pretrained(tmp_path / "again")
        assert again.config == model.config
        assert torch.equal(again(golden["idx"]), model(golden["idx"]))
    theirs, ours = load_file(folder / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert {k: v.shape for k, v in theirs.items()} == {k: v.shape for k, v in ours.items()}


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda p: p.name)
def test_what_we_write_opens_in_transformers(folder, tmp_path):
    """Runs where transformers happens to be installed; the project does not need it."""
    transformers = pytest.importorskip("transformers")
    golden = load_file(folder / "golden.safetensors")
    save_pretrained(load_pretrained(folder, dtype=torch.float32), tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(golden["idx"]).logits, golden["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_cache_gives_the_greedy_tokens_of_no_cache():
    for folder in GOLDEN:
        model = load_pretrained(folder, dtype=torch.float32)
        idx = load_file(folder / "golden.safetensors")["idx"][:, :7]
        slow = idx
        for _ in range(70):  # beyond block_size = 64 (Mistral: 50), where the window slides
            with torch.no_grad():
                slow = torch.cat(
                    (slow, model(slow[:, -model.config.block_size :])[:, -1].argmax(-1, keepdim=True)), dim=1
                )
        assert torch.equal(model.generate(idx, 70, temperature=0), slow), folder.name


def test_rotary_frequencies_survive_a_cast_of_the_whole_model():
    """Positions 1,000 and 1,001 are told apart in bfloat16 as in float32."""
    from model import rope_table

    model = load_pretrained(GOLDEN[0].with_name("llama"), dtype=torch.bfloat16)
    _, rope = model.embed(torch.zeros(1, 1, dtype=torch.long), torch.tensor([63]))
    assert rope[0].dtype == torch.float32
    assert torch.equal(rope[0][0], rope_table(torch.tensor([63]), 8, 10000.0, None)[0])


# ---------------------------------------------------------------------------------------------
# config.json


def golden_config(name):
    return json.loads((GOLDEN[0].with_name(name) / "config.json").read_text())


def same_logits(folder, name):
    golden = load_file(GOLDEN[0].with_name(name) / "golden.safetensors")
    with torch.no_grad():
        logits = load_pretrained(folder, dtype=torch.float32)(golden["idx"])
    return (logits - golden["logits"]).abs().max() < 1e-5 * golden["logits"].abs().max()


def copy_golden(name, folder, **changes):
    """A golden folder in `folder` with its config.json changed; None leaves a key out."""
    shutil.copytree(GOLDEN[0].with_name(name), folder, dirs_exist_ok=True)
    config = {k: v for k, v in (golden_config(name) | changes).items() if v is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# GPT-2 has no rotary positions, and transformers 4 wrote the files of Qwen3 and OLMo 2: the logits are compared from
# those as they are
@pytest.mark.parametrize("name", [p.name for p in GOLDEN if "rope_parameters" in golden_config(p.name)])
def test_the_older_spelling_of_config_json(name, tmp_path):
    """transformers 4: rope_theta and rope_scaling at the top, rotary_pct and rotary_emb_base, torch_dtype."""
    rope = golden_config(name)["rope_parameters"]
    part, theta = rope.pop("partial_rotary_factor", None), rope.pop("rope_theta")
    kind = {"type": rope["rope_type"], **rope}  # older still: "type"
    old = dict(rope_parameters=None, dtype=None, torch_dtype="float16", rope_scaling=None)
    old |= dict(rotary_pct=part, rotary_emb_base=theta) if "neox" in name else dict(rope_theta=theta)
    old |= {} if rope["rope_type"] == "default" else {"rope_scaling": kind}
    assert same_logits(copy_golden(name, tmp_path, **old), name)


def test_keys_that_are_left_out_have_the_values_that_transformers_gives_them(tmp_path):
    left_out = dict.fromkeys(("use_parallel_residual", "hidden_act", "layer_norm_eps", "rope_parameters"))
    assert same_logits(copy_golden("neox_parallel", tmp_path / "neox", **left_out), "neox_parallel")
    left_out = dict.fromkeys(("activation_function", "layer_norm_epsilon", "tie_word_embeddings", "n_inner"))
    assert same_logits(copy_golden("gpt2", tmp_path / "gpt2", **left_out), "gpt2")
    folder = copy_golden("llama", tmp_path / "llama", rms_norm_eps=None, num_key_value_heads=None)
    assert load_pretrained(folder).config.norm_eps == 1e-6
    folder = copy_golden("mistral", tmp_path / "mistral", sliding_window=None, max_position_embeddings=8192)
    assert load_pretrained(folder).config.block_size == 4096  # its code's own window
    # 128 even where hidden_size / num_attention_heads is another number
    no_head_dim = {key: value for key, value in golden_config("qwen3").items() if key != "head_dim"}
    assert read_config(no_head_dim, "config.json")[0].head_dim == 128
    left_out = dict.fromkeys(("rms_norm_eps", "rope_theta", "hidden_act", "attention_bias", "tie_word_embeddings"))
    assert same_logits(copy_golden("olmo2", tmp_path / "olmo2", **left_out), "olmo2")
    no_kv_heads = {key: value for key, value in golden_config("olmo2").items() if key != "num_key_value_heads"}
    assert read_config(no_kv_heads, "config.json")[0].n_kv_head == 4


@pytest.mark.parametrize(
    "name, key, other",
    [
        ("olmo_tied_clip", "clip_qkv", 0.0),
        ("gpt2_untied_exact", "norm_eps", 1e-5),
        ("olmo2", "norm_after", False),
        ("olmo2_tied_bias_linear", "rope_scaling", {}),
    ],
)
def test_options_move_the_golden_logits(name, key, other):
    """A golden file that an option does not move would prove nothing."""
    model = load_pretrained(GOLDEN[0].with_name(name), dtype=torch.float32)
    golden = load_file(GOLDEN[0].with_name(name) / "golden.safetensors")
    without = type(model)(dataclasses.replace(model.config, **{key: other}))
    without.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert (without(golden["idx"]) - golden["logits"]).abs().max() > 1e-3 * golden["logits"].abs().max()


def test_linear_scaling_is_written_as_transformers_4_and_5_read_it(tmp_path):
    """4 opens no OLMo with a third key, or with rope_type for type."""
    save_pretrained(load_pretrained(GOLDEN[0].with_name("olmo2_tied_bias_linear")), tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["rope_scaling"] == {"type": "linear", "factor": 4.0}
    assert written["rope_parameters"] == {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}


def test_large_bases_of_long_contexts_are_read():
    config = golden_config("llama") | {"rope_parameters": {"rope_type": "default", "rope_theta": 3580165449.0}}
    assert read_config(config, "config.json")[0].rope_theta == 3580165449.0


def test_fields_that_override_the_file_are_checked():
    with pytest.raises(ValueError, match="dropout=2 must be at least 0 and under 1"):
        load_pretrained(GOLDEN[0].with_name("llama"), dropout=2)


def test_rows_beyond_a_sliding_window_are_refused():
    model = load_pretrained(GOLDEN[0].with_name("mistral"))
    assert model.config.sliding_window == model.config.block_size == 50
    with pytest.raises(ValueError, match="51 positions, but block_size is 50"):
        model(torch.zeros(1, 51, dtype=torch.long))
    with pytest.raises(ValueError, match="block_size=64 is beyond sliding_window=50"):
        LLaMAConfig(block_size=64, sliding_window=50)


@pytest.mark.parametrize(
    "name, key, value, message",
    [
        ("gpt2", "scale_attn_by_inverse_layer_idx", True, "is not implemented, only False"),
        (
            "gpt2",
            "model_type",
            "mamba",
            "'mamba' is not one of gpt2, gpt_neox, llama, mistral, qwen2, qwen3, olmo, olmo2$",
        ),
        (
            "olmo2",
            "model_type",
            "olmo3",
            "'olmo3' is not one of .*olmo2; not implemented: sliding windows in some layers",
        ),
        ("olmo2", "model_type", "smollm3", "'smollm3' is not one of .*: layers without rotary positions"),
        ("olmo2", "model_type", "qwen3_moe", "'qwen3_moe' is not one of .*: mixtures of experts"),
        ("olmo2", "model_type", "phi3", "'phi3' is not one of .*: query, key and value in one matrix"),
        ("olmo2", "model_type", "gemma2", "'gemma2' is not one of .* capped logits"),
        ("olmo2", "model_type", "gemma3", r"'gemma3' is not one of .* scaled embeddings and \(1 \+ w\) norms"),
        ("olmo2", "model_type", "gemma3_text", "'gemma3_text' is not one of .*: sliding windows, four norms a block"),
        ("olmo2", "layer_types", ["sliding_attention", "full_attention"], "'sliding_attention' are not implemented"),
        ("olmo2", "rope_scaling", {"type": "dynamic", "factor": 2.0}, "'dynamic' is not implemented"),
        ("olmo2", "head_dim", 16, "head_dim=16 is not implemented"),
        ("olmo2", "hidden_act", "gelu", "hidden_act='gelu' is not implemented, only 'silu'"),
        ("gpt2", "activation_function", "relu", "activation 'relu' is not implemented"),
        ("neox_parallel", "attention_bias", False, "attention_bias=False is not implemented, only True"),
        ("neox_parallel", "rope_scaling", {"type": "linear", "factor": 2.0}, "'linear' is not implemented"),
        ("llama", "rope_scaling", {"rope_type": "yarn", "factor": 2.0}, "'yarn' is not implemented"),
        ("llama", "rope_scaling", {"rope_type": "llama3", "factor": 2.0}, "needs low_freq_factor over 0"),
        ("llama", "rope_scaling", ["linear"], "is not a JSON object"),
        ("llama", "rope_parameters", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not implemented"),
        ("llama", "head_dim", 16, "head_dim=16 is not implemented"),
        ("llama", "hidden_act", "gelu", "hidden_act='gelu' is not implemented, only 'silu'"),
        ("llama", "quantization_config", {"bits": 4}, "quantization_config={'bits': 4} is not implemented"),
        ("qwen2", "use_sliding_window", True, "use_sliding_window=True is not implemented"),
        ("qwen3", "use_sliding_window", True, "use_sliding_window=True is not implemented"),
        ("qwen3", "attention_bias", True, "attention_bias=True is not implemented, only False"),
        ("qwen3", "head_dim", 0, "head_dim=0, expected int from 1"),
        ("qwen3", "head_dim", 9, r"head_dim \(or n_embd / n_head\) = 9 is odd"),
        ("qwen3", "head_dim", 1 << 23, r"num_attention_heads \* head_dim = 33,554,432, expected at most 16,777,216"),
        ("llama", "num_attention_heads", 0, "num_attention_heads=0, expected int from 1"),
        ("llama", "num_hidden_layers", "2", "num_hidden_layers='2', expected int"),
        ("llama", "num_hidden_layers", True, "num_hidden_layers=True, expected int"),
        ("llama", "hidden_size", 10**30, "expected int from 1 to 16,777,216"),
        ("llama", "hidden_size", None, "hidden_size is not there"),
        ("llama", "rms_norm_eps", float("nan"), "rms_norm_eps=nan, expected float"),
        ("llama", "tie_word_embeddings", "no", "tie_word_embeddings='no', expected true or false"),
        ("llama", "partial_rotary_factor", 0.5, "partial_rotary_factor=0.5 is not implemented"),
        ("neox_parallel", "rope_parameters", {"partial_rotary_factor": 0.0}, "rotary_pct=0 is not implemented"),
        ("llama", "model_type", ["llama"], r"model_type \['llama'\] is not one of"),
        ("llama", "layer_types", ["full_attention", "sliding_attention"], "'sliding_attention' are not implemented"),
        ("neox_parallel", "hidden_act", {}, "activation {} is not implemented"),
        (
            "neox_parallel",
            "rope_parameters",
            {"partial_rotary_factor": 3.0},
            "rotary_pct=3.0 of n_embd",
        ),
        ("llama", "num_key_value_heads", 3, "config.json: n_head=4 is not divisible by n_kv_head=3"),
        ("llama", "num_hidden_layers", 10_000_000, "has 21 tensors, but config.json says 10000000 blocks"),
    ],
)
def test_options_we_do_not_have_and_values_that_are_none_are_refused(tmp_path, name, key, value, message):
    changes = {"rope_parameters": None} if key == "rope_scaling" else {}
    with pytest.raises(ValueError, match=message):
        load_pretrained(copy_golden(name, tmp_path, **changes, **{key: value}))


def test_a_model_that_no_family_computes_is_not_saved(tmp_path):
    """Heads of a width that does not follow from n_embd, without Qwen3's norms of queries and keys; half an OLMo 2."""
    shape = dict(vocab_size=80, block_size=16, n_layer=1, n_head=4, n_embd=32)
    with pytest.raises(ValueError, match=r"no Hugging Face family computes what this LLaMA does: .* head_dim=12, "):
        save_pretrained(LLaMA(LLaMAConfig(**shape, head_dim=12)), tmp_path)
    for half in ({"norm_after": True}, {"qk_norm_all_heads": True}, {"norm_after": True, "qk_norm": True}):
        with pytest.raises(ValueError, match="no Hugging Face family computes what this LLaMA does"):
            save_pretrained(LLaMA(LLaMAConfig(**shape, **half)), tmp_path)


def test_norms_of_each_head_and_of_all_heads_exclude_each_other():
    with pytest.raises(ValueError, match="qk_norm and qk_norm_all_heads exclude each other"):
        LLaMAConfig(qk_norm=True, qk_norm_all_heads=True)


# ---------------------------------------------------------------------------------------------
# weights, as files hold them


@pytest.fixture
def small(tmp_path):
    """(model, its weights under Hugging Face names, a folder of its config.json alone)."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(64, 16, 2, 2, 16)).eval()
    save_pretrained(model, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    return model, weights, tmp_path


def equal(model, other):
    state, theirs = model.state_dict(), other.state_dict()
    return state.keys() == theirs.keys() and all(torch.equal(state[k].float(), theirs[k].float()) for k in state)


def write_shards(folder, weights, suffix, save, base):
    names = sorted(weights)
    files = {f"{base}-{i}-of-2{suffix}": part for i, part in ((1, names[:9]), (2, names[9:]))}
    for file, part in files.items():
        save({name: weights[name] for name in part}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / f"{base}{suffix}.index.json").write_text(json.dumps(index))
    return index, files


@pytest.mark.parametrize("form", ["safetensors", "shards", "bin", "old bin", "bin shards"])
def test_every_form_of_files(small, form):
    model, weights, folder = small
    if form == "safetensors":
        save_file(weights, folder / "model.safetensors")
    elif form == "shards":
        write_shards(folder, weights, ".safetensors", save_file, "model")
    elif form == "bin shards":
        write_shards(folder, weights, ".bin", torch.save, "pytorch_model")
    else:
        torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=form == "bin")
    assert equal(load_pretrained(folder), model)


def test_a_file_is_opened_anew_on_the_way_and_still_read_right(small, monkeypatch):
    model, weights, folder = small
    monkeypatch.setattr("common.weight_files.REOPEN", 100)
    for save, name in ((torch.save, "pytorch_model.bin"), (save_file, "model.safetensors")):
        save(weights, folder / name)
        assert equal(load_pretrained(folder), model)


@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("wanted", [torch.float32, torch.float16, torch.bfloat16, None])
def test_any_stored_float_type_into_any_requested_one(small, stored, wanted):
    model, weights, folder = small
    save_file({k: v.to(stored) for k, v in weights.items()}, folder / "model.safetensors")
    got = load_pretrained(folder, dtype=wanted)
    assert {p.dtype for p in got.parameters()} == {wanted or stored}
    assert torch.equal(got.wte.weight.float(), model.wte.weight.to(stored).to(wanted or stored).float())


def test_files_of_the_bare_model_with_its_buffers(small):
    """As OpenAI's gpt2 lies on the hub: no prefix, no head, and the causal mask of every block."""
    model, weights, folder = small
    bare = {name.removeprefix("transformer."): weight for name, weight in weights.items()}
    bare |= {f"h.{i}.attn.bias": torch.ones(1, 1, 16, 16) for i in range(2)}
    save_file(bare, folder / "model.safetensors")
    assert equal(load_pretrained(folder), model)
    save_file(bare | {"h.2.attn.bias": torch.ones(1)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"h\.2\.attn\.bias is not used"):
        load_pretrained(folder)


def test_tensors_that_do_not_fit_are_named(small):
    _, good, folder = small
    tied = {**good, "lm_head.weight": good["transformer.wte.weight"].clone()}
    save_file(tied, folder / "model.safetensors")
    load_pretrained(folder)
    nan, wte = good["transformer.ln_f.bias"].clone(), "transformer.wte.weight"
    nan[3] = float("nan")
    for change, message in (
        (
            {"stray": torch.zeros(1), "transformer.ln_f.bias": None},
            "transformer.ln_f.bias is missing; stray is not used",
        ),
        (
            {"transformer.wpe.weight": torch.zeros(8, 16)},
            r"wpe.weight is \(8, 16\) float32, config.json says \(16, 16\)",
        ),
        ({"transformer.wpe.weight": torch.zeros(16, 16, dtype=torch.int8)}, r"is \(16, 16\) int8, config.json says"),
        ({"transformer.ln_f.bias": nan}, "transformer.ln_f.bias has NaN or infinity in float32"),
        ({"transformer.ln_f.bias": nan * 0 + 1e9}, "transformer.ln_f.bias has NaN or infinity in float16"),
        ({"lm_head.weight": good[wte] + 1}, "lm_head.weight differs from the embedding, but config.json ties the two"),
        (dict.fromkeys(sorted(good)[4:]), r"is missing; .* and \d+ more"),
    ):
        save_file({k: v for k, v in (good | change).items() if v is not None}, folder / "model.safetensors")
        with pytest.raises(ValueError, match=message):
            load_pretrained(folder, dtype=torch.float16 if "float16" in message else None)


def test_an_index_that_does_not_tell_the_truth_is_refused(small):
    _, weights, folder = small
    index, files = write_shards(folder, weights, ".safetensors", save_file, "model")
    path, name = folder / "model.safetensors.index.json", sorted(weights)[0]
    for change, message in (
        ({name: sorted(files)[1]}, f"has {name} in model-2-of-2.safetensors, but it is in model-1-of-2.safetensors"),
        ({"extra": sorted(files)[1]}, "has extra in model-2-of-2.safetensors, but it is in None"),
        ({name: "../secret.safetensors"}, "expected a weight_map of tensors to files in the same folder"),
        ({name: 5}, "expected a weight_map of tensors to files in the same folder"),
    ):
        path.write_text(json.dumps({"weight_map": index["weight_map"] | change}))
        with pytest.raises(ValueError, match=message):
            load_pretrained(folder)
    path.write_text(json.dumps({"weight_map": index["weight_map"] | {name: "model-3-of-2.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"model-3-of-2.safetensors is not there, but model.safetensors"):
        load_pretrained(folder)


MEASURE = """
import re, sys, torch
sys.path.insert(0, {root!r})
from common.pretrained import load_pretrained
def resident(most):
    return 1024 * int(re.search(most + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
torch.zeros(1) + 1
before = resident("VmRSS")
model = load_pretrained({folder!r}, dtype=torch.{dtype})
print((resident("VmHWM") - before) / sum(p.nbytes for p in model.parameters()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from /proc")
@pytest.mark.parametrize("form, dtype", [("safetensors", "float32"), ("safetensors", "bfloat16"), ("bin", "float32")])
def test_loading_takes_the_memory_of_the_model_and_little_more(form, dtype, tmp_path):
    """400 MB of weights in fp32, tied; read into as many bytes or half."""
    model = LLaMA(LLaMAConfig(16384, 128, 6, 8, 8, 1024, 4096))
    save_pretrained(model, tmp_path)
    assert 380e6 < (tmp_path / "model.safetensors").stat().st_size < 480e6
    if form == "bin":
        torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    code = MEASURE.format(root=str(ROOT), folder=str(tmp_path), dtype=dtype)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.2


# ---------------------------------------------------------------------------------------------
# hostile folders: one line, exit code 2, nothing executed


def header(text, body=b""):
    return len(text).to_bytes(8, "little") + text + body


def tensors(**offsets):
    return header(
        json.dumps({n: {"dtype": "F32", "shape": [4], "data_offsets": o} for n, o in offsets.items()}).encode()
    )


class Runs:
    """Unpickled, it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


HOSTILE = {
    "header of 2**60 bytes": ("model.safetensors", (1 << 60).to_bytes(8, "little") + b"{}", "is damaged, was cut"),
    "overlapping offsets": ("model.safetensors", tensors(a=[0, 16], b=[8, 24]) + bytes(24), "is damaged, was cut"),
    "offsets beyond the end": ("model.safetensors", tensors(a=[0, 16]), "is damaged, was cut"),
    "a header that is not JSON": ("model.safetensors", header(b"{{{{"), "is damaged, was cut"),
    "an empty file": ("model.safetensors", b"", "is damaged, was cut"),
    "no state dict": ("pytorch_model.bin", None, "holds more than tensors by name"),
    "code": ("pytorch_model.bin", None, "is damaged, was cut, or holds more than weights"),
    "old code": ("pytorch_model.bin", None, "is damaged, was cut, or holds more than weights"),
    "config of no heads": ("config.json", b'{"n_head": 0}', "n_head=0, expected int from 1"),
    "config that is not JSON": ("config.json", b"{'a': 1}", "config.json is not JSON"),
    "config that is a list": ("config.json", b"[]", "config.json holds a JSON list, expected an object"),
    "config nested a million deep": ("config.json", b"[" * 1_000_000, "config.json is not JSON"),
    "config in another encoding": ("config.json", b"\xff\xfe{}", "config.json is not JSON"),
    "meta of another end": ("meta.json", b'{"eot": "2"}', "eot='2' is out of range"),
    "meta of more ids": ("meta.json", b'{"vocab_size": 300}', "vocab_size=300, but its tokenizer has 257 ids"),
    "meta nested deep": ("meta.json", b"[" * 100_000, "meta.json is not JSON"),
    "an empty tokenizer.model": ("tokenizer.model", b"", "tokenizer.model is empty"),
    "no tokenizer": ("meta.json", b"{}", "lacks tokenizer, tokenizer_hash, vocab_size, eot"),
    "tokenizer that is not JSON": ("tokenizer.json", b"{", "tokenizer.json is not JSON"),
    "tokenizer that is empty": ("tokenizer.json", b"{}", "is not a tokenizer.json of byte-level BPE"),
}


def test_no_byte_of_a_pickle_ends_in_a_traceback(small):
    """A damaged file can be anything to an unpickler; it is a ValueError, or loads as it was."""
    _, weights, folder = small
    rng = random.Random(0)
    for zipped in (True, False):
        torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        whole = (folder / "pytorch_model.bin").read_bytes()
        places = [whole.find(b"wte.weight") + 2, *(rng.randrange(3000) for _ in range(60)), *range(0, 60, 7)]
        for place in places:
            damaged = bytearray(whole)
            damaged[place] ^= 0xFF
            (folder / "pytorch_model.bin").write_bytes(damaged)
            try:
                load_pretrained(folder)
            except ValueError as error:
                assert str(folder) in str(error)


@pytest.mark.slow
def test_a_newline_in_a_name_stays_one_line(small):
    _, weights, folder = small
    save_file(weights | {"x\ny": torch.zeros(1)}, folder / "model.safetensors")
    ByteTokenizer().save(folder)
    done = run_script("sample.py", f"--model={folder}", "--device=cpu", ok=False)
    assert done.returncode == 2 and done.stderr.endswith("x\\ny is not used\n") and done.stderr.count("\n") == 1


def test_a_pointer_of_git_lfs_is_told_from_a_file(small):
    folder = small[2]
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match="is a pointer of git-lfs, not the file itself: run git lfs pull there"):
        load_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_end_in_one_line(name, tmp_path):
    file, content, message = HOSTILE[name]
    folder, bait = tmp_path / "model", tmp_path / "executed"
    save_pretrained(GPT(GPTConfig(320, 16, 1, 2, 16)), folder, ByteTokenizer())
    if file.endswith(".bin"):
        (folder / "model.safetensors").unlink()
        what = {"transformer.wte.weight": "text"} if name == "no state dict" else {"a": Runs(bait)}
        torch.save(what, folder / file, _use_new_zipfile_serialization=name != "old code")
    elif name in ("config of no heads", "meta of another end", "meta of more ids"):
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | json.loads(content)))
    else:
        (folder / file).write_bytes(content)
    done = run_script("sample.py", f"--model={folder}", "--prompt=a", "--device=cpu", ok=False)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and message in done.stderr, done.stderr
    assert not bait.exists()


# ---------------------------------------------------------------------------------------------
# starting from a part of a model


def test_blocks_of_a_model():
    torch.manual_seed(0)
    model = GPT(GPTConfig(64, 16, 12, 2, 16))
    was = model.state_dict()
    keep_blocks(model, "0,2,4,7,9,11", "gpt2")
    assert model.config.n_layer == len(model.h) == 6 and model(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, 64)
    for name, weight in model.state_dict().items():
        first, *rest = name.split(".", 2)
        theirs = f"h.{(0, 2, 4, 7, 9, 11)[int(rest[0])]}.{rest[1]}" if first == "h" else name
        assert torch.equal(weight, was[theirs]), name
    keep_blocks(model, "0, 0", "gpt2")
    assert model.h[0].ln_1.weight is not model.h[1].ln_1.weight
    for blocks, message in (
        ("0,2", "gpt2 has blocks 0 to 1"),
        ("-1", "has blocks 0 to 1"),
        ("a", "expected numbers with"),
    ):
        with pytest.raises(ValueError, match=message):
            keep_blocks(model, blocks, "gpt2")
    with pytest.raises(ValueError, match="no model to take them from is named in init_from"):
        keep_blocks(model, "0", None)


def test_frozen_parameters_are_named_by_whole_parts():
    model = GPT(GPTConfig(64, 16, 12, 2, 16))
    freeze_parameters(model, "wpe, h.1,lm_head")
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {
        "wpe.weight",
        "wte.weight",
        *(f"h.1.{n}" for n, _ in model.h[1].named_parameters()),
    }  # the head is tied
    with pytest.raises(ValueError, match="no parameter begins with 'wp'; expected some of wte, wpe, h, ln_f, lm_head"):
        freeze_parameters(model, "wp")
    with pytest.raises(ValueError, match="leaves nothing to train"):
        freeze_parameters(model, "wte,wpe,h,ln_f")


# ---------------------------------------------------------------------------------------------
# a real model


@pytest.mark.slow
@pytest.mark.skipif(not STORIES.is_dir(), reason="the 260K-parameter LLaMA is not here")
def test_stories260k_tells_its_story(tmp_path):
    tokens = [1, 403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426]
    story = (
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
        "One day, she saw a big, red ball. She wanted to play with it, but it was too high."
    )
    model, tokenizer = load_pretrained(STORIES), load_tokenizer(STORIES)
    save_pretrained(model, tmp_path, tokenizer)
    assert (tokenizer.bos, tokenizer.eot) == (1, 2) and load_tokenizer(tmp_path).bos == 1
    for net in (model, load_pretrained(tmp_path)):
        ids = net.generate(torch.tensor([[1]]), 200, temperature=0)[0].tolist()
        assert ids[:16] == tokens and tokenizer.decode(ids).startswith(story)
        slow = torch.tensor([[1]])
        for _ in range(60):  # without the cache
            with torch.no_grad():
                slow = torch.cat((slow, net(slow)[:, -1].argmax(-1, keepdim=True)), dim=1)
        assert slow[0].tolist() == ids[:61]
    for folder in (STORIES, tmp_path):
        args = [f"--model={folder}", "--temperature=0", "--max_tokens=60", "--device=cpu"]
        for prompt in ("", "Once upon a time"):
            assert run_script("sample.py", *args, f"--prompt={prompt}").stdout.startswith(story[:80])
