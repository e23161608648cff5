"""Hugging Face folders: logits equal those that transformers computed (tests/golden), in and out."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.pretrained import load_pretrained, save_pretrained
from model import GPT, GPTConfig

GOLDEN = sorted(p for p in (Path(__file__).parent / "golden").iterdir() if p.is_dir())
STORIES = Path(__file__).resolve().parents[2] / "shared/data/checkpoints/stories260K_hf"


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda p: p.name)
def test_logits_of_every_family_equal_transformers(folder, tmp_path):
    golden = load_file(folder / "golden.safetensors")
    model = load_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(model(golden["idx"]), golden["logits"], rtol=1e-4, atol=1e-5)
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


def test_cache_gives_the_greedy_tokens_of_no_cache():
    for folder in GOLDEN:
        model = load_pretrained(folder, dtype=torch.float32)
        idx = load_file(folder / "golden.safetensors")["idx"][:, :7]
        slow = idx
        for _ in range(70):  # beyond block_size = 64, where the window slides
            with torch.no_grad():
                slow = torch.cat((slow, model(slow[:, -64:])[:, -1].argmax(-1, keepdim=True)), dim=1)
        assert torch.equal(model.generate(idx, 70, temperature=0), slow), folder.name


def test_rotary_frequencies_survive_a_cast_of_the_whole_model():
    """Positions 1,000 and 1,001 are told apart in bfloat16 as in float32."""
    from model import rope_table

    model = load_pretrained(GOLDEN[0].with_name("llama"), dtype=torch.bfloat16)
    _, rope = model.embed(torch.zeros(1, 1, dtype=torch.long), start=63)
    assert rope[0].dtype == torch.float32
    assert torch.equal(rope[0], rope_table(63, 1, 8, 10000.0, None, "cpu")[0])


def test_tensors_that_do_not_fit_are_named(tmp_path):
    save_pretrained(GPT(GPTConfig(64, 16, 1, 2, 16)), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    good = dict(weights)
    weights["stray"] = torch.zeros(1)
    del weights["transformer.ln_f.bias"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"transformer.ln_f.bias is missing; stray is not used"):
        load_pretrained(tmp_path)
    good["transformer.wpe.weight"] = torch.zeros(8, 16)
    save_file(good, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"wpe.weight is \(8, 16\), config.json says \(16, 16\)"):
        load_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged or was cut"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    "name, key, value, message",
    [
        ("gpt2", "scale_attn_by_inverse_layer_idx", True, "is not implemented"),
        ("gpt2", "model_type", "mamba", "'mamba' is not one of"),
        ("olmo", "clip_qkv", 8.0, "clip_qkv=8.0 is not implemented"),
        ("llama", "rope_scaling", {"rope_type": "yarn", "factor": 2.0}, "'yarn' is not implemented"),
        ("llama", "head_dim", 16, "head_dim=16 is not implemented"),
    ],
)
def test_options_we_do_not_have_are_refused_by_name(tmp_path, name, key, value, message):
    config = json.loads((GOLDEN[0].with_name(name) / "config.json").read_text())
    config.pop("rope_parameters", None)
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(ValueError, match=message):
        load_pretrained(tmp_path)


@pytest.mark.skipif(not STORIES.is_dir(), reason="the 260K-parameter LLaMA is not here")
def test_stories260k_writes_the_tokens_that_llama2c_writes():
    tokens = [1, 403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426]
    model = load_pretrained(STORIES)
    assert model.generate(torch.tensor([[1]]), 15, temperature=0)[0].tolist() == tokens
