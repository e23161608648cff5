"""cache_teacher.py and common/teacher_cache.py: what is stored, after any kill and by any ranks; what is refused."""

import doctest
import fcntl
import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, run_script, write_dataset

import common.teacher_cache
from common.cache_writer import CacheWriter, as_stored, draw, first_difference, record, uniforms_of
from common.data import TokenData
from common.pretrained import load_pretrained
from common.teacher_cache import WHOLE, TeacherCache, bytes_per_token, fields, ids_dtype, token_files_sha256
from losses import Objective, mixture

T = 16  # of TINY
V = 257  # of write_dataset


def test_examples_in_docstrings():
    outcome = doctest.testmod(common.teacher_cache)
    assert outcome.attempted > 0 and outcome.failed == 0


def test_bytes_of_a_token_as_the_docs_say():
    bpe_16000 = partial(fields, 16_000, draws=0, number_format="float16")
    assert [bytes_per_token(bpe_16000(k)) for k in (4, 16, 64, WHOLE)] == [24, 72, 264, 32_004]
    # uint32 ids, float32 and draws; and no likeliest ids at all
    assert bytes_per_token(fields(128_256, 16, 3, "float32")) == 16 * (4 + 4) + 4 + 3 * 4 + 4
    assert fields(V, 0, 2, "float16").keys() == {"log_tail", "draws", "entropy"}
    assert (ids_dtype(65_536), ids_dtype(65_537)) == ("uint16", "uint32")


# ---------------------------------------------------------------------------------------------
# rows of the corpus


@pytest.mark.parametrize("packing", ["constant", "documents"])
def test_rows_are_found_by_their_numbers_in_the_corpus(tmp_path, packing):
    """batch() is corpus_rows() of batch_rows(), over epochs, ranks and micro-steps; the same of validation."""
    folder = write_dataset(tmp_path)
    ids = np.fromfile(folder / "train.bin", "<u2")
    ids[np.random.default_rng(0).choice(len(ids), 90, replace=False)] = 256
    ids.tofile(folder / "train.bin")
    for rank in range(2):
        data = TokenData(folder, "train", T, 3, 4, 2, rank, 2, packing=packing, random_offset=False)
        data.continue_at(2, 5)
        for step in range(2, 2 + data.steps(2.5)):
            for micro_step in range(2):
                numbers = data.batch_rows(step, micro_step)
                assert all(map(torch.equal, data.corpus_rows(numbers), data.batch(step, micro_step)))
        for numbers, (x, y) in zip(data.eval_batch_rows(10), data.eval_batches(10), strict=True):
            n_real = int((y[:, 0] >= 0).sum())
            assert numbers.shape == (4,) and set(numbers[n_real:]) <= {numbers[0]}
            assert all(map(torch.equal, data.corpus_rows(numbers[:n_real]), (x[:n_real], y[:n_real])))
    assert sorted(data.chosen(data.n_rows, data.n_rows)) == list(range(data.n_rows))


def test_a_row_of_the_corpus_begins_at_its_number_times_the_block_size(tmp_path):
    folder = write_dataset(tmp_path)
    np.arange(200, dtype="<u2").tofile(folder / "train.bin")
    x, y = TokenData(folder, "train", T, seed=1, batch_size=1).corpus_rows(np.array([3, 0]))
    assert x[:, 0].tolist() == [3 * T, 0] and torch.equal(y, x + 1)


# ---------------------------------------------------------------------------------------------
# records


def test_a_tail_of_1e_20_has_its_digits():
    """Against float64; 1 - sum of the stored would be 0, or rounding."""
    g = torch.Generator().manual_seed(0)
    z = 5 * torch.randn(50, 1000, generator=g)
    z[:, 4:] -= torch.linspace(0, 120, 50)[:, None]
    log_p, p = mixture([z], Objective(temperature=2.0))
    parts = record(log_p, p, 4, torch.empty(50, 0))
    expected = (z.double() / 2).log_softmax(-1)
    top, ids = expected.topk(4)
    log_tail = expected.scatter(1, ids, -math.inf).logsumexp(-1)
    assert log_tail.min() < math.log(1e-20)
    assert torch.equal(parts["ids"], ids)
    assert (parts["log_tail"] - log_tail).abs().max() < 1e-5
    assert (parts["log_probs"] - top).abs().max() < 1e-5
    entropy = -(expected.exp() * expected).sum(-1)
    assert (parts["entropy"] - entropy).abs().max() < 1e-5


