"""Distil one or several teachers into a student.

    python distill.py config/rkld_olmo.py --batch_size=8
    torchrun --standalone --nproc_per_node=2 distill.py config/rkld_olmo.py

The step's loss is  weight_ce * CE + weight_kl * T**2 * KL + weight_cos * cos + weight_mse * mse,  each term the mean
over the tokens of the whole step (t2_scale and kl_norm change the factor of KL, loss_mean the mean). With weight_ce = 1
and the others 0 this is its twin train.py, bit for bit. With on_policy a share of the micro-steps learns from text that
the student writes, by the KL alone, over the tokens that it has drawn.
"""

# before torch, so that Ctrl-C while it loads ends in one line
from configurator import at_least, at_most, configure, one_of  # isort: split

import math
import time
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from common.bad_steps import report_bad_step
from common.checkpoint import (
    RunLock,
    best_so_far,
    changes,
    checkpoints,
    load_trainer_state,
    restore,
    rows_so_far,
    sections_of,
    starting_point,
    stored_knobs,
    tokens_so_far,
)
from common.checkpoint_writer import CheckpointWriter
from common.data import TokenData
from common.generate import write_text
from common.log import Log, eta, last_words, loss_as_sum
from common.optim import learning_rate_at, make_optimizers, round_to_bfloat16, stored_tensors
from common.own_text import check_own_text, own_micro_steps, parse_prompt_tokens, write_own_text
from common.pretrained import (
    check_fits,
    config_sha256,
    freeze_parameters,
    keep_blocks,
    load_pretrained,
    record_shape,
    round_up,
    settle_model,
    weights_sha256,
)
from common.runtime import Runtime, check_memory, check_rows_fit, matmul_peak, split_batch
from common.sharding import check_shard, is_sharded, whole, whole_weights
from common.signals import StopSignal
from common.teacher_cache import open_cache
from common.tokenizer import check_same_tokenizer, load_tokenizer
from head import COMPARED, chunked_head, compare
from losses import PARAMETERS, Objective, cosine_distance, divergence, hidden_mse, loss_terms, reduce, teacher_shares
from model import GPT, GPTConfig, LLaMA, LLaMAConfig
from tasks.loading import load_tasks
from tasks.metrics import headlines

