"""Models in and out of Hugging Face folders: config.json and the weights beside it.

    load_pretrained("out/run")                  a run's newest checkpoint
    load_pretrained("some/folder")              config.json with model.safetensors, shards of it, or pytorch_model.bin
    load_pretrained("EleutherAI/pythia-160m")   a repository of the hub, downloaded once; perhaps with @revision

Every stored tensor is used and every parameter filled, or it is an error that names them. What the families
call their weights and options is in common/families.py.
"""

import copy
import dataclasses
import hashlib
import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from common.download import download_repo, is_repo
from common.families import CONV1D, Family, Layout
from common.files import by_step, file_sha256, read_json
from common.hf_config import read_config, write_config
from common.meta import tokenizer_meta
from common.sharding import share_of, whole
from common.weight_files import Weights
from configurator import made_by, nearest
from model import LLaMAConfig

# ---------------------------------------------------------------------------------------------
# where a model is


def find_model(where: str | Path) -> Path:
    """The folder of a model: `where` itself, the newest checkpoint of a run's out_dir, or a hub repository's.

    out_dir/best is the checkpoint of the run's lowest validation loss.
    """
    if not str(where):
        forms = "a folder with config.json and weights, a run's out_dir, or a hub name"
        raise ValueError(f"no model is named; give {forms}")
    # a folder comes before the hub: "gpt2" may be one
    folder = Path(where)
    if (folder / "config.json").is_file():
        return folder
    if folder.name == "best" and by_step(folder.parent):
        # imported here, as common/checkpoint.py imports this module
        from common.checkpoint import best_checkpoint

        best = best_checkpoint(folder.parent)
        if best is None:
            reasons = "it ran with keep_best=False, or none of its steps was better than what it began from"
            raise FileNotFoundError(f"{folder.parent} has no checkpoint of its best step: {reasons}")
        return best
    checkpoints = [path for path in by_step(folder) if (path / "config.json").is_file()]
    if checkpoints:
        return checkpoints[-1]

    # A missing folder may be that of a run that has not started yet, or misspelt: the hub's answer would be an error
    # about the network.
    no_model = f"no model at {str(where)!r}"
    if (folder / "cache.json").is_file():
        raise FileNotFoundError(f"{no_model}: it is a cache, which has predictions and no weights; name its teacher")
    # as may out_dir/best
    command = made_by(folder) or (folder.name == "best" and made_by(folder.parent))
    if command:
        raise FileNotFoundError(f"{no_model} yet; first run: {command}")
    suggestion = nearest(str(where), models_beside(folder))
    if suggestion:
        raise FileNotFoundError(f"{no_model}{suggestion}")
    if folder.exists() or not is_repo(str(where)):
        raise FileNotFoundError(
            f"{no_model}: expected a folder with config.json and weights, a run's out_dir with a "
            "checkpoint, or the name of a hub repository such as EleutherAI/pythia-160m"
        )
    return download_repo(str(where), check=lambda path: read_config(read_json(path), path))


def settle_model(where: str | Path, run) -> Path:
    """`find_model`, called once, with the same result on all ranks of `run` (a Runtime).

    Between two calls a run that is training may save its next checkpoint, but the one that is scored must be the one
    that is hashed and named. ValueError on all ranks if they found different ones.
    """
    folder = find_model(where)
    # only the name, as each machine may keep downloads from the hub somewhere else
    number = zlib.crc32(folder.name.encode())
    (total,) = run.sum(number)
    if total != run.world * number:
        raise ValueError(f"{where}: the ranks found different checkpoints, as a run saves there; name a step_ folder")
    return folder


def models_beside(folder: Path) -> list[str]:
    """The folders beside `folder`, which need not exist, that hold a model or a run's checkpoints."""
    if not folder.parent.is_dir():
        return []
    paths = [path for path in folder.parent.iterdir() if path.is_dir()]
    return [str(path) for path in paths if (path / "config.json").is_file() or by_step(path)]


# ---------------------------------------------------------------------------------------------
# load


