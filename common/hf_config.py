"""config.json, read and written by the tables of common/families.py.

`read_config` refuses by name whatever model.py does not implement, and gives keys that a config.json lacks the values
that transformers gives them. `write_config` finds the family that computes the same as a model of ours.
"""

import dataclasses
import math

from common.families import FAMILIES, Family
from model import GPT, GPTConfig, LLaMA, LLaMAConfig

# their activation: our exact_gelu. The three approximations by tanh are the same formula.
EXACT_GELU = {
    "gelu": True,
    "gelu_new": False,
    "gelu_pytorch_tanh": False,
    "gelu_fast": False,
}
# argument of model.py's scale_rope: their key
SCALING_KEYS = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original": "original_max_position_embeddings",
}
SCALING_ARGUMENTS = {"linear": ["factor"], "llama3": list(SCALING_KEYS)}  # by kind of scaling
POSITIVE = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "head_dim", "rope_theta")
# model_type of relatives that are not implemented: what model.py lacks for them, named in the error
NOT_IMPLEMENTED = {
    "olmo3": "sliding windows in some layers",
    "smollm3": "layers without rotary positions (no_rope_layers)",
    "qwen3_moe": "mixtures of experts",
    "phi3": "query, key and value in one matrix, and the MLP's gate and input in another",
    "gemma2": "sliding windows, four norms a block, scaled embeddings, (1 + w) norms and capped logits",
    "gemma3": "sliding windows, four norms a block, scaled embeddings and (1 + w) norms",
    "gemma3_text": "sliding windows, four norms a block, scaled embeddings and (1 + w) norms",
}
LARGEST = 1 << 24  # of any integer in a config.json: beyond it are typing errors and attacks


# ---------------------------------------------------------------------------------------------
# theirs to ours


def read_config(theirs: dict, where) -> tuple[GPTConfig | LLaMAConfig, Family]:
    """Our config from the contents of the config.json at `where`, and its family.

    Raises ValueError naming the key that we do not implement, or whose value is out of range.
    """
    model_type = theirs.get("model_type")
    if model_type not in list(FAMILIES):  # a list, as a damaged file may have what cannot be hashed
        message = f"{where}: model_type {model_type!r} is not one of {', '.join(FAMILIES)}"
        if model_type in list(NOT_IMPLEMENTED):
            message += f"; not implemented: {NOT_IMPLEMENTED[model_type]}"
        raise ValueError(message)
    family = FAMILIES[model_type]
    rope = read_rope(theirs, where)
    theirs = with_defaults(family, theirs, rope)
    check_implemented(family, theirs, where)
    ours = read_fields(family, theirs, where)
    has_own_width = "head_dim" in family.keys
    if not has_own_width and theirs.get("head_dim") not in (None, ours["n_embd"] // ours["n_head"]):
        head_dim = f"head_dim={theirs['head_dim']}"
        raise ValueError(f"{where}: {head_dim} is not implemented, only hidden_size / heads")
    # each may be in range, and the matrix of both beyond what torch can even describe
    attention_width = ours["n_head"] * ours.get("head_dim", 1)
    if attention_width > LARGEST:
        product = f"num_attention_heads * head_dim = {attention_width:,}"
        raise ValueError(f"{where}: {product}, expected at most {LARGEST:,}")
    # to GPTConfig 0 means learned positions, which GPT-NeoX does not have
    if "rotary_pct" in family.keys and not ours["rotary_pct"]:
        raise ValueError(f"{where}: rotary_pct=0 is not implemented, only a part over 0")
    scaling = read_scaling(family, rope, theirs.get("partial_rotary_factor"), where)
    if family.model_class is LLaMA:
        ours["rope_scaling"] = scaling
    # In rows that fit into the window it changes nothing; model.py has no window for longer ones.
    if ours.get("sliding_window"):
        ours["block_size"] = min(ours["block_size"], ours["sliding_window"])
    try:
        return family.config_class(**ours), family
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def read_rope(theirs: dict, where) -> dict:
    """The options of rotary positions in a config.json; {} without any."""
    # transformers 5 writes rope_parameters, transformers 4 rope_scaling
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"{where}: rope_scaling={rope!r} is not a JSON object")
    return rope


