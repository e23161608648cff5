"""Models in and out of Hugging Face folders: config.json + model.safetensors.

The foreign names, weight layouts and config keys of every family live here and nowhere else.
`load_pretrained` uses every stored tensor and fills every parameter, or says which it could not;
an option we do not implement is refused by name, never approximated.
"""

import json
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file

from model import GPT, GPTConfig, LLaMA, LLaMAConfig

# ---------------------------------------------------------------------------------------------
# weights: (our name, their name, how theirs is laid out)


def transpose(weight, config, loading):
    """GPT-2's Conv1D keeps (in, out) where nn.Linear keeps (out, in)."""
    return weight.t()


def interleave(weight, config, loading):
    """GPT-NeoX stacks query, key, value head by head (nh, 3, hs, …); we keep (3, nh, hs, …)."""
    nh, hs = config.n_head, config.n_embd // config.n_head
    first, second = (nh, 3) if loading else (3, nh)
    return weight.reshape(first, second, hs, *weight.shape[1:]).transpose(0, 1).reshape(weight.shape)


def both(ours, theirs, layout=None):
    return [(f"{ours}.{part}", f"{theirs}.{part}", layout if part == "weight" or layout is interleave else None)
            for part in ("weight", "bias")]  # fmt: skip


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
            names = both(f"{ours}.attn.c_{short}", f"{theirs}.self_attn.{short}_proj")
            yield from names if config.qkv_bias else names[:1]
        yield f"{ours}.attn.c_proj.weight", f"{theirs}.self_attn.o_proj.weight", None
        yield f"{ours}.mlp.c_gate.weight", f"{theirs}.mlp.gate_proj.weight", None
        yield f"{ours}.mlp.c_fc.weight", f"{theirs}.mlp.up_proj.weight", None
        yield f"{ours}.mlp.c_proj.weight", f"{theirs}.mlp.down_proj.weight", None
        if config.parametric_norm:
            yield f"{ours}.ln_1.weight", f"{theirs}.input_layernorm.weight", None
            yield f"{ours}.ln_2.weight", f"{theirs}.post_attention_layernorm.weight", None
    if config.parametric_norm:
        yield "ln_f.weight", "model.norm.weight", None
    yield "lm_head.weight", "lm_head.weight", None


# ---------------------------------------------------------------------------------------------
# configs: our key -> their key; `fixed` are their keys that must have that value, if they are there

GPT2 = {
    "vocab_size": "vocab_size", "block_size": "n_positions", "n_layer": "n_layer", "n_head": "n_head",
    "n_embd": "n_embd", "n_inner": "n_inner", "dropout": "resid_pdrop", "norm_eps": "layer_norm_epsilon",
    "tie_word_embeddings": "tie_word_embeddings",
}  # fmt: skip
NEOX = {
    "vocab_size": "vocab_size", "block_size": "max_position_embeddings", "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads", "n_embd": "hidden_size", "n_inner": "intermediate_size",
    "dropout": "hidden_dropout", "norm_eps": "layer_norm_eps", "tie_word_embeddings": "tie_word_embeddings",
    "rotary_pct": "rotary_pct", "rope_theta": "rotary_emb_base", "parallel_residual": "use_parallel_residual",
}  # fmt: skip
LLAMA = {
    "vocab_size": "vocab_size", "block_size": "max_position_embeddings", "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads", "n_kv_head": "num_key_value_heads", "n_embd": "hidden_size",
    "n_inner": "intermediate_size", "rope_theta": "rope_theta", "norm_eps": "rms_norm_eps",
    "tie_word_embeddings": "tie_word_embeddings",
}  # fmt: skip
OLMO = {ours: theirs for ours, theirs in LLAMA.items() if ours != "norm_eps"}
GELU = {"gelu": True, "gelu_new": False, "gelu_pytorch_tanh": False}  # their name -> our exact_gelu