def test_what_is_ruled_out_and_what_is_left_over():
    """Ids with a logit of -inf; a tail of such ids; and no tail at all: -1e9 each, never NaN or infinite."""
    z = torch.tensor([[0.0, 1.0, -math.inf, -math.inf, -math.inf]])
    for k in (2, 3, 5):
        log_p, p = mixture([z], Objective())
        parts = record(log_p, p, k, torch.rand(1, 3 if k < 5 else 0).double())
        assert parts["log_tail"].item() == -1e9 and parts["ids"][0, :2].tolist() == [1, 0]
        layout = fields(5, k, 0, "float16")
        assert np.isfinite(as_stored(parts["log_probs"], layout["log_probs"])).all()
        if k < 5:
            assert set(parts["draws"][0].tolist()).isdisjoint(parts["ids"][0].tolist())


def test_draws_follow_the_tail():
    """Chi-square of 200,000 draws from 8 ids whose probabilities span five orders of magnitude."""
    z = torch.tensor([[9.0, 8.0, 7.0, 7.5, 0.0, 1.0, 2.0, -8.0, 3.0, 1.5, -1.0, 0.5]])
    log_p, p = mixture([z], Objective())
    tail = z.double().softmax(-1)[0, 4:]
    expected = 200_000 * tail / tail.sum()
    uniforms = torch.from_numpy(uniforms_of(seed=1, number=7, block_size=1, draws=200_000))
    ids = record(log_p, p, 4, uniforms)["draws"][0]
    counts = torch.bincount(ids, minlength=12)
    assert counts[:4].sum() == 0
    chi_square = ((counts[4:] - expected) ** 2 / expected).sum().item()
    assert chi_square < 24.3  # 7 degrees of freedom, one in a thousand


def test_draws_at_the_ends_of_the_distribution():
    """The uniform numbers 0, the last below 1, and 1 itself, which rounding can make; of sums that rounding spoils."""
    log_weights = torch.log_softmax(torch.randn(40, 5000, generator=torch.Generator().manual_seed(1)) * 8, -1)
    is_stored = torch.zeros_like(log_weights, dtype=torch.bool)
    is_stored[:, :3] = is_stored[:, -3:] = True
    log_weights[is_stored] = -math.inf
    uniforms = torch.tensor([0.0, 5e-324, np.nextafter(1, 0), 1.0], dtype=torch.float64).expand(40, 4)
    ids = draw(log_weights - 60_000, uniforms)  # a tail that underflows in any format
    assert not is_stored.gather(1, ids).any() and ids.max() < 5000
    assert (ids[:, 0] == 3).all()


def test_draws_are_those_of_float64():
    """Of 50,000 ids as good as equally likely, the id at which a sum of float64 exceeds the uniform number."""
    log_weights = torch.log_softmax(0.1 * torch.randn(3, 50_000, generator=torch.Generator().manual_seed(2)), -1)
    uniforms = np.random.default_rng(3).random((3, 2000))
    ids = draw(log_weights.clone(), torch.from_numpy(uniforms)).numpy()
    for row in range(3):
        cumulative = np.cumsum(np.exp(log_weights[row].double().numpy()))
        expected = np.searchsorted(cumulative, uniforms[row] * cumulative[-1], side="right")
        assert (ids[row] == expected).mean() > 0.999


# ---------------------------------------------------------------------------------------------
# a cache in the making, in this process