def with_defaults(family: Family, theirs: dict, rope: dict) -> dict:
    """A config.json with the keys it lacks, and with transformers 5's rotary options as 4 spelt them."""
    # a null in the file stays: "sliding_window": null means no window, not the default one
    theirs = family.defaults | theirs
    theta = rope.get("rope_theta")
    if theta is not None:
        theirs["rope_theta"] = theta
        theirs["rotary_emb_base"] = theta
    rotary_part = rope.get("partial_rotary_factor")
    if rotary_part is not None:
        theirs["rotary_pct"] = rotary_part
    return theirs


def check_implemented(family: Family, theirs: dict, where):
    """ValueError for an option whose value model.py does not compute."""
    if "sliding_attention" in str(theirs.get("layer_types")):
        kinds = "layer_types with 'sliding_attention' are not implemented, only 'full_attention'"
        raise ValueError(f"{where}: {kinds}")
    # whatever the family, quantised weights would be integers with scales beside them
    only = family.only | {"quantization_config": None}
    for key, value in only.items():
        if theirs.get(key, value) != value:
            raise ValueError(f"{where}: {key}={theirs[key]!r} is not implemented, only {value!r}")


def read_fields(family: Family, theirs: dict, where) -> dict:
    """The fields of our config by the table of the family, each of its type and a size that a model can have."""
    ours = {}
    for our_field, their_key in family.keys.items():
        if theirs.get(their_key) is not None:
            ours[our_field] = theirs[their_key]
    ours |= family.given
    if "exact_gelu" in ours:
        activation = ours["exact_gelu"]
        if activation not in list(EXACT_GELU):
            known = ", ".join(EXACT_GELU)
            raise ValueError(f"{where}: activation {activation!r} is not implemented, only {known}")
        ours["exact_gelu"] = EXACT_GELU[activation]

    needed = {"vocab_size", "n_layer", "n_head", "n_embd"}
    # the width of a GPT's MLP is 4 * n_embd by default, that of a LLaMA's has to be stated
    if family.model_class is LLaMA:
        needed.add("n_inner")
    for field in dataclasses.fields(family.config_class):
        key = family.keys.get(field.name, field.name)
        if field.name in ours:
            ours[field.name] = checked(field, ours[field.name], label=f"{where}: {key}")
        elif field.name in needed:
            remedy = f"it is cut, or not that of a {family.architecture}"
            raise ValueError(f"{where}: {key} is not there; {remedy}")
    return ours


def checked(field: dataclasses.Field, value, label: str):
    """The value of a field, an int as a float where that is its type. ValueError, with the label, if out of range."""
    # bool is an int to isinstance, but never a number of heads
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if field.type is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{label}={value!r}, expected true or false")
        return value
    # an int too large for a float, which JSON can hold, stays an int and is refused below
    if field.type is float and is_number and abs(value) < 1 << 1000:
        value = float(value)
    is_of_type = is_number and isinstance(value, field.type)
    lowest = 1 if field.name in POSITIVE else 0
    highest = LARGEST if field.type is int else math.inf
    if not is_of_type or not lowest <= value <= highest or not math.isfinite(value):
        expected = f"{field.type.__name__} from {lowest} to {highest:,}"
        raise ValueError(f"{label}={value!r}, expected {expected}")
    return value


