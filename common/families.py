"""Hugging Face's names: of the weights, and of the config.json keys, of each family that model.py computes.

A family is one entry of FAMILIES, complete in itself, so that it can be read from top to bottom. Nothing here opens a
file: common/hf_config.py reads and writes config.json by these tables, common/pretrained.py the weights.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from model import GPT, GPTConfig, LLaMA, LLaMAConfig

# ---------------------------------------------------------------------------------------------
# weights: what ours and theirs are called, and how theirs are laid out


class Layout(NamedTuple):
    """Two functions of (weight, our config), from the layout in a file to ours and back."""

    load: Callable
    save: Callable


class Weight(NamedTuple):
    ours: str
    theirs: str
    layout: Layout | None = None  # None: as ours


def transpose(weight, config):
    return weight.t()


def neox_to_ours(weight, config):
    """(nh, 3, hs, …) flattened to (3, nh, hs, …) flattened."""
    head_size = config.n_embd // config.n_head
    # a weight has an axis of inputs after the first, a bias has none
    per_head = weight.reshape(config.n_head, 3, head_size, *weight.shape[1:])
    return per_head.transpose(0, 1).reshape(weight.shape)


def ours_to_neox(weight, config):
    """(3, nh, hs, …) flattened to (nh, 3, hs, …) flattened."""
    head_size = config.n_embd // config.n_head
    per_part = weight.reshape(3, config.n_head, head_size, *weight.shape[1:])
    return per_part.transpose(0, 1).reshape(weight.shape)


# GPT-2's linear layers are Conv1D: (in, out), where nn.Linear keeps (out, in)
CONV1D = Layout(load=transpose, save=transpose)
# GPT-NeoX stacks query, key and value head by head; c_attn keeps all queries, all keys, all values
HEAD_BY_HEAD = Layout(load=neox_to_ours, save=ours_to_neox)


def weight_and_bias(ours: str, theirs: str, layout=None):
    yield Weight(f"{ours}.weight", f"{theirs}.weight", layout)
    # a bias has no second axis to transpose with, but its numbers are in the order of the heads too
    bias_layout = layout if layout is HEAD_BY_HEAD else None
    yield Weight(f"{ours}.bias", f"{theirs}.bias", bias_layout)


# Generators, as a block's tensors depend on the config. Names are spelt out rather than rewritten by patterns: a reader
# finds each of them, and a tensor that is not named here is an error when a file is loaded.
def gpt2_weights(config):
    yield Weight("wte.weight", "transformer.wte.weight")
    yield Weight("wpe.weight", "transformer.wpe.weight")
    for i in range(config.n_layer):
        ours = f"h.{i}"
        theirs = f"transformer.h.{i}"
        for name in ("ln_1", "ln_2"):
            yield from weight_and_bias(f"{ours}.{name}", f"{theirs}.{name}")
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
            yield from weight_and_bias(f"{ours}.{name}", f"{theirs}.{name}", CONV1D)
    yield from weight_and_bias("ln_f", "transformer.ln_f")
    # listed even where it is tied; the caller knows that a file may then lack it
    yield Weight("lm_head.weight", "lm_head.weight")


def neox_weights(config):
    yield Weight("wte.weight", "gpt_neox.embed_in.weight")
    for i in range(config.n_layer):
        ours = f"h.{i}"
        theirs = f"gpt_neox.layers.{i}"
        qkv = f"{theirs}.attention.query_key_value"
        yield from weight_and_bias(f"{ours}.ln_1", f"{theirs}.input_layernorm")
        yield from weight_and_bias(f"{ours}.attn.c_attn", qkv, HEAD_BY_HEAD)
        yield from weight_and_bias(f"{ours}.attn.c_proj", f"{theirs}.attention.dense")
        yield from weight_and_bias(f"{ours}.ln_2", f"{theirs}.post_attention_layernorm")
        yield from weight_and_bias(f"{ours}.mlp.c_fc", f"{theirs}.mlp.dense_h_to_4h")
        yield from weight_and_bias(f"{ours}.mlp.c_proj", f"{theirs}.mlp.dense_4h_to_h")
    yield from weight_and_bias("ln_f", "gpt_neox.final_layer_norm")
    yield Weight("lm_head.weight", "embed_out.weight")


def llama_weights(config):
    # (our part of a block, their part, whether it has a bias)
    linear_layers = [
        ("attn.c_q", "self_attn.q_proj", config.qkv_bias),
        ("attn.c_k", "self_attn.k_proj", config.qkv_bias),
        ("attn.c_v", "self_attn.v_proj", config.qkv_bias),
        ("attn.c_proj", "self_attn.o_proj", config.attn_proj_bias),
        ("mlp.c_gate", "mlp.gate_proj", config.mlp_bias),
        ("mlp.c_fc", "mlp.up_proj", config.mlp_bias),
        ("mlp.c_proj", "mlp.down_proj", config.mlp_bias),
    ]
    # One name for two norms: "post_attention_layernorm" is of the MLP's input, but in OLMo 2 of attention's output.
    ln_1, ln_2 = "input_layernorm", "post_attention_layernorm"
    if config.norm_after:
        ln_1, ln_2 = "post_attention_layernorm", "post_feedforward_layernorm"
    yield Weight("wte.weight", "model.embed_tokens.weight")
    for i in range(config.n_layer):
        ours = f"h.{i}"
        theirs = f"model.layers.{i}"
        for our_name, their_name, has_bias in linear_layers:
            if has_bias:
                yield from weight_and_bias(f"{ours}.{our_name}", f"{theirs}.{their_name}")
            else:
                yield Weight(f"{ours}.{our_name}.weight", f"{theirs}.{their_name}.weight")
        if config.qk_norm or config.qk_norm_all_heads:
            yield Weight(f"{ours}.attn.q_norm.weight", f"{theirs}.self_attn.q_norm.weight")
            yield Weight(f"{ours}.attn.k_norm.weight", f"{theirs}.self_attn.k_norm.weight")
        # OLMo's norms have no weights
        if config.parametric_norm:
            yield Weight(f"{ours}.ln_1.weight", f"{theirs}.{ln_1}.weight")
            yield Weight(f"{ours}.ln_2.weight", f"{theirs}.{ln_2}.weight")
    if config.parametric_norm:
        yield Weight("ln_f.weight", "model.norm.weight")
    yield Weight("lm_head.weight", "lm_head.weight")


# ---------------------------------------------------------------------------------------------
# families


@dataclass(frozen=True)
class Family:
    architecture: str  # their class
    model_class: type  # ours
    config_class: type
    weights: Callable  # our config -> its Weights
    prefix: str  # of all weights but the head's; files of the bare model lack it
    # buffers that old files hold besides the weights, {} being the number of a block; not read
    buffers: tuple
    keys: dict  # our field: their key
    defaults: dict  # their key: transformers' value where a config.json lacks it
    given: dict = field(default_factory=dict)  # our field: its value in all models of the family
    only: dict = field(default_factory=dict)  # their key: the one value that model.py implements


FAMILIES = {
    "gpt2": Family(
        architecture="GPT2LMHeadModel",
        model_class=GPT,
        config_class=GPTConfig,
        weights=gpt2_weights,
        prefix="transformer.",
        # the causal mask, and what stands for -inf in it
        buffers=("transformer.h.{}.attn.bias", "transformer.h.{}.attn.masked_bias"),
        keys={
            "vocab_size": "vocab_size",
            "block_size": "n_positions",
            "n_layer": "n_layer",
            "n_head": "n_head",
            "n_embd": "n_embd",
            "n_inner": "n_inner",
            "dropout": "resid_pdrop",
            "norm_eps": "layer_norm_epsilon",
            "tie_word_embeddings": "tie_word_embeddings",
            "exact_gelu": "activation_function",
        },
        # what a key that the file lacks means to transformers, whatever model.py's own defaults are
        defaults={
            "n_positions": 1024,
            "layer_norm_epsilon": 1e-5,
            "tie_word_embeddings": True,
            "resid_pdrop": 0.1,
            "activation_function": "gelu_new",
        },
        # learned positions; a block's MLP after its attention
        given={"rotary_pct": 0.0, "parallel_residual": False},
        # with another value the weights would load all the same, and compute something else
        only={
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
    ),
    # Pythia
    "gpt_neox": Family(
        architecture="GPTNeoXForCausalLM",
        model_class=GPT,
        config_class=GPTConfig,
        weights=neox_weights,
        prefix="gpt_neox.",
        # the causal mask, what stands for -inf in it, and the rotary frequencies, which model.py computes
        buffers=(
            "gpt_neox.layers.{}.attention.bias",
            "gpt_neox.layers.{}.attention.masked_bias",
            "gpt_neox.layers.{}.attention.rotary_emb.inv_freq",
        ),
        keys={
            "vocab_size": "vocab_size",
            "block_size": "max_position_embeddings",
            "n_layer": "num_hidden_layers",
            "n_head": "num_attention_heads",
            "n_embd": "hidden_size",
            "n_inner": "intermediate_size",
            "dropout": "hidden_dropout",
            "norm_eps": "layer_norm_eps",
            "tie_word_embeddings": "tie_word_embeddings",
            "rotary_pct": "rotary_pct",
            "rope_theta": "rotary_emb_base",
            "parallel_residual": "use_parallel_residual",
            "exact_gelu": "hidden_act",
        },
        defaults={
            "max_position_embeddings": 2048,
            "layer_norm_eps": 1e-5,
            "rotary_pct": 0.25,
            "rotary_emb_base": 10000,
            "use_parallel_residual": True,
            "hidden_act": "gelu",
            "tie_word_embeddings": False,
            "hidden_dropout": 0.0,
        },
        # our c_attn and c_proj have biases in every GPT
        only={"attention_bias": True},
    ),
    # LLaMA 1 to 3, TinyLlama
    "llama": Family(
        architecture="LlamaForCausalLM",
        model_class=LLaMA,
        config_class=LLaMAConfig,
        weights=llama_weights,
        prefix="model.",
        buffers=("model.layers.{}.self_attn.rotary_emb.inv_freq",),
        keys={
            "vocab_size": "vocab_size",
            "block_size": "max_position_embeddings",
            "n_layer": "num_hidden_layers",
            "n_head": "num_attention_heads",
            "n_kv_head": "num_key_value_heads",
            "n_embd": "hidden_size",
            "n_inner": "intermediate_size",
            "rope_theta": "rope_theta",
            "norm_eps": "rms_norm_eps",
            "tie_word_embeddings": "tie_word_embeddings",
            # one key of theirs for both
            "qkv_bias": "attention_bias",
            "attn_proj_bias": "attention_bias",
            "mlp_bias": "mlp_bias",
        },
        defaults={
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "attention_bias": False,
            "mlp_bias": False,
            "hidden_act": "silu",
        },
        # options of the class for LLaMA's relatives are off; by them saving tells the families apart
        given={
            "parametric_norm": True,
            "clip_qkv": 0.0,
            "sliding_window": 0,
            "qk_norm": False,
            "qk_norm_all_heads": False,
            "norm_after": False,
        },
        only={"hidden_act": "silu"},
    ),
    # Mistral 7B: a LLaMA with grouped heads and a window
    "mistral": Family(
        architecture="MistralForCausalLM",
        model_class=LLaMA,
        config_class=LLaMAConfig,
        weights=llama_weights,
        prefix="model.",
        buffers=("model.layers.{}.self_attn.rotary_emb.inv_freq",),
        keys={
            "vocab_size": "vocab_size",
            "block_size": "max_position_embeddings",
            "n_layer": "num_hidden_layers",
            "n_head": "num_attention_heads",
            "n_kv_head": "num_key_value_heads",
            "n_embd": "hidden_size",
            "n_inner": "intermediate_size",
            "rope_theta": "rope_theta",
            "norm_eps": "rms_norm_eps",
            "tie_word_embeddings": "tie_word_embeddings",
            "sliding_window": "sliding_window",
        },
        defaults={
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "sliding_window": 4096,  # where the key is missing; null is no window
            "hidden_act": "silu",
        },
        given={
            "qkv_bias": False,
            "attn_proj_bias": False,
            "mlp_bias": False,
            "parametric_norm": True,
            "clip_qkv": 0.0,
            "qk_norm": False,
            "qk_norm_all_heads": False,
            "norm_after": False,
        },
        only={"hidden_act": "silu"},
    ),
    # Qwen2, Qwen2.5
    "qwen2": Family(
        architecture="Qwen2ForCausalLM",
        model_class=LLaMA,
        config_class=LLaMAConfig,
        weights=llama_weights,
        prefix="model.",
        buffers=("model.layers.{}.self_attn.rotary_emb.inv_freq",),
        keys={
            "vocab_size": "vocab_size",
            "block_size": "max_position_embeddings",
            "n_layer": "num_hidden_layers",
            "n_head": "num_attention_heads",
            "n_kv_head": "num_key_value_heads",
            "n_embd": "hidden_size",
            "n_inner": "intermediate_size",
            "rope_theta": "rope_theta",
            "norm_eps": "rms_norm_eps",
            "tie_word_embeddings": "tie_word_embeddings",
        },
        defaults={
            "max_position_embeddings": 32768,
            "num_key_value_heads": 32,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "hidden_act": "silu",
        },
        # queries, keys and values have biases whatever config.json says, the output has none
        given={
            "qkv_bias": True,
            "attn_proj_bias": False,
            "mlp_bias": False,
            "parametric_norm": True,
            "clip_qkv": 0.0,
            "sliding_window": 0,
            "qk_norm": False,
            "qk_norm_all_heads": False,
            "norm_after": False,
        },
        # its files name a sliding_window, but only this switch turns it on
        only={"hidden_act": "silu", "use_sliding_window": False},
    ),
    # Qwen3, its dense models
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        model_class=LLaMA,
        config_class=LLaMAConfig,
        weights=llama_weights,
        prefix="model.",
        buffers=("model.layers.{}.self_attn.rotary_emb.inv_freq",),
        keys={
            "vocab_size": "vocab_size",
            "block_size": "max_position_embeddings",
            "n_layer": "num_hidden_layers",
            "n_head": "num_attention_heads",
            "n_kv_head": "num_key_value_heads",
            "n_embd": "hidden_size",
            "n_inner": "intermediate_size",
            "head_dim": "head_dim",
            "rope_theta": "rope_theta",
            "norm_eps": "rms_norm_eps",
            "tie_word_embeddings": "tie_word_embeddings",
        },
        defaults={
            "max_position_embeddings": 32768,
            "num_key_value_heads": 32,
            "head_dim": 128,  # whatever hidden_size and num_attention_heads are
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "hidden_act": "silu",
        },
        given={
            "qkv_bias": False,
            "attn_proj_bias": False,
            "mlp_bias": False,
            "parametric_norm": True,
            "clip_qkv": 0.0,
            "sliding_window": 0,
            "qk_norm": True,
            "qk_norm_all_heads": False,
            "norm_after": False,
        },
        # attention_bias could be on, but is not in any published model
        only={"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False},
    ),
    # OLMo 1
    "olmo": Family(
        architecture="OlmoForCausalLM",
        model_class=LLaMA,
        config_class=LLaMAConfig,
        weights=llama_weights,
        prefix="model.",
        buffers=("model.layers.{}.self_attn.rotary_emb.inv_freq",),
        keys={
            "vocab_size": "vocab_size",
            "block_size": "max_position_embeddings",
            "n_layer": "num_hidden_layers",
            "n_head": "num_attention_heads",
            "n_kv_head": "num_key_value_heads",
            "n_embd": "hidden_size",
            "n_inner": "intermediate_size",
            "rope_theta": "rope_theta",
            "tie_word_embeddings": "tie_word_embeddings",
            "qkv_bias": "attention_bias",
            "attn_proj_bias": "attention_bias",
            "clip_qkv": "clip_qkv",
        },
        defaults={
            "max_position_embeddings": 2048,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "attention_bias": False,
            "hidden_act": "silu",
        },
        # no key for the norm's epsilon: 1e-5 stands in OLMo's code
        given={
            "mlp_bias": False,
            "parametric_norm": False,
            "norm_eps": 1e-5,
            "sliding_window": 0,
            "qk_norm": False,
            "qk_norm_all_heads": False,
            "norm_after": False,
        },
        only={"hidden_act": "silu"},
    ),
    # OLMo 2; OLMo 3 and later have layers with sliding windows, and are other families
    "olmo2": Family(
        architecture="Olmo2ForCausalLM",
        model_class=LLaMA,
        config_class=LLaMAConfig,
        weights=llama_weights,
        prefix="model.",
        buffers=("model.layers.{}.self_attn.rotary_emb.inv_freq",),
        keys={
            "vocab_size": "vocab_size",
            "block_size": "max_position_embeddings",
            "n_layer": "num_hidden_layers",
            "n_head": "num_attention_heads",
            "n_kv_head": "num_key_value_heads",
            "n_embd": "hidden_size",
            "n_inner": "intermediate_size",
            "rope_theta": "rope_theta",
            "norm_eps": "rms_norm_eps",
            "tie_word_embeddings": "tie_word_embeddings",
            "qkv_bias": "attention_bias",
            "attn_proj_bias": "attention_bias",
        },
        defaults={
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "attention_bias": False,
            "hidden_act": "silu",
        },
        given={
            "mlp_bias": False,
            "parametric_norm": True,
            "clip_qkv": 0.0,
            "sliding_window": 0,
            "qk_norm": False,
            "qk_norm_all_heads": True,
            "norm_after": True,
        },
        only={"hidden_act": "silu"},
    ),
}
