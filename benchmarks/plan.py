"""A run of train.py or distill.py worked out from its knobs alone: models, loss, step, tokens, FLOPs.

Nothing is trained, loaded or allocated: models lie on torch's meta device, which has shapes and no numbers, and a
teacher that does not exist yet has the shape that its own config gives it.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.published import CONFIGS, TOKENIZERS
from common.checkpoint import without_auto
from common.data import TokenData
from common.download import download_config, is_repo
from common.files import by_step, read_json
from common.hf_config import read_config
from common.meta import read_meta
from common.own_text import parse_prompt_tokens
from common.pretrained import NoInit, check_fits, freeze_parameters, keep_blocks, record_shape, round_up
from common.runtime import split_batch
from common.teacher_cache import TeacherCache
from configurator import (
    HERE,
    Config,
    at_least,
    config_of,
    defaults_of,
    one_of,
    read_config_file,
    script_for,
    split_arguments,
    use_arguments,
)
from losses import PARAMETERS, Objective, divergence, teacher_shares
from model import GPT, GPTConfig, LLaMA, LLaMAConfig

LOOPS = ("train.py", "distill.py")


@dataclass
class Plan:
    """A run: its knobs, with defaults for those that were not given, and its models on the meta device."""

    script: str
    config: Config
    device: str  # "cpu" or "cuda"
    dtype: torch.dtype  # of the matmuls
    vocab_size: int  # without the models' padding
    student: torch.nn.Module
    teachers: list
    teacher_dtype: torch.dtype
    objective: Objective
    rows_per_step: int
    n_tokens: int | None  # of the whole run; None where that takes data that is not there

    @property
    def flops_plain(self) -> float:
        """FLOPs per token of training the student without a teacher; backward is twice forward."""
        return 3 * self.student.flops_per_token(self.config["block_size"])

    @property
    def flops(self) -> float:
        """FLOPs per token as the loops' mfu counts them: with the teachers' forward passes, own text at its longest."""
        block_size = self.config["block_size"]
        teachers = 0.0
        for t in self.teachers:
            teachers += t.flops_per_token(block_size)
            # without the KL the teacher's head is not applied
            if not self.config["weight_kl"]:
                teachers -= 2 * t.lm_head.weight.numel()
        # writing its own text costs the student one forward pass over prompts and responses
        writing = 0.0
        if self.config.get("on_policy"):
            _, longest_prompt = parse_prompt_tokens(self.config["prompt_tokens"])
            written = (longest_prompt + self.config["response_tokens"]) / block_size
            writing = self.config["on_policy"] * written * self.student.flops_per_token(block_size)
        return self.flops_plain + teachers + writing


# ---------------------------------------------------------------------------------------------
# knobs


def read_knobs(args: list[str]) -> tuple[str, Config]:
    """(script, its knobs) of the arguments that would follow the script's name: a config file and --key=value."""
    knobs_of_both = {}
    for script in LOOPS:
        knobs_of_both |= defaults_of(HERE / script)
    files, keys = split_arguments(args, knobs_of_both)
    in_files = set()
    for file in files:
        values = read_config_file(file)
        in_files |= set(values)
        other_script = script_for(values)
        if other_script and not loop_for(values):
            raise ValueError(f"{file} is a config of {other_script}; give one of {' or '.join(LOOPS)}")
    typed = {key for key, _ in keys}
    # a misspelt key of the command line belongs to neither loop; use_arguments has the error for it
    script = loop_for(in_files | typed) or loop_for(in_files) or "distill.py"
    defaults = defaults_of(HERE / script)
    config = Config(defaults, given={})
    use_arguments(config, args, defaults)
    return script, config


def loop_for(names) -> str:
    """The loop that has all these knobs, train.py if both have; "" if neither has."""
    for script in LOOPS:
        if set(names) <= set(defaults_of(HERE / script)):
            return script
    return ""


# ---------------------------------------------------------------------------------------------
# vocabularies and model shapes, from files, configs or published figures


