"""Time and memory of the loss, of a distillation step, of HellaSwag, against a straightforward version; of encoding.

    python bench.py --part=head
    python bench.py --part=step --vocab_size=16000
    python bench.py --part=hellaswag --data=hellaswag_val.jsonl --repeats=1
    python bench.py --part=tokenizer --tokenizer=EleutherAI/pythia-160m      # these need pip install tokenizers
    python bench.py --part=bpe --vocab_size=16000 --repeats=1
    python bench.py --part=loader --dataset=data/stdlib
    python bench.py --part=gqa
    python bench.py --part=muon
    python bench.py --part=sample --rounds=3
    python bench.py --part=save --rounds=3
    python bench.py --part=race --course=shakespeare --rounds=3    # or --course=text
    python bench.py --part=fit config/rkld_olmo.py --memory=80e9 --batch_size=16    # before a run: memory and FLOPs

The versions take turns, each in a fresh process that warms up, takes the median of a few runs, and measures the best
square matmul of the moment, so that each is a share of the peak it had. Printed are medians over the rounds. "gqa"
and "muon" are single operations, whose versions take turns in one process (benchmarks/operations.py), and so do those
of "sample", which writes text with a random GPT-2 of 124M (benchmarks/sampling.py), and of "save", which writes
checkpoints (benchmarks/saving.py). "race" trains until a loss is reached (benchmarks/race.py). "fit" measures nothing:
it works out what a config of train.py or distill.py would take, or of all without one (benchmarks/fit.py).

    straightforward   logits of all tokens, F.cross_entropy and F.kl_div, as one writes it; of HellaSwag, an ending at a
                      time through all of the model
    four rows         HellaSwag an example at a time, its endings padded to four rows (Karpathy's loop)
    chunked           head.chunked_head, as in the loops
    cached            chunked, with 16 ids and a tail of each position in the place of the teacher (cache_teacher.py);
                      of "sample", model.generate
    recomputed        of "sample": the whole prefix again for each token, 8 at most
    copy              of "sample": a large tensor; bytes read and written, as many as a row of "cached" reads of weights
    student alone     chunked, without a teacher and without a divergence
    own text          chunked, on text that the student has written before: half of each row, token by token
    kept              straightforward, with one thing more that the loops do: freed memory is kept (common/runtime.py);
                      in steps on the CPU, where it tells how much of the gain is that
    tokenizers        encode_batch_fast of Hugging Face's library, or its BPE trainer
    tiktoken          a loop over the documents on one core
    nanodistill       what prepare_data.py or hellaswag.py does
"""

# before torch, so that Ctrl-C while it loads ends in one line
from configurator import at_least, configure, one_of  # isort: split

import json as jsonlib
import statistics
import subprocess
import sys
import time
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from benchmarks import encoding, fit, operations, race, sampling, saving
from benchmarks.cached_teacher import predictions_of, read_cached
from benchmarks.hellaswag_loops import compare_scores, four_endings, one_ending
from common.files import resident
from common.optim import make_optimizers
from common.own_text import write_own_text
from common.runtime import Runtime, matmul_peak
from head import chunked_head
from losses import Objective, divergence, loss_terms
from model import GPT, GPTConfig, LLaMA, LLaMAConfig

part = "head"  # or step, hellaswag, tokenizer, bpe, loader, gqa, muon, sample, save, race, fit; as above
vocab_size = 50257  # columns of the logits
tokens = 0  # of one run; 0: 8192 (head), 2048 (step) or 128 new ones of each row (sample)
student_width = 0  # 0: 768 (head) or 256 (step)
teacher_width = 0  # 0: 1024 (head) or 512 (step)
student_layers = 8  # step: blocks of the student, a LLaMA with an untied head
teacher_layers = 12  # step
block_size = 128  # step: tokens in a row
kl = "forward"  # any that distill.py knows; versions but "chunked" only have "forward"
chunk_tokens = 0  # of the chunked head; 0: as many as is fastest
tokenizer = "gpt2"  # tokenizer: a byte-level BPE, by folder or name
text = "stdlib"  # tokenizer, bpe: the documents, as prepare_data.py's source
dataset = "data/stdlib"  # loader
data = ""  # hellaswag: .jsonl file; "" downloads the official one
examples = 100  # hellaswag: of them, spread over the file
model = ""  # hellaswag: a model's folder or name; "": a GPT-2 of 124M with random weights
course = "shakespeare"  # race: which, see benchmarks/race.py
target = 0.0  # race: validation loss to reach, nats per token; 0: the course's
rounds = 5  # turns of each version; race: seeds
repeats = 3  # timed runs in each turn
device = "auto"  # "auto", "cpu" or "cuda"
dtype = "auto"  # of the matmuls, "float32" or "bfloat16"; "auto": bfloat16 on a GPU that has it
memory = 80e9  # fit: bytes of the device
peak = 989e12  # fit: FLOP/s of the device at best; an H100's bfloat16
mfu = 0.4  # fit: the share of that which a run reaches
compile = "off"  # torch.compile: "on", "off"; "auto": on CUDA
json = False  # print one JSON object instead of a table
version = ""  # run this one alone in this process, as its turns do
# a config file of train.py or distill.py, whose knobs are not these
if __name__ == "__main__" and fit.is_asked_for(sys.argv[1:]):
    fit.main(sys.argv[1:])
    sys.exit()
