"""Pretrain a GPT or a LLaMA on token files.

    python train.py config/pretrain_124m.py --batch_size=8
    torchrun --standalone --nproc_per_node=2 train.py config/pretrain_124m.py

Reads top to bottom. Its twin, distill.py, has the same sections in the same order.
"""

import math
import time
from functools import partial

import torch

import hellaswag
from common.checkpoint import load_trainer_state, restore, save_checkpoint, starting_point
from common.data import TokenData
from common.pretrained import check_fits, find_model, freeze_parameters, keep_blocks, load_pretrained
from common.runtime import Log, Runtime, StopSignal, eta, learning_rate_at, make_optimizers, matmul_peak
from common.tokenizer import check_same_tokenizer, load_tokenizer
from configurator import at_least, configure
from evaluate import headlines, load_tasks
from losses import chunked_head, head_terms
from model import GPT, GPTConfig, LLaMA, LLaMAConfig

# Run
out_dir = "out/run"  # checkpoints step_NNNNNN/ and log.txt go here
init_from = "scratch"  # "scratch", "resume" (the newest checkpoint of out_dir), or a model's folder or name
init_layers = ""  # start from these blocks of it alone, "0,2,4,7,9,11"; "": from all
freeze = ""  # parameters that stay as they are, by what their names begin with: "wpe", or "wte,h.0"
seed = 1337  # of the weights, the order of the rows and dropout
# Data
dataset = "data/stdlib"  # folder with train.bin, val.bin and meta.json, as prepare_data.py makes
block_size = 128  # tokens in a row
packing = "constant"  # rows are cut from the stream of documents; "documents": one document a row, cut or padded
random_offset = True  # constant: each epoch cuts the rows from another token on
# Model (comes from init_from where that names one)
arch = "llama"  # "gpt" (GPT-2: learned positions, GELU, biases) or "llama" (rotary, SwiGLU, RMSNorm, no biases)
n_layer = 4  # blocks
n_head = 6  # query heads
n_kv_head = 0  # llama: key/value heads, fewer than n_head for grouped-query attention; 0: n_head
n_embd = 192  # width of the residual stream
n_inner = 0  # width of the MLP; 0: 4 * n_embd (gpt), 8/3 * n_embd up to a multiple of 64 (llama)
dropout = 0.0  # after embedding, attention and MLP; 0 for pretraining, 0.1 for many epochs
tie_word_embeddings = True  # the head is the embedding
vocab_multiple = 64  # rows of the embedding are rounded up to this for tensor cores; the rest is never scored or drawn
# Batch
batch_size = 16  # rows per micro-step and rank
grad_accum_steps = 1  # micro-steps per step; tokens a step: batch_size * block_size * this * ranks
max_steps = 1000  # optimiser steps
epochs = 0.0  # if over 0: max_steps is this many passes over train.bin
# Optimiser
optimizer = "adamw"  # "adamw", or "muon" (Muon for the blocks' matrices, AdamW for the rest)
learning_rate = 1e-3  # the peak; 6e-4 for 124M parameters
min_lr = 1e-4  # where the schedule ends; a tenth of the peak is customary
warmup_steps = 50  # of linear warm-up
schedule = "cosine"  # "cosine", "linear", "constant" or "wsd" (constant, the last fifth linear)
weight_decay = 0.1  # of matrices and embeddings, not of biases and norms
beta1 = 0.9  # AdamW
beta2 = 0.95  # AdamW; 0.98 or 0.999 for small batches
eps = 1e-8  # AdamW
grad_clip = 1.0  # largest norm of the gradient; 0: no clipping
# Reports (0: never)
eval_interval = 250  # steps between evaluations; there is always one at the end
eval_rows = 256  # rows of val.bin in each, always the same; 0: all
save_interval = 500  # steps between checkpoints; there is always one at the end
keep_checkpoints = 2  # the newest that stay; 0: all
hellaswag_interval = 0  # steps between HellaSwag scores; also one at the end
hellaswag_data = ""  # .jsonl file of examples; "" downloads the official validation set
hellaswag_limit = 1000  # the first examples only; 0: all
eval_tasks = ""  # tasks of evaluate.py to score, "piqa,lambada"; "": none
eval_tasks_interval = 1000  # steps between these; also once at the end
eval_tasks_dir = "data/eval"  # their files; fetched where they are not there
eval_tasks_limit = 0  # the first rows of each file only; 0: all
log_interval = 10  # steps between log lines
# Machine
device = "auto"  # "auto", "cpu" or "cuda"
dtype = "auto"  # of the matmuls: "float32" or "bfloat16"; "auto": bfloat16 on CUDA; weights stay float32
compile = "auto"  # torch.compile: "on", "off"; "auto": on CUDA
chunk_tokens = 0  # tokens whose logits exist at a time; 0: as many as is fastest
config = configure(globals())