# Run
out_dir = "out/run"  # checkpoints step_NNNNNN/ and log.txt go here
init_from = "scratch"  # or "resume" (out_dir's newest checkpoint), "auto" (that, if there is one), or a model
init_layers = ""  # start from these blocks of it alone, "0,2,4,7,9,11" (scratch: of the first teacher); "": from all
freeze = ""  # prefixes of the names of parameters that are not trained: "wpe", or "wte,h.0"
seed = 1337  # of the initial weights, the order of the rows, and dropout
eval_only = False  # score as at the end of a run, and stop: nothing is trained and nothing is written
# Data
dataset = "data/stdlib"  # folder with train.bin, val.bin and meta.json, as prepare_data.py makes
block_size = 128  # tokens in a row
packing = "constant"  # rows are cut from the stream of documents; "documents": one document a row, cut or padded
random_offset = True  # constant: each epoch cuts the rows at a different offset
# Teacher
teacher = ""  # model folder, run's out_dir, hub repository's name, several separated by commas; or a cache (see tail)
teacher_weights = ""  # each teacher's weight in their mean, as in "2,1"; "": equal
ensemble = "logits"  # several teachers teach by the mean of their "logits" (Baby Llama) or probabilities ("probs")
teacher_dtype = "auto"  # of its weights: "float32" or "bfloat16"; "auto": bfloat16 on a GPU that has it
tail = "cell"  # with a cache, how the ids it lacks count: as one "cell", by its "draws", or not at all: "drop" (biased)
# Loss
kl = "forward"  # "forward": KL(teacher || student), "reverse", "js", "skew_forward", "skew_reverse" or "tv"
kl_beta = 0.5  # js: the teacher's share of the mixture that both are compared with
kl_lam = 0.1  # skew_*: KL(a || kl_lam * a + (1 - kl_lam) * b), so how much of a is mixed into b
kl_norm = "token"  # "token": mean over tokens; "sequence": block_size times that (Baby Llama's published scale)
t2_scale = True  # multiply the KL by T**2, which keeps the size of its gradient as T changes
temperature = 2.0  # T: the KL compares softmax(logits / T) of both
weight_ce = 1.0  # of the cross-entropy with the data
weight_kl = 1.0  # of the KL
weight_cos = 0.0  # of 1 - cos(student, teacher) of the last hidden states; a learned matrix bridges different widths
weight_mse = 0.0  # of the mean squared difference of the same hidden states
# On-policy: text of the student's own (common/own_text.py, docs/on_policy.md)
on_policy = 0.0  # share of the micro-steps that learn from it, by the KL alone; 0: none, 1: all
prompt_tokens = "16-64"  # of a data row are kept, and the student continues them; a range: each row draws its length
response_tokens = 64  # the most it writes in a row; its first end-of-text ends it earlier
sample_temperature = 1.0  # of its sampling: it draws from softmax(logits / sample_temperature)
# Student (comes from init_from where that names one, or from the teacher with init_layers)
arch = "llama"  # "gpt" (GPT-2: learned positions, GELU, biases) or "llama" (rotary, SwiGLU, RMSNorm, no biases)
n_layer = 4  # blocks
n_head = 6  # query heads
n_kv_head = 0  # llama: key/value heads, fewer than n_head for grouped-query attention; 0: n_head
n_embd = 192  # width of the residual stream
n_inner = 0  # width of the MLP; 0: 4 * n_embd (gpt), 8/3 * n_embd up to a multiple of 64 (llama)
dropout = 0.0  # after embedding, attention and MLP; 0 for pretraining, 0.1 for many epochs
qk_norm = False  # llama: normalise the queries and keys of each head, as Qwen3 does; checkpoints are then in its format
tie_word_embeddings = True  # the head is the embedding
vocab_multiple = 64  # the embedding's rows are rounded up to this (tensor cores); padding ids are never scored or drawn
# Batch
batch_size = 16  # rows per micro-step and rank
grad_accum_steps = 1  # micro-steps per step, where tokens_per_step is 0
tokens_per_step = 0  # of all micro-steps and ranks; grad_accum_steps follows from it, whatever the number of GPUs
max_steps = 1000  # optimiser steps
epochs = 0.0  # if over 0: max_steps is this many passes over train.bin, unless the command line gives --max_steps alone
# Optimiser
optimizer = "adamw"  # "adamw", or for the blocks' matrices "muon", "normuon" or "headmuon", and AdamW for the rest
learning_rate = 1e-3  # the peak; 6e-4 for 124M parameters
min_lr = 1e-4  # where the schedule ends; a tenth of the peak is customary
warmup_steps = 50  # of linear warm-up
schedule = "cosine"  # "cosine", "linear", "constant" or "wsd" (constant, the last fifth linear)
weight_decay = 0.1  # of matrices and embeddings, not of biases and norms
beta1 = 0.9  # AdamW
beta2 = 0.95  # AdamW; 0.98 or 0.999 for small batches
eps = 1e-8  # AdamW
grad_clip = 1.0  # largest norm of the gradient; 0: no clipping
max_bad_steps = 0  # how many steps may be skipped for a loss or gradient that is not finite; one more stops the run
loss_mean = "token"  # "token": over all tokens of a step; "micro_step": over the means of its micro-steps (DistilGPT2)
weight_dtype = "float32"  # "bfloat16": weights, gradients and moments are rounded to it, as DistilPythia kept them
# Reports (an interval of 0: only at the end; of tasks and samples: never)
eval_interval = 250  # steps between evaluations; there is always one at the end
eval_rows = 256  # rows of val.bin in each, always the same; 0: all
save_interval = 500  # steps between checkpoints; there is always one at the end
keep_checkpoints = 2  # how many of the newest to keep; 0: all
keep_best = True  # also save and keep the checkpoint with the lowest validation loss
eval_tasks = ""  # tasks of evaluate.py, "hellaswag,piqa", or a file of your own; "": none
eval_tasks_interval = 1000  # steps between these; also once at the end
eval_tasks_dir = "data/eval"  # folder of their files, which are downloaded if missing
eval_tasks_limit = 0  # the first rows of each file only; 0: all
log_interval = 10  # steps between log lines
sample_interval = 0  # steps between texts written to out_dir/sample_NNNNNN.txt; also one at the end
sample_prompt = ""  # the prompt; "": from the start of a text
wandb_project = ""  # log to Weights & Biases too (pip install wandb); "": off
# Machine
device = "auto"  # "auto", "cpu", "cuda" or "mps"
dtype = "auto"  # of the matmuls: "float32" or "bfloat16"; "auto": bfloat16 on a GPU that has it
compile = "auto"  # torch.compile: "on", "off"; "auto": on CUDA
chunk_tokens = 0  # tokens whose logits exist at a time; 0: whatever is fastest
teacher_shard = False  # divide the teachers' weights among the ranks (FSDP2), where they do not fit on one device
shard = False  # divide weights, gradients and moments among the ranks (FSDP2), where they do not fit on one device
# Applies config files and --key=value to the names above; a resumed run starts from its stored knobs. config is a dict
# of the same values, to be checked, logged and stored.
config = configure(globals(), stored=stored_knobs)