config = configure(globals())

PARTS = ("head", "step", "hellaswag", "tokenizer", "bpe", "loader", "gqa", "muon", "sample", "save", "race", "fit")
OPERATIONS = {"gqa": operations.compare_gqa, "muon": operations.compare_muon}
T = 2.0  # temperature
CHUNKED = ("chunked", "cached", "student alone", "own text")  # versions that call chunked_head
WEIGHT = 0.5  # of CE and of T**2 * KL


def main():
    at_least(config, 1, "vocab_size block_size student_layers teacher_layers examples rounds repeats")
    at_least(config, 0, "target tokens student_width teacher_width chunk_tokens")
    versions = ("", "straightforward", "four rows", "chunked", "cached", "student alone", "own text", "kept")
    versions += ("tokenizers", "tiktoken", "nanodistill")
    one_of(config, part=PARTS, version=versions)
    divergence(kl)  # an unknown name fails here
    if part == "step" and tokens % block_size:  # n // block_size rows have fewer tokens than would be counted
        raise ValueError(f"tokens={tokens} is not divisible by block_size={block_size}; choose a multiple")
    if part in OPERATIONS:
        medians = OPERATIONS[part](Runtime(device, dtype), n_turns=2 * rounds * repeats)
        print(jsonlib.dumps({"config": config, "medians": medians}) if json else operations.table(medians))
        return
    if part == "sample":
        figures = sampling.compare_sampling(Runtime(device, dtype), n_new=tokens or 128, n_turns=rounds)
        print(jsonlib.dumps({"config": config, "medians": figures}) if json else sampling.table(figures))
        return
    if part == "race":
        one_of(config, course=tuple(race.COURSES))
        results = race.run_race(course, target, n_seeds=rounds, device=device, dtype=dtype, compile=compile)
        goal = target or race.COURSES[course].target
        print(jsonlib.dumps({"config": config, "results": results}) if json else race.table(results, goal))
        return
    if part == "save":
        figures = saving.compare_saving(Runtime(device, dtype), n_turns=rounds)
        print(jsonlib.dumps({"config": config, "medians": figures}) if json else operations.table(figures))
        return
    if version:
        measure = {"tokenizer": text_turn, "bpe": text_turn, "loader": loader_turn}.get(part, turn)
        print(jsonlib.dumps(measure()))
        return
    on_cuda = Runtime(device, dtype).cuda
    names = ["straightforward"] * (kl == "forward") + ["chunked"]
    names += ["cached", "student alone", "own text"] * (part == "step")
    names += ["kept"] * (part == "step" and kl == "forward" and not on_cuda)
    other_parts = {
        "tokenizer": ["tokenizers", "nanodistill"],
        "bpe": ["tokenizers", "nanodistill"],
        "loader": ["nanodistill"],
        "hellaswag": ["straightforward", "four rows", "nanodistill"],
    }
    names = other_parts.get(part, names)
    if part == "tokenizer" and encoding.is_plain(tokenizer):
        names.insert(1, "tiktoken")
    report(take_turns(names))


