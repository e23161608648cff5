"""Token streams: each token once an epoch, any split gives the same rows, and damage is named."""

import itertools
import json
import os

import numpy as np
import pytest
import torch
from conftest import write_dataset

from common.data import HEADER, MAGIC, TokenData, Tokens
from common.tokenizer import SentencePieceTokenizer


@pytest.fixture
def counting(tmp_path):
    """A data set whose ids are 0 … 199, so that a row's ids tell its place."""
    write_dataset(tmp_path)
    np.arange(200, dtype="<u2").tofile(tmp_path / "train.bin")
    return tmp_path


def test_an_epoch_sees_each_token_once(counting):
    data = TokenData(counting, "train", 16, seed=1, batch_size=1)
    assert data.n_rows == 11
    epochs = [data.rows(e * 11, 11) for e in range(3)]
    for x, y in epochs:
        assert torch.equal(y[:, :-1], x[:, 1:]) and torch.equal(y[:, -1], x[:, -1] + 1)
        assert len(x.unique()) == x.numel() == 11 * 16
    offsets = {int(x.min()) for x, _ in epochs}
    orders = {tuple(x[:, 0].tolist()) for x, _ in epochs}
    assert len(offsets) > 1 and len(orders) == 3 and max(offsets) < 16 + 200 % 16


def test_the_example_in_the_docstring(tmp_path):
    """17 tokens, T = 4, seed 4: the drawing of TokenData, and its document of 3 tokens."""
    folder = write_dataset(tmp_path / "constant")
    np.arange(17, dtype="<u2").tofile(folder / "train.bin")
    data = TokenData(folder, "train", 4, seed=4, batch_size=1)
    x, y = data.rows(0, 6)
    assert data.n_rows == 3
    assert x[:, 0].tolist() == [2 + 2 * 4, 2, 2 + 4, 1 + 4, 1 + 2 * 4, 1]  # offset + chunk * T
    assert x[0].tolist() == [10, 11, 12, 13] and y[0].tolist() == [11, 12, 13, 14]
    assert x[3].tolist() == [5, 6, 7, 8] and y[3].tolist() == [6, 7, 8, 9]

    folder = write_dataset(tmp_path / "documents")
    np.array([40, 41, 256], dtype="<u2").tofile(folder / "train.bin")
    x, y = TokenData(folder, "train", 4, seed=4, batch_size=1, packing="documents").rows(0, 1)
    assert x[0].tolist() == [40, 41, 256, 256] and y[0].tolist() == [41, 256, -1, -1]


def test_rows_are_a_pure_function_of_seed_and_step(counting):
    steps = [TokenData(counting, "train", 16, 1, batch_size=2, grad_accum_steps=2) for _ in range(2)]
    forward = [steps[0].batch(step, micro) for step in range(8) for micro in range(2)]
    backward = [steps[1].batch(step, micro) for step in reversed(range(8)) for micro in reversed(range(2))]
    for (x, y), (a, b) in zip(forward, reversed(backward)):
        assert torch.equal(x, a) and torch.equal(y, b)
    other = TokenData(counting, "train", 16, 2, batch_size=2, grad_accum_steps=2)
    assert not torch.equal(other.batch(0, 0)[0], forward[0][0])


def test_ranks_and_micro_steps_share_the_same_rows(counting):
    """A step of 4 rows: one batch of 4; two micro-steps of 2; two ranks of 2; two ranks, two micro-steps of 1."""

    def step_rows(step, batch_size, accum, world):
        parts = [
            TokenData(counting, "train", 16, 1, batch_size, accum, rank, world).batch(step, micro)[0]
            for micro in range(accum)
            for rank in range(world)
        ]
        return torch.cat(parts)

    for step in range(6):
        want = step_rows(step, 4, 1, 1)
        for split in ((2, 2, 1), (2, 1, 2), (1, 2, 2)):
            assert torch.equal(step_rows(step, *split), want)


def test_eval_batches_cover_the_rows_once_in_one_shape(counting):
    batches = [b for r in range(2) for b in TokenData(counting, "val", 16, 0, 4, 1, r, 2).eval_batches(0)]
    assert {tuple(x.shape) for x, _ in batches} == {(4, 16)}
    data = TokenData(counting, "val", 16, 0, 4)
    assert sum((y >= 0).sum() for _, y in batches) == data.n_rows * 16
    first = torch.cat([y for _, y in data.eval_batches(6)])
    assert (first >= 0).sum() == 6 * 16