def vocabulary(dataset: str, vocab_size: int) -> int:
    """The number of a data set's ids: `vocab_size` unless 0, else from its meta.json or the config that makes it."""
    if vocab_size:
        return vocab_size
    if (Path(dataset) / "meta.json").is_file():
        return read_meta(dataset)["vocab_size"]
    knobs = defaults_of(HERE / "prepare_data.py")
    path, script = config_of(dataset)
    is_default = Path(dataset).resolve() == Path("data/stdlib").resolve()
    if script == "prepare_data.py":
        knobs |= read_config_file(str(path))
    elif not is_default:
        raise ValueError(f"data set {dataset!r} is not there, nor a config that makes it; give --vocab_size=<its ids>")
    tokenizer = knobs["tokenizer"]
    if knobs["source"] == "finewebedu10B":
        tokenizer = "gpt2"
    if tokenizer == "bpe":
        return knobs["vocab_size"]
    if tokenizer in TOKENIZERS:
        return TOKENIZERS[tokenizer]
    # the tokenizer of another data set
    if config_of(tokenizer)[1] == "prepare_data.py":
        return vocabulary(tokenizer, 0)
    raise ValueError(f"how many ids tokenizer {tokenizer!r} of {path} has is not known here; give --vocab_size=<ids>")


def model_shape(name: str, vocab_size: int) -> GPTConfig | LLaMAConfig:
    """The shape of a model by folder, run or hub name, whether or not it exists yet.

    vocab_size: that of the data set, which a model that is yet to be trained will have.
    """
    # all checkpoints of a run have one shape
    name = name.removesuffix("/best")
    folder = Path(name)
    for candidate in (folder, *reversed(by_step(folder))):
        file = candidate / "config.json"
        if file.is_file():
            return read_config(read_json(file), file)[0]
    path, script = config_of(name)
    if script in LOOPS:
        _, config = read_knobs([str(path)])
        return student_of(config, vocab_size).config
    if name in CONFIGS:
        return read_config(CONFIGS[name], name)[0]
    if folder.exists() or not is_repo(name):
        expected = "a folder with config.json, the out_dir of a config, or a hub name"
        raise FileNotFoundError(f"no model at {name!r}: expected {expected}")
    file = download_config(name)
    return read_config(read_json(file), file)[0]


def new_model(shape: GPTConfig | LLaMAConfig):
    """A model on the default device, its weights not initialised."""
    model_class = GPT if isinstance(shape, GPTConfig) else LLaMA
    # a copy, as keep_blocks changes n_layer
    with NoInit():
        return model_class(dataclasses.replace(shape))


# ---------------------------------------------------------------------------------------------
# from knobs to a plan, in the order of the loops


def student_of(config: Config, vocab_size: int):
    """The student on the meta device, made as the loops make it."""
    if config["init_from"] == "auto":
        config["init_from"] = without_auto(config)
    source = config["init_from"]
    if source == "resume":
        source = config["out_dir"]
    # distill.py starts from blocks of the first teacher where no other model is named
    if source == "scratch" and config["init_layers"]:
        source = config.get("teacher", "").split(",")[0].strip() or source
    if source == "scratch":
        source = None
    one_of(config, arch=("gpt", "llama"))
    if source:
        shape = dataclasses.replace(model_shape(source, vocab_size), dropout=config["dropout"])
    else:
        config_class = GPTConfig if config["arch"] == "gpt" else LLaMAConfig
        fields = {field.name for field in dataclasses.fields(config_class)}
        given = {name: value for name, value in config.items() if name in fields}
        shape = config_class(**given | {"vocab_size": round_up(vocab_size, config["vocab_multiple"])})
    with torch.device("meta"):
        model = new_model(shape)
    check_fits(model, source, config["block_size"], vocab_size)
    # a run that is resumed has dropped the others already
    if config["init_layers"] and config["init_from"] != "resume":
        keep_blocks(model, config["init_layers"], source)
    record_shape(config, model, source)
    freeze_parameters(model, config["freeze"])
    return model