# ---------------------------------------------------------------------------------------------
# set-up
# a knob that is out of range is refused before anything is loaded
at_least(config, 1, "block_size n_layer n_head n_embd vocab_multiple batch_size grad_accum_steps log_interval")
at_least(config, 0, "seed n_kv_head n_inner dropout max_steps epochs learning_rate min_lr warmup_steps weight_decay")
at_least(config, 0, "grad_clip max_bad_steps eval_interval eval_rows save_interval keep_checkpoints")
at_least(config, 0, "eval_tasks_interval eval_tasks_limit sample_interval chunk_tokens")
at_least(config, 0, "tokens_per_step weight_ce weight_kl weight_cos weight_mse")
at_least(config, 1, "response_tokens")
at_least(config, 1e-3, "temperature sample_temperature")
at_most(config, 1e6, "temperature sample_temperature epochs")
one_of(config, loss_mean=("token", "micro_step"), weight_dtype=("float32", "bfloat16"))
run = Runtime(device, dtype)  # under torchrun, one of several ranks
check_shard(config, run.world)
# one run at a time in a folder; the lock goes when this process ends, however it ends
lock = RunLock(out_dir, writes=run.is_main and not eval_only)
folder = starting_point(out_dir, init_from, eval_only)  # None: from scratch

# tokens_per_step fixes the step whatever the number of ranks. Both numbers are stored as they are used, so that a run
# resumed on more or fewer ranks keeps its step.
grad_accum_steps, tokens_per_step = split_batch(config, run.world)
config.update(grad_accum_steps=grad_accum_steps, tokens_per_step=tokens_per_step)
check_rows_fit(tokens_per_step, run.world)
# --max_steps on the command line wins over the epochs of a config file
if config.given.get("max_steps") == "command line" and config.given.get("epochs") != "command line":
    epochs = config["epochs"] = 0.0

# ---------------------------------------------------------------------------------------------
# data
# A batch is a function of (seed, step, micro-step, rank), so that no position in the data has to be saved. Validation
# rows are drawn with a fixed seed: runs of any seed are evaluated on the same ones.
row_settings = {"block_size": block_size, "batch_size": batch_size, "packing": packing, "random_offset": random_offset}
row_settings |= {"rank": run.rank, "world": run.world}
train_data = TokenData(dataset, "train", seed=seed, grad_accum_steps=grad_accum_steps, **row_settings)
val_data = TokenData(dataset, "val", seed=0, **row_settings)
# where the data set names its domains, each has a validation loss of its own as well
val_domains = {}
for domain in train_data.domains:
    val_domains[domain] = TokenData(dataset, f"val_{domain}", seed=0, **row_settings)
vocab_size = train_data.vocab_size  # the true one: logits beyond it are padding, cut before any softmax
rows_per_step = tokens_per_step // block_size
for data in (train_data, val_data):
    if data.packing_note:
        run.say(data.packing_note)
# the same ids may stand for different texts in two models of one shape, so the tokenizers are compared
tokenizer = load_tokenizer(dataset)
if folder:
    checkpoint = settle_model(folder, run)
    check_same_tokenizer(dataset, checkpoint)
tokenizer.start = train_data.start()  # goes into the checkpoints: what an empty prompt starts from
tasks = load_tasks(eval_tasks, eval_tasks_dir, eval_tasks_limit) if eval_tasks and eval_tasks_interval else []

# ---------------------------------------------------------------------------------------------
# teacher
kl_parameters = {name: config[f"kl_{name}"] for name in PARAMETERS}  # kl_beta, kl_lam
terms = divergence(kl, **kl_parameters)  # an unknown name fails here
one_of(config, kl_norm=("token", "sequence"), ensemble=("logits", "probs"))
has_teacher = weight_kl > 0 or weight_cos > 0 or weight_mse > 0
if not (has_teacher or weight_ce):
    raise ValueError("weight_ce, weight_kl, weight_cos and weight_mse are all 0; nothing would be learnt")

# what the KL is multiplied by
kl_scale = weight_kl
kl_factors = [f"{weight_kl:g}"]
if t2_scale:
    kl_factors.append(f"{temperature:g}^2")
    kl_scale *= temperature**2
if kl_norm == "sequence":
    kl_factors.append(f"{block_size}")
    kl_scale *= block_size
# the terms that have a weight, as the log line spells it: "0.5*2^2" of the KL
term_factors = {"ce": f"{weight_ce:g}"}
if weight_kl:
    term_factors["kl"] = "*".join(kl_factors)
if weight_cos:
    term_factors["cos"] = f"{weight_cos:g}"
if weight_mse:
    term_factors["mse"] = f"{weight_mse:g}"

# a control run, with all three weights at 0, learns from no teacher; init_layers may still take blocks of the first one
named_teachers = [name.strip() for name in teacher.split(",") if name.strip()]
teacher_names = named_teachers if has_teacher else []
if has_teacher and not teacher_names:
    raise ValueError("teacher is empty; name a model folder or a run's out_dir, as in --teacher=out/teacher")
# if teacher names a cache, their predictions for each row of the corpus are read from it, and no teacher is loaded
cache = open_cache(teacher_names, config)
check_own_text(config, has_cache=cache is not None)
shares = teacher_shares(teacher_weights if has_teacher else "", len(teacher_names))  # of each in their mean

