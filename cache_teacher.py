"""Store what teachers predict at each position of a corpus, so that runs of distill.py need not compute it again.

    python cache_teacher.py --teacher=out/teacher --dataset=data/stdlib --out_dir=cache/teacher
    torchrun --standalone --nproc_per_node=2 cache_teacher.py --teacher=out/a,out/b --top_k=50 --out_dir=cache/both

A row of the corpus, at a fixed offset, is kept as the `top_k` likeliest ids of each position with their probabilities,
the mass of all others, `draws` samples of these, and the entropy. common/teacher_cache.py has the format.

A killed command continues when it is started again, and ends with the same bytes, even on another number of ranks.
Nothing is written if the disk has no room for all of it.

Several machines divide the rows: --part=1/16 on the first … --part=16/16 on the last, each perhaps under torchrun, and
then --part=join makes the same cache as a single run, byte for byte (docs/distributed.md).
"""

# before torch, so that Ctrl-C while it loads ends in one line
from configurator import at_least, configure, one_of  # isort: split

import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common.cache_parts import automatic, check_parts, join, part_rows, part_settings
from common.cache_writer import CacheWriter, as_stored, record, unfinished_settings, uniforms_of
from common.checkpoint import RunLock, check_out_dir
from common.data import TokenData
from common.parts import JOIN, Part, parse_part, parts_in
from common.pretrained import check_fits, config_sha256, load_pretrained, name_of, settle_model, weights_sha256
from common.runtime import Runtime
from common.teacher_cache import (
    FORMAT,
    NUMBER_FORMATS,
    WHOLE,
    bytes_per_token,
    ids_dtype,
    sizes_of,
    token_files_sha256,
)
from common.tokenizer import check_same_tokenizer
from head import blocks, logits_in_chunks
from losses import Objective, mixture, teacher_shares

out_dir = ""  # the cache's folder, as in cache/teacher
# Teacher
teacher = ""  # model folder, run's out_dir, or hub repository's name; several with commas between
teacher_weights = ""  # each teacher's weight in their mean, as in "2,1"; "": equal
ensemble = "logits"  # several teachers teach by the mean of their "logits" (Baby Llama) or probabilities ("probs")
teacher_dtype = "auto"  # of its weights: "float32" or "bfloat16"; "auto": bfloat16 on a GPU that has it
temperature = 2.0  # T of the distributions, softmax(logits / T); distill.py must have the same
# Data
dataset = "data/stdlib"  # folder with train.bin, val.bin and meta.json, as prepare_data.py makes
block_size = 128  # tokens in a row
packing = "constant"  # rows are cut from the stream of documents; "documents": one document a row, cut or padded
rows = 0  # the first rows of train.bin only, to try size and speed; 0: all, which distill.py needs
eval_rows = 256  # rows of val.bin: the same ones that distill.py evaluates on with this eval_rows; 0: all
# What is kept of a position
top_k = 16  # likeliest ids; 0: none; -1: the whole distribution
draws = 0  # samples of all other ids, with replacement
seed = 1337  # of the draws
number_format = "float16"  # of log-probabilities: "float16" (moves a KL by 1e-7 to 2e-6 nats) or "float32"
# Machine
batch_size = 16  # rows of a forward pass, and of each block that is recorded as done
device = "auto"  # "auto", "cpu", "cuda" or "mps"
dtype = "auto"  # of the matmuls: "float32" or "bfloat16"; "auto": bfloat16 on a GPU that has it
part = ""  # "3/16": the third of sixteen parts, for as many machines; "join": make the cache of them; "": all at once
config = configure(globals())

FLUSH_SECONDS = 1  # between two flushes: the most work that a kill costs; a flush of five files takes milliseconds

# ---------------------------------------------------------------------------------------------
# set-up
at_least(config, 1, "block_size batch_size")
at_least(config, 0, "rows eval_rows draws seed")
at_least(config, WHOLE, "top_k")
at_least(config, 1e-3, "temperature")
one_of(config, ensemble=("logits", "probs"), number_format=NUMBER_FORMATS)
own_part = parse_part(part)  # None: the whole cache
run = Runtime(device, dtype)  # under torchrun, one of several ranks
check_out_dir(out_dir)
folder = own_part.folder(out_dir) if own_part else Path(out_dir)
# one process at a time in a folder
lock = RunLock(folder, writes=run.is_main)