def load_pretrained(where: str | Path, device="cpu", dtype=None, divide=None, **overrides):
    """A GPT or LLaMA in eval mode from a model folder, a run's out_dir (its newest checkpoint) or the hub.

    dtype: a torch dtype, or None for that of the file. overrides: fields of the config, such as dropout.
    divide: what divides the model among the ranks (Runtime.shard; dtype is needed then), before it has weights: each
    rank reads all tensors, one at a time, and keeps its share.
    Raises FileNotFoundError or ValueError naming the file, and the tensors or options that do not fit.
    """
    folder = find_model(where)
    config_file = folder / "config.json"
    config, family = read_config(read_json(config_file), config_file)
    config = dataclasses.replace(config, **overrides)
    stored = Weights(folder)
    # before the model is made: ten million blocks would take long, even on the meta device
    n_tensors = len(stored.files)
    if config.n_layer > n_tensors:
        blocks = f"config.json says {config.n_layer} blocks"
        raise ValueError(f"{folder} has {n_tensors} tensors, but {blocks}")
    # The meta device has shapes only: the weights are those of the file, each read once.
    with torch.device("meta"), NoInit():
        model = family.model_class(config)
    if divide:
        divide(model.to(dtype))
    weights, misfits = read_weights(stored, model, family, device, dtype)
    # not all: with the wrong config.json every tensor misfits
    if misfits:
        more = f" and {len(misfits) - 3} more" if len(misfits) > 3 else ""
        first = "; ".join(misfits[:3])
        raise ValueError(f"{folder} does not fit its config.json: {first}{more}")
    # assign, as a tensor on the meta device has no memory to copy into. This unties the head.
    model.load_state_dict(weights, assign=True)
    model.tie()
    return model.eval()


class NoInit(torch.overrides.TorchFunctionMode):
    """Modules made inside this mode are not initialised, which on the meta device would cost a second of imports."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def read_weights(stored: Weights, model, family: Family, device, dtype) -> tuple[dict, list[str]]:
    """The state dict for `model`, and a line for each tensor that is missing, misshapen, damaged or unused."""
    config = model.config
    parameters = model.state_dict()
    prefix = missing_prefix(stored, family)
    unused = set(stored.files) - known_buffers(family, config.n_layer, prefix)
    weights = {}
    misfits = []
    for ours, theirs, layout in family.weights(config):
        theirs = theirs.removeprefix(prefix)
        is_tied_head = ours == "lm_head.weight" and config.tie_word_embeddings
        if theirs not in stored.files:
            # a tied head is the embedding, and need not be stored again
            if not is_tied_head:
                misfits.append(f"{theirs} is missing")
            continue
        unused.discard(theirs)
        misfit = wrong_shape(stored.view(theirs), parameters[ours].shape, layout)
        if misfit:
            misfits.append(f"{theirs} is {misfit}")
            continue
        # one at a time, so that no second copy of the model is in memory
        weight = stored.read(theirs, device, dtype)
        if layout:
            weight = layout.load(weight, config).contiguous()
        weights[ours] = share_of(weight, parameters[ours])
        if not is_finite(weight):
            misfits.append(f"{theirs} has NaN or infinity in {name_of(weight.dtype)}")
        embedding = weights.get("wte.weight")
        if is_tied_head and embedding is not None and not torch.equal(weight, whole(embedding)):
            misfits.append(f"{theirs} differs from the embedding, but config.json ties the two")
    for name in sorted(unused):
        misfits.append(f"{name} is not used")
    if config.tie_word_embeddings and "wte.weight" in weights:
        weights["lm_head.weight"] = weights["wte.weight"]
    return weights, misfits


def missing_prefix(stored: Weights, family: Family) -> str:
    """The prefix that names lack in a file of the bare model, without its head, as OpenAI's gpt2 on the hub is."""
    is_whole = any(name.startswith(family.prefix) for name in stored.files)
    return "" if is_whole else family.prefix