# all that the head needs to know to turn hidden states into this loss
objective = Objective(
    weight_ce=weight_ce,
    weight_kl=kl_scale,
    terms=terms,
    temperature=temperature,
    ensemble=ensemble,
    shares=shares,
    tail=tail,
)
# on own text there is no cross-entropy: a token that the student itself has drawn is no label
own_objective = replace(objective, weight_ce=0.0)

teachers = []
teacher_hashes = cache.hashes() if cache else []  # by which a resumed run notices that a teacher has changed
for name in teacher_names if cache is None else []:
    # teacher and student can be compared id by id only if they have the same tokenizer
    teacher_folder = settle_model(name, run)
    check_same_tokenizer(dataset, teacher_folder)
    teacher_hashes += [weights_sha256(teacher_folder), config_sha256(teacher_folder)]
    divide = run.shard if teacher_shard else None
    t = load_pretrained(teacher_folder, run.device, run.pick_dtype(teacher_dtype), divide)
    t.requires_grad_(False)  # in eval mode already
    check_fits(t, name, block_size, vocab_size)
    # not compiled if its blocks gather their weights as they compute
    teachers.append(t if teacher_shard else run.compile(t, compile))
    run.say(f"teacher {name}: {t.n_params():,} parameters")

# ---------------------------------------------------------------------------------------------
# student
# new weights follow from the seed and the shape alone: a student and its control start from the same
torch.manual_seed(seed)
padded_vocab = round_up(vocab_size, vocab_multiple)  # rows of the embedding
source = folder  # a model to start from, None for a new one
if source is None and init_layers and named_teachers:
    source = named_teachers[0]
    checkpoint = settle_model(source, run)
    check_same_tokenizer(dataset, checkpoint)
if source:
    raw_model = load_pretrained(checkpoint, dtype=torch.float32, dropout=dropout)
elif arch == "gpt":
    shape = GPTConfig(
        vocab_size=padded_vocab, block_size=block_size, n_layer=n_layer, n_head=n_head, n_embd=n_embd,
        n_inner=n_inner, dropout=dropout, tie_word_embeddings=tie_word_embeddings,
    )  # fmt: skip
    check_memory(run, shape, config)
    raw_model = GPT(shape)
elif arch == "llama":
    shape = LLaMAConfig(
        vocab_size=padded_vocab, block_size=block_size, n_layer=n_layer, n_head=n_head, n_kv_head=n_kv_head,
        n_embd=n_embd, n_inner=n_inner, dropout=dropout, qk_norm=qk_norm, tie_word_embeddings=tie_word_embeddings,
    )  # fmt: skip
    check_memory(run, shape, config)
    raw_model = LLaMA(shape)
else:
    raise ValueError(f"arch={arch!r} is not one of gpt, llama")
check_fits(raw_model, source, block_size, vocab_size)
if init_layers and init_from != "resume":
    keep_blocks(raw_model, init_layers, source)
# a loaded model has a shape of its own: knobs that contradict it are refused, and config records the true one
record_shape(config, raw_model, source)
check_memory(run, raw_model.config, config)
freeze_parameters(raw_model, freeze)
# raw_model owns the weights; model is the same one, compiled and wrapped for DDP, for the forward pass of training.
# With shard the two are one object: a rank holds a share of every weight, and whole ones of the computing block alone.
model = run.parallel(raw_model.train(), compile, shard)
# hidden states -> loss
head = partial(
    chunked_head,
    vocab_size=vocab_size,
    chunk=chunk_tokens,
    dtype=run.dtype,
    body=run.compile(loss_terms, compile),
)

# for cos and mse: from the student's width to each teacher's; trained along, and saved in trainer.pt, not in the model
projections = nn.ModuleList()
for t in teachers if weight_cos or weight_mse else []:
    width, teacher_width = raw_model.config.n_embd, t.config.n_embd
    projections.append(nn.Identity() if width == teacher_width else nn.Linear(width, teacher_width, bias=False))
projections.to(run.device)
for projection in projections if shard else []:
    run.shard(projection)

# ---------------------------------------------------------------------------------------------
# optimiser
learning_rate_at(0, schedule, learning_rate, min_lr, warmup_steps, max_steps)  # unknown or rising ones fail here
optimizers = make_optimizers(
    raw_model,
    optimizer=optimizer,
    learning_rate=learning_rate,
    weight_decay=weight_decay,
    beta1=beta1,
    beta2=beta2,
    eps=eps,
    extra=projections,
)
params = [p for p in (*raw_model.parameters(), *projections.parameters()) if p.requires_grad]
if weight_dtype == "bfloat16":
    round_to_bfloat16((*raw_model.parameters(), *projections.parameters()))

