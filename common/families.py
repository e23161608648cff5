"""Hugging Face's names: of the weights, and of the config.json keys, of each family that model.py computes.

A family says how its files are to be read; nothing here opens one. `read_config` refuses by name whatever
model.py does not compute, and fills in what transformers takes for a key that a config.json leaves out.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from model import GPT, GPTConfig, LLaMA, LLaMAConfig

# ---------------------------------------------------------------------------------------------
# weights: (our name, their name, how theirs is laid out), and their buffers that hold no weights


def transpose(weight, config, loading):
    """GPT-2's Conv1D keeps (in, out) where nn.Linear keeps (out, in)."""
    return weight.t()


def interleave(weight, config, loading):
    """GPT-NeoX stacks query, key, value head by head (nh, 3, hs, …); we keep (3, nh, hs, …)."""
    nh, hs = config.n_head, config.n_embd // config.n_head
    first, second = (nh, 3) if loading else (3, nh)
    return weight.reshape(first, second, hs, *weight.shape[1:]).transpose(0, 1).reshape(weight.shape)


def both(ours, theirs, layout=None, bias=True):
    yield f"{ours}.weight", f"{theirs}.weight", layout
    if bias:
        yield f"{ours}.bias", f"{theirs}.bias", layout if layout is interleave else None


def gpt2_names(config):
    yield "wte.weight", "transformer.wte.weight", None
    yield "wpe.weight", "transformer.wpe.weight", None
    for i in range(config.n_layer):
        for name in ("ln_1", "ln_2"):
            yield from both(f"h.{i}.{name}", f"transformer.h.{i}.{name}")
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
            yield from both(f"h.{i}.{name}", f"transformer.h.{i}.{name}", transpose)
    yield from both("ln_f", "transformer.ln_f")
    yield "lm_head.weight", "lm_head.weight", None


def neox_names(config):
    yield "wte.weight", "gpt_neox.embed_in.weight", None
    for i in range(config.n_layer):
        ours, theirs = f"h.{i}", f"gpt_neox.layers.{i}"
        yield from both(f"{ours}.ln_1", f"{theirs}.input_layernorm")
        yield from both(f"{ours}.attn.c_attn", f"{theirs}.attention.query_key_value", interleave)
        yield from both(f"{ours}.attn.c_proj", f"{theirs}.attention.dense")
        yield from both(f"{ours}.ln_2", f"{theirs}.post_attention_layernorm")
        yield from both(f"{ours}.mlp.c_fc", f"{theirs}.mlp.dense_h_to_4h")
        yield from both(f"{ours}.mlp.c_proj", f"{theirs}.mlp.dense_4h_to_h")
    yield from both("ln_f", "gpt_neox.final_layer_norm")
    yield "lm_head.weight", "embed_out.weight", None


def llama_names(config):
    yield "wte.weight", "model.embed_tokens.weight", None
    for i in range(config.n_layer):
        ours, theirs = f"h.{i}", f"model.layers.{i}"
        for short in "qkv":
            yield from both(f"{ours}.attn.c_{short}", f"{theirs}.self_attn.{short}_proj", bias=config.qkv_bias)
        yield from both(f"{ours}.attn.c_proj", f"{theirs}.self_attn.o_proj", bias=config.attn_proj_bias)
        for name, their_name in (("c_gate", "gate_proj"), ("c_fc", "up_proj"), ("c_proj", "down_proj")):
            yield from both(f"{ours}.mlp.{name}", f"{theirs}.mlp.{their_name}", bias=config.mlp_bias)
        if config.parametric_norm:
            yield f"{ours}.ln_1.weight", f"{theirs}.input_layernorm.weight", None
            yield f"{ours}.ln_2.weight", f"{theirs}.post_attention_layernorm.weight", None
    if config.parametric_norm:
        yield "ln_f.weight", "model.norm.weight", None
    yield "lm_head.weight", "lm_head.weight", None


# ---------------------------------------------------------------------------------------------
# config.json


