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
import pickle  # for the name of its error only: nothing is unpickled but through weights_only
import warnings
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file

from common.data import tokenizer_meta
from common.download import download_repo, is_repo
from common.families import Family, read_config, transpose, write_config
from common.files import by_step, file_sha256, read_json
from configurator import made_by, nearest
from model import LLaMAConfig

DAMAGE = (  # what a file that is cut, overwritten or hostile can make of torch.load and safetensors
    safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError, LookupError, TypeError,
    ValueError, AttributeError, AssertionError,
)  # fmt: skip
REOPEN = 16e6  # bytes read from a file before it is opened anew: its mapped pages count as memory until then

# ---------------------------------------------------------------------------------------------
# where a model is


def find_model(where: str | Path) -> Path:
    """The model folder that `where` names: itself, the newest checkpoint of a run's out_dir, or a hub repository's."""
    folder = Path(where)
    if not str(where):
        raise ValueError(
            "no model is named; give a folder with config.json and weights, a run's out_dir, or a hub name"
        )
    if (folder / "config.json").is_file():
        return folder
    if steps := [p for p in by_step(folder) if (p / "config.json").is_file()]:
        return steps[-1]
    if command := made_by(folder):
        raise FileNotFoundError(f"no model at {str(where)!r} yet; first run: {command}")
    if suggestion := nearest(str(where), models_beside(folder)):  # else a typing error reads as a network problem
        raise FileNotFoundError(f"no model at {str(where)!r}{suggestion}")
    if folder.exists() or not is_repo(str(where)):
        raise FileNotFoundError(
            f"no model at {str(where)!r}: expected a folder with config.json and weights, a run's out_dir with a "
            "checkpoint, or the name of a hub repository such as EleutherAI/pythia-160m"
        )
    return download_repo(str(where), check=lambda path: read_config(read_json(path), path))


def models_beside(folder: Path) -> list[str]:
    """The folders with a model, or with a run's checkpoints, that lie where `folder` would."""
    if not folder.parent.is_dir():
        return []
    paths = [path for path in folder.parent.iterdir() if path.is_dir()]
    return [str(path) for path in paths if (path / "config.json").is_file() or by_step(path)]


# ---------------------------------------------------------------------------------------------
# files