# ---------------------------------------------------------------------------------------------
# resume
# The knobs were restored at the top and the weights with the model; here follow the moments of the optimisers, and how
# far the run had got. Batches and dropout depend on the step and the rank alone. So a resumed run continues bit for bit
# on as many ranks as before; on another number of ranks, or on a GPU, to float tolerance.
first_step = 0  # steps done before this process started
rows_done = 0  # rows trained on so far
tokens_done = 0  # tokens in those rows
flops_done = 0.0  # FLOPs spent so far
own_text_values = {}  # what the next log line says of the newest step with own text
bad_steps = 0  # steps skipped for a loss or gradient that is not finite
seconds = 0.0  # training time so far
best_val = math.inf  # lowest validation loss so far
best_step = -1  # its step
# with shard the tensors stay in the file until a rank takes its share
state = load_trainer_state(folder, mmap=is_sharded(raw_model)) if init_from == "resume" else None
student_flops = raw_model.flops_per_token(block_size)  # forward, of one token
flops = 3 * student_flops  # backward is twice forward
for t in teachers:
    flops += t.flops_per_token(block_size)
    # without the KL its logits are not computed: two FLOPs for each weight of its head
    if not weight_kl:
        flops -= 2 * t.lm_head.weight.numel()
if state:
    first_step = state["step"]
    seconds = state["seconds"]
    bad_steps = state.get("bad_steps", 0)
    rows_done = rows_so_far(state, config, tokens_per_step, train_data.n_rows)
    tokens_done = tokens_so_far(state)
    flops_done = state.get("flops", tokens_done * flops)
    own_text_values = state.get("own", {}) if on_policy else {}
    # reset if the validation loss is now measured on other rows
    best_val, best_step = best_so_far(state, config, train_data.identity)
    # refuses another optimizer, freeze, init_layers, or number of teachers; other knobs may change
    restore(folder, state, config, optimizers, projections, teacher_names)
# no row is repeated or skipped, even if a step now takes more or fewer rows than before
train_data.continue_at(first_step, rows_done)
if epochs > 0:
    max_steps = train_data.steps(epochs)
if eval_only:
    max_steps = first_step
# equal is fine: the run evaluates once more and writes its summary
if max_steps < first_step:
    raise ValueError(f"max_steps={max_steps}, but {folder} is at step {first_step} already; raise it to go on")
config["max_steps"] = max_steps
sections = sections_of(state, config, first_step, rows_done)
if state:
    run.say(f"resume {folder}", changes(state, config, run.world, train_data.identity, teacher_hashes))
    state = None  # the optimisers have copies of its tensors
# from here on SIGTERM and Ctrl-C save and stop, and SIGUSR1 saves; before this line there is nothing to save
stop = StopSignal(run)
log = Log(out_dir, first_step, writes=run.is_main and not eval_only, wandb_project=wandb_project, config=config)
writer = CheckpointWriter(out_dir, keep=keep_checkpoints, keep_best=keep_best, writes=run.is_main)
run.say(
    f"{raw_model.n_params():,} parameters | {tokens_per_step:,} tokens a step, {max_steps:,} steps | "
    f"{max_steps * rows_per_step / train_data.n_rows:.2f} epochs | {run.world} x {run.device} {run.dtype}"
)


# ---------------------------------------------------------------------------------------------
# loop
def mean_distance(distance, hidden, teacher_hidden):
    """`distance` to each teacher, weighted by `shares`: hidden (B, T, C) and (B, T, C_t) each -> (N,)."""
    total = 0.0
    for share, projection, h in zip(shares, projections, teacher_hidden):
        total = total + share * distance(projection(hidden).flatten(0, 1), h.flatten(0, 1))
    return total


@torch.no_grad()
def evaluate(data, n_rows, with_teachers=True) -> tuple[float, dict]:
    """Mean cross-entropy of the first validation rows, nats per token, and a comparison with the teachers (COMPARED).

    With a cache the comparison is one number, "val_kl": the divergence that is trained on. The ranks share the rows.
    """
    raw_model.eval()
    total = 0.0
    count = 0
    compared_teachers = teachers if with_teachers else []
    compared_cache = cache if with_teachers else None
    names = COMPARED if compared_teachers else ()
    if compared_cache:
        names = ("val_kl",)
    sums = dict.fromkeys(names, 0.0)
    for (x, y), rows in zip(data.eval_batches(n_rows), data.eval_batch_rows(n_rows)):
        x, y = run.to_device(x, y)
        stored = compared_cache.stored(data.split, rows, run.device) if compared_cache else None
        with run.autocast():
            hidden = raw_model(x, hidden=True)  # (B, T, C)
            teacher_heads = [(t(x, hidden=True), t.lm_head.weight) for t in compared_teachers]
        # sums over the batch, as n_tokens is 1
        _, ce, kld = head(hidden, raw_model.lm_head.weight, y, n_tokens=1, objective=objective, stored=stored)
        total += ce.item()
        if compared_cache:
            sums["val_kl"] += kld.item()
        # y is -1, no target, behind the end of a short row and in the rows that pad the last batch
        count += (y >= 0).sum().item()
        if compared_teachers:
            student_head = (hidden, raw_model.lm_head.weight)
            batch_sums = compare(
                student_head, teacher_heads, y, objective, vocab_size=vocab_size, chunk=chunk_tokens, dtype=run.dtype
            )
            for name in COMPARED:
                sums[name] += batch_sums[name].item()
    raw_model.train()
    total, count, *totals = run.sum(total, count, *sums.values())
    return total / count, {name: value / count for name, value in zip(sums, totals)}


