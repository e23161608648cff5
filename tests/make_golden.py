"""Writes tests/golden/ (tiny random models by Hugging Face transformers, and their logits) and tests/golden_tokenizer/.

pip install -r requirements-dev.txt transformers
python tests/make_golden.py             what of them is not there yet; run once, results kept
python tests/make_golden.py --check     what save_pretrained writes opens in transformers: models, and tokenizers
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent / "golden"
TOKENIZER = HERE.with_name("golden_tokenizer")
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]
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
    # rope_scaling, not rope_parameters: transformers 4 and 5 both read it
    "qwen3": transformers.Qwen3Config(**GQA, head_dim=12),
    "qwen3_tied_llama3": transformers.Qwen3Config(**GQA, head_dim=8, tie_word_embeddings=True, rope_scaling=LLAMA3),
    "olmo": transformers.OlmoConfig(**OLMO),
    "olmo_tied_clip": transformers.OlmoConfig(**OLMO, tie_word_embeddings=True, clip_qkv=0.5),
    "olmo_bias": transformers.OlmoConfig(**OLMO, attention_bias=True),
    "olmo2": transformers.Olmo2Config(**GQA),
    # transformers 4 takes these two keys and no others
    "olmo2_tied_bias_linear": transformers.Olmo2Config(
        **LLAMA, tie_word_embeddings=True, attention_bias=True, rope_scaling=dict(type="linear", factor=4.0)
    ),
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


# ---------------------------------------------------------------------------------------------
# tokenizers

# golden models, one of each family
ARCHITECTURES = ("gpt2", "neox_parallel", "llama", "olmo", "olmo2", "mistral", "qwen2", "qwen3")
QWEN_PATTERN = (  # of Qwen2.5
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
REAL = {"gpt2": "tokenizers/gpt2", "GPT-NeoX": "tokenizers/gpt_neox_20b", "dolma2": "tokenizers/dolma2",
        "Llama 2": "tokenizers/llama2", "stories260K": "checkpoints/stories260K_hf"}  # fmt: skip


def all_tokenizers():
    """{name: one of our tokenizers}: made here, and the real ones that lie beside the project."""
    from test_tokenizer import DATA, split, trained_spec
    from test_tokenizer_json import SETTINGS, trained

    from common.bpe import BPETokenizer
    from common.tokenizer import ByteTokenizer, load_tokenizer

    spec = trained_spec()
    qwen = spec | {
        "added_tokens": spec["added_tokens"][:1],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": split(QWEN_PATTERN, "Isolated", False),
    }
    made = {"bytes": ByteTokenizer(), "byte-level": BPETokenizer(spec, eot=0), "as Qwen": BPETokenizer(qwen, eot=0)}
    made |= {f"bpe, {name}": trained(**settings) for name, settings in SETTINGS.items()}
    return made | {name: load_tokenizer(DATA / path) for name, path in REAL.items() if (DATA / path).is_dir()}


def differences(theirs, ours) -> list[str]:
    """What a tokenizer of transformers does otherwise than ours."""
    from test_tokenizer_json import ODD

    wrong = []
    for text, ids in zip(ODD, theirs(ODD).input_ids):
        want = ours.encode(text)
        if not ids == theirs(text).input_ids == want:
            wrong.append(f"ids of {text[:20]!r}")
        if ours.kind == "bpe" and 0 in want:  # unknown: " ⁇ " here, "<unk>" there
            continue
        if theirs.decode(want) != ours.decode(want):
            wrong.append(f"text of the ids of {text[:20]!r}")
        if theirs.decode([*want, ours.eot], skip_special_tokens=True) != ours.decode(want):
            wrong.append(f"text of the ids of {text[:20]!r} and an end")
    if (theirs.eos_token_id, theirs.bos_token_id, len(theirs)) != (ours.eot, ours.bos, ours.vocab_size):
        wrong.append(f"eos {theirs.eos_token_id}, bos {theirs.bos_token_id}, {len(theirs)} ids")
    if set(theirs("a")) != {"input_ids", "attention_mask"}:
        wrong.append(f"gives {', '.join(theirs('a'))}")
    return wrong


def check_tokenizers() -> bool:
    """Every architecture with every tokenizer, saved and opened by AutoTokenizer: whether all is equal."""
    from common.pretrained import load_pretrained, save_pretrained

    tokenizers = all_tokenizers()
    good = True
    version = int(transformers.__version__.split(".")[0])
    for name in ARCHITECTURES:
        model = load_pretrained(HERE / name)
        for kind, ours in tokenizers.items():
            # AutoTokenizer of transformers 5 has Qwen's rules alone for a qwen2
            by_rules = name == "qwen2" and kind != "as Qwen" and version >= 5
            loader = transformers.PreTrainedTokenizerFast if by_rules else transformers.AutoTokenizer
            with tempfile.TemporaryDirectory() as folder:
                save_pretrained(model, folder, ours)
                wrong = differences(loader.from_pretrained(folder), ours)
            good &= not wrong
            result = f"{len(wrong)} differences, first the {wrong[0]}" if wrong else "equal"
            print(f"{name} with {kind}, {loader.__name__}: {result}")
    return good


def make_tokenizer():
    """golden_tokenizer/: a tokenizer.model, the files that we write for it, and the ids that AutoTokenizer gives."""
    from test_tokenizer_json import ODD, trained

    folder = TOKENIZER
    ours = trained()
    folder.mkdir()
    ours.save(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [text for text in ODD if len(text) < 200]
    golden = {
        "transformers": transformers.__version__,
        "hash": ours.hash,
        "texts": texts,
        "ids": theirs(texts).input_ids,
    }
    (folder / "golden.json").write_text(json.dumps(golden), encoding="utf-8")


if __name__ == "__main__":
    if "--check" in sys.argv:
        transformers.logging.set_verbosity_error()  # of ids beyond the tiny models
        models = all([check(name) for name in MODELS])
        print(f"transformers {transformers.__version__}")
        sys.exit(not (check_tokenizers() and models))
    for name, config in MODELS.items():
        if not (HERE / name).is_dir():
            make(name, config)
    if not TOKENIZER.is_dir():
        make_tokenizer()
