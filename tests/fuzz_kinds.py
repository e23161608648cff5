"""The kinds of inputs of tests/fuzz.py: valid files of each, how they are spoiled, and what reads them.

What reads them are the functions that the scripts call, in the order in which they call them: up to the point from
which nothing depends on the input any more.
"""

import contextlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fuzz_http import begin_http, http_files, spoil_http, write_answers
from fuzz_scripts import make_commands, run_command, spoil_command
from fuzz_spoil import spoil_file
from fuzz_texts import (
    extract_zip,
    make_tasks,
    make_texts,
    prepare,
    read_enwik8,
    read_pieces,
    score_files,
    score_tasks,
)
from hypothesis import strategies as st

import common.figures  # noqa: F401  (matplotlib, before memory is limited)
import plot
from common.cache_writer import CacheWriter
from common.checkpoint import best_checkpoint, best_so_far, changes, load_trainer_state, restore, stored_knobs
from common.data import TokenData
from common.log import Log, last_words
from common.optim import make_optimizers
from common.pretrained import check_fits, find_model, load_pretrained, record_shape, weights_sha256
from common.teacher_cache import TeacherCache, open_cache
from common.tokenizer import check_same_tokenizer, load_tokenizer
from common.weight_files import DAMAGE
from configurator import at_least, configure, defaults_of
from corpora.checking import check_data
from corpora.writing import check_replaceable, remove_data_set

ROOT = Path(__file__).resolve().parents[1]
LARGEST_FILE = 1 << 20  # of the valid ones; a larger one would make a batch slow
T = 16  # block_size
SHAPE = ["--n_layer=1", "--n_head=1", "--n_embd=8", "--vocab_multiple=1", f"--block_size={T}", "--batch_size=4"]


@dataclass
class Kind:
    """A valid input, what spoils it, and what reads it."""

    make: Callable[["Material"], dict[str, bytes]]  # the files of a valid input, {name: bytes}
    uses: Callable[[], list[Callable[[Path, Path], None]]]  # in the process that reads: functions of (folder, out)
    spoil: Callable  # (draw, files, folder): write spoiled files to a folder
    write: Callable  # (files, folder): write them as they are
    is_fast: bool = True  # enough to make a finding smaller by many more tries


def write_files(files: dict[str, bytes], folder: Path):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def spoil_files(draw, files: dict[str, bytes], folder: Path):
    """Write the files to a folder, one to three of them spoiled, perhaps one left out."""
    contents = dict(files)
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(files)))
        # what was spoiled before may not be of its form any more
        with contextlib.suppress(zipfile.BadZipFile, *DAMAGE):
            contents[name] = spoil_file(draw, name, contents[name])
    if draw(st.integers(0, 30)) == 0:
        del contents[draw(st.sampled_from(sorted(contents)))]
    write_files(contents, folder)


class Material:
    """The valid inputs of all kinds, each made once when it is first needed, by the scripts themselves."""

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        self.made = {}

    def files(self, kind: str) -> dict[str, bytes]:
        if kind not in self.made:
            self.made[kind] = KINDS[kind].make(self)
        return self.made[kind]

    def run(self, script: str, *args):
        command = [sys.executable, ROOT / script, *args]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)

    def data(self) -> Path:
        """A data set of bytes, with two domains and two shards of train."""
        folder = self.folder / "data"
        if not folder.is_dir():
            source = self.folder / "text"
            source.mkdir(parents=True)
            for domain in ("cbt", "wiki"):
                (source / f"{domain}.train").write_text(f"A text of {domain}.\n" * 80)
                (source / f"{domain}.dev").write_text(f"Another of {domain}.\n" * 10)
            keys = ["--tokenizer=bytes", "--shard_tokens=2000", "--document_separator=line"]
            self.run("prepare_data.py", f"--source={source}", *keys, f"--out_dir={folder}")
        return folder

    def run_folder(self) -> Path:
        """A run of two checkpoints."""
        folder = self.folder / "run"
        if not folder.is_dir():
            steps = ["--max_steps=4", "--save_interval=2", "--eval_interval=2", "--eval_rows=4", "--log_interval=1"]
            self.run("train.py", *SHAPE, *steps, f"--dataset={self.data()}", f"--out_dir={folder}", "--device=cpu")
        return folder

    def cache(self) -> Path:
        folder = self.folder / "cache"
        if not folder.is_dir():
            keys = [f"--block_size={T}", "--batch_size=4", "--eval_rows=8", "--top_k=4", "--draws=2", "--device=cpu"]
            keys += ["--packing=constant", f"--dataset={self.data()}", f"--teacher={self.run_folder()}"]
            self.run("cache_teacher.py", *keys, f"--out_dir={folder}")
        return folder