def settings_for(dataset, **changed):
    """What cache.json would say, and the numbers of the rows."""
    datas = {s: TokenData(dataset, s, T, seed=0, batch_size=8, random_offset=False) for s in ("train", "val")}
    numbers = {"train": np.arange(datas["train"].n_rows), "val": np.sort(datas["val"].chosen(0, 8))}
    info = dict(
        format=1, teachers=["a"], teacher_sha256=["0"], teacher_config_sha256=["0"],
        shares=[1.0], ensemble="logits", temperature=2.0,
        teacher_dtype="float32", dtype="float32", dataset=str(dataset),
        tokenizer_hash=datas["train"].meta["tokenizer_hash"], vocab_size=V, block_size=T, packing="constant",
        random_offset=False, top_k=4, draws=2, seed=1, number_format="float32", ids_dtype="uint16", batch_size=8,
    )  # fmt: skip
    info |= changed
    info["splits"] = {
        s: {"rows": len(numbers[s]), "n_rows": data.n_rows, "sha256": token_files_sha256(data)}
        for s, data in datas.items()
    }
    return info, numbers


def distribution(split, number):
    """Logits (T, V) of a row: any, but each row has its own."""
    g = torch.Generator().manual_seed(1000 * (split == "val") + int(number))
    return 4 * torch.randn(T, V, generator=g)


def write_rows(writer, numbers, blocks=None):
    for block in writer.remaining() if blocks is None else blocks:
        split, first, n = writer.blocks[block]
        rows = numbers[split][first : first + n]
        log_p, p = mixture([torch.cat([distribution(split, row) for row in rows])], Objective(temperature=2.0))
        uniforms = np.concatenate([uniforms_of(1, int(row), T, writer.info["draws"]) for row in rows])
        parts = record(log_p, p, writer.info["top_k"], torch.from_numpy(uniforms))
        writer.write_block(block, {name: as_stored(parts[name], field) for name, field in writer.layout.items()})


def make_cache(folder, dataset, **changed):
    folder.mkdir(parents=True, exist_ok=True)
    info, numbers = settings_for(dataset, **changed)
    writer = CacheWriter(folder, info)
    writer.begin(numbers)
    write_rows(writer, numbers)
    writer.flush()
    writer.finish()
    return folder


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"}


@pytest.fixture(scope="module")
def cached(dataset, tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("caches") / "small", dataset)


def test_rows_are_read_as_they_were_written(cached, dataset):
    cache = TeacherCache(cached)
    assert TeacherCache.is_one(cached) and not TeacherCache.is_one(dataset)
    data = TokenData(dataset, "val", T, seed=0, batch_size=5, random_offset=False)
    for numbers in [*data.eval_batch_rows(8)]:
        parts = cache.read("val", numbers)
        log_p = (torch.cat([distribution("val", row) for row in numbers]).double() / 2).log_softmax(-1)
        N = 5 * T
        shapes = {"ids": (N, 4), "log_probs": (N, 4), "log_tail": (N,), "draws": (N, 2), "entropy": (N,)}
        assert {name: tuple(values.shape) for name, values in parts.items()} == shapes
        assert {values.dtype for values in parts.values()} == {torch.int64, torch.float32}
        assert torch.equal(parts["ids"], log_p.topk(4).indices)
        assert (parts["log_probs"] - log_p.gather(1, parts["ids"])).abs().max() < 1e-5
        total = parts["log_probs"].exp().sum(-1) + parts["log_tail"].exp()
        assert (total - 1).abs().max() < 1e-5
        assert not (parts["draws"][:, :, None] == parts["ids"][:, None, :]).any() and parts["draws"].max() < V
    with pytest.raises(ValueError, match=r"small has 8 rows of val, and row \d+ is not among them; make the cache ag"):
        cache.read("val", np.setdiff1d(np.arange(61), data.chosen(0, 8))[:1])