FAMILIES = {  # model_type: architecture, our class, names, keys, what the family itself says of our config, fixed
    "gpt2": ("GPT2LMHeadModel", GPT, gpt2_names, GPT2, {"rotary_pct": 0.0, "parallel_residual": False},
             {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}),
    "gpt_neox": ("GPTNeoXForCausalLM", GPT, neox_names, NEOX, {}, {"attention_bias": True, "rope_scaling": None}),
    "llama": ("LlamaForCausalLM", LLaMA, llama_names, LLAMA, {"qkv_bias": False, "parametric_norm": True},
              {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}),
    "qwen2": ("Qwen2ForCausalLM", LLaMA, llama_names, LLAMA, {"qkv_bias": True, "parametric_norm": True},
              {"hidden_act": "silu", "use_sliding_window": False}),
    "olmo": ("OlmoForCausalLM", LLaMA, llama_names, OLMO,
             {"qkv_bias": False, "parametric_norm": False, "norm_eps": 1e-5},
             {"hidden_act": "silu", "attention_bias": False, "clip_qkv": None}),
}  # fmt: skip
SCALING = {"factor": "factor", "low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor",
           "original": "original_max_position_embeddings"}  # fmt: skip


def read_config(theirs: dict, where: Path):
    """A GPTConfig or LLaMAConfig from a config.json's contents, and its FAMILIES entry."""
    family = FAMILIES.get(theirs.get("model_type"))
    if family is None:
        raise ValueError(f"{where}: model_type {theirs.get('model_type')!r} is not one of {', '.join(FAMILIES)}")
    _, kind, _, keys, given, fixed = family
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}  # transformers 5, transformers 4
    theirs = {"rotary_pct": rope.get("partial_rotary_factor", 0.25)} | theirs
    if "rope_theta" in rope:
        theirs |= {"rope_theta": rope["rope_theta"], "rotary_emb_base": rope["rope_theta"]}
    for key, value in fixed.items():
        if theirs.get(key, value) != value:
            raise ValueError(f"{where}: {key}={theirs[key]!r} is not implemented, only {value!r}")
    ours = {a: theirs[b] for a, b in keys.items() if theirs.get(b) is not None} | given
    ours.setdefault("tie_word_embeddings", theirs["model_type"] == "gpt2")
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in (("default",) if kind is GPT else ("default", "linear", "llama3")):
        raise ValueError(f"{where}: rope scaling {rope_type!r} is not implemented for {theirs['model_type']}")
    if theirs.get("head_dim") not in (None, ours["n_embd"] // ours["n_head"]):
        raise ValueError(f"{where}: head_dim={theirs['head_dim']} is not implemented, only hidden_size / heads")
    if kind is GPT:
        name = theirs.get("activation_function", theirs.get("hidden_act", "gelu_new"))
        if name not in GELU:
            raise ValueError(f"{where}: activation {name!r} is not implemented, only {', '.join(GELU)}")
        return GPTConfig(**ours, exact_gelu=GELU[name]), family
    if rope_type != "default":
        ours["rope_scaling"] = {"rope_type": rope_type} | {a: rope[b] for a, b in SCALING.items() if b in rope}
    return LLaMAConfig(**ours), family


def write_config(config) -> tuple[dict, tuple]:
    """config.json's contents for a GPTConfig or LLaMAConfig, and its FAMILIES entry."""
    if isinstance(config, GPTConfig):
        model_type = "gpt_neox" if config.rotary_pct else "gpt2"
    else:
        model_type = "qwen2" if config.qkv_bias else "llama" if config.parametric_norm else "olmo"
    family = architecture, kind, _, keys, given, fixed = FAMILIES[model_type]
    wrong = [f"{k}={getattr(config, k)!r}" for k, v in given.items() if getattr(config, k) != v]
    if wrong:
        raise ValueError(f"no Hugging Face family has {', '.join(wrong)} beside the rest of this {kind.__name__}")
    theirs = {"architectures": [architecture], "model_type": model_type, **fixed}
    theirs |= {b: getattr(config, a) for a, b in keys.items()} | {"dtype": "float32", "torch_dtype": "float32"}
    if kind is GPT:
        theirs["activation_function" if model_type == "gpt2" else "hidden_act"] = (
            "gelu" if config.exact_gelu else "gelu_new"
        )
        theirs |= dict.fromkeys(("attn_pdrop", "embd_pdrop", "attention_dropout"), config.dropout)
    elif config.rope_scaling:
        theirs["rope_scaling"] = {SCALING.get(k, k): v for k, v in config.rope_scaling.items()}
    if model_type != "gpt2":  # the spelling of transformers 5, beside that of 4
        theirs["rope_parameters"] = {"rope_type": "default", "rope_theta": config.rope_theta}
        theirs["rope_parameters"] |= theirs.get("rope_scaling") or {}
    if model_type == "gpt_neox":
        theirs["rope_parameters"]["partial_rotary_factor"] = config.rotary_pct
    return theirs, family


# ---------------------------------------------------------------------------------------------
# folders


def by_step(out_dir: str | Path) -> list[Path]:
    """The folders out_dir/step_N by N, as a number: step_1000000 comes after step_999999."""
    folders = (p for p in Path(out_dir).glob("step_*") if p.name.removeprefix("step_").isdecimal())
    return sorted(folders, key=lambda p: int(p.name.removeprefix("step_")))


def find_model(where: str | Path) -> Path:
    """The model folder that `where` names: itself, or the newest checkpoint of a run's out_dir."""
    folder = Path(where)
    steps = [p for p in by_step(folder) if (p / "config.json").is_file()]
    if (folder / "config.json").is_file() or not steps:
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"no model at {str(where)!r}: expected a folder with config.json and model.safetensors, or a run's "
                "out_dir; train one first, or download the repository's files into a folder and name that"
            )
        return folder
    return steps[-1]


