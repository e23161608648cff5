"""The scorer: log-probabilities of endings given their contexts, computing only once what texts share.

    encode_rows   context and endings -> texts: (token ids, how many of the last are scored)
    lay_out       texts that begin alike -> rows [start | rest 1 | rest 2 | …]
    batch         rows -> tensors of ids, positions and mask
    score         all of it, longest rows first, shared among the ranks

A group holds the texts of one question.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm

from common.runtime import Runtime
from common.sharding import is_sharded
from head import blocks, logits_in_chunks
from losses import Objective, loss_terms

# ---------------------------------------------------------------------------------------------
# texts


def encode_rows(tokenizer, ctx: str, endings: list[str], harness=False) -> list[tuple[list[int], int]]:
    """(ids, how many of the last are the ending's) of each text `ctx + " " + ending`.

    The ending's tokens are those of encode(ctx + " " + ending) beyond encode(ctx) where that is a prefix, else
    encode(" " + ending). With GPT-2's BPE, which never merges across the blank, both are Karpathy's rule:
    encode(ctx) + encode(" " + ending). An ending without tokens becomes the end-of-text id.
    An empty context becomes the beginning-of-text (or end-of-text) id. harness: a beginning-of-text id, if the
    tokenizer has a separate one, precedes every context, and blanks at the end of ctx belong to the ending.
    """
    before = ctx.rstrip() if harness else ctx
    context = tokenizer.encode(before)
    prefix = []
    # the first scored token needs something before it
    if not context or (harness and tokenizer.bos != tokenizer.eot):
        prefix = [tokenizer.bos]

    texts = []
    for ending in endings:
        text = f"{ctx} {ending}"
        ids = tokenizer.encode(text)
        begins_with_context = ids[: len(context)] == context
        if not begins_with_context or len(ids) == len(context):
            # a token spans the end of the context, or none is left for the ending
            ending_ids = tokenizer.encode(text[len(before) :])
            ids = context + (ending_ids or [tokenizer.eot])
        texts.append((prefix + ids, len(ids) - len(context)))
    return texts


# ---------------------------------------------------------------------------------------------
# rows


@dataclass
class Row:
    """Texts with a common beginning, in one row: [start | rest 1 | rest 2 | …].

    The start is what all of them begin with; it is computed once. The last id of a text is only predicted, so it has no
    column. Three texts, whose last 2, 3 and 1 ids are scored:

        1 2 3 4 5        column    0 1 2 | 3 | 4 5
        1 2 3 4 6 7      id        1 2 3 | 4 | 4 6
        1 2 3 8          position  0 1 2 | 3 | 3 4      in its text
                         part      0 0 0 | 1 | 2 2      0: the start, k: the rest of text k

    A column sees the columns up to itself that are of its own part or of the start. The third text has no rest: its 8
    is predicted at column 2, as the 4 of the others is.
    """

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    part: list[int] = field(default_factory=list)
    scored: list[tuple[int, int, int]] = field(default_factory=list)  # (column, the id that follows, number of a text)


def lay_out(texts, size: int) -> list[Row]:
    """Rows of at most `size` columns for texts [(number, ids, n)] of one group, n being how many are scored.

    A text beyond size + 1 ids loses its first ones, as the model cannot see them.
    """
    rows = []
    together = []  # the texts of the next row
    for number, ids, n in texts:
        ids = ids[-size - 1 :]
        text = (number, ids, min(n, len(ids) - 1))
        if together and count_columns([*together, text]) > size:
            rows.append(pack(together))
            together = []
        together.append(text)
    if together:
        rows.append(pack(together))
    return rows


def count_columns(texts) -> int:
    start = shared_start(texts)
    return start + sum(len(ids) - 1 - start for _, ids, _ in texts)


def shared_start(texts) -> int:
    """The number of inputs that all texts have in common at their beginning."""
    inputs = [ids[:-1] for _, ids, _ in texts]
    start = 0
    for ids_at_a_position in zip(*inputs):  # up to the end of the shortest
        if len(set(ids_at_a_position)) > 1:
            break
        start += 1
    return start


def pack(texts) -> Row:
    """One row of texts [(number, ids, n)], drawn at `Row`."""
    start = shared_start(texts)
    _, first_ids, _ = texts[0]
    row = Row(ids=first_ids[:start], positions=list(range(start)), part=[0] * start)
    for part, (number, ids, n) in enumerate(texts, 1):
        # the last id is only predicted
        rest = ids[start:-1]
        # of the text's inputs in the row
        columns = [*range(start), *range(len(row.ids), len(row.ids) + len(rest))]
        row.ids += rest
        row.positions += range(start, start + len(rest))
        row.part += [part] * len(rest)
        # each input predicts the id after it, and the last n predictions are scored
        for column, next_id in list(zip(columns, ids[1:]))[-n:]:
            row.scored.append((column, next_id, number))
    return row


PADDING = -1  # the `part` of columns that only fill up a batch


def batch(rows: list[Row], width: int, device):
    """ids (B, width), positions (B, width) and mask (B, 1, width, width) of rows.

    Where each row is one plain text, positions and mask are None: the model's own are right.
    """
    # filled as one array, so that one copy takes all three to the device
    table = np.zeros((3, len(rows), width), dtype=np.int64)
    table[2] = PADDING
    for i, row in enumerate(rows):
        table[:, i, : len(row.ids)] = row.ids, row.positions, row.part
    ids, positions, part = torch.from_numpy(table).to(device)
    # nothing but starts: plain causal attention, whose kernels are faster than those with a mask
    if max(max(row.part) for row in rows) == 0:
        return ids, None, None

    column = torch.arange(width, device=device)
    # [query, key] of a row: attention is causal, no text sees the rest of another, and none sees padding
    not_after = column[None, :] <= column[:, None]  # (width, width)
    same_part = part[:, None, :] == part[:, :, None]  # (B, width, width)
    key_in_start = (part == 0)[:, None, :]  # (B, 1, width)
    sees = (same_part | key_in_start) & not_after
    return ids, positions, sees[:, None]


# ---------------------------------------------------------------------------------------------
# scores


@torch.no_grad()
def score(model, groups, vocab_size: int, run: Runtime, progress="", greedy=False) -> np.ndarray:
    """(N, 3): of the last n ids of each text the summed log-probability in nats, n, and whether all are the likeliest.

    groups: for each question the list of its texts (ids, n), N in all. What the texts of a group share is computed
    once, and so are equal texts; the head is applied to scored positions only. The last column is right only with
    `greedy`. The groups are divided among the ranks. `model` in eval mode; progress: the name at the progress bar.
    Raises ValueError for a model that gives NaN.
    """
    size = raw(model).config.block_size
    if progress and run.is_main:
        announce_cut_texts(groups, size, progress)
    rows, equals = plan(groups, size, run)
    n_texts = sum(len(group) for group in groups)
    total = torch.zeros(n_texts, 3, dtype=torch.float64)

    all_batches = list(batches(rows, size, run))
    # every rank must take part in each pass of a divided model: those with fewer batches make idle passes
    n_passes = run.max(len(all_batches)) if is_sharded(model) else len(all_batches)

    is_watched = progress and run.is_main and sys.stderr.isatty()
    bar = tqdm(total=len(rows), unit="row", desc=progress, disable=not is_watched)
    for some_rows, width in all_batches:
        texts, values = score_batch(model, some_rows, width=width, vocab_size=vocab_size, run=run, greedy=greedy)
        # summed up on the CPU, as Apple's GPUs have no float64
        total.index_add_(0, texts.cpu(), values.cpu().double())
        bar.update(len(some_rows))
    bar.close()
    compute_idly(model, n_passes - len(all_batches), run)

    # each rank has filled in the rows of its own texts
    total = run.all_sum(total)
    if not total.isfinite().all():
        raise ValueError("the model gives log-probabilities that are not finite; its weights are damaged or diverged")
    # equal texts were computed once
    for first, numbers in equals.items():
        total[numbers] = total[first].clone()
    # so far this is the number of tokens that are not the likeliest
    total[:, 2] = total[:, 2] == 0
    return total.numpy()


def score_batch(model, rows: list[Row], width: int, vocab_size: int, run: Runtime, greedy: bool):
    """The text's number (P,) and [log-probability, 1, whether it is a miss] (P, 3) of each of P scored positions.

    A miss is a target that is not the likeliest token.
    """
    ids, positions, mask = batch(rows, width, run.device)
    places, targets, texts = scored_places(rows, width, run.device)  # (P,) each
    with run.autocast(), run.any_shape():
        hidden = model(ids, hidden=True, positions=positions, mask=mask)  # (B, width, C)
    hidden = hidden.flatten(0, 1)[places]  # (P, C)
    weight = raw(model).lm_head.weight.to(run.dtype)
    losses, hits = token_losses(hidden, weight, targets, vocab_size=vocab_size, greedy=greedy)
    return texts, torch.stack((-losses, torch.ones_like(losses), ~hits), dim=1)


def compute_idly(model, n_passes: int, run: Runtime):
    """Make forward passes of one token, without using their results."""
    ids = torch.zeros(1, 1, dtype=torch.long, device=run.device)
    for _ in range(n_passes):
        with run.autocast(), run.any_shape():
            model(ids, hidden=True)


def raw(model):
    """The module that torch.compile wrapped, or the model itself."""
    return getattr(model, "_orig_mod", model)


def announce_cut_texts(groups, size: int, name: str):
    n_texts = sum(len(group) for group in groups)
    n_cut = count_cut_texts(groups, size)
    if n_cut:
        print(
            f"{name}: {n_cut:,} of {n_texts:,} texts are beyond the model's {size} positions; they lose their first"
            + of_the_endings(count_cut_endings(groups, size)),
            file=sys.stderr,
        )


def count_cut_texts(groups, size: int) -> int:
    n_cut = 0
    for group in groups:
        # the last id needs no position
        n_cut += sum(len(ids) > size + 1 for ids, _ in group)
    return n_cut


def count_cut_endings(groups, size: int) -> int:
    """The number of texts of which not even all scored ids can be predicted."""
    n_cut = 0
    for group in groups:
        n_cut += sum(n > size for _, n in group)
    return n_cut


def of_the_endings(n_cut: int) -> str:
    """What to add to a line about texts that are cut: how many of them lose what is scored. "" for none."""
    if not n_cut:
        return ""
    return f"; {n_cut:,} of them are scored without the beginning of their ending, and do not compare with the others"


def plan(groups, size: int, run: Runtime) -> tuple[list[Row], dict[int, list[int]]]:
    """This rank's rows, longest first, and {number of a text: the numbers of all texts in its group that equal it}.

    Texts are numbered across all groups. Equal ones must get equal scores, so that the first of them wins: only one is
    computed, because batches of different shapes may round the same text differently.
    """
    rows = []
    equals = {}
    number = 0
    for i, group in enumerate(groups):
        numbers_by_text = {}
        for ids, n in group:
            numbers_by_text.setdefault((tuple(ids), n), []).append(number)
            number += 1
        distinct = []
        for (ids, n), numbers in numbers_by_text.items():
            equals[numbers[0]] = numbers
            distinct.append((numbers[0], list(ids), n))
        # numbers and equals are the same on all ranks, rows are not
        if i % run.world == run.rank:
            rows += lay_out(distinct, size)
    # the largest batch comes first: one that does not fit into memory fails at once
    rows.sort(key=lambda row: len(row.ids), reverse=True)
    return rows, equals


def batches(rows: list[Row], size: int, run: Runtime) -> Iterator[tuple[list[Row], int]]:
    """(rows, width) of each batch; rows are sorted by length, so that little of a batch is padding."""
    # columns of a batch: enough to keep a GPU busy, few enough for a CPU's cache
    budget = 32768 if run.cuda else 1536
    # widths are rounded up to a multiple, so that the compiler and the kernels meet few shapes
    multiple = 64 if run.cuda else 8
    start = 0
    while start < len(rows):
        longest = len(rows[start].ids)
        width = min(size, ceil_div(longest, multiple) * multiple)
        n_rows = max(1, budget // width)
        yield rows[start : start + n_rows], width
        start += n_rows


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def scored_places(rows: list[Row], width: int, device):
    """For each scored position of a batch: its index in (B * width), the id to predict, and its text's number."""
    places = []
    for i, row in enumerate(rows):
        for column, next_id, number in row.scored:
            places.append((i * width + column, next_id, number))
    return torch.tensor(places).T.to(device)


def token_losses(hidden, weight, target, vocab_size, greedy):
    """Cross-entropy in nats (N,), fp32, and with `greedy` whether the target is the likeliest, of hidden (N, C)."""
    losses = torch.empty(len(target), device=target.device)
    hits = torch.ones_like(target, dtype=torch.bool)
    for chunk, logits in logits_in_chunks([(hidden, weight)]):
        for block in blocks(logits):
            # columns beyond the vocabulary are padding
            z = logits[block, :vocab_size]  # (n, V)
            y = target[chunk][block]  # (n,)
            # the training head's own cross-entropy, with no teachers
            (ce, _), _ = loss_terms(z, [], y, Objective())
            losses[chunk][block] = ce
            if greedy:
                hits[chunk][block] = z.argmax(-1) == y
        del logits, z  # before the next chunk's are made
    return losses, hits