@pytest.mark.parametrize("number_format", ["float16", "float32"])
@pytest.mark.parametrize("top_k, draws", [(WHOLE, 0), (0, 3), (V, 0), (1, 1)])
def test_every_width(tmp_path, dataset, top_k, draws, number_format):
    cache = TeacherCache(make_cache(tmp_path, dataset, top_k=top_k, draws=draws, number_format=number_format))
    rows = np.array([5, 3, 5])
    parts = cache.read("train", rows)
    log_p = (torch.cat([distribution("train", row) for row in rows]).double() / 2).log_softmax(-1)
    # half a unit in the last place of float16, and as much for the shift that makes the sum 1
    bound = 1e-5 if number_format == "float32" else 2**-10 * log_p.abs().max()
    mass = parts["log_probs"].double().exp().sum(-1)
    if top_k != WHOLE:
        mass += parts["log_tail"].double().exp()
    assert (mass - 1).abs().max() < 1e-6
    if top_k == WHOLE:
        assert parts.keys() == {"log_probs", "entropy"}
        assert (parts["log_probs"] - log_p).abs().max() < bound
        return
    assert parts["ids"].shape == (3 * T, top_k) and parts["draws"].shape == (3 * T, draws)
    assert top_k == 0 or (parts["log_probs"] - log_p.topk(top_k).values).abs().max() < bound
    if top_k in (0, V):
        assert (parts["log_tail"] - (0 if top_k == 0 else -1e9)).abs().max() < 1e-5


def test_float16_moves_a_kl_by_2e_6_nats(tmp_path, dataset):
    """KL from the exact distribution to the stored one over its k + 1 outcomes, in float64."""
    for top_k in (WHOLE, 4, 16):
        folder = make_cache(tmp_path / str(top_k), dataset, top_k=top_k, draws=0, number_format="float16")
        parts = TeacherCache(folder).read("train", np.arange(100))
        z = torch.cat([distribution("train", row) for row in range(100)])
        log_p = (z.double() / 2).log_softmax(-1)
        log_q = parts["log_probs"].double()
        if top_k != WHOLE:
            log_tail = log_p.scatter(1, parts["ids"], -math.inf).logsumexp(-1)
            log_p = torch.cat((log_p.gather(1, parts["ids"]), log_tail[:, None]), -1)
            log_q = torch.cat((log_q, parts["log_tail"].double()[:, None]), -1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        assert kl.abs().max() < 3e-6 and kl.abs().mean() < 1e-6


def test_a_kill_between_any_two_steps_of_the_writer(tmp_path, cached, dataset):
    """As the folder would lie there: begun; blocks written but not recorded; renamed, and done.bin not yet deleted."""
    info, numbers = settings_for(dataset)
    CacheWriter(tmp_path, info).begin(numbers)
    with pytest.raises(ValueError, match=r"is an unfinished cache; run the cache_teacher\.py command again"):
        TeacherCache(tmp_path)
    (tmp_path / "done.bin").write_bytes(b"")
    CacheWriter(tmp_path, info).begin(numbers)
    writer = CacheWriter(tmp_path, info)
    write_rows(writer, numbers, blocks=[0, 3])
    writer.flush()
    write_rows(writer, numbers, blocks=[1])
    again = CacheWriter(tmp_path, info)
    again.check_settings()
    again.begin(numbers)
    assert again.missing_bytes() == 0
    assert again.remaining() == [b for b in range(len(again.blocks)) if b not in (0, 3)]
    write_rows(again, numbers)
    again.flush()
    again.finish()
    assert contents(tmp_path) == contents(cached)
    (tmp_path / "done.bin").write_bytes(b"\1")
    again = CacheWriter(tmp_path, info)
    again.check_settings()
    assert again.is_finished() and TeacherCache(tmp_path) and contents(tmp_path) == contents(cached)


@pytest.mark.parametrize("how", ["cut", "deleted"])
def test_a_file_that_went_away_is_written_again(tmp_path, cached, dataset, how):
    info, numbers = settings_for(dataset)
    writer = CacheWriter(tmp_path, info)
    writer.begin(numbers)
    write_rows(writer, numbers, blocks=[0, 1])
    writer.flush()
    if how == "cut":
        os.truncate(tmp_path / "train_ids.bin", 10)
    else:
        (tmp_path / "train_ids.bin").unlink()
    writer = CacheWriter(tmp_path, info)
    writer.begin(numbers)
    write_rows(writer, numbers)
    writer.flush()
    writer.finish()
    assert contents(tmp_path) == contents(cached)


def test_other_settings_are_refused(cached, dataset):
    info, _ = settings_for(dataset)
    CacheWriter(cached, info | {"batch_size": 3, "teachers": ["moved"], "dataset": "moved"}).check_settings()
    for changed, message in (
        ({"top_k": 5}, "holds a finished cache of top_k=4, this run has 5; choose another --out_dir, or delete"),
        ({"temperature": 1.0}, "of temperature=2.0, this run has 1.0;"),
        ({"teacher_sha256": ["1"]}, "of other teachers, by the hashes of their weights;"),
        ({"teacher_config_sha256": ["1"]}, "of teachers whose config.json was another;"),
        (
            {"splits": info["splits"] | {"val": info["splits"]["val"] | {"rows": 9}}},
            "of other token files, rows or eva",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            CacheWriter(cached, info | changed).check_settings()
    assert first_difference(info, info | {"batch_size": 3}, is_done=False) == "batch_size=8, this run has 3"
    older = {key: value for key, value in info.items() if key != "teacher_config_sha256"}
    assert first_difference(older, info, is_done=True) == ""


# ---------------------------------------------------------------------------------------------
# does it fit a run?

FITS = dict(block_size=T, packing="constant", random_offset=False, temperature=2.0, eval_rows=8)


def test_a_cache_that_fits(cached, dataset):
    TeacherCache(cached).check(dataset, **FITS)
    TeacherCache(cached).check(dataset, **FITS | {"eval_rows": 1})


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"block_size": 8}, "block_size is 8, but .*small was made with 16; use --block_size=16, or make the cache ag"),
        ({"packing": "documents"}, "packing is documents, but .*small was made with constant; use --packing=constant"),
        ({"temperature": 1.0}, "temperature is 1.0, but .*small was made with 2.0; use --temperature=2.0, or"),
        ({"random_offset": True}, "random_offset=True, but .* at one offset alone; use --random_offset=False"),
        ({"eval_rows": 9}, "small has 8 rows of val, but the run visits 9; make a cache with --eval_rows=0, which is"),
        ({"eval_rows": 0}, "small has 8 rows of val, but the run visits 61;"),
    ],
)
def test_a_run_that_the_cache_does_not_fit(cached, dataset, changed, message):
    with pytest.raises(ValueError, match=message) as caught:
        TeacherCache(cached).check(dataset, **FITS | changed)
    assert "\n" not in str(caught.value)