# ---------------------------------------------------------------------------------------------
# set-up
at_least(config, 1, "block_size n_layer n_head n_embd vocab_multiple batch_size grad_accum_steps log_interval")
at_least(config, 0, "seed n_kv_head n_inner dropout max_steps epochs learning_rate min_lr warmup_steps weight_decay")
at_least(
    config, 0, "eps grad_clip eval_interval eval_rows save_interval keep_checkpoints hellaswag_interval hellaswag_limit"
)
at_least(config, 0, "eval_tasks_interval eval_tasks_limit chunk_tokens")
folder = starting_point(out_dir, init_from)  # None: from scratch
run = Runtime(device, dtype)

# ---------------------------------------------------------------------------------------------
# data
place = run.rank, run.world, packing, random_offset
train_data = TokenData(dataset, "train", block_size, seed, batch_size, grad_accum_steps, *place)
val_data = TokenData(dataset, "val", block_size, 0, batch_size, 1, *place)
val_domains = {d: TokenData(dataset, f"val_{d}", block_size, 0, batch_size, 1, *place) for d in train_data.domains}
vocab_size = train_data.vocab_size  # the true one: logits beyond it are padding, cut before any softmax
tokens_per_step = batch_size * block_size * grad_accum_steps * run.world
max_steps = train_data.steps(epochs) if epochs > 0 else max_steps
tokenizer = load_tokenizer(dataset)
examples = hellaswag.load_examples(hellaswag_data, hellaswag_limit) if hellaswag_interval else []
tasks = load_tasks(eval_tasks, eval_tasks_dir, eval_tasks_limit) if eval_tasks and eval_tasks_interval else []