def take_turns(names: list[str]) -> dict[str, list]:
    """{version: what each of its turns measured}."""
    results = {name: [] for name in names}
    command = [sys.executable, Path(__file__).resolve(), *sys.argv[1:]]
    # In turns, so that a machine that slows down slows all versions alike. Each in a new process, as peak memory is
    # known per process, and memory that one version has freed would be reused by the next.
    for _ in tqdm(range(rounds), "rounds", disable=not sys.stderr.isatty(), leave=False):
        for name in names:
            done = subprocess.run([*command, f"--version={name}"], stdout=subprocess.PIPE, text=True)
            if done.returncode < 0:
                sys.exit(f"{name} was killed by signal {-done.returncode}; 9 is mostly for want of memory")
            if done.returncode:
                sys.exit(done.returncode)  # it has printed the reason itself
            results[name].append(jsonlib.loads(done.stdout.splitlines()[-1]))
    return results


def report(results: dict[str, list]):
    medians = {}
    for name, turns in results.items():
        figures = [figure for figure in turns[0] if figure != "scores"]
        medians[name] = {figure: statistics.median(map(itemgetter(figure), turns)) for figure in figures}
    # speeds of versions with different results cannot be compared
    if len({m.get("ids") for m in medians.values()}) > 1:
        raise ValueError(f"the versions give different ids for {text}")
    verdict = compare_scores(results) if part == "hellaswag" else ""
    if json:
        print(jsonlib.dumps({"config": config, "medians": medians, "turns": results}))
    else:
        table(medians)
        print(verdict, end="\n" if verdict else "")


def table(medians):
    first_seconds = next(iter(medians.values()))["seconds"]
    if part in ("tokenizer", "bpe", "loader"):
        print("version            seconds       MB/s    memory   speed")
        for name, m in medians.items():
            print(
                f"{name:<16} {m['seconds']:9.4f} {m['bytes_per_s'] / 1e6:10.2f} {m['peak_bytes'] / 1e6:6,.0f} MB "
                f"{first_seconds / m['seconds']:5.2f}x"
            )
        return
    peak = statistics.median(m["peak_flops"] for m in medians.values())
    print(f"matmul peak {peak / 1e9:,.0f} GFLOP/s")
    unit, digits = ("examples/s", 2) if part == "hellaswag" else ("  tokens/s", 0)
    print(f"version            seconds {unit}  of peak    memory  beyond tensors   speed")
    for name, m in medians.items():
        print(
            f"{name:<16} {m['seconds']:9.4f} {m['tokens_per_s']:10,.{digits}f} {m['share_of_peak']:8.1%} "
            f"{m['peak_bytes'] / 1e6:6,.0f} MB {m['extra_bytes'] / 1e6:12,.0f} MB {first_seconds / m['seconds']:5.2f}x"
        )


# ---------------------------------------------------------------------------------------------
# one turn of one version


def turn() -> dict:
    """Seconds (median), tokens/s, FLOP/s as a share of the matmul peak, peak bytes of this process, all and extra.

    extra: beyond what was allocated before the first run, and the gradients of those tensors.
    """
    torch.manual_seed(0)
    # as in the loops, but not for the head by itself, nor for the versions to compare with
    keep_memory = part != "head" and version not in ("straightforward", "four rows")
    run = Runtime(device, dtype, keep_memory=keep_memory)
    prepare = {"head": head_part, "step": step_part, "hellaswag": hellaswag_part}[part]
    go, n_tokens, flops, grads = prepare(run)
    before = memory_used(run.cuda) + sum(g.numel() * g.element_size() for g in grads)
    n_warm = int(part != "hellaswag")  # hellaswag_part has warmed up already
    seconds, result = timed(go, n_warm, run.cuda)
    used = memory_used(run.cuda, peak=True)  # before matmul_peak, which takes memory too
    peak = matmul_peak(run.device, run.dtype, n=8192 if run.cuda else 1536)
    figures = {
        "seconds": seconds,
        "tokens_per_s": n_tokens / seconds,
        "share_of_peak": flops / seconds / peak,
        "peak_flops": peak,
        "peak_bytes": used,
        "extra_bytes": used - before,
    }
    if part == "hellaswag":
        figures["scores"] = result.tolist()
    return figures


def timed(go, n_warm: int, cuda=False) -> tuple[float, object]:
    """Seconds of go(), the median of `repeats` runs after n_warm others, and what the last returned."""
    times = []
    for _ in range(n_warm + repeats):
        start = time.perf_counter()
        result = go()
        # CUDA calls return before their kernels have run
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[n_warm:]), result