def contents_of(folder: Path, prefix="") -> dict[str, bytes]:
    """{path below the folder: bytes} of its files."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != ".preparing.lock":
            files[prefix + str(path.relative_to(folder))] = path.read_bytes()
    return files


# ---------------------------------------------------------------------------------------------
# config files and command lines


def make_config(material: Material) -> dict[str, bytes]:
    return {"config.py": (ROOT / "config/babyllama/student.py").read_bytes(), "args.json": b"[]"}


def spoil_config(draw, files: dict[str, bytes], folder: Path):
    """A config file and arguments: keys of the script and others, with values of any kind."""
    text = files["config.py"].decode()
    keys = sorted(defaults_of(ROOT / "distill.py"))
    names = st.one_of(st.sampled_from(keys), st.sampled_from(("lr", "_x", "", "__builtins__", "out-dir", "é", "x y")))
    values = VALUES_AS_TEXT
    lines = []
    for _ in range(draw(st.integers(0, 3))):
        lines.append(f"{draw(names)} = {draw(values)}\n")
    config = (text + "".join(lines)).encode(errors="surrogatepass")
    if draw(st.booleans()):
        config = spoil_file(draw, "config.py", config)
    args = []
    for _ in range(draw(st.integers(0, 3))):
        form = draw(st.sampled_from(("--{}={}", "--{}", "{}={}", "-{}={}", "--{} {}", "{}")))
        args.append(form.format(draw(names), draw(values)))
    (folder / "config.py").write_bytes(config)
    (folder / "args.json").write_text(json.dumps(args))


VALUES_AS_TEXT = st.one_of(
    st.sampled_from(("1", "-1", "0", "1e400", "10**400", "True", "None", "nan", "float('nan')", "'x'", '"', "[", "1,2",
                     "{}", "()" * 3000, "-" * 5000 + "1", "9" * 5000, "lambda: 0", "__import__", "1/0", "\\", "\x00",
                     "raise SystemExit", "import x", "(" * 300, "'\ud800'", "b''", "...", "open", "int")),
    st.text(max_size=8),
    st.integers().map(str),
    st.floats().map(str),
)  # fmt: skip


def read_config(folder: Path, out: Path):
    knobs = dict(defaults_of(ROOT / "distill.py"))
    args = json.loads((folder / "args.json").read_text())
    # out_dir alone may name anything: what follows writes nothing
    sys.argv = [str(ROOT / "distill.py"), str(folder / "config.py"), *args]
    config = configure(knobs, stored=stored_knobs)
    at_least(config, 0, "seed n_kv_head n_inner dropout max_steps epochs learning_rate min_lr warmup_steps")


# ---------------------------------------------------------------------------------------------
# data sets


def make_meta(material: Material) -> dict[str, bytes]:
    return contents_of(material.data())


def use_rows(packing: str):
    def read(folder: Path, out: Path):
        """As the set-up of the loops does, and the batches of a few steps."""
        shared = {"block_size": T, "batch_size": 4, "packing": packing}
        train = TokenData(folder, "train", seed=1, **shared)
        val = TokenData(folder, "val", seed=0, **shared)
        for domain in train.domains:
            TokenData(folder, f"val_{domain}", seed=0, **shared).n_eval_rows(0)
        tokenizer = load_tokenizer(folder)
        tokenizer.start = train.start()
        train.packing_note, val.packing_note, train.steps(1.0)
        for step in range(3):
            train.batch(step, 0)
        for _, y in val.eval_batches(8):
            y.sum().item()
        val.bits_per_byte(3.5)

    return read


def check_as_prepare_data_does(folder: Path, out: Path):
    check_data(folder)


def replace_data(folder: Path, out: Path):
    """As prepare_data.py --overwrite=true does with the data set that it finds."""
    check_replaceable(folder, {"source": "x", "nfkc": False}, overwrite=True)
    with contextlib.suppress(ValueError):
        # it must be refused, or be of other settings
        check_replaceable(folder, {"source": "x", "nfkc": False}, overwrite=False)
    shutil.copytree(folder, out / "data")
    remove_data_set(out / "data")


def spoil_ids(draw, files: dict[str, bytes], folder: Path):
    """Files of ids alone, and how meta.json names them."""
    contents = dict(files)
    names = [name for name in files if name.endswith(".bin")]
    if draw(st.integers(0, 3)) == 0:
        # a file with the header of the public sets
        ids = np.zeros(draw(st.sampled_from((0, 1, 40, 4000))), dtype="<u2")
        header = np.zeros(256, dtype="<i4")
        header[:3] = 20240520, 1, draw(st.sampled_from((len(ids), 0, -1, 2**31 - 1, len(ids) + 1)))
        contents[draw(st.sampled_from(names))] = header.tobytes() + ids.tobytes()
    if draw(st.integers(0, 3)) == 0:
        # without the list of files and their counts, as data sets of others are
        meta = json.loads(files["meta.json"])
        del meta["files"], meta["train_files"], meta["val_files"]
        contents |= {"meta.json": json.dumps(meta).encode(), "train.bin": files["train_000.bin"]}
    spoilable = {name: content for name, content in contents.items() if name.endswith(".bin")}
    spoil_files(draw, spoilable, folder)
    write_files({name: contents[name] for name in contents.keys() - spoilable.keys()}, folder)


# ---------------------------------------------------------------------------------------------
# caches of teachers


def make_cache(material: Material) -> dict[str, bytes]:
    cache = contents_of(material.cache(), "cache/")
    return contents_of(material.data(), "data/") | cache | {"settings.json": cache["cache/cache.json"]}


def spoil_cache(draw, files: dict[str, bytes], folder: Path):
    """The cache alone: the data set is as it was. Now and then an unfinished one."""
    cache = {name: content for name, content in files.items() if name.startswith("cache/")}
    if draw(st.integers(0, 3)) == 0:
        cache["cache/unfinished.json"] = cache.pop("cache/cache.json")
        cache["cache/done.bin"] = b"\1" * 20
    spoil_files(draw, cache, folder)
    write_files({name: files[name] for name in files if not name.startswith("cache/")}, folder)


CACHE_KNOBS = {
    "block_size": T,
    "packing": "constant",
    "random_offset": False,
    "temperature": 2.0,
    "eval_rows": 8,
    "tail": "cell",
    "kl": "forward",
    "weight_cos": 0.0,
    "weight_mse": 0.0,
    "teacher_weights": "",
    "ensemble": "logits",
}


def learn_from_cache(folder: Path, out: Path):
    cache = open_cache([str(folder / "cache")], CACHE_KNOBS | {"dataset": str(folder / "data")})
    if cache is None:
        raise FileNotFoundError("it would be taken for a model")
    shared = {"block_size": T, "batch_size": 4, "random_offset": False}
    train = TokenData(folder / "data", "train", seed=1, **shared)
    for step in range(3):
        cache.stored("train", train.batch_rows(step, 0), "cpu")
    for rows in TokenData(folder / "data", "val", seed=0, **shared).eval_batch_rows(8):
        cache.stored("val", rows, "cpu")


def rows_of_cache(folder: Path, out: Path):
    cache = TeacherCache(folder / "cache")
    for split in ("train", "val"):
        cache.read(split, cache.numbers[split][:8])


def continue_cache(folder: Path, out: Path):
    """As cache_teacher.py does with settings of its own, which it compares with those that it finds."""
    shutil.copytree(folder / "cache", out / "cache")
    settings = json.loads((folder / "settings.json").read_text())
    writer = CacheWriter(out / "cache", settings)
    writer.check_settings()
    if writer.is_finished():
        return
    writer.missing_bytes()
    writer.begin({split: np.arange(part["rows"]) for split, part in settings["splits"].items()})
    writer.remaining()


# ---------------------------------------------------------------------------------------------
# checkpoints


def make_checkpoint(material: Material) -> dict[str, bytes]:
    newest = sorted(material.run_folder().glob("step_*"))[-1]
    files = contents_of(newest, f"run/{newest.name}/")
    log = material.run_folder() / "log.txt"
    return files | {"run/log.txt": log.read_bytes()} | contents_of(material.data(), "data/")


def spoil_only(is_spoiled: Callable[[str], bool]):
    """Spoil the files with certain names alone."""

    def spoil(draw, files: dict[str, bytes], folder: Path):
        spoiled = {name: content for name, content in files.items() if is_spoiled(name)}
        spoil_files(draw, spoiled, folder)
        write_files({name: files[name] for name in files.keys() - spoiled.keys()}, folder)

    return spoil


spoil_checkpoint = spoil_only(lambda name: name.startswith("run/") and not name.endswith("trainer.pt"))
spoil_trainer = spoil_only(lambda name: name.endswith("trainer.pt"))


def use_model(folder: Path, out: Path):
    """As sample.py and evaluate.py do, or a loop with the checkpoint as its teacher."""
    where = find_model(folder / "run")
    check_same_tokenizer(folder / "data", where)
    tokenizer = load_tokenizer(where)
    model = load_pretrained(where, "cpu", torch.float32)
    check_fits(model, where, T, tokenizer.vocab_size)
    model(torch.zeros(1, T, dtype=torch.int64))
    model.flops_per_token(T)
    weights_sha256(where)


def resume(folder: Path, out: Path):
    """As the sections "set-up", "model", "optimiser" and "resume" of train.py do."""
    sys.argv = [str(ROOT / "train.py"), f"--out_dir={folder / 'run'}", "--init_from=resume"]
    config = configure(dict(defaults_of(ROOT / "train.py")), stored=stored_knobs)
    where = find_model(folder / "run")
    config |= {"dataset": str(folder / "data")}
    at_least(config, 1, "block_size batch_size grad_accum_steps log_interval")
    at_least(config, 0, "seed learning_rate weight_decay")
    model = load_pretrained(where, dtype=torch.float32)
    check_fits(model, where, T, 257)
    record_shape(config, model, where)
    state = load_trainer_state(where)
    optimizers = make_optimizers(model, "adamw", 1e-3, 0.1, 0.9, 0.95, 1e-8)
    best = best_so_far(state, config, "")
    restore(where, state, config, optimizers)
    data = TokenData(folder / "data", "train", T, seed=1, batch_size=4)
    data.continue_at(state["step"], state.get("rows", 0))
    data.batch(state["step"], 0)
    data.steps(1.0)
    changes(state, config, 1, "")
    state["seconds"] + 1.0, best[0] < 1.0
    last_words("train.py", str(folder / "run"), [where], best, finished=True)
    log = Log(str(out), state["step"], writes=True)
    log(state["step"], train=1.0)
    log.close()


def use_best(folder: Path, out: Path):
    best_checkpoint(folder / "run")
    find_model(folder / "run/best")


# ---------------------------------------------------------------------------------------------
# tokenizers


def make_tokenizers(material: Material) -> dict[str, bytes]:
    files = contents_of(ROOT / "tests/golden_tokenizer", "sentencepiece/")
    del files["sentencepiece/golden.json"]
    newest = sorted(material.run_folder().glob("step_*"))[-1]
    for name in ("tokenizer.json", "tokenizer_config.json", "meta.json"):
        files[f"bytes/{name}"] = (newest / name).read_bytes()
    spec = json.loads(files["bytes/tokenizer.json"])
    spec["model"]["vocab"] |= {"ab": 257, "abc": 258}
    spec["model"]["merges"] = [["a", "b"], ["ab", "c"]]
    spec["added_tokens"].append({"id": 259, "content": "  ", "special": False, "normalized": True})
    files["merges/tokenizer.json"] = json.dumps(spec).encode()
    files["pair/vocab.json"] = json.dumps(spec["model"]["vocab"]).encode()
    files["pair/merges.txt"] = b"#version: 0.2\na b\nab c\n"
    return files


def spoil_tokenizer(draw, files: dict[str, bytes], folder: Path):
    """One of the four forms of a tokenizer's files."""
    form = draw(st.sampled_from(("sentencepiece", "bytes", "merges", "pair")))
    own = {name.removeprefix(f"{form}/"): files[name] for name in files if name.startswith(f"{form}/")}
    spoil_files(draw, own, folder)