def test_another_data_set(cached, dataset, tmp_path):
    cache = TeacherCache(cached)
    with pytest.raises(ValueError, match=r"the train split of .* has other tokens than .*by SHA-256 of its files"):
        cache.check(write_dataset(tmp_path / "other", seed=1), **FITS)
    other = write_dataset(tmp_path / "tokenizer", tokenizer_hash="12ab")
    with pytest.raises(ValueError, match=r"tokenizer of .* is 12ab, but .* was made with \w+; use the data set it was"):
        cache.check(other, **FITS)
    moved = shutil.copytree(dataset, tmp_path / "moved")
    cache.check(moved, **FITS)
    with open(moved / "val.bin", "r+b") as file:
        file.write(b"\7")
    with pytest.raises(ValueError, match=r"the val split of .* has other tokens"):
        cache.check(moved, **FITS)


def test_a_look_at_a_part_of_the_corpus_is_no_cache_for_a_run(tmp_path, dataset):
    folder = make_cache(tmp_path, dataset)
    info = json.loads((folder / "cache.json").read_text())
    info["splits"]["train"]["rows"] = 100
    (folder / "cache.json").write_text(json.dumps(info))
    for path in folder.glob("train_*.bin"):
        os.truncate(path, path.stat().st_size * 100 // 249)
    with pytest.raises(ValueError, match="has 100 rows of train, but the run visits 249; make a cache with --rows=0"):
        TeacherCache(folder).check(dataset, **FITS)


# ---------------------------------------------------------------------------------------------
# damage


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("vocab_size", 0, "vocab_size=0 is out of range"),
        ("vocab_size", 70_000, "ids_dtype='uint16', but 70000 ids are uint32"),
        ("block_size", True, "block_size=True is out of range"),
        ("block_size", 15, r"train_ids.bin: 31,872 bytes, but cache.json says 29,880; make the cache again"),
        ("top_k", -2, "top_k=-2 is out of range"),
        ("top_k", 258, "top_k=258 is over vocab_size=257"),
        ("draws", "2", "draws='2' is out of range"),
        ("draws", 1 << 60, "draws=1152921504606846976 is out of range"),
        ("temperature", math.nan, "temperature=nan is out of range"),
        ("temperature", None, "temperature=None is out of range"),
        ("format", 2, "format=2 is not one of 1"),
        ("packing", [], r"packing=\[\] is not one of constant, documents"),
        ("random_offset", True, "random_offset=True is not one of False"),
        ("number_format", "float8", "number_format='float8' is not one of float16, float32"),
        ("tokenizer_hash", 7, "tokenizer_hash=7 is no text"),
        ("teachers", "a", "teachers='a' is no list of str"),
        ("shares", [1], r"shares=\[1\] is no list of float"),
        ("splits", {}, "lacks the hashes of the token files of train"),
        ("splits", {"train": {"sha256": ["a"], "rows": 9, "n_rows": 8}}, "train has rows=9 of n_rows=8"),
    ],
)
def test_cache_json_is_not_believed(key, value, message, cached, tmp_path):
    folder = shutil.copytree(cached, tmp_path / "c")
    info = json.loads((folder / "cache.json").read_text()) | {key: value}
    (folder / "cache.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=message) as caught:
        TeacherCache(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_damaged_files_are_named(cached, dataset, tmp_path):
    folder = shutil.copytree(cached, tmp_path / "c")

    def error(exception=ValueError, rows=(17, 3)):
        with pytest.raises(exception) as caught:
            TeacherCache(folder).read("train", np.array(rows))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def poke(name, at, value):
        mapped = np.memmap(folder / name, value.dtype, mode="r+")
        old, mapped[at] = mapped[at].copy(), value
        mapped.flush()
        return old

    for name in ("ids", "draws"):
        width = {"ids": 4, "draws": 2}[name]
        old = poke(f"train_{name}.bin", 3 * T * width + 5, np.uint16(V))
        assert f"train_{name}.bin: 257 in row 3; the file is damaged, make the cache again" in error()
        poke(f"train_{name}.bin", 3 * T * width + 5, old)
    for name in ("log_probs", "log_tail", "entropy"):
        width = {"log_probs": 4}.get(name, 1)
        old = poke(f"train_{name}.bin", 17 * T * width, np.float32(np.nan))
        assert f"train_{name}.bin: nan in row 17; the file is damaged" in error()
        poke(f"train_{name}.bin", 17 * T * width, old)
    TeacherCache(folder).read("train", np.array([17, 3]))
    old = poke("train_rows.bin", 3, np.int64(-1))
    assert "row 3 is not among them" in error()
    poke("train_rows.bin", 3, old)
    os.truncate(folder / "val_entropy.bin", 100)
    assert "val_entropy.bin: 100 bytes, but cache.json says 512; make the cache again" in error()
    (folder / "val_entropy.bin").unlink()
    assert "val_entropy.bin is not there" in error(FileNotFoundError)
    (folder / "cache.json").write_text("[")
    assert "cache.json is not JSON" in error()
    (folder / "cache.json").unlink()
    assert "cache.json is not there; first run: python cache_teacher.py" in error(FileNotFoundError)


# ---------------------------------------------------------------------------------------------
# the script, in processes of its own


@pytest.fixture(scope="module")
def second_teacher(dataset, tmp_path_factory):
    """Another than `teacher`, narrower."""
    out = tmp_path_factory.mktemp("runs") / "second"
    run_script("train.py", *TINY, f"--dataset={dataset}", f"--out_dir={out}", "--max_steps=12", "--seed=7")
    return out


@pytest.fixture
def args(dataset, teacher, tmp_path):
    """args(name, *more): the command line of a small cache."""

    def command_line(name, *more):
        shape = [f"--block_size={T}", "--batch_size=4", "--eval_rows=9", "--device=cpu"]
        return [*shape, f"--dataset={dataset}", f"--teacher={teacher}", f"--out_dir={tmp_path / name}", *more]

    return command_line


def refused(args, ranks=1):
    """The one line of stderr with which cache_teacher.py ends."""
    done = run_script("cache_teacher.py", *args, ok=False, ranks=ranks)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("ensemble", ["", "logits", "probs"])
@pytest.mark.parametrize("temperature", [2.0, 0.005])
def test_records_are_those_of_the_teachers_logits(ensemble, temperature, args, teacher, second_teacher, tmp_path):
    """Against float64 of the same fp32 logits, whose padding ids are cut; at T = 0.005 tails are of 1e-20 and less."""
    more = [f"--temperature={temperature}", "--number_format=float32", "--top_k=4", "--draws=2"]
    names = [teacher]
    if ensemble:
        names.append(second_teacher)
        more += [f"--teacher={teacher},{second_teacher}", f"--ensemble={ensemble}", "--teacher_weights=3,1"]
    run_script("cache_teacher.py", *args("c", *more))
    cache = TeacherCache(tmp_path / "c")
    data = TokenData(cache.info["dataset"], "train", T, seed=1, batch_size=4, random_offset=False)
    lowest = 0.0
    for step in range(20):
        x, _ = data.batch(step, 0)
        parts = cache.read("train", data.batch_rows(step, 0))
        with torch.no_grad():
            logits = [load_pretrained(name)(x).flatten(0, 1) for name in names]
        assert logits[0].shape[1] > V
        z = [t[:, :V].double() for t in logits]
        if ensemble == "probs":
            mean = 0.75 * (z[0] / temperature).softmax(-1) + 0.25 * (z[1] / temperature).softmax(-1)
            log_p = mean.log()
        else:
            mean = 0.75 * z[0] + 0.25 * z[1] if ensemble else z[0]
            log_p = (mean / temperature).log_softmax(-1)
        # the rounding of the logits is divided by T, and log-probabilities are of some hundreds there
        bound = 1e-5 if temperature == 2.0 else 2e-4
        assert (parts["log_probs"] - log_p.topk(4).values).abs().max() < bound
        assert (parts["log_probs"] - log_p.gather(1, parts["ids"])).abs().max() < bound
        log_tail = log_p.scatter(1, parts["ids"], -math.inf).logsumexp(-1)
        assert (parts["log_tail"] - log_tail).abs().max() < bound
        entropy = -(log_p.exp() * log_p).sum(-1)
        assert (parts["entropy"] - entropy).abs().max() < bound
        is_stored = torch.zeros_like(log_p, dtype=torch.bool).scatter_(1, parts["ids"], True)
        assert not is_stored.gather(1, parts["draws"]).any() and parts["draws"].max() < V
        lowest = min(lowest, log_tail.min().item())
    assert temperature == 2.0 or lowest < math.log(1e-20)


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_ranks(args, tmp_path):
    for ranks in (1, 2, 4):
        run_script("cache_teacher.py", *args(str(ranks), "--draws=2"), ranks=ranks)
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "4")
    done = run_script("cache_teacher.py", *args("2", "--draws=2"), ranks=2)
    assert done.stdout == f"{tmp_path / '2'} is a finished cache of these settings\n"
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


@pytest.mark.slow
def test_draws_do_not_depend_on_the_batch_size(args, tmp_path):
    """The last digit of a logit may: a matmul of another shape may sum in another order."""
    for batch_size in (3, 8):
        run_script("cache_teacher.py", *args(str(batch_size), "--draws=9"), f"--batch_size={batch_size}")
    caches = [TeacherCache(tmp_path / name) for name in ("3", "8")]
    a, b = (cache.read("train", np.arange(249)) for cache in caches)
    assert (a["draws"] == b["draws"]).float().mean() > 0.999
    for name in ("log_probs", "log_tail", "entropy"):
        assert (a[name] - b[name]).abs().max() < 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_settings_that_changed_are_refused(args, tmp_path, ranks):
    (tmp_path / "c").mkdir()
    run_script("cache_teacher.py", *args("c"))
    before = contents(tmp_path / "c")
    line = refused(args("c", "--top_k=3"), ranks)
    assert "holds a finished cache of top_k=16, this run has 3; choose another --out_dir, or delete" in line
    assert contents(tmp_path / "c") == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "more, message",
    [
        (["--teacher="], "teacher is empty; name a model folder"),
        (["--top_k=258"], "top_k=258 is over the 257 ids of"),
        (["--top_k=-1", "--draws=1"], "draws=1, but top_k=-1 leaves no ids to draw from; use --draws=0"),
        (["--top_k=-2"], "top_k=-2 is too small; it must be at least -1"),
        (["--number_format=bfloat16"], "number_format='bfloat16' is not one of float16, float32; did you mean 'float"),
        (["--draws=100000000"], "bytes a token), but "),
        (["--block_size=17"], "block_size=17 is beyond the 16 positions of"),
        (["--out_dir="], "out_dir is empty"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(more, message, args, tmp_path):
    assert message in refused(args("c", *more))
    assert not (tmp_path / "c").exists()


@pytest.mark.slow
def test_two_that_write_one_folder(args, tmp_path):
    (tmp_path / "c").mkdir()
    with open(tmp_path / "c/.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711")
        lock.flush()
        assert "c is in use by another run (process 4711); wait for it" in refused(args("c"))
    run_script("cache_teacher.py", *args("c"))


@pytest.mark.slow
def test_kill_9_at_ten_moments_and_the_same_bytes_in_the_end(args, tmp_path):
    # so many that writing takes several times FLUSH_SECONDS: what is done before the first flush is not kept
    data = write_dataset(tmp_path / "data", tokens=120_000)
    more = [f"--dataset={data}", "--batch_size=2", "--draws=2"]
    command = [sys.executable, str(ROOT / "cache_teacher.py")]
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    start = time.perf_counter()
    # as those that are killed, from an interpreter of its own: the moments are shares of its time
    subprocess.run([*command, *args("whole", *more)], check=True, **quiet)
    seconds = time.perf_counter() - start
    rng = random.Random(0)
    killed = tmp_path / "killed"
    kills = continued = 0
    while kills < 10:
        continued += (killed / "done.bin").exists() and any((killed / "done.bin").read_bytes())
        process = subprocess.Popen([*command, *args("killed", *more)], **quiet)
        time.sleep(seconds * rng.uniform(0.2, 0.8))
        kills += process.poll() is None
        process.kill()
        process.wait()
        if (killed / "cache.json").exists():  # it was finished: begin another
            assert contents(killed) == contents(tmp_path / "whole")
            shutil.rmtree(killed)
    # on another number of ranks, too
    run_script("cache_teacher.py", *args("killed", *more), ranks=2)
    assert continued >= 2 and contents(killed) == contents(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="needs a small file system of its own")
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_full_disk_names_the_file_and_the_next_start_goes_on(args, tmp_path, ranks):
    """Files take whole pages, so that one page more than their bytes is enough for the check, and not for the files."""
    run_script("cache_teacher.py", *args("whole"))
    total = sum(path.stat().st_size for path in (tmp_path / "whole").glob("*.bin"))
    page = os.sysconf("SC_PAGE_SIZE")
    size = page * (math.ceil(total / page) + 1)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount here")
    try:
        more = [f"--out_dir={disk / 'c'}"]
        line = refused(args("c", *more), ranks)
        assert "No space left on device; free some, then start again: " in line and f"'{disk / 'c'}/" in line
        assert (disk / "c/unfinished.json").exists() and not (disk / "c/cache.json").exists()
        assert "bytes more" in refused(args("d", f"--out_dir={disk / 'd'}", "--top_k=-1"), ranks)
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        run_script("cache_teacher.py", *args("c", *more), ranks=ranks)
        assert contents(disk / "c") == contents(tmp_path / "whole")
    finally:
        subprocess.run(["umount", disk], check=True)