def text_turn() -> dict:
    """Seconds (median) to encode all documents, or to train a BPE on them, and what that is per second.

    ids: a checksum of the ids, the same for every version of "tokenizer".
    """
    documents = encoding.read_documents(text)
    if part == "bpe":
        go = encoding.training(version, documents, vocab_size)
        seconds, _ = timed(go, n_warm=0)
        ids = 0
    else:
        go = encoding.encoding(version, documents, tokenizer)
        seconds, encoded = timed(go, n_warm=1)
        ids = encoding.checksum(encoded)
    n_bytes = sum(len(document.encode(errors="replace")) for document in documents)
    used = memory_used(cuda=False, peak=True)
    return {"seconds": seconds, "bytes_per_s": n_bytes / seconds, "peak_bytes": used, "ids": ids}


def loader_turn() -> dict:
    """Seconds (median) to read the rows of 100 steps of 32 rows."""
    from common.data import TokenData

    data = TokenData(dataset, "train", block_size, seed=1337, batch_size=32)
    seconds, _ = timed(lambda: [data.batch(step, 0) for step in range(100)], n_warm=1)
    rate = 3200 * block_size / seconds
    used = memory_used(False, peak=True)
    return {"seconds": seconds, "bytes_per_s": 2 * rate, "tokens_per_s": rate, "peak_bytes": used}


def memory_used(cuda: bool, peak=False) -> int:
    """Bytes that this process uses now, or their peak so far: resident on the CPU, allocated on CUDA."""
    if cuda:
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    return resident(peak)


def loss_of(run, hidden, weight, targets, *, teacher_hidden, teacher_weight, body):
    """0.5 CE + 0.5 T**2 KL of hidden states (B, T, C) and (B, T, C_t), by the version under test.

    teacher_hidden: for "cached" what predictions_of returns, for "student alone" None.
    """
    if version in CHUNKED:
        heads = [(teacher_hidden, teacher_weight)] if version in ("chunked", "own text") else []
        stored = read_cached(teacher_hidden, run.device) if version == "cached" else None
        weights = {"weight_ce": WEIGHT, "weight_kl": WEIGHT * T**2}
        objective = Objective(**weights, terms=divergence(kl), temperature=T)
        loss, _, _ = chunked_head(
            hidden, weight, targets, n_tokens=targets.numel(), teachers=heads, objective=objective, stored=stored,
            vocab_size=vocab_size, chunk=chunk_tokens, dtype=run.dtype, body=body,
        )  # fmt: skip
        return loss
    with run.autocast():
        with torch.no_grad():
            teacher_logits = F.linear(teacher_hidden, teacher_weight).flatten(0, -2)
        return body(F.linear(hidden, weight).flatten(0, -2), teacher_logits, targets.flatten())


def straightforward_losses(logits, teacher_logits, targets):
    log_q = F.log_softmax(logits / T, dim=-1)
    p = F.softmax(teacher_logits / T, dim=-1)
    kl_div = F.kl_div(log_q, p, reduction="batchmean")
    return WEIGHT * F.cross_entropy(logits, targets) + WEIGHT * T**2 * kl_div


def head_part(run):
    """(one run, its tokens, its FLOPs, the tensors whose gradients it makes) of the head alone."""
    n, width, t_width = tokens or 8192, student_width or 768, teacher_width or 1024
    hidden = torch.randn(n, width, device=run.device, dtype=run.dtype, requires_grad=True)
    weight = torch.randn(vocab_size, width, device=run.device).mul_(0.02).requires_grad_()
    teacher_hidden = torch.randn(n, t_width, device=run.device, dtype=run.dtype)
    teacher_weight = torch.randn(vocab_size, t_width, device=run.device).mul_(0.02).to(run.dtype)
    targets = torch.randint(vocab_size, (n,), device=run.device)
    body = run.compile(loss_terms if version in CHUNKED else straightforward_losses, compile)

    def go():
        hidden.grad = weight.grad = None
        loss = loss_of(
            run, hidden, weight, targets, teacher_hidden=teacher_hidden, teacher_weight=teacher_weight, body=body
        )
        loss.backward()

    # the student's matmul once forward and twice backward, the teacher's only forward
    flops = 2 * n * vocab_size * (3 * width + t_width)
    return go, n, flops, (hidden, weight)