def write_tokenizer(files: dict[str, bytes], folder: Path):
    form = "merges/"
    write_files({name.removeprefix(form): files[name] for name in files if name.startswith(form)}, folder)


def use_tokenizer(folder: Path, out: Path):
    tokenizer = load_tokenizer(folder)
    for text in ("abc  \n déf 💾", "", "<|endoftext|> 2024"):
        tokenizer.decode(tokenizer.encode(text))
    tokenizer.encode_arrays(["abc", "d\ud800"], 1)
    tokenizer.byte_lengths()
    tokenizer.save(out)
    load_tokenizer(out)


# ---------------------------------------------------------------------------------------------
# what runs write about themselves


def make_logs(material: Material) -> dict[str, bytes]:
    score = {"value": 0.25, "stderr": 0.1}
    result = {"task": "piqa", "metrics": {"acc": score}, "shots": 0, "n": 4, "convention": "c", "data_sha256": "ab"}
    results = {"model": "out/x", "results": [result, result | {"task": "cola", "metrics": {"mcc": score}}]}
    run = material.run_folder()
    return {"run/log.txt": (run / "log.txt").read_bytes(), "run/summary.json": (run / "summary.json").read_bytes(),
            "results.json": json.dumps(results).encode()}  # fmt: skip


def use_plot(**knobs):
    """plot.py with some knobs of its own."""

    def read(folder: Path, out: Path):
        defaults = defaults_of(ROOT / "plot.py")
        names = {name: str(folder / value) for name, value in knobs.items() if name in ("runs", "bars")}
        vars(plot).update(defaults | knobs | names | {"out": str(out / "x.png")})
        plot.main()

    return read