def test_all_ranks_have_as_many_eval_batches(counting):
    """Three rows in batches of two: the second rank has one, the third none, and the fourth too."""
    ranks = [TokenData(counting, "val", 16, 0, 2, 1, rank, 4) for rank in range(4)]
    for rank, n_rows in zip(ranks, (2, 1, 0, 0)):
        ((x, y),) = rank.eval_batches(3)
        assert x.shape == y.shape == (2, 16) and (y >= 0).sum() == n_rows * 16
        (numbers,) = rank.eval_batch_rows(3)
        assert numbers.shape == (2,) and (numbers < rank.n_rows).all()


def test_steps_and_bits_per_byte(counting):
    data = TokenData(counting, "train", 16, 1, batch_size=2, grad_accum_steps=2)
    assert data.steps(1) == 3 and data.steps(2) == 6 and data.steps(0.1) == 1
    (counting / "meta.json").write_text(json.dumps(data.meta | {"val_tokens": 100, "val_bytes": 400}))
    val = TokenData(counting, "val", 16, 1, batch_size=2)
    assert val.bits_per_byte(4 * np.log(2)) == pytest.approx(1.0)


def test_one_row_is_enough(tmp_path):
    write_dataset(tmp_path)
    np.arange(17, dtype="<u2").tofile(tmp_path / "train.bin")
    x, y = TokenData(tmp_path, "train", 16, 0, 1).batch(5, 0)
    assert x[0].tolist() == list(range(16)) and y[0, -1] == 16


def test_damage_is_named(tmp_path):
    write_dataset(tmp_path)
    path = tmp_path / "train.bin"

    def error():
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            TokenData(tmp_path, "train", 16, 0, 1).batch(0, 0)
        return str(caught.value)

    path.write_bytes(b"\0" * 1001)
    assert "train.bin: 1001 bytes is no multiple of 2" in error()
    path.write_bytes(b"\0" * 32)
    assert "train.bin: 16 tokens, but one row needs block_size + 1 = 17" in error()
    np.full(17, 257, dtype="<u2").tofile(path)
    assert ", train: id 257 at token 0, but meta.json says vocab_size=257" in error()
    path.unlink()
    assert "train.bin is not there" in error()
    meta = json.loads((tmp_path / "meta.json").read_text())
    for key, value, message in (
        ("vocab_size", 0, "meta.json: vocab_size=0 is out of range; prepare the data again"),
        ("vocab_size", "257", "meta.json: vocab_size='257' is out of range"),
        ("eot", 257, "meta.json: eot=257 is out of range"),
        ("train_bytes", -1, "meta.json: train_bytes=-1 is out of range"),
        ("dtype", "int8", "meta.json: dtype='int8' is not one of uint16, uint32; prepare the data again"),
    ):
        (tmp_path / "meta.json").write_text(json.dumps(meta | {key: value}))
        assert message in error()
    (tmp_path / "meta.json").write_text("{")
    assert "meta.json is not JSON" in error()
    (tmp_path / "meta.json").write_text('{"tokenizer": "bytes"}')
    assert "meta.json lacks tokenizer_hash, vocab_size, eot" in error()
    (tmp_path / "meta.json").unlink()
    assert "has no meta.json; first run: python prepare_data.py" in error()


# ---------------------------------------------------------------------------------------------
# shards, headers, wide ids


def shards_of(folder, ids, sizes, dtype="<u2", **meta):
    """A data set whose training ids lie in several files of those sizes."""
    write_dataset(folder)
    names, first = [], 0
    for i, size in enumerate(sizes):
        names.append(f"train_{i:03}.bin")
        np.array(ids[first : first + size], dtype=dtype).tofile(folder / names[-1])
        first += size
    said = json.loads((folder / "meta.json").read_text()) | {"train_files": names, "train_tokens": len(ids)} | meta
    said["dtype"] = {"<u2": "uint16", "<u4": "uint32"}[dtype]
    (folder / "meta.json").write_text(json.dumps(said))
    return folder