@dataclass
class Family:
    architecture: str
    kind: type  # GPT or LLaMA
    names: Callable  # our config -> triples of names, as above
    prefix: str  # of all weights but the head's; files of the bare model lack it
    buffers: tuple  # what old files hold beside the weights, {} being the number of a block; not weights, not read
    keys: dict  # our field -> their key
    default: dict  # what transformers takes for their keys that are not there
    given: dict = field(default_factory=dict)  # fields of ours that follow from the family
    fixed: dict = field(default_factory=dict)  # their keys that we compute with one value only


GELU = {"gelu": True, "gelu_new": False, "gelu_pytorch_tanh": False, "gelu_fast": False}  # -> our exact_gelu
GPT2_KEYS = {
    "vocab_size": "vocab_size", "block_size": "n_positions", "n_layer": "n_layer", "n_head": "n_head",
    "n_embd": "n_embd", "n_inner": "n_inner", "dropout": "resid_pdrop", "norm_eps": "layer_norm_epsilon",
    "tie_word_embeddings": "tie_word_embeddings", "exact_gelu": "activation_function",
}  # fmt: skip
NEOX_KEYS = {
    "vocab_size": "vocab_size", "block_size": "max_position_embeddings", "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads", "n_embd": "hidden_size", "n_inner": "intermediate_size",
    "dropout": "hidden_dropout", "norm_eps": "layer_norm_eps", "tie_word_embeddings": "tie_word_embeddings",
    "rotary_pct": "rotary_pct", "rope_theta": "rotary_emb_base", "parallel_residual": "use_parallel_residual",
    "exact_gelu": "hidden_act",
}  # fmt: skip
LLAMA_KEYS = {
    "vocab_size": "vocab_size", "block_size": "max_position_embeddings", "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads", "n_kv_head": "num_key_value_heads", "n_embd": "hidden_size",
    "n_inner": "intermediate_size", "rope_theta": "rope_theta", "norm_eps": "rms_norm_eps",
    "tie_word_embeddings": "tie_word_embeddings",
}  # fmt: skip
ATTENTION_BIAS = {"qkv_bias": "attention_bias", "attn_proj_bias": "attention_bias"}
OLMO_KEYS = LLAMA_KEYS | ATTENTION_BIAS | {"clip_qkv": "clip_qkv"}
del OLMO_KEYS["norm_eps"]  # 1e-5 in its code
NEOX_DEFAULT = {
    "max_position_embeddings": 2048, "layer_norm_eps": 1e-5, "rotary_pct": 0.25, "rotary_emb_base": 10000,
    "use_parallel_residual": True, "hidden_act": "gelu", "tie_word_embeddings": False, "hidden_dropout": 0.0,
}  # fmt: skip
LLAMA_DEFAULT = {
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
PLAIN = {"qkv_bias": False, "attn_proj_bias": False, "mlp_bias": False, "parametric_norm": True}
PLAIN |= {"clip_qkv": 0.0, "sliding_window": 0}
SILU = {"hidden_act": "silu"}
ROTARY = ("model.layers.{}.self_attn.rotary_emb.inv_freq",)


def without(given, *keys):
    return {k: v for k, v in given.items() if k not in keys}


FAMILIES = {
    "gpt2": Family(
        "GPT2LMHeadModel", GPT, gpt2_names, "transformer.",
        ("transformer.h.{}.attn.bias", "transformer.h.{}.attn.masked_bias"), GPT2_KEYS,
        {"n_positions": 1024, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True, "resid_pdrop": 0.1,
         "activation_function": "gelu_new"},
        {"rotary_pct": 0.0, "parallel_residual": False},
        {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    ),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM", GPT, neox_names, "gpt_neox.",
        tuple(f"gpt_neox.layers.{{}}.attention.{name}" for name in ("bias", "masked_bias", "rotary_emb.inv_freq")),
        NEOX_KEYS, NEOX_DEFAULT, {}, {"attention_bias": True},
    ),
    "llama": Family(
        "LlamaForCausalLM", LLaMA, llama_names, "model.", ROTARY,
        LLAMA_KEYS | ATTENTION_BIAS | {"mlp_bias": "mlp_bias"}, LLAMA_DEFAULT,
        without(PLAIN, "qkv_bias", "attn_proj_bias", "mlp_bias"), SILU,
    ),
    "mistral": Family(
        "MistralForCausalLM", LLaMA, llama_names, "model.", ROTARY,
        LLAMA_KEYS | {"sliding_window": "sliding_window"},
        LLAMA_DEFAULT | {"max_position_embeddings": 131072, "sliding_window": 4096, "num_key_value_heads": 8},
        without(PLAIN, "sliding_window"), SILU,
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM", LLaMA, llama_names, "model.", ROTARY, LLAMA_KEYS,
        LLAMA_DEFAULT | {"max_position_embeddings": 32768, "num_key_value_heads": 32}, PLAIN | {"qkv_bias": True},
        SILU | {"use_sliding_window": False},
    ),
    "olmo": Family(
        "OlmoForCausalLM", LLaMA, llama_names, "model.", ROTARY, OLMO_KEYS, LLAMA_DEFAULT,
        without(PLAIN, "qkv_bias", "attn_proj_bias", "clip_qkv") | {"parametric_norm": False, "norm_eps": 1e-5}, SILU,
    ),
}  # fmt: skip
SCALING = {"factor": "factor", "low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor",
           "original": "original_max_position_embeddings"}  # fmt: skip
POSITIVE = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "rope_theta")
LARGEST = 1 << 24  # of any integer in a config.json: beyond it are typing errors and attacks