def known_buffers(family: Family, n_layer: int, prefix: str) -> set[str]:
    """Names of the buffers that old files hold besides the weights."""
    names = set()
    for buffer in family.buffers:
        for i in range(n_layer):
            names.add(buffer.format(i).removeprefix(prefix))
    return names


def wrong_shape(tensor: torch.Tensor, our_shape: torch.Size, layout: Layout | None) -> str:
    """A stored tensor's shape and type, and the expected shape, as text; "" if they are right."""
    # the shape that the file should have, before the layout is changed to ours
    expected = our_shape[::-1] if layout is CONV1D else our_shape
    if tensor.shape == expected and tensor.dtype.is_floating_point:
        return ""
    stored = f"{tuple(tensor.shape)} {name_of(tensor.dtype)}"
    return f"{stored}, config.json says {tuple(expected)}"


def name_of(dtype: torch.dtype) -> str:
    """torch.float32 -> "float32"."""
    return str(dtype).removeprefix("torch.")


def is_finite(weight: torch.Tensor) -> bool:
    """Whether all numbers are finite, without a temporary as large as the weight."""
    # float8 has no aminmax
    if weight.dtype.itemsize == 1:
        weight = weight.float()
    return all(extreme.isfinite() for extreme in weight.aminmax())


def weights_sha256(folder: Path) -> str:
    """SHA-256 of a folder's file of weights; for several files, SHA-256 of their concatenated digests."""
    # of the files' bytes, not of the tensors: anybody can check it with sha256sum
    paths = sorted(set(Weights(folder).files.values()))
    digests = [file_sha256(path) for path in paths]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def config_sha256(folder: Path) -> str:
    """SHA-256 of what a folder's config.json means to us: another rope_theta is another model of the same weights."""
    path = folder / "config.json"
    config, _ = read_config(read_json(path), path)
    return hashlib.sha256(json.dumps(dataclasses.asdict(config), sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------
# save


def save_pretrained(model, folder: str | Path, tokenizer=None):
    """Write config.json and model.safetensors under the Hugging Face names of the model's family.

    With a tokenizer, its files and meta.json too, by which a model is known to fit a data set.
    """
    weights = {name: weight.cpu().contiguous() for name, weight in weights_to_store(model)}
    write_pretrained(Path(folder), weights, model.config, tokenizer)


def weights_to_store(model) -> Iterator[tuple[str, torch.Tensor]]:
    """A model's weights under the names and in the layout of its family, as transformers expects them.

    They are the model's own tensors or views of them, on its device. Where the ranks divide the model, they are whole
    tensors, gathered one at a time, so that all ranks must iterate together.
    """
    _, family = write_config(model.config)
    state = model.state_dict()
    for ours, name, layout in family.weights(model.config):
        # a tied head is written once, as the embedding
        if ours == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        weight = whole(state[ours].detach())
        if layout:
            weight = layout.save(weight, model.config)
        yield name, weight


def write_pretrained(folder: Path, weights: dict[str, torch.Tensor], config, tokenizer=None):
    """save_pretrained for weights that are contiguous tensors on the CPU already; config: the model's."""
    folder.mkdir(parents=True, exist_ok=True)
    theirs, _ = write_config(config)
    # transformers 5's key and transformers 4's
    dtype = name_of(next(iter(weights.values())).dtype)
    theirs |= {"dtype": dtype, "torch_dtype": dtype}
    if tokenizer:
        theirs |= {"eos_token_id": tokenizer.eot, "bos_token_id": tokenizer.bos}
        tokenizer.save(folder)
        write_indented(folder / "meta.json", tokenizer_meta(tokenizer))
    weights_file = folder / "model.safetensors"
    save_file(weights, weights_file, metadata={"format": "pt"})
    # safetensors writes it as 0600, which other users cannot read
    weights_file.chmod(0o644)
    # last, as find_model takes a folder with config.json for a model
    write_indented(folder / "config.json", theirs)


def write_indented(path: Path, content: dict):
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------------------------
# the knobs of a run and its model


def check_fits(model, where, block_size: int, vocab_size: int):
    """ValueError unless `model`, which came from `where`, has the positions and ids that the data needs."""
    # rows may be shorter than the model's context, never longer
    positions = model.config.block_size
    if block_size > positions:
        limit = f"the {positions} positions of {where}"
        raise ValueError(f"block_size={block_size} is beyond {limit}; lower block_size")
    # more ids than the data has are padding; fewer are another tokenizer
    ids = model.config.vocab_size
    if vocab_size > ids:
        few = f"{where} only {ids}; the tokenizers differ"
        raise ValueError(f"the data has {vocab_size} ids, but {few}")


def shape_of(model) -> dict:
    """The knobs of both loops that describe a model's shape, with the values that `model` has."""
    config = model.config
    is_llama = isinstance(config, LLaMAConfig)
    return {
        "arch": "llama" if is_llama else "gpt",
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_kv_head": config.n_kv_head if is_llama else 0,
        "n_embd": config.n_embd,
        "n_inner": config.n_inner,
        "qk_norm": config.qk_norm if is_llama else False,
        "tie_word_embeddings": config.tie_word_embeddings,
    }


def record_shape(config, model, source):
    """Write the shape that `model` really has into the knobs. ValueError if one that was given says otherwise.

    config: what `configure` returned; source: what the model was loaded from, None for a new one. An error, as a user
    would think that a knob has an effect if it were silently ignored.
    """
    shape = shape_of(model)
    # where they are 0 they follow from the other knobs
    derived = ("n_kv_head", "n_inner")
    for key, where in config.given.items():
        if key not in shape or config[key] == shape[key]:
            continue
        if key in derived and config[key] == 0:
            continue
        given = f"{where}: {key}={config[key]!r}"
        if source is None:
            raise ValueError(f"{given} is not for arch={shape['arch']}; leave it out")
        rule = f"a model that is loaded keeps its shape, leave {key} out"
        raise ValueError(f"{given}, but {source} has {key}={shape[key]!r}; {rule}")
    config.update(shape)


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `number`."""
    return math.ceil(number / multiple) * multiple


def keep_blocks(model, blocks: str, where):
    """Keep only these blocks of a model, in this order: "0,2,4,7,9,11" makes DistilGPT2's student of GPT-2.

    Embeddings, final norm and head stay. ValueError unless `model`, which came from `where`, has them.
    """
    n_blocks = len(model.h)
    try:
        numbers = [int(number) for number in blocks.split(",")]
    except ValueError:
        numbers = []
    are_there = all(0 <= i < n_blocks for i in numbers)
    if where is None or not numbers or not are_there:
        problem = f"{where} has blocks 0 to {n_blocks - 1}"
        if where is None:
            problem = "no model to take them from is named in init_from"
        form = "expected numbers with commas between, as in 0,2,4"
        raise ValueError(f"init_layers={blocks!r}, but {problem}; {form}")
    # copies, as a block that is named twice becomes two
    model.h = torch.nn.ModuleList(copy.deepcopy(model.h[i]) for i in numbers)
    model.config.n_layer = len(numbers)


def freeze_parameters(model, prefixes: str):
    """Turn off the gradient of parameters whose names begin with one of the comma-separated prefixes.

    "h.1" is one of "h.1.ln_1.weight", not of "h.10.ln_1.weight". A tied head has two names, and is frozen by either.
    """
    # with duplicates, so that a tied head appears under both of its names
    parameters = list(model.named_parameters(remove_duplicate=False))
    for prefix in prefixes.split(","):
        prefix = prefix.strip()
        if not prefix:
            continue
        chosen = [p for name, p in parameters if f"{name}.".startswith(f"{prefix}.")]
        if not chosen:
            known = ", ".join(dict.fromkeys(name.split(".")[0] for name, _ in parameters))
            no_match = f"no parameter begins with {prefix!r}; expected some of {known}"
            raise ValueError(f"freeze={prefixes!r}: {no_match}")
        for parameter in chosen:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"freeze={prefixes!r} leaves nothing to train")