def make_plan(script: str, config: Config, vocab_size=0) -> Plan:
    """The plan of a run. vocab_size: ids of the data set, 0 to find out."""
    at_least(config, 1, "block_size n_layer n_head n_embd vocab_multiple batch_size grad_accum_steps")
    at_least(config, 0, "tokens_per_step max_steps epochs chunk_tokens")
    for key in ("shard", "teacher_shard"):
        if config.get(key):
            raise ValueError(f"{key}=True: bench.py --part=fit counts a rank that holds all weights; leave {key} out")
    device, dtype = machine(config["device"], config["dtype"])
    vocab_size = vocabulary(config["dataset"], vocab_size)
    _, tokens_per_step = split_batch(config, world=1)
    objective, teacher_names = objective_of(config)
    teachers = []
    for name in teacher_names:
        with torch.device("meta"):
            teacher = new_model(model_shape(name, vocab_size))
        check_fits(teacher, name, config["block_size"], vocab_size)
        teachers.append(teacher)
    return Plan(
        script=script,
        config=config,
        device=device,
        dtype=dtype,
        vocab_size=vocab_size,
        student=student_of(config, vocab_size),
        teachers=teachers,
        teacher_dtype=machine(config["device"], config.get("teacher_dtype", "auto"))[1],
        objective=objective,
        rows_per_step=tokens_per_step // config["block_size"],
        n_tokens=tokens_of_run(config, tokens_per_step),
    )


def machine(device: str, dtype: str) -> tuple[str, torch.dtype]:
    """What the knobs `device` and `dtype` mean on the machine of the run, not on this one: "auto" is CUDA."""
    kind = "cuda" if device == "auto" else device.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"device={device!r} is not one of auto (CUDA), cpu, cuda")
    if dtype not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"dtype={dtype!r} is not one of auto, float32, bfloat16")
    is_bfloat16 = dtype == "bfloat16" or (dtype == "auto" and kind == "cuda")
    return kind, torch.bfloat16 if is_bfloat16 else torch.float32


def objective_of(config: Config) -> tuple[Objective, list[str]]:
    """(what the head computes, the names of the teachers that are loaded); for train.py the cross-entropy alone."""
    if "teacher" not in config:
        return Objective(), []
    parameters = {name: config[f"kl_{name}"] for name in PARAMETERS}
    has_teacher = config["weight_kl"] > 0 or config["weight_cos"] > 0 or config["weight_mse"] > 0
    names = []
    if has_teacher:
        names = [name.strip() for name in config["teacher"].split(",") if name.strip()]
    if has_teacher and not names:
        raise ValueError("teacher is empty; name a model folder or a run's out_dir, as in --teacher=out/teacher")
    objective = Objective(
        weight_ce=config["weight_ce"],
        weight_kl=config["weight_kl"],
        terms=divergence(config["kl"], **parameters),
        temperature=config["temperature"],
        ensemble=config["ensemble"],
        shares=teacher_shares(config["teacher_weights"] if has_teacher else "", len(names)),
    )
    # A cached teacher is left out: it computes nothing, and its records are small beside a micro-batch's logits.
    return objective, [name for name in names if not TeacherCache.is_one(name)]


def tokens_of_run(config: Config, tokens_per_step: int) -> int | None:
    """Tokens of all steps, or of all epochs' rows with their padding; None for epochs of data that is not there."""
    # as in the loops, a typed max_steps overrides the epochs of a config file
    max_steps_typed = config.given.get("max_steps") == "command line" and config.given.get("epochs") != "command line"
    if config["epochs"] == 0 or max_steps_typed:
        return config["max_steps"] * tokens_per_step
    if not (Path(config["dataset"]) / "meta.json").is_file():
        return None
    n_tokens = read_meta(config["dataset"]).get("train_tokens")
    if not n_tokens:
        return None
    if config["packing"] == "constant":
        return int(config["epochs"] * n_tokens)
    # a document is cut or padded to a row: only their number matters
    data = TokenData(
        config["dataset"],
        "train",
        config["block_size"],
        seed=0,
        batch_size=config["batch_size"],
        packing=config["packing"],
    )
    return int(config["epochs"] * data.n_rows) * config["block_size"]