# ---------------------------------------------------------------------------------------------
# data: rows at offset 0, in the order of the corpus; of val.bin those that the loops evaluate on
row_settings = {"block_size": block_size, "batch_size": batch_size, "packing": packing, "random_offset": False}
train_data = TokenData(dataset, "train", seed=0, **row_settings)
val_data = TokenData(dataset, "val", seed=0, **row_settings)
data_of = {"train": train_data, "val": val_data}
vocab_size = train_data.vocab_size  # the true one: logits beyond it are padding, cut before any softmax
row_numbers = {
    "train": np.arange(min(rows or train_data.n_rows, train_data.n_rows)),
    "val": np.sort(val_data.chosen(0, val_data.n_eval_rows(eval_rows))),
}
counts = {split: len(numbers) for split, numbers in row_numbers.items()}
# those of them that this part writes
own_rows = {}
for split, places in part_rows(counts, batch_size, own_part or Part(1, 1)).items():
    own_rows[split] = row_numbers[split][places.start : places.stop]
if top_k > vocab_size:
    raise ValueError(f"top_k={top_k} is over the {vocab_size} ids of {dataset}; use -1 for all of them")
if draws and top_k in (WHOLE, vocab_size):
    raise ValueError(f"draws={draws}, but top_k={top_k} leaves no ids to draw from; use --draws=0")

# ---------------------------------------------------------------------------------------------
# teachers
teacher_names = [name.strip() for name in teacher.split(",") if name.strip()]
if not teacher_names:
    raise ValueError("teacher is empty; name a model folder or a run's out_dir, as in --teacher=out/teacher")
shares = teacher_shares(teacher_weights, len(teacher_names))  # of each in their mean
objective = Objective(temperature=temperature, ensemble=ensemble, shares=shares)
teacher_folders = [settle_model(name, run) for name in teacher_names]
for teacher_folder in teacher_folders:
    # its ids mean what the data's ids mean only if both have the same tokenizer
    check_same_tokenizer(dataset, teacher_folder)


# ---------------------------------------------------------------------------------------------
# the folder
def describe_split(split) -> dict:
    """What cache.json says of a split."""
    stored = len(row_numbers[split])
    return {
        "rows": stored,
        "n_rows": data_of[split].n_rows,
        "tokens": stored * block_size,
        "sha256": token_files_sha256(data_of[split]),
    }


def settings() -> dict:
    """What cache.json says: all that the bytes of a cache depend on."""
    info = {
        "format": FORMAT,
        "teachers": teacher_names,
        "teacher_sha256": [weights_sha256(teacher_folder) for teacher_folder in teacher_folders],
        "teacher_config_sha256": [config_sha256(teacher_folder) for teacher_folder in teacher_folders],
        "shares": list(shares),
        "ensemble": ensemble,
        "temperature": temperature,
        "teacher_dtype": name_of(run.pick_dtype(teacher_dtype)),
        "dtype": name_of(run.dtype),
        "dataset": dataset,
        "tokenizer_hash": train_data.meta["tokenizer_hash"],
        "vocab_size": vocab_size,
        "block_size": block_size,
        "packing": packing,
        "random_offset": False,
        "top_k": top_k,
        "draws": draws,
        "seed": seed,
        "number_format": number_format,
        "ids_dtype": ids_dtype(vocab_size),
        "batch_size": batch_size,
        "splits": {split: describe_split(split) for split in data_of},
    }
    if part == JOIN:
        # a machine without a GPU may join parts that were made on GPUs: "auto" stands for their choice, not its own
        knobs = {"dtype": dtype, "teacher_dtype": teacher_dtype}
        info |= automatic(out_dir, [key for key, knob in knobs.items() if knob == "auto"])
    return info


def check_folder() -> CacheWriter:
    """The writer, once all that cannot work has been refused; prints how much space the cache takes."""
    writer = CacheWriter(out_dir, settings())
    writer.check_settings()
    if writer.is_finished():
        return writer
    if own_part:
        writer = CacheWriter(folder, part_settings(writer.info, own_part))
        writer.check_settings()
        if writer.is_finished():
            return writer
    if part == JOIN:
        check_parts(out_dir, writer.info)
    needed = sum(sizes_of(writer.info).values())
    missing = writer.missing_bytes()
    free = shutil.disk_usage(folder).free
    rate = f"{bytes_per_token(writer.layout):,} bytes a token"
    rows_here = f"{len(own_rows['train']):,} rows of train and {len(own_rows['val']):,} of val"
    print(f"{folder}: {rate}, {rows_here}, {needed / 1e6:,.1f} MB in all; {free / 1e6:,.1f} MB are free", flush=True)
    if missing > free:
        problem = f"{folder} needs {missing:,} bytes more ({rate}), but {free:,} are free"
        raise ValueError(f"{problem}; lower top_k or draws, or choose another --out_dir")
    return writer