# ---------------------------------------------------------------------------------------------
# model
torch.manual_seed(seed)
rows = -(-vocab_size // vocab_multiple) * vocab_multiple
if folder:
    check_same_tokenizer(dataset, find_model(folder))
    raw_model = load_pretrained(folder, dtype=torch.float32, dropout=dropout)
elif arch == "gpt":
    raw_model = GPT(GPTConfig(rows, block_size, n_layer, n_head, n_embd, n_inner, dropout, tie_word_embeddings))
elif arch == "llama":
    raw_model = LLaMA(
        LLaMAConfig(rows, block_size, n_layer, n_head, n_kv_head, n_embd, n_inner, dropout, tie_word_embeddings)
    )
else:
    raise ValueError(f"arch={arch!r} is not one of gpt, llama")
check_fits(raw_model, folder, block_size, vocab_size)
if init_layers and init_from != "resume":
    keep_blocks(raw_model, init_layers, folder)
freeze_parameters(raw_model, freeze)
raw_model.to(run.device).train()
model = run.parallel(run.compile(raw_model, compile))
head = partial(chunked_head, vocab_size=vocab_size, chunk=chunk_tokens, dtype=run.dtype)
head = partial(head, body=run.compile(head_terms, compile))  # hidden states -> loss, without all logits at once

# ---------------------------------------------------------------------------------------------
# optimiser
learning_rate_at(0, schedule, learning_rate, min_lr, warmup_steps, max_steps)  # an unknown schedule fails here
optimizers = make_optimizers(raw_model, optimizer, learning_rate, weight_decay, beta1, beta2, eps)
params = [p for p in raw_model.parameters() if p.requires_grad]

# ---------------------------------------------------------------------------------------------
# resume
first_step, seconds = 0, 0.0  # optimiser steps done, and the seconds they took
if init_from == "resume":
    state = load_trainer_state(folder)
    first_step, seconds = state["step"], state["seconds"]
    if max_steps < first_step:  # at max_steps: a run killed before its summary, or one to evaluate again
        raise ValueError(f"max_steps={max_steps}, but {folder} is at step {first_step} already; raise it to go on")
    restore(folder, state, config, optimizers)
    was = state["config"]
    run.say(f"resume {folder}", *(f"| {k} {was.get(k)!r} -> {v!r}" for k, v in config.items() if was.get(k) != v))
stop = StopSignal()  # from here on: what comes before may take long to download, and has nothing to save
log = Log(out_dir, first_step, run.is_main)
flops = 3 * raw_model.flops_per_token(block_size)  # of one token; backward is twice forward
run.say(
    f"{raw_model.n_params():,} parameters | {tokens_per_step:,} tokens a step, {max_steps:,} steps | "
    f"{max_steps / train_data.steps(1):.2f} epochs | {run.world} x {run.device} {run.dtype}"
)


# ---------------------------------------------------------------------------------------------
# loop
@torch.no_grad()
def evaluate(data, n_rows) -> float:
    """Mean cross-entropy of the first validation rows, nats per token; the ranks share them."""
    raw_model.eval()
    total, count = 0.0, 0
    for x, y in data.eval_batches(n_rows):
        x, y = run.to_device(x, y)
        with run.autocast():
            hidden = raw_model(x, hidden=True)  # (B, T, C)
        _, ce, _ = head(hidden, raw_model.lm_head.weight, y, n_tokens=1)  # a sum
        total += ce.item()
        count += (y >= 0).sum().item()
    raw_model.train()
    total, count = run.sum(total, count)
    return total / count


peak = run.world * matmul_peak(run.device, run.dtype)
val, stopping, logged_step, logged_seconds = math.nan, False, first_step, seconds
for step in range(first_step, max_steps + 1):
    last = step == max_steps

    # --- evaluate
    if last or (eval_interval and not stopping and step % eval_interval == 0):
        val = evaluate(val_data, eval_rows)
        by_domain = {f"val/{d}": evaluate(v, -(-eval_rows // len(val_domains))) for d, v in val_domains.items()}
        log(step, val=val, **by_domain)
        run.say(f"step {step}/{max_steps} | val {val:.4f} nats/token | {val_data.bits_per_byte(val):.4f} bits/byte")
        if by_domain:
            run.say(" | ".join(f"{name} {loss:.4f}" for name, loss in by_domain.items()))
    if hellaswag_interval and not stopping and (last or step % hellaswag_interval == 0):
        raw_model.eval()
        acc, acc_norm = hellaswag.accuracy(raw_model, tokenizer, examples, run)
        raw_model.train()
        log(step, hella=acc_norm, hella_sum=acc)
        run.say(f"step {step}/{max_steps} | hellaswag n={len(examples)} acc={acc:.4f} acc_norm={acc_norm:.4f}")
    if tasks and not stopping and (last or step % eval_tasks_interval == 0):
        raw_model.eval()
        values = headlines(tasks, raw_model, tokenizer, run)
        raw_model.train()
        log(step, **values)
        run.say(f"step {step}/{max_steps} |", " | ".join(f"{task} {value:.4f}" for task, value in values.items()))

    # --- save
    if step > first_step and (last or stopping or (save_interval and step % save_interval == 0)):
        state = {"step": step, "seconds": seconds, "config": config, "optimizers": [o.state_dict() for o in optimizers]}
        if run.is_main:
            save_checkpoint(out_dir, raw_model, tokenizer, state, keep_checkpoints)
    if last or stopping:
        break
    started = time.perf_counter()

    # --- accumulate: each micro-step adds its tokens' share of the mean over the whole step
    run.seed(seed, step)
    batches = [train_data.batch(step, micro_step) for micro_step in range(grad_accum_steps)]
    n_tokens, stopping = run.sum(sum((y >= 0).sum() for _, y in batches), stop.number > 0)  # of all ranks
    loss_sum = torch.zeros((), device=run.device)
    for micro_step, (x, y) in enumerate(batches):
        x, y = run.to_device(x, y)  # (B, T) each
        model.require_backward_grad_sync = micro_step == grad_accum_steps - 1  # DDP: exchange once a step
        with run.autocast():
            hidden = model(x, hidden=True)  # (B, T, C)
        loss, _, _ = head(hidden, raw_model.lm_head.weight, y, n_tokens)  # cross-entropy over all tokens of the step
        (loss * run.world).backward()  # DDP will average over the ranks
        loss_sum += loss.detach()

    # --- clip
    norm = torch.nn.utils.clip_grad_norm_(params, grad_clip or math.inf).item()
    (loss,) = run.sum(loss_sum)
    if not math.isfinite(loss + norm):
        raise ValueError(
            f"step {step}: loss is {loss}, gradient norm {norm}; stopped before the update, with the checkpoints of "
            f"{out_dir} as they were. Lower learning_rate, then --init_from=resume where there is one"
        )

    # --- step
    lr = learning_rate_at(step, schedule, learning_rate, min_lr, warmup_steps, max_steps)
    for o in optimizers:
        for group in o.param_groups:
            group["lr"] = lr
        o.step()
        o.zero_grad(set_to_none=True)
    seconds += time.perf_counter() - started

    # --- log
    if step % log_interval == 0 or step == max_steps - 1:
        speed = (step + 1 - logged_step) * tokens_per_step / (seconds - logged_seconds)
        left = eta((max_steps - step - 1) * tokens_per_step / speed)
        logged_step, logged_seconds = step + 1, seconds
        log(step, train=loss, lr=lr, norm=norm)
        run.say(
            f"step {step}/{max_steps} | loss {loss:.4f} | lr {lr:.2e} | norm {norm:.2f} | "
            f"{speed:,.0f} tok/s | mfu {speed * flops / peak:.1%} | eta {left}"
        )

# ---------------------------------------------------------------------------------------------
# end
if last:
    log.summary(
        parameters=raw_model.n_params(), steps=step, tokens=step * tokens_per_step, seconds=seconds,
        flops=step * tokens_per_step * flops, val=val, bits_per_byte=val_data.bits_per_byte(val), config=config,
    )  # fmt: skip
del model  # DDP must go before its process group
run.close()
stop.exit_if_asked(stopping)