def read_scaling(family: Family, rope: dict, rotary_part, where) -> dict:
    """The arguments of scale_rope, {} for none, from rope_parameters or rope_scaling.

    rotary_part: partial_rotary_factor at the top of config.json, where transformers 4 has it.
    """
    kind = rope.get("rope_type", rope.get("type", "default"))
    known = ["default"] if family.model_class is GPT else ["default", *SCALING_ARGUMENTS]
    if kind not in known:
        only = f"only {', '.join(known)}"
        raise ValueError(f"{where}: rope scaling {kind!r} is not implemented for this family, {only}")
    # in transformers 5 it is one of the rotary options
    if rotary_part is None:
        rotary_part = rope.get("partial_rotary_factor")
    if family.model_class is LLaMA and rotary_part not in (None, 1.0):
        part = f"partial_rotary_factor={rotary_part!r}"
        raise ValueError(f"{where}: {part} is not implemented, only 1")
    if kind == "default":
        return {}
    scaling = {"rope_type": kind}
    for argument in SCALING_ARGUMENTS[kind]:
        key = SCALING_KEYS[argument]
        value = rope.get(key)
        if not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ValueError(f"{where}: rope scaling {kind!r} needs {key} over 0, not {value!r}")
        scaling[argument] = value
    return scaling


# ---------------------------------------------------------------------------------------------
# ours to theirs


def write_config(config: GPTConfig | LLaMAConfig) -> tuple[dict, Family]:
    """config.json's contents for a config of ours, and its family.

    ValueError where no family computes what the config describes.
    """
    model_type = family_for(config)
    family = FAMILIES[model_type]
    theirs = {"architectures": [family.architecture], "model_type": model_type, **family.only}
    for our_field, their_key in family.keys.items():
        theirs[their_key] = getattr(config, our_field)
    if family.model_class is GPT:
        theirs[family.keys["exact_gelu"]] = "gelu" if config.exact_gelu else "gelu_new"
        # our one rate is three more keys of theirs
        theirs |= dict.fromkeys(("attn_pdrop", "embd_pdrop", "attention_dropout"), config.dropout)
    elif config.rope_scaling:
        theirs["rope_scaling"] = their_scaling(config.rope_scaling)
    if "clip_qkv" in theirs:
        theirs["clip_qkv"] = config.clip_qkv or None
    # the spelling of transformers 5, beside that of 4
    if "rope_theta" in family.keys:
        rope = {"rope_type": "default", "rope_theta": config.rope_theta}
        rope |= theirs.get("rope_scaling") or {}
        if "rotary_pct" in family.keys:
            rope["partial_rotary_factor"] = config.rotary_pct
        theirs["rope_parameters"] = rope
    # transformers 4 opens an OLMo with scaling only under the oldest spelling, which the other families accept too
    scaling = theirs.get("rope_scaling")
    if scaling and scaling["rope_type"] == "linear":
        theirs["rope_scaling"] = {"type": "linear", "factor": scaling["factor"]}
    return theirs, family


def their_scaling(scaling: dict) -> dict:
    theirs = {}
    for argument, value in scaling.items():
        theirs[SCALING_KEYS.get(argument, argument)] = value
    return theirs


def family_for(config: GPTConfig | LLaMAConfig) -> str:
    """The model_type of the first family that computes what a config describes."""
    # The order of the table matters: plain families come before their relatives.
    for model_type, family in FAMILIES.items():
        if computes(family, config):
            return model_type
    kind = "GPT" if isinstance(config, GPTConfig) else "LLaMA"
    raise ValueError(f"no Hugging Face family computes what this {kind} does: {config}")


def computes(family: Family, config) -> bool:
    """Whether a config.json of the family can describe this config of ours."""
    if not isinstance(config, family.config_class):
        return False
    # fields without a key in the family's config.json
    for our_field, value in family.given.items():
        if getattr(config, our_field) != value:
            return False
    # one key of theirs, two fields of ours
    if "qkv_bias" in family.keys and config.qkv_bias != config.attn_proj_bias:
        return False
    # a head_dim that is not n_embd / n_head needs a key of its own
    if isinstance(config, LLaMAConfig) and "head_dim" not in family.keys:
        if config.n_head * config.head_dim != config.n_embd:
            return False
    # GPT-NeoX has no learned positions
    return "rotary_pct" not in family.keys or config.rotary_pct > 0