@pytest.mark.parametrize("sizes", [(200,), (100, 100), (1, 199), (17, 0, 150, 33), (50, 50, 50, 50)])
def test_rows_do_not_depend_on_how_the_ids_lie_in_files(counting, tmp_path, sizes):
    data = TokenData(shards_of(tmp_path / "shards", np.arange(200), sizes), "train", 16, 1, 4)
    whole = TokenData(counting, "train", 16, 1, 4)
    for step in range(9):
        assert all(torch.equal(a, b) for a, b in zip(data.batch(step, 0), whole.batch(step, 0)))


def test_ids_beyond_65536_are_uint32(tmp_path):
    ids = np.arange(100_000, 100_200)
    folder = shards_of(tmp_path, ids, (120, 80), "<u4", vocab_size=128_256)
    x, y = TokenData(folder, "train", 16, 1, 4).batch(0, 0)
    assert x.min() >= 100_000 and torch.equal(y, x + 1)
    (folder / "train_000.bin").write_bytes((folder / "train_000.bin").read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"198 tokens, but meta.json says 200; it was cut, prepare it again"):
        TokenData(folder, "train", 16, 1, 4)
    (folder / "train_000.bin").write_bytes(b"0" * 30)
    with pytest.raises(ValueError, match="30 bytes is no multiple of 4"):
        TokenData(folder, "train", 16, 1, 4)


# ---------------------------------------------------------------------------------------------
# properties