def step_part(run):
    """The same of a whole distillation step: teacher, student, backward, clipping, AdamW."""
    n, width, t_width = tokens or 2048, student_width or 256, teacher_width or 512
    # heads of 64 channels; an untied head, as a tied one would be trained as an embedding too
    shape = {"vocab_size": vocab_size, "block_size": block_size, "tie_word_embeddings": False}
    student = LLaMA(LLaMAConfig(n_layer=student_layers, n_head=width // 64, n_embd=width, **shape)).to(run.device)
    teacher = LLaMA(LLaMAConfig(n_layer=teacher_layers, n_head=t_width // 64, n_embd=t_width, **shape)).to(run.device)
    teacher = teacher.to(run.dtype).requires_grad_(False)
    optimizers = make_optimizers(
        student, "adamw", learning_rate=1e-3, weight_decay=0.1, beta1=0.9, beta2=0.95, eps=1e-8
    )
    ids = torch.randint(vocab_size, (n // block_size, block_size + 1), device=run.device)
    x = ids[:, :-1].contiguous()
    y = ids[:, 1:].contiguous()
    body = run.compile(loss_terms if version in CHUNKED else straightforward_losses, compile)
    model = run.compile(student, compile)
    # backward is twice forward
    flops = 3 * student.flops_per_token(block_size)
    has_teacher = version not in ("cached", "student alone")
    if has_teacher:
        flops += teacher.flops_per_token(block_size)
    cached_predictions = predictions_of(teacher, x, vocab_size, T) if version == "cached" else None
    teacher_weight = teacher.lm_head.weight if has_teacher else None

    if version == "own text":
        flops += student.flops_per_token(block_size)  # an upper bound for writing the text

    def go():
        x_step, y_step = x, y
        if version == "own text":
            own = half_own_text(student, x, y, run)
            x_step, y_step = run.to_device(own.x, own.y)
        with run.autocast():
            with torch.no_grad():
                teacher_hidden = teacher(x_step, hidden=True) if has_teacher else cached_predictions
            hidden = model(x_step, hidden=True)
        weight = student.lm_head.weight
        loss = loss_of(
            run, hidden, weight, y_step, teacher_hidden=teacher_hidden, teacher_weight=teacher_weight, body=body
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return go, n, n * flops, tuple(student.parameters())


def half_own_text(student, x, y, run):
    """Rows with the first half of those of x, which the student has continued."""
    half = block_size // 2
    student.eval()
    own = write_own_text(
        student, x.cpu(), y.cpu(), first_row=0, seed=0, prompt_tokens=(half, half), response_tokens=half,
        temperature=1.0, vocab_size=vocab_size, eot=0, run=run,
    )  # fmt: skip
    student.train()
    return own


def hellaswag_part(run):
    """(one run, examples, its FLOPs, no tensors) of scoring examples, by default with a random GPT-2 of 124M."""
    import hellaswag
    from common.pretrained import load_pretrained, round_up
    from common.tokenizer import load_tokenizer
    from tasks.scoring import lay_out

    if model:
        net = load_pretrained(model, dtype=torch.float32)
    else:
        net = GPT(GPTConfig(round_up(vocab_size, 64)))
    net = net.to(run.device).eval()
    bpe = load_tokenizer(model or tokenizer)
    all_examples = hellaswag.load_examples(data)
    scored = all_examples[:: max(1, len(all_examples) // examples)][:examples]  # spread over the file
    groups = [hellaswag.encode_rows(bpe, example["ctx"], example["endings"]) for example in scored]
    size = net.config.block_size
    n_positions = n_logits = 0  # positions that go through the model, and those that go through its head
    for group in groups:
        lengths = [len(ids) - 1 for ids, _ in group]
        if version == "nanodistill":
            rows = lay_out([(i, *ending) for i, ending in enumerate(group)], size)
            n_positions += sum(len(row.ids) for row in rows)
            n_logits += sum(len(row.scored) for row in rows)
        elif version == "straightforward":
            n_positions += sum(lengths)
        else:
            n_positions += 4 * max(lengths)
    n_logits = n_logits or n_positions  # the baselines compute the logits of all positions
    head_flops = 2 * net.lm_head.weight.numel()
    flops = n_positions * (net.flops_per_token(1) - head_flops) + n_logits * head_flops

    @torch.no_grad()
    def go(groups=groups):
        if version == "nanodistill":
            return hellaswag.score(net, groups, bpe.vocab_size, run)[:, :2]
        score = one_ending if version == "straightforward" else four_endings
        scores = []
        for group in groups:
            cut = [(ids[-size - 1 :], n) for ids, n in group]
            scores.append(score(net, cut, bpe.vocab_size, run))
        return np.concatenate(scores)

    go(groups[:4])  # to warm up
    return go, len(scored), flops, ()


if __name__ == "__main__":
    main()