def read_tables(folder: Path, out: Path):
    """The same without a picture, which takes most of the time."""
    logs = {"run": plot.read_log(str(folder / "run"))}
    plot.table({"run": str(folder / "run")}, logs, "val")
    plot.read_results(str(folder / "results.json"))


def continue_log(folder: Path, out: Path):
    shutil.copy(folder / "run/log.txt", out / "log.txt")
    Log(str(out), 3, writes=True).close()


# ---------------------------------------------------------------------------------------------
# all of them

DATA_USES = [use_rows("constant"), use_rows("documents"), check_as_prepare_data_does]
LOG_USES = [read_tables, read_tables, continue_log, use_plot(runs="run"), use_plot(bars="results.json")]
KINDS = {
    "config": Kind(make_config, lambda: [read_config], spoil_config, write_files),
    "meta": Kind(make_meta, lambda: [*DATA_USES, replace_data], spoil_files, write_files),
    "bin": Kind(make_meta, lambda: DATA_USES, spoil_ids, write_files),
    "cache": Kind(make_cache, lambda: [learn_from_cache, rows_of_cache, continue_cache], spoil_cache, write_files),
    "checkpoint": Kind(make_checkpoint, lambda: [use_model, resume], spoil_checkpoint, write_files),
    "trainer": Kind(make_checkpoint, lambda: [resume, resume, use_best], spoil_trainer, write_files),
    "tokenizer": Kind(make_tokenizers, lambda: [use_tokenizer], spoil_tokenizer, write_tokenizer),
    "log": Kind(make_logs, lambda: LOG_USES, spoil_files, write_files),
    "archive": Kind(make_texts, lambda: [read_pieces, prepare, extract_zip, read_enwik8], spoil_files, write_files),
    "task": Kind(make_tasks, lambda: [score_files, score_tasks], spoil_files, write_files),
    "http": Kind(http_files, begin_http, spoil_http, write_answers),
    "script": Kind(make_commands, lambda: [run_command], spoil_command, write_files, is_fast=False),
}