def load_pretrained(where: str | Path, device="cpu", dtype=None, **overrides):
    """A GPT or LLaMA in eval mode from a model folder or a run's out_dir (its newest checkpoint).

    dtype: a torch dtype, or None for that of the file. overrides: fields of the config, such as dropout.
    Raises FileNotFoundError or ValueError naming the file and the tensors that do not fit.
    """
    folder = find_model(where)
    try:
        theirs = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder}/config.json is not JSON: {error}") from None
    try:
        config, family = read_config(theirs, folder / "config.json")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder}/config.json is not that of a model we know: {error!r}") from None
    for key, value in overrides.items():
        setattr(config, key, value)
    with torch.device("meta"):  # shapes only: no memory, no random numbers
        model = family[1](config)
    weights = read_weights(folder / "model.safetensors", model, list(family[2](config)), device, dtype)
    model.load_state_dict(weights, assign=True)
    model.tie()
    return model.eval()


def read_weights(path: Path, model, names, device, dtype) -> dict:
    """The state dict of `model` from a .safetensors file, tensor by tensor."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there, beside its config.json")
    wanted, weights, wrong = model.state_dict(), {}, []
    tied = model.config.tie_word_embeddings
    try:
        with safetensors.safe_open(path, framework="pt", device=str(device)) as file:
            stored = set(file.keys())
            for ours, theirs, layout in names:
                if ours == "lm_head.weight" and tied:
                    weights[ours] = weights["wte.weight"]
                    stored.discard(theirs)
                elif theirs not in stored:
                    wrong.append(f"{theirs} is missing")
                else:
                    stored.remove(theirs)
                    weight = file.get_tensor(theirs)
                    weight = layout(weight, model.config, True) if layout else weight
                    if weight.shape != wanted[ours].shape:
                        wrong.append(f"{theirs} is {tuple(weight.shape)}, config.json says {tuple(wanted[ours].shape)}")
                    weights[ours] = weight.to(dtype or weight.dtype).contiguous()
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged or was cut ({error}); use another checkpoint") from None
    wrong += [f"{name} is not used" for name in sorted(stored)]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"{path} does not fit its config.json: {'; '.join(wrong[:3])}{more}")
    return weights


def save_pretrained(model, folder: str | Path):
    """Write config.json and model.safetensors under the Hugging Face names of the model's family."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    theirs, family = write_config(model.config)
    state, weights = model.state_dict(), {}
    for ours, name, layout in family[2](model.config):
        if not (ours == "lm_head.weight" and model.config.tie_word_embeddings):
            weight = state[ours].detach()
            weight = layout(weight, model.config, False) if layout else weight
            weights[name] = weight.cpu().contiguous()
    dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    theirs |= {"dtype": dtype, "torch_dtype": dtype}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # written as 0600, which other users could not read
    (folder / "config.json").write_text(json.dumps(theirs, indent=2) + "\n", encoding="utf-8")


def check_fits(model, where, block_size: int, vocab_size: int):
    """ValueError unless `model`, which came from `where`, has the positions and ids that the data needs."""
    c = model.config
    if block_size > c.block_size:
        raise ValueError(f"block_size={block_size} is beyond the {c.block_size} positions of {where}; lower block_size")
    if vocab_size > c.vocab_size:
        raise ValueError(f"the data has {vocab_size} ids, but {where} only {c.vocab_size}; the tokenizers differ")