def continue_rows(step, micro_step):
    """The beginnings of a micro-step's rows, continued by the student as it is now: an OwnText."""
    x, y = train_data.batch(step, micro_step)
    raw_model.eval()
    with whole_weights(raw_model):
        written = write_own_text(
            raw_model,
            x,
            y,
            first_row=train_data.first_of_batch(step, micro_step),
            seed=seed,
            prompt_tokens=parse_prompt_tokens(prompt_tokens),
            response_tokens=response_tokens,
            temperature=sample_temperature,
            vocab_size=vocab_size,
            eot=tokenizer.eot,
            run=run,
        )
    raw_model.train()
    return written


peak = run.world * matmul_peak(run.device, run.dtype)
val = math.nan
stopping = False  # whether some rank got a signal to stop
saving = False  # likewise, to save after the step and go on
saved_step = first_step  # of the newest checkpoint
step_seconds = math.inf  # duration of the step before; not known yet
# at the last log line: the next one gives the speed since then
logged_step = first_step
logged_flops = flops_done
logged_seconds = seconds
step = first_step  # steps done
while step <= max_steps:
    last = step == max_steps

    # --- evaluate: before the step, so that step 0 shows where the model starts, and max_steps where it ends
    if last or (eval_interval and not stopping and step % eval_interval == 0):
        val, comparison = evaluate(val_data, eval_rows)
        by_domain = {}
        for domain, data in val_domains.items():
            n_rows = math.ceil(eval_rows / len(val_domains))
            by_domain[f"val/{domain}"], _ = evaluate(data, n_rows, with_teachers=False)
        log(step, val=val, **by_domain, **comparison)
        bits_per_byte = val_data.bits_per_byte(val)  # NaN where no target stands for text
        bits_text = f" | {bits_per_byte:.4f} bits/byte" if bits_per_byte > 0 else ""
        run.say(f"step {step}/{max_steps} | val {val:.4f} nats/token{bits_text}")
        if by_domain:
            losses = [f"{name} {loss:.4f}" for name, loss in by_domain.items()]
            run.say(f"step {step}/{max_steps} |", " | ".join(losses))
        if "val_kl" in comparison:
            run.say(f"step {step}/{max_steps} | kl to the cached teacher {comparison['val_kl']:.4f} nats/token")
        elif comparison:
            run.say(
                "same top token {agree:.1%} | forward KL {forward_kl:.4f}, reverse KL {reverse_kl:.4f} | "
                "entropy {entropy:.4f}, of the teacher {teacher_entropy:.4f}".format(**comparison)
            )
        if val < best_val:
            best_val = val
            best_step = step
    # benchmarks such as HellaSwag, scored by the likelihood of the answers
    if tasks and not stopping and (last or step % eval_tasks_interval == 0):
        raw_model.eval()
        values = headlines(tasks, raw_model, tokenizer, run)
        raw_model.train()
        log(step, **values)
        run.say(f"step {step}/{max_steps} |", " | ".join(f"{task} {value:.4f}" for task, value in values.items()))

    # a text to look at; the step below seeds the generator again, so that training is not affected
    if sample_interval and not stopping and (last or step % sample_interval == 0):
        raw_model.eval()
        run.seed(seed, step)
        with whole_weights(raw_model):
            if run.is_main:
                log.sample(step, write_text(raw_model, tokenizer, sample_prompt, run))
        raw_model.train()

    # --- save: at intervals, when the validation loss is the lowest so far, when asked to, and at the end
    writer.check()  # raises what stopped the writing of the last checkpoint, such as a full disk
    is_new_best = keep_best and best_step == step
    is_due = save_interval and step % save_interval == 0
    if step > saved_step and (last or stopping or saving or is_due or is_new_best):
        # The first rank writes: all hold the same weights and moments, or with shard give it their shares. The loop
        # waits for the copy to host memory alone, which a thread then writes to disk while training continues.
        state = {"step": step, "rows": rows_done, "seconds": seconds, "best": (best_val, best_step), "world": run.world}
        state |= {"tokens": tokens_done, "epochs_done": rows_done / train_data.n_rows, "sections": sections}
        state |= {"data": train_data.identity, "bad_steps": bad_steps, "flops": flops_done}
        state |= {"own": own_text_values, "teachers": teacher_hashes}
        state |= {"config": dict(config), "optimizers": [o.state_dict() for o in optimizers]}
        state["projections"] = projections.state_dict()
        writer.save(raw_model, tokenizer, state)
        saved_step = step
    if last or stopping:
        break
    started = time.perf_counter()

    # --- accumulate
    # The loss of a step is the mean over all of its tokens. So all batches are read first, and the tokens with a target
    # are counted over micro-steps and ranks; each micro-step divides its sum by that count. (loss_mean="micro_step", a
    # mean of the micro-steps' means, gives a token more weight where its batch has fewer.) Along with the count the
    # ranks exchange two flags, set by signals: all save after this step, or all stop, now or between two micro-steps. A
    # step that is broken off has not changed the weights, and the resumed run does all of it.
    run.seed(seed, step)  # of dropout; the rank is mixed in
    batches = [train_data.batch(step, micro_step) for micro_step in range(grad_accum_steps)]
    # On-policy: some micro-steps learn from the student's own text, in rows of the same shape whose only targets are
    # the tokens that it has drawn. All of it is written first, so that these tokens are counted as well.
    own_texts = {}  # by micro-step
    for n_written, micro_step in enumerate(own_micro_steps(on_policy, step, grad_accum_steps)):
        # the flag that the ranks exchange below will stop this step
        if stop.came(n_written):
            break
        written = continue_rows(step, micro_step)
        own_texts[micro_step] = written
        batches[micro_step] = written.x, written.y
    own_share = len(own_texts) / grad_accum_steps  # of this step
    n_targets = [(y >= 0).sum().item() for _, y in batches]
    n_own = sum(n_targets[micro_step] for micro_step in own_texts)
    n_data_of_step, n_own_of_step, n_ended, n_computed, stopping, saving, seconds_of_ranks = run.sum(
        sum(n_targets) - n_own,
        n_own,
        sum(written.n_ended for written in own_texts.values()),
        sum(written.n_computed for written in own_texts.values()),
        stop.number > 0,
        stop.take_save(),
        step_seconds,
    )
    stop.set_pace(seconds_of_ranks / run.world, grad_accum_steps)
    losses = []  # of the micro-steps; those of all ranks add up to the step's
    sums = torch.zeros(6, device=run.device)  # loss; ce, kl, cos, mse of data; kl of own text
    for micro_step, (x, y) in enumerate(batches):
        stopping = stopping or stop.came(micro_step)
        if stopping:
            break
        x, y = run.to_device(x, y)  # (B, T) each
        from_own = micro_step in own_texts
        # What this micro-step's sums are divided by. The step's loss is own_share * (mean over own text) +
        # (1 - own_share) * (mean over data): so the tokens of its kind, divided by the share of its kind.
        if from_own:
            n_tokens = n_own_of_step / own_share
        else:
            n_tokens = n_data_of_step / (1 - own_share)
        if loss_mean == "micro_step":
            n_tokens = n_targets[micro_step] * grad_accum_steps * run.world
        # DDP exchanges gradients during a backward pass: once a step is enough, in that of the last micro-step. The
        # head's weight is used outside of model(), but DDP's hook is on the parameter. Without DDP this does nothing:
        # with shard every backward exchanges them, as no rank has the memory to keep whole gradients.
        model.require_backward_grad_sync = micro_step == grad_accum_steps - 1
        # the teachers read the same tokens, without dropout and without a graph
        with run.autocast(), torch.no_grad():
            teacher_hidden = [t(x, hidden=True) for t in teachers]  # (B, T, C_t) each
        # or the cache has their predictions for these rows
        stored = cache.stored("train", train_data.batch_rows(step, micro_step), run.device) if cache else None
        with run.autocast():
            hidden = model(x, hidden=True)  # (B, T, C)
        teacher_heads = [(h, t.lm_head.weight) for h, t in zip(teacher_hidden, teachers)] if weight_kl else []
        # loss = weight_ce * ce + kl_scale * kld, each a share of the step's mean; ce and kld unweighted, for the log
        micro_objective = own_objective if from_own else objective
        loss, ce, kld = head(
            hidden,
            raw_model.lm_head.weight,
            y,
            n_tokens,
            teachers=teacher_heads,
            objective=micro_objective,
            stored=stored,
        )
        # The terms of the hidden states need no logits, so plain autograd will do. hidden is fp32 even under autocast,
        # as the residual stream is, and so are the projections.
        cos = mse = zero = torch.zeros((), device=run.device)
        valid = y.flatten() >= 0
        if weight_cos and not from_own:
            cos = reduce(mean_distance(cosine_distance, hidden, teacher_hidden), valid, n_tokens)
            loss = loss + weight_cos * cos
        if weight_mse and not from_own:
            mse = reduce(mean_distance(hidden_mse, hidden, teacher_hidden), valid, n_tokens)
            loss = loss + weight_mse * mse
        # DDP and FSDP average gradients over the ranks; n_tokens counts the tokens of all ranks, so the sum is wanted
        (loss * run.world).backward()
        if weight_dtype == "bfloat16":
            # a projection has no gradient in a step of own text alone
            round_to_bfloat16(p.grad for p in params if p.grad is not None)
        values = (loss, ce, kld, cos, mse, zero)
        if from_own:
            values = (loss, zero, zero, zero, zero, kld)
        sums += torch.stack(values).detach()
        losses.append(loss.detach())
    # back to the top of the loop, which saves the steps before this one and ends
    if stopping:
        continue
    # DDP has averaged the student's gradients, but does not know the projections (with shard FSDP has averaged both)
    run.average_gradients(projections)

    # --- clip
    # computed even without clipping, for the log
    total_norm = whole(torch.nn.utils.get_total_norm(p.grad for p in params if p.grad is not None))
    norm = total_norm.item()
    loss, *data_sums, own_sum = run.sum(*sums)
    if own_share:
        n_own_rows = own_share * rows_per_step
        own_text_values = {
            "kl_own": own_sum / own_share,
            "own_tokens": n_own_of_step / n_own_rows,
            "own_ended": n_ended / n_own_rows,
        }
    # An update that is not finite could never be undone, so the step is skipped: by all ranks or none, as loss and
    # gradients are those of all.
    is_bad = not math.isfinite(loss + norm)
    if is_bad:
        bad_steps += 1
        where = report_bad_step(run, raw_model, train_data, tokenizer, out_dir, step, losses, own_texts)
        problem = f"step {step}: loss is {loss}, gradient norm {norm}; {where}"
        if bad_steps > max_bad_steps:
            raise ValueError(
                f"{problem}; stopped before the update, with the checkpoints of {out_dir} as they were. Lower "
                "learning_rate or raise max_bad_steps, then --init_from=resume where there is one"
            )
        run.say(f"{problem}; left out, {bad_steps} of {max_bad_steps}")
        log(step, bad_steps=bad_steps)
    elif grad_clip:
        torch.nn.utils.clip_grads_with_norm_(params, grad_clip, total_norm)
        if weight_dtype == "bfloat16":
            round_to_bfloat16(p.grad for p in params if p.grad is not None)

    # --- step
    lr = learning_rate_at(step, schedule, learning_rate, min_lr, warmup_steps, max_steps)
    for o in optimizers:
        for group in o.param_groups:
            group["lr"] = lr
        if not is_bad:
            o.step()
        o.zero_grad(set_to_none=True)
    # here an update smaller than half a unit in bfloat16's last place is lost
    if weight_dtype == "bfloat16":
        round_to_bfloat16(stored_tensors(params, optimizers))
    rows_done += rows_per_step
    tokens_done += tokens_per_step
    flops_done += tokens_per_step * flops + n_computed * student_flops
    step_seconds = time.perf_counter() - started
    seconds += step_seconds

    # --- log: the loss of all micro-steps and ranks, and the speed since the last line
    if step % log_interval == 0 or step == max_steps - 1:
        speed = (step + 1 - logged_step) * tokens_per_step / (seconds - logged_seconds)
        mfu = (flops_done - logged_flops) / (seconds - logged_seconds) / peak
        left = eta((max_steps - step - 1) * tokens_per_step / speed)
        logged_step = step + 1
        logged_flops = flops_done
        logged_seconds = seconds
        means = {}  # of each term over the tokens of the data
        if own_share < 1:
            for name, total in zip(("ce", "kl", "cos", "mse"), data_sums):
                means[name] = total / (1 - own_share)
        log(step, train=loss, **means, lr=lr, norm=norm, **own_text_values)
        summands = loss_as_sum(term_factors, means, own_share, own_text_values)
        about_own_text = ""
        if own_text_values:
            about_own_text = (
                " | own text: kl {kl_own:.4f}, {own_tokens:.1f} tokens a row, {own_ended:.0%} ended"
            ).format(**own_text_values)
        own_text_values = {}
        run.say(
            f"step {step}/{max_steps} | loss {loss:.4f} = {summands} | lr {lr:.2e} | norm {norm:.2f}"
            f"{about_own_text} | {speed:,.0f} tok/s | mfu {mfu:.1%} | eta {left}"
        )
    step += 1

# ---------------------------------------------------------------------------------------------
# end
writer.wait()
if last:
    log.summary(
        parameters=raw_model.n_params(), steps=step, tokens=tokens_done, seconds=seconds,
        flops=flops_done, val=val, bits_per_byte=val_data.bits_per_byte(val),
        best_val=best_val, best_step=best_step, config=config,
    )  # fmt: skip
log.close()
if not eval_only:
    run.say(last_words("distill.py", out_dir, checkpoints(out_dir), best=(best_val, best_step), finished=last))
del model  # DDP must go before its process group
run.close()
stop.exit_if_asked(stopping)