def read_config(theirs: dict, where) -> tuple[GPTConfig | LLaMAConfig, Family]:
    """Our config from the contents of the config.json at `where`, and its family.

    Raises ValueError naming the key that we do not implement, or whose value is none.
    """
    if theirs.get("model_type") not in list(FAMILIES):
        raise ValueError(f"{where}: model_type {theirs.get('model_type')!r} is not one of {', '.join(FAMILIES)}")
    family = FAMILIES[theirs["model_type"]]
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}  # transformers 5, transformers 4
    if not isinstance(rope, dict):
        raise ValueError(f"{where}: rope_scaling={rope!r} is not a JSON object")
    theirs = family.default | theirs  # a key with null stays: "sliding_window": null is no window
    theta, part = rope.get("rope_theta"), rope.get("partial_rotary_factor")
    theirs |= {} if theta is None else {"rope_theta": theta, "rotary_emb_base": theta}
    theirs |= {} if part is None else {"rotary_pct": part}
    if "sliding_attention" in str(theirs.get("layer_types")):
        raise ValueError(f"{where}: layer_types with 'sliding_attention' are not implemented, only 'full_attention'")
    for key, value in (family.fixed | {"quantization_config": None}).items():
        if theirs.get(key, value) != value:
            raise ValueError(f"{where}: {key}={theirs[key]!r} is not implemented, only {value!r}")
    ours = {a: theirs[b] for a, b in family.keys.items() if theirs.get(b) is not None} | family.given
    if "exact_gelu" in ours:
        if ours["exact_gelu"] not in list(GELU):
            raise ValueError(f"{where}: activation {ours['exact_gelu']!r} is not implemented, only {', '.join(GELU)}")
        ours["exact_gelu"] = GELU[ours["exact_gelu"]]
    check_fields(family, ours, where)
    if theirs.get("head_dim") not in (None, ours["n_embd"] // max(1, ours["n_head"])):
        raise ValueError(f"{where}: head_dim={theirs['head_dim']} is not implemented, only hidden_size / heads")
    if family.kind is GPT and "rotary_pct" in family.keys and not ours["rotary_pct"]:
        raise ValueError(f"{where}: rotary_pct=0 is not implemented, only a part over 0")
    scaling = read_scaling(family, rope | {k: theirs[k] for k in ("partial_rotary_factor",) if k in theirs}, where)
    ours |= {"rope_scaling": scaling} if family.kind is LLaMA else {}
    if window := ours.get("sliding_window"):
        ours["block_size"] = min(ours["block_size"], window)  # within the window it makes no difference
    try:
        return (GPTConfig if family.kind is GPT else LLaMAConfig)(**ours), family
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def check_fields(family: Family, ours: dict, where):
    """ValueError unless each field of our config has a value of its type, and a size that a model can have."""
    for f in dataclasses.fields(GPTConfig if family.kind is GPT else LLaMAConfig):
        key = family.keys.get(f.name, f.name)
        if f.name not in ours:
            needed = ("vocab_size", "n_layer", "n_head", "n_embd", "n_inner" if family.kind is LLaMA else "")
            if f.name in needed:
                raise ValueError(f"{where}: {key} is not there; it is cut, or not that of a {family.architecture}")
            continue
        value, positive = ours[f.name], f.name in POSITIVE
        largest = LARGEST if f.type is int else math.inf
        if f.type is float and isinstance(value, int) and not isinstance(value, bool):
            value = ours[f.name] = float(value)
        fits = isinstance(value, f.type) and (f.type is bool or not isinstance(value, bool))
        if not fits or (f.type is not bool and not (positive <= value <= largest and math.isfinite(value))):
            expected = "true or false" if f.type is bool else f"{f.type.__name__} from {positive:d} to {largest:,}"
            raise ValueError(f"{where}: {key}={value!r}, expected {expected}")


def read_scaling(family: Family, rope: dict, where) -> dict:
    """The arguments of scale_rope, {} for none, from rope_parameters or rope_scaling."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    known = ("default",) if family.kind is GPT else ("default", "linear", "llama3")
    if kind not in known:
        raise ValueError(f"{where}: rope scaling {kind!r} is not implemented for this family, only {', '.join(known)}")
    if family.kind is LLaMA and rope.get("partial_rotary_factor") not in (None, 1.0):
        raise ValueError(f"{where}: partial_rotary_factor={rope['partial_rotary_factor']!r} is not implemented, only 1")
    if kind == "default":
        return {}
    keys = ("factor",) if kind == "linear" else SCALING
    for key in (SCALING[k] for k in keys):
        if not isinstance(rope.get(key), (int, float)) or not 0 < rope[key] < math.inf:
            raise ValueError(f"{where}: rope scaling {kind!r} needs {key} over 0, not {rope.get(key)!r}")
    return {"rope_type": kind} | {k: rope[SCALING[k]] for k in keys}


def write_config(config) -> tuple[dict, Family]:
    """config.json's contents for a GPTConfig or LLaMAConfig, and its family."""
    kind = GPT if isinstance(config, GPTConfig) else LLaMA
    for model_type, family in FAMILIES.items():
        shared = [(getattr(config, a), getattr(config, b)) for a, b in [("qkv_bias", "attn_proj_bias")]
                  if a in family.keys]  # one key of theirs  # fmt: skip
        fits = family.kind is kind and all(getattr(config, k) == v for k, v in family.given.items())
        if fits and all(a == b for a, b in shared) and (model_type != "gpt_neox" or config.rotary_pct):
            break
    else:
        raise ValueError(f"no Hugging Face family computes what this {kind.__name__} does: {config}")
    theirs = {"architectures": [family.architecture], "model_type": model_type, **family.fixed}
    theirs |= {b: getattr(config, a) for a, b in family.keys.items()}
    if kind is GPT:
        activation = family.keys["exact_gelu"]
        theirs[activation] = "gelu" if config.exact_gelu else "gelu_new"
        theirs |= dict.fromkeys(("attn_pdrop", "embd_pdrop", "attention_dropout"), config.dropout)
    elif config.rope_scaling:
        theirs["rope_scaling"] = {SCALING.get(k, k): v for k, v in config.rope_scaling.items()}
    if "clip_qkv" in theirs:
        theirs["clip_qkv"] = config.clip_qkv or None
    if model_type != "gpt2":  # the spelling of transformers 5, beside that of 4
        theirs["rope_parameters"] = {"rope_type": "default", "rope_theta": config.rope_theta}
        theirs["rope_parameters"] |= theirs.get("rope_scaling") or {}
    if model_type == "gpt_neox":
        theirs["rope_parameters"]["partial_rotary_factor"] = config.rotary_pct
    return theirs, family