class Weights:
    """The tensors of a folder by their stored names, read one at a time, of whichever form its files have."""

    def __init__(self, folder: Path):
        self.path, self.opened, self.bytes_read = None, None, 0
        for name in ("model.safetensors", "pytorch_model.bin"):
            index = folder / f"{name}.index.json"
            if (folder / name).is_file():
                self.files = dict.fromkeys(self.open(folder / name), folder / name)
                return
            if index.is_file():
                self.files = self.read_index(folder, index)
                return
        raise FileNotFoundError(f"{folder} has no model.safetensors and no pytorch_model.bin beside its config.json")

    def read_index(self, folder: Path, index: Path) -> dict[str, Path]:
        """Of the shards that an index names: each of them there, holding what the index says and nothing else."""
        said = read_json(index).get("weight_map")
        if not isinstance(said, dict) or not all(isinstance(n, str) and Path(n).name == n for n in said.values()):
            raise ValueError(f"{index}: expected a weight_map of tensors to files in the same folder")
        found = {}
        for shard in sorted(set(said.values())):
            if not (folder / shard).is_file():
                raise FileNotFoundError(f"{folder / shard} is not there, but {index.name} names it")
            found |= dict.fromkeys(self.open(folder / shard), shard)
        for name in {**said, **found}:
            if said.get(name) != found.get(name):
                raise ValueError(f"{index} has {name} in {said.get(name)}, but it is in {found.get(name)}")
        return {name: folder / shard for name, shard in found.items()}

    def open(self, path: Path):
        """Open a file; returns the names of its tensors. ValueError when it is damaged, or no file of weights."""
        self.path, self.opened, self.bytes_read = path, None, 0
        with path.open("rb") as file:
            start = file.read(20)
        if start.startswith(b"version https://git-"):
            raise ValueError(f"{path} is a pointer of git-lfs, not the file itself: run git lfs pull there")
        try:
            if path.suffix == ".safetensors":
                self.opened = safetensors.safe_open(path, framework="pt")
                return list(self.opened.keys())
            self.zipped = start[:2] == b"PK"  # else a file of before torch 1.6, which cannot be mapped
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.opened = torch.load(path, map_location="cpu", weights_only=True, mmap=self.zipped)
        except DAMAGE as error:  # what torch says of pickles ends in bad advice
            unsafe = isinstance(error, pickle.UnpicklingError)
            reason = "objects in a pickle" if unsafe else (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"{path} is damaged, was cut, or holds more than weights ({reason}); copy or fetch it again, or delete "
                f"{path.parent} where it is a checkpoint of a run with others"
            ) from None
        if path.suffix != ".safetensors":
            self.check_state_dict(path)
        return list(self.opened.keys())

    def check_state_dict(self, path: Path):
        """ValueError unless an unpickled file is plain tensors by name, none of them larger than the file."""
        items, size = self.opened.items() if isinstance(self.opened, dict) else [("", None)], path.stat().st_size
        for name, t in items:
            if not (isinstance(name, str) and isinstance(t, torch.Tensor) and t.layout is torch.strided):
                raise ValueError(f"{path} holds more than tensors by name; expected a state dict")
            if t.nbytes > size:
                raise ValueError(f"{path} has {size:,} bytes, but says {name} has {t.nbytes:,}")

    def view(self, name: str) -> torch.Tensor:
        """A tensor of the file's type on the CPU, most likely a view of the file."""
        path = self.files[name]
        if path != self.path or (self.bytes_read > REOPEN and (path.suffix == ".safetensors" or self.zipped)):
            self.open(path)
        return self.opened.get_tensor(name) if path.suffix == ".safetensors" else self.opened[name]

    def read(self, name: str, device, dtype) -> torch.Tensor:
        """A copy of a tensor, made a few rows at a time so that little of the file is in memory beside it."""
        tensor = self.view(name)
        copy = torch.empty(tensor.shape, dtype=dtype or tensor.dtype, device=device)
        step = max(1, int(REOPEN * len(tensor) // max(1, tensor.nbytes)))
        for start in range(0, len(copy), step):
            tensor = None  # a view of a file that may now be closed
            tensor = self.view(name)[start : start + step]
            copy[start : start + step].copy_(tensor)
            self.bytes_read += tensor.nbytes
        return copy


def weights_sha256(folder: Path) -> str:
    """SHA-256 of a folder's file of weights, or of those of its shards one after the other."""
    digests = [file_sha256(path) for path in sorted(set(Weights(folder).files.values()))]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------
# load and save


def load_pretrained(where: str | Path, device="cpu", dtype=None, **overrides):
    """A GPT or LLaMA in eval mode from a model folder, a run's out_dir (its newest checkpoint) or the hub.

    dtype: a torch dtype, or None for that of the file. overrides: fields of the config, such as dropout.
    Raises FileNotFoundError or ValueError naming the file, and the tensors or options that do not fit.
    """
    folder = find_model(where)
    config, family = read_config(read_json(folder / "config.json"), folder / "config.json")
    config = dataclasses.replace(config, **overrides)
    stored = Weights(folder)
    if config.n_layer > len(stored.files):
        raise ValueError(f"{folder} has {len(stored.files)} tensors, but config.json says {config.n_layer} blocks")
    with torch.device("meta"), NoInit():  # shapes only
        model = family.kind(config)
    model.load_state_dict(read_weights(stored, model, family, folder, device, dtype), assign=True)
    model.tie()
    return model.eval()


class NoInit(torch.overrides.TorchFunctionMode):
    """Modules made within it are not initialised: on the meta device that costs a second of imports."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def read_weights(stored: Weights, model, family: Family, folder: Path, device, dtype) -> dict:
    """The state dict of `model`, tensor by tensor. ValueError unless it takes all that is stored, and no more."""
    wanted, config, weights, wrong = model.state_dict(), model.config, {}, []
    bare = "" if any(name.startswith(family.prefix) for name in stored.files) else family.prefix
    left = set(stored.files) - {b.format(i).removeprefix(bare) for b in family.buffers for i in range(config.n_layer)}
    for ours, theirs, layout in family.names(config):
        theirs = theirs.removeprefix(bare)
        tied = ours == "lm_head.weight" and config.tie_word_embeddings
        if theirs not in stored.files:
            wrong += [] if tied else [f"{theirs} is missing"]
            continue
        left.discard(theirs)
        shape, found, kind = wanted[ours].shape, stored.view(theirs).shape, stored.view(theirs).dtype
        if (found[::-1] if layout is transpose else found) != shape or not kind.is_floating_point:
            found = f"{tuple(found)} {kind}".replace("torch.", "")
            wrong.append(f"{theirs} is {found}, config.json says {tuple(shape)}")
            continue
        weight = stored.read(theirs, device, dtype)
        weights[ours] = layout(weight, config, True).contiguous() if layout else weight
        if not is_finite(weights[ours]):
            wrong.append(f"{theirs} has NaN or infinity in {weights[ours].dtype}".replace("torch.", ""))
        if tied and "wte.weight" in weights and not torch.equal(weights[ours], weights["wte.weight"]):
            wrong.append(f"{theirs} differs from the embedding, but config.json ties the two")
    wrong += [f"{name} is not used" for name in sorted(left)]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"{folder} does not fit its config.json: {'; '.join(wrong[:3])}{more}")
    return weights | ({"lm_head.weight": weights["wte.weight"]} if config.tie_word_embeddings else {})


def is_finite(weight: torch.Tensor) -> bool:
    """Without a temporary as large as the weight."""
    weight = weight.float() if weight.dtype.itemsize == 1 else weight  # float8 has no aminmax
    return all(extreme.isfinite() for extreme in weight.aminmax())


def save_pretrained(model, folder: str | Path, tokenizer=None):
    """Write config.json and model.safetensors under the Hugging Face names of the model's family.

    With a tokenizer, its files and meta.json too, by which a model is known to fit a data set.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    theirs, family = write_config(model.config)
    state, weights = model.state_dict(), {}
    for ours, name, layout in family.names(model.config):
        if not (ours == "lm_head.weight" and model.config.tie_word_embeddings):
            weight = state[ours].detach()
            weight = layout(weight, model.config, False) if layout else weight
            weights[name] = weight.cpu().contiguous()
    dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    theirs |= {"dtype": dtype, "torch_dtype": dtype}
    if tokenizer:
        theirs |= {"eos_token_id": tokenizer.eot, "bos_token_id": tokenizer.bos}
        tokenizer.save(folder)
        meta = json.dumps(tokenizer_meta(tokenizer), indent=2) + "\n"
        (folder / "meta.json").write_text(meta, encoding="utf-8")
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


def shape_of(model) -> dict:
    """The knobs of both loops that describe a model's shape, with the values that `model` has."""
    c = model.config
    is_llama = isinstance(c, LLaMAConfig)
    return {
        "arch": "llama" if is_llama else "gpt",
        "n_layer": c.n_layer,
        "n_head": c.n_head,
        "n_kv_head": c.n_kv_head if is_llama else 0,
        "n_embd": c.n_embd,
        "n_inner": c.n_inner,
        "tie_word_embeddings": c.tie_word_embeddings,
    }


def record_shape(config, model, source):
    """Write the shape that `model` really has into the knobs; those that were given must agree with it.

    config: what `configure` returned; source: what the model was loaded from, None for a new one. Raises ValueError: a
    knob that is ignored without a word would be believed.
    """
    shape = shape_of(model)
    derived = {"n_kv_head": 0, "n_inner": 0}  # 0 stands for what follows from the other knobs
    for key, where in config.given.items():
        if key not in shape or config[key] in (shape[key], derived.get(key, shape[key])):
            continue
        if source is None:
            raise ValueError(f"{where}: {key}={config[key]!r} is not for arch={shape['arch']}; leave it out")
        raise ValueError(
            f"{where}: {key}={config[key]!r}, but {source} has {key}={shape[key]!r}; a model that is loaded keeps "
            f"its shape, leave {key} out"
        )
    config.update(shape)


def round_up(number: int, multiple: int) -> int:
    """The least multiple that is not below `number`."""
    return math.ceil(number / multiple) * multiple


def keep_blocks(model, blocks: str, where):
    """Keep these blocks of a model alone, in this order: "0,2,4,7,9,11" makes DistilGPT2's student of GPT-2.

    Embeddings, final norm and head stay. ValueError unless `model`, which came from `where`, has them.
    """
    n = len(model.h)
    try:
        numbers = [int(number) for number in blocks.split(",")]
    except ValueError:
        numbers = []
    if where is None or not numbers or not all(0 <= i < n for i in numbers):
        what = f"{where} has blocks 0 to {n - 1}" if where else "no model to take them from is named in init_from"
        raise ValueError(f"init_layers={blocks!r}, but {what}; expected numbers with commas between, as in 0,2,4")
    # a copy: the same block twice is two blocks
    model.h = torch.nn.ModuleList(copy.deepcopy(model.h[i]) for i in numbers)
    model.config.n_layer = len(numbers)


def freeze_parameters(model, prefixes: str):
    """No gradient for the parameters whose names begin with one of the comma-separated prefixes, whole parts of names.

    A tied head has two names, and stays if either is given.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for prefix in (p.strip() for p in prefixes.split(",") if p.strip()):
        if not any(f"{name}.".startswith(f"{prefix}.") for name in names):
            known = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
            raise ValueError(f"freeze={prefixes!r}: no parameter begins with {prefix!r}; expected some of {known}")
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if f"{name}.".startswith(f"{prefix}."):
                parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"freeze={prefixes!r} leaves nothing to train")