def on_first_rank(task):
    """The result of a task that the first rank does while the others wait (None there); if it fails, all ranks end."""
    result = None
    problem = None
    if run.is_main:
        try:
            result = task()
        except (ValueError, OSError) as error:
            problem = error
    (has_failed,) = run.sum(problem is not None)
    if problem:
        raise problem
    # the first rank prints the error
    if has_failed:
        run.close()
        sys.exit(2)
    return result


writer = on_first_rank(check_folder)
# decided by the first rank alone: the others might look only after it has joined the parts
(nothing_to_do,) = run.sum(writer is not None and writer.is_finished())
if nothing_to_do:
    if writer:
        what = "part" if "part" in writer.info else "cache"
        run.say(f"{writer.folder} is a finished {what} of these settings")
    run.close()
    sys.exit(0)
if part == JOIN:
    on_first_rank(lambda: join(writer, parts_in(out_dir), row_numbers))
    run.say(f"finished {out_dir}; its folders part_… are no longer needed")
    run.close()
    sys.exit(0)

# before the files are made: a teacher that does not fit leaves nothing behind
teachers = []
for name, teacher_folder in zip(teacher_names, teacher_folders):
    t = load_pretrained(teacher_folder, run.device, run.pick_dtype(teacher_dtype)).requires_grad_(False)  # in eval mode
    check_fits(t, name, block_size, vocab_size)
    teachers.append(t)
    run.say(f"teacher {name}: {t.n_params():,} parameters")
on_first_rank(lambda: writer.begin(own_rows))
# the other ranks read the settings that the first has written: hashing a corpus takes a while
if writer is None:
    writer = CacheWriter(folder, unfinished_settings(folder))


# ---------------------------------------------------------------------------------------------
# write
@torch.no_grad()
def records(x, uniforms) -> dict[str, np.ndarray]:
    """What is kept of each position of x (B, T), by field: (B * T, width) each, or (B * T,)."""
    with run.autocast():
        heads = [(t(x, hidden=True), t.lm_head.weight.to(run.dtype)) for t in teachers]
    pieces = {name: [] for name in writer.layout}
    # chunks bound the memory, blocks within them keep the temporaries in a CPU's cache
    for tokens, *teacher_logits in logits_in_chunks(heads):
        for block in blocks(teacher_logits[0]):
            log_p, p = mixture([t[block, :vocab_size] for t in teacher_logits], objective)
            parts = record(log_p, p, top_k, uniforms[tokens][block])
            for name, stored in pieces.items():
                stored.append(as_stored(parts[name], writer.layout[name]))
        del teacher_logits  # before the next chunk's are made
    return {name: np.concatenate(stored) for name, stored in pieces.items()}


remaining = writer.remaining()
n_done = len(writer.blocks) - len(remaining)
if n_done:
    run.say(f"continuing after {n_done:,} of {len(writer.blocks):,} blocks")
# Divided by the number of the block, not by its place in `remaining`: a rank that reads done.bin later may find fewer
# blocks remaining.
own_blocks = [block for block in remaining if block % run.world == run.rank]
# a log file cannot show a moving bar, and gets a line now and then
seconds_between_lines = 0.1 if sys.stderr.isatty() else 30
bar = tqdm(own_blocks, desc="cache", unit="block", mininterval=seconds_between_lines, disable=not run.is_main)
last_flush = time.perf_counter()
for block in bar:
    split, first, n = writer.blocks[block]
    numbers = own_rows[split][first : first + n]
    x, _ = data_of[split].corpus_rows(numbers)  # (n, T)
    (x,) = run.to_device(x)
    uniforms = [uniforms_of(seed, number, block_size, draws) for number in numbers.tolist()]
    writer.write_block(block, records(x, torch.from_numpy(np.concatenate(uniforms))))
    if time.perf_counter() - last_flush > FLUSH_SECONDS:
        writer.flush()
        last_flush = time.perf_counter()
writer.flush()

# ---------------------------------------------------------------------------------------------
# end
run.sum(0)  # all ranks are done
if run.is_main:
    writer.finish()
run.say(f"finished {folder}")
run.close()
