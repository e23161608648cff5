"""Writes tests/golden/: tiny random models by Hugging Face transformers, and their logits. Run once, results kept.

pip install transformers && python tests/make_golden.py
"""

from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent / "golden"
NEOX = dict(vocab_size=80, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
            max_position_embeddings=64)  # fmt: skip
LLAMA = NEOX | dict(num_key_value_heads=4, rms_norm_eps=1e-5)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16, rope_theta=10000.0)  # fmt: skip
MODELS = {
    "gpt2": transformers.GPT2Config(vocab_size=80, n_positions=64, n_embd=32, n_layer=2, n_head=4),
    "neox_parallel": transformers.GPTNeoXConfig(
        **NEOX, rope_parameters=dict(rope_type="default", partial_rotary_factor=0.25, rope_theta=10000.0)
    ),
    "neox_sequential": transformers.GPTNeoXConfig(
        **NEOX, use_parallel_residual=False, hidden_act="gelu_new",
        rope_parameters=dict(rope_type="default", partial_rotary_factor=1.0, rope_theta=10000.0),
    ),
    "llama": transformers.LlamaConfig(**LLAMA),
    "llama_gqa_llama3": transformers.LlamaConfig(
        **LLAMA | dict(num_key_value_heads=2), tie_word_embeddings=True, rope_parameters=LLAMA3
    ),
    "llama_linear": transformers.LlamaConfig(
        **LLAMA, rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=500000.0)
    ),
    "qwen2": transformers.Qwen2Config(**LLAMA | dict(num_key_value_heads=2), tie_word_embeddings=True),
    "olmo": transformers.OlmoConfig(**{k: v for k, v in LLAMA.items() if k != "rms_norm_eps"}),
}  # fmt: skip

for name, config in MODELS.items():
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
    print(name, logits.std())