def test_an_epoch_visits_every_chunk_once_whatever_the_sizes(tmp_path):
    """Over sizes, rows, ranks, accumulation, offsets: the rows of a step do not depend on who reads them."""
    rng = np.random.default_rng(0)
    for case in range(60):
        T, n = int(rng.integers(1, 20)), int(rng.integers(21, 400))
        folder = shards_of(tmp_path / str(case), np.arange(n), (n // 3, n - n // 3), vocab_size=1000)
        batch, accum, world = (int(k) for k in rng.integers(1, 4, 3))
        random_offset, seed = bool(rng.integers(2)), int(rng.integers(100))
        ranks = [
            TokenData(folder, "train", T, seed, batch, accum, r, world, random_offset=random_offset)
            for r in range(world)
        ]
        alone = TokenData(folder, "train", T, seed, batch * accum * world, random_offset=random_offset)
        rows = []
        for step in range(alone.steps(3)):
            parts = [rank.batch(step, micro)[0] for micro in range(accum) for rank in ranks]
            assert torch.equal(torch.cat(parts), alone.batch(step, 0)[0])
            rows += torch.cat(parts)[:, 0].tolist()
        for epoch in range(3):
            firsts = sorted(rows[epoch * alone.n_rows : (epoch + 1) * alone.n_rows])
            assert len(set(firsts)) == alone.n_rows and {b - a for a, b in itertools.pairwise(firsts)} <= {T}
            assert (firsts[0] == 0 or random_offset) and firsts[-1] + T < n


@pytest.mark.parametrize("leading", [False, True])
def test_one_document_a_row(tmp_path, leading):
    """Cut or padded, with targets by length: eot is one where a document has it. Sets may begin with an eot, too."""
    eot, lengths = 256, [3, 40, 1, 16, 17, 2]
    documents = [[10 * i + k % 10 for k in range(n)] for i, n in enumerate(lengths, 1)]
    ids = [eot] * leading + [t for d in documents for t in [*d, eot]]
    folder = shards_of(tmp_path, ids, (len(ids) // 2, len(ids) - len(ids) // 2))
    data = TokenData(folder, "train", 16, 3, 2, packing="documents")
    assert data.n_rows == 6 and data.steps(1) == 3
    x, y = data.rows(0, 6)
    found = []
    for inputs, targets in zip(x.tolist(), y.tolist()):
        n = sum(t >= 0 for t in targets)
        assert targets[n:] == [-1] * (16 - n) and inputs[n + 1 :] == [eot] * (15 - n)
        found.append([inputs[0], *targets[:n]])
    assert sorted(found) == sorted([*d, eot][:17] for d in documents)
    assert torch.equal(data.rows(6, 6)[0].sort(0).values, x.sort(0).values) and not torch.equal(data.rows(6, 6)[0], x)
    with pytest.raises(ValueError, match="packing='padded' is not one of constant, documents"):
        TokenData(folder, "train", 16, 3, 2, packing="padded")


# ---------------------------------------------------------------------------------------------
# what the rows of packing="documents" use, and what their loss is divided by


def test_documents_that_are_cut_are_said(tmp_path):
    """Three documents of 100, 10 and 50 ids: rows of 16 + 1 use 17 + 10 + 17 of 160."""
    documents = [[i + 1] * (n - 1) + [256] for i, n in enumerate((100, 10, 50))]
    folder = shards_of(tmp_path / "long", list(itertools.chain(*documents)), (160,))
    data = TokenData(folder, "train", 16, 0, 1, packing="documents")
    assert data.share_used == pytest.approx(44 / 160)
    assert 'packing="documents": 3 rows use 44 of the 160 tokens of train (27.5%), as' in data.packing_note
    constant = TokenData(folder, "train", 16, 0, 1)
    assert constant.share_used == 1.0 and constant.packing_note == ""
    whole = TokenData(folder, "train", 128, 0, 1, packing="documents")
    assert whole.share_used == 1.0 and whole.packing_note == ""


def test_bits_per_byte_of_documents_counts_the_bytes_that_are_scored(tmp_path):
    """A target is a byte or, without any, the end of a document; the first id of a row is no target."""
    documents = [[*b"abcdefgh", 256], [*b"abcd", 256], [*b"x" * 200, 256]]
    folder = shards_of(tmp_path, list(itertools.chain(*documents)), (sum(map(len, documents)),), train_bytes=212)
    short = TokenData(folder, "train", 4, 0, 1, packing="documents")
    assert short.bits_per_byte(np.log(2)) == pytest.approx((4 + 4 + 4) / (4 + 3 + 4))
    whole = TokenData(folder, "train", 500, 0, 1, packing="documents")
    assert whole.bits_per_byte(np.log(2)) == pytest.approx((8 + 4 + 200) / (7 + 3 + 199))
    empty = shards_of(tmp_path / "empty", [1, 256] * 10, (20,))
    assert np.isnan(TokenData(empty, "train", 4, 0, 1, packing="documents").bits_per_byte(1.0))
    constant = TokenData(folder, "train", 4, 0, 1)
    assert constant.bits_per_byte(np.log(2)) == pytest.approx(sum(map(len, documents)) / 212)


def test_bits_per_byte_of_normalised_text_is_that_of_the_text_as_it_was(tmp_path):
    """A tokenizer that makes one byte of three (NFKC) has the same bits per byte in both packings."""
    documents = [[*b"abcdefgh", 256], [*b"abcd", 256]]
    ids = list(itertools.chain(*documents))
    folder = shards_of(tmp_path, ids, (len(ids),), train_bytes=3 * 12)
    found = TokenData(folder, "train", 16, 0, 1, packing="documents").bits_per_byte(np.log(2))
    assert found == pytest.approx((8 + 4) / (3 * (7 + 3)))
    assert TokenData(folder, "train", 8, 0, 1).bits_per_byte(np.log(2)) == pytest.approx(14 / 36)


def test_the_bytes_of_a_sentencepiece_by_id():
    text = "Some words, a café, and a snowman ☃ that the training text has not\n  twice"
    tokenizer = SentencePieceTokenizer.train([text.replace("☃", "") * 5], 300)
    lengths, ids = tokenizer.byte_lengths(), tokenizer.encode(text)
    assert lengths[ids].sum() == len(text.encode()) and lengths[tokenizer.eot] == 0


def write_header(path, n_ids, size):
    header = np.zeros(256, dtype="<i4")
    header[:3] = MAGIC, 1, n_ids
    path.write_bytes(header.tobytes())
    os.truncate(path, size)  # the ids are a hole in the file, which takes no room
    return path


def test_a_header_of_two_to_the_thirty_ids(tmp_path):
    """Their bytes are 2**31: one more than an int32 holds."""
    path = write_header(tmp_path / "large_train_000000.bin", 1 << 30, HEADER + (1 << 31))
    tokens = Tokens([path], "uint16")
    assert len(tokens) == 1 << 30 and tokens.take((1 << 30) - 2, 2).tolist() == [0, 0]
    write_header(path, -300, HEADER - 600)
    with pytest.raises(ValueError, match="424 bytes, but its header says -300 ids; it was cut, fetch it again"):
        Tokens([path], "uint16")
