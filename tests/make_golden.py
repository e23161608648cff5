"""Writes tests/golden/: tiny random models by Hugging Face transformers, and their logits. Run once, results kept.

pip install transformers && python tests/make_golden.py             # those that are not there yet
python tests/make_golden.py --check                                 # what save_pretrained writes opens in transformers
"""

import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent / "golden"
sys.path.insert(0, str(HERE.parents[1]))
GPT2 = dict(vocab_size=80, n_positions=64, n_embd=32, n_layer=2, n_head=4)
NEOX = dict(vocab_size=80, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
            max_position_embeddings=64)  # fmt: skip
LLAMA = NEOX | dict(num_key_value_heads=4, rms_norm_eps=1e-5)
GQA = LLAMA | dict(num_key_value_heads=2)
OLMO = {k: v for k, v in LLAMA.items() if k != "rms_norm_eps"}
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16, rope_theta=10000.0)  # fmt: skip


def neox_rope(part):
    return dict(rope_type="default", partial_rotary_factor=part, rope_theta=10000.0)


MODELS = {
    "gpt2": transformers.GPT2Config(**GPT2),
    "gpt2_untied_exact": transformers.GPT2Config(
        **GPT2, tie_word_embeddings=False, activation_function="gelu", n_inner=40, layer_norm_epsilon=1e-3
    ),
    "neox_parallel": transformers.GPTNeoXConfig(**NEOX, rope_parameters=neox_rope(0.25)),
    "neox_sequential": transformers.GPTNeoXConfig(
        **NEOX, use_parallel_residual=False, hidden_act="gelu_new", rope_parameters=neox_rope(1.0)
    ),
    "neox_tied": transformers.GPTNeoXConfig(**NEOX, tie_word_embeddings=True, rope_parameters=neox_rope(0.5)),
    "llama": transformers.LlamaConfig(**LLAMA),
    "llama_bias": transformers.LlamaConfig(**GQA, attention_bias=True, mlp_bias=True),
    "llama_gqa_llama3": transformers.LlamaConfig(**GQA, tie_word_embeddings=True, rope_parameters=LLAMA3),
    "llama_linear": transformers.LlamaConfig(
        **LLAMA, rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=500000.0)
    ),
    "mistral": transformers.MistralConfig(**GQA, sliding_window=50),
    "mistral_no_window": transformers.MistralConfig(**GQA, sliding_window=None),
    "qwen2": transformers.Qwen2Config(**GQA, tie_word_embeddings=True),
    "qwen2_untied": transformers.Qwen2Config(**GQA, tie_word_embeddings=False),
    "olmo": transformers.OlmoConfig(**OLMO),
    "olmo_tied_clip": transformers.OlmoConfig(**OLMO, tie_word_embeddings=True, clip_qkv=0.5),
    "olmo_bias": transformers.OlmoConfig(**OLMO, attention_bias=True),
}


def make(name, config):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():  # large enough that every part moves the logits
            p.copy_((torch.randn_like(p) * 0.15 + (p.dim() == 1)).half())
    idx = torch.randint(80, (2, 48))
    with torch.no_grad():
        logits = model.float()(idx).logits
    model.half().save_pretrained(HERE / name)
    (HERE / name / "generation_config.json").unlink(missing_ok=True)
    save_file({"idx": idx, "logits": logits}, HERE / name / "golden.safetensors")
    print(f"{name}: logits of standard deviation {logits.std():.2f}")


def check(name):
    """Load a golden folder with our code, save it, open that with transformers: the largest difference of logits."""
    from common.pretrained import load_pretrained, save_pretrained

    golden = load_file(HERE / name / "golden.safetensors")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save_pretrained(load_pretrained(HERE / name, dtype=torch.float32), folder)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        difference = (theirs(golden["idx"]).logits - golden["logits"]).abs().max() / golden["logits"].abs().max()
    print(f"{name}: {type(theirs).__name__}, {difference:.1e} of the largest logit")
    return difference < 1e-5


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(not all([check(name) for name in MODELS]))
    for name, config in MODELS.items():
        if not (HERE / name).is_dir():
            make(name, config)
