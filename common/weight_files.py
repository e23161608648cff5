"""The tensors of a model folder, whichever form its files have: safetensors or torch's, whole or in shards.

Files from outside are neither trusted nor executed: torch.load has weights_only, and a file that is damaged or hostile
in any other way is a ValueError with its name.
"""

import contextlib
import pickle  # for the name of its error only: nothing is unpickled but through weights_only
import warnings
from pathlib import Path

import safetensors
import torch

from common.files import read_json

# What torch.load and safetensors raise for files that are cut, overwritten or hostile.
DAMAGE = (
    safetensors.SafetensorError,
    pickle.UnpicklingError,
    RuntimeError,
    OSError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    AssertionError,
)
# Bytes read from a mapped file before it is opened anew: until then its pages count as memory.
REOPEN = 16e6


# ---------------------------------------------------------------------------------------------
# one file


@contextlib.contextmanager
def damage_as_value_error(path: Path):
    """Turn whatever a damaged file raises into a ValueError that names the file."""
    try:
        yield
    except DAMAGE as error:
        message = str(error) or type(error).__name__
        reason = message.splitlines()[0]
        # torch's own message advises to load the file without weights_only
        if isinstance(error, pickle.UnpicklingError):
            reason = "objects in a pickle"
        raise ValueError(
            f"{path} is damaged, was cut, or holds more than weights ({reason}); copy or fetch it "
            f"again, or delete {path.parent} where it is a checkpoint of a run with others"
        ) from None


class SafetensorsFile:
    is_mapped = True

    def __init__(self, path: Path):
        with damage_as_value_error(path):
            self.opened = safetensors.safe_open(path, framework="pt")
            self.names = list(self.opened.keys())

    def view(self, name: str) -> torch.Tensor:
        return self.opened.get_tensor(name)


class TorchFile:
    """A state dict as torch.save writes it."""

    def __init__(self, path: Path, is_zip: bool):
        # before 1.6 torch did not write zip files, and only these can be mapped
        self.is_mapped = is_zip
        with damage_as_value_error(path), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        check_state_dict(self.tensors, path)
        self.names = list(self.tensors)

    def view(self, name: str) -> torch.Tensor:
        return self.tensors[name]


def check_state_dict(content, path: Path):
    """ValueError unless an unpickled file is plain tensors by name, none of them larger than the file."""
    not_plain = f"{path} holds more than tensors by name; expected a state dict"
    if not isinstance(content, dict):
        raise ValueError(not_plain)
    file_bytes = path.stat().st_size
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(not_plain)
        if tensor.layout is not torch.strided:
            raise ValueError(not_plain)
        # with strides of 0, a few bytes can be a tensor of any size
        if tensor.nbytes > file_bytes:
            claim = f"says {name} has {tensor.nbytes:,}"
            raise ValueError(f"{path} has {file_bytes:,} bytes, but {claim}")


def open_weights(path: Path) -> SafetensorsFile | TorchFile:
    """ValueError when the file is damaged, or no file of weights."""
    # a clone without git-lfs has small text files under the names of weights
    with path.open("rb") as file:
        start = file.read(20)
    if start.startswith(b"version https://git-"):
        remedy = "run git lfs pull there"
        raise ValueError(f"{path} is a pointer of git-lfs, not the file itself: {remedy}")
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    return TorchFile(path, is_zip=start.startswith(b"PK"))


# ---------------------------------------------------------------------------------------------
# a folder


class Weights:
    """The tensors of a folder by their stored names, read one at a time. `files`: {name: its file}."""

    def __init__(self, folder: Path):
        self.path = None  # of the file that is open
        self.file = None
        self.bytes_read = 0  # since it was opened
        self.files = self.find_tensors(folder)

    def find_tensors(self, folder: Path) -> dict[str, Path]:
        # in the order in which transformers looks: a repository may have both
        for name in ("model.safetensors", "pytorch_model.bin"):
            whole = folder / name
            if whole.is_file():
                self.open(whole)
                return dict.fromkeys(self.file.names, whole)
            index = folder / f"{name}.index.json"
            if index.is_file():
                return self.find_in_shards(folder, index)
        forms = "no model.safetensors and no pytorch_model.bin"
        raise FileNotFoundError(f"{folder} has {forms} beside its config.json")

    def find_in_shards(self, folder: Path, index: Path) -> dict[str, Path]:
        """The shards that an index names: each must be there, and hold what the index says, no more."""
        shard_by_index = read_json(index).get("weight_map")
        if not is_weight_map(shard_by_index):
            expected = "a weight_map of tensors to files in the same folder"
            raise ValueError(f"{index}: expected {expected}")
        shard_in_fact = {}
        for shard in sorted(set(shard_by_index.values())):
            if not (folder / shard).is_file():
                missing = folder / shard
                raise FileNotFoundError(f"{missing} is not there, but {index.name} names it")
            self.open(folder / shard)
            shard_in_fact |= dict.fromkeys(self.file.names, shard)
        # a download that mixes two revisions has shards that the index does not describe
        for name in shard_by_index | shard_in_fact:
            by_index = shard_by_index.get(name)
            in_fact = shard_in_fact.get(name)
            if by_index != in_fact:
                raise ValueError(f"{index} has {name} in {by_index}, but it is in {in_fact}")
        return {name: folder / shard for name, shard in shard_in_fact.items()}

    def open(self, path: Path):
        # the previous file is closed first: the pages that were read of either count as memory
        self.file = None
        self.file = open_weights(path)
        self.path = path
        self.bytes_read = 0

    def view(self, name: str) -> torch.Tensor:
        """A tensor on the CPU, in the file's type: a view of the file where that is mapped."""
        # pages that were read stay in memory until the mapping is closed
        path = self.files[name]
        takes_memory = self.file.is_mapped and self.bytes_read > REOPEN
        if path != self.path or takes_memory:
            self.open(path)
        return self.file.view(name)

    def read(self, name: str, device, dtype) -> torch.Tensor:
        """A copy of a tensor, made a few rows at a time, so that little of the file is in memory as well."""
        tensor = self.view(name)
        copy = torch.empty(tensor.shape, dtype=dtype or tensor.dtype, device=device)
        bytes_per_row = max(1, tensor.nbytes // max(1, len(tensor)))
        rows = max(1, int(REOPEN // bytes_per_row))
        for start in range(0, len(copy), rows):
            # no reference may be left here, or `view` could not close the file
            tensor = None
            tensor = self.view(name)[start : start + rows]
            copy[start : start + rows].copy_(tensor)
            self.bytes_read += tensor.nbytes
        return copy


def is_weight_map(content) -> bool:
    """Whether an index maps names to files of its own folder: "../x" would read elsewhere."""
    if not isinstance(content, dict):
        return False
    return all(isinstance(file, str) and Path(file).name == file for file in content.values())
