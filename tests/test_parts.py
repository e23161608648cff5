"""Jobs divided over machines: parts of a corpus and of a cache join to the bytes of one run; what cannot is refused."""

import doctest
import gzip
import importlib.util
import io
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_script, write_dataset
from test_corpus import as_jsonl, as_parquet, babylm_zip, wiki_lines
from test_teacher_cache import T, make_cache, settings_for, write_rows

import common.cache_parts
import common.cache_writer
import common.parts
import corpora.sources
import corpora.stream
import prepare_data
from common.cache_parts import check_parts, join, part_settings
from common.cache_writer import CacheWriter
from common.files import file_sha256
from common.parts import Part, parse_part, parts_in
from common.teacher_cache import WHOLE, TeacherCache
from configurator import defaults_of
from corpora.parts import PIECE
from corpora.writing import SplitWriter


@pytest.mark.parametrize("module", [common.parts, common.cache_parts, common.cache_writer], ids=lambda m: m.__name__)
def test_examples_in_docstrings(module):
    outcome = doctest.testmod(module)
    assert outcome.attempted > 0 and outcome.failed == 0


# ---------------------------------------------------------------------------------------------
# which part has what


@pytest.mark.parametrize("n", [1, 2, 5, 16, 100])
def test_each_number_is_in_one_part(n):
    parts = [Part(number, n) for number in range(1, n + 1)]
    for total in (0, 1, 7, 64, 1000):
        shares = [part.share(total) for part in parts]
        assert list(itertools.chain(*shares)) == list(range(total))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert all(sum(part.holds(i) for part in parts) == 1 for i in range(total))


@pytest.mark.parametrize("text", ["3", "3/", "/3", "a/b", "1/2/3", "-1/3", "1.0/3", "1/12345", "JOIN", "1 /3"])
def test_what_is_no_part(text):
    with pytest.raises(ValueError, match=r"part=.*: expected one like 3/16, of at most 9,999, or join"):
        parse_part(text)


@pytest.mark.parametrize("text", ["0/3", "4/3", "0/0", "1/0"])
def test_a_part_that_is_out_of_range(text):
    with pytest.raises(ValueError, match=r"is out of range; of \d parts the first is 1/\d"):
        parse_part(text)


def test_parts_are_found_by_their_folders(tmp_path):
    with pytest.raises(ValueError, match=r"holds no parts; first run the same command with --part=1/2 and"):
        parts_in(tmp_path)
    parts = [Part(number, 12) for number in range(1, 13)]
    for part in parts:
        part.folder(tmp_path).mkdir()
    # none of ours
    for name in ("part_3of12", "part_00of12", "part_13of12", "part_01of12_copy"):
        (tmp_path / name).mkdir()
    (tmp_path / "part_1of7").write_text("a file")
    assert parts_in(tmp_path) == parts
    for number in (2, 11):
        Part(number, 12).folder(tmp_path).rmdir()
    with pytest.raises(ValueError, match=r"lacks 2 of 12 parts: 2/12, 11/12; run --part=2/12 first"):
        parts_in(tmp_path)
    Part(2, 3).folder(tmp_path).mkdir()
    with pytest.raises(ValueError, match=r"holds part_…of3 and part_…of12, which do not go together; delete"):
        parts_in(tmp_path)


# ---------------------------------------------------------------------------------------------
# a corpus


def prepare(out_dir, **knobs):
    """prepare_data.py with these knobs, in this process."""
    config = defaults_of(ROOT / "prepare_data.py") | {"tokenizer": "bytes", "workers": 1, "out_dir": str(out_dir)}
    prepare_data.prepare(config | {key: str(v) if isinstance(v, Path) else v for key, v in knobs.items()})


def prepare_parts(out_dir, n, **knobs):
    """All parts, the last one first; not joined."""
    for number in range(n, 0, -1):
        prepare(out_dir, part=f"{number}/{n}", **knobs)


def data_files(folder):
    """{name: bytes} of a data set, without the parts that it came from."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != ".preparing.lock"}


def texts(seed, n, words=40):
    """Documents of different lengths, in a few words."""
    rng = random.Random(seed)
    vocabulary = ["".join(rng.choices("abcdefghij", k=rng.randrange(2, 7))) for _ in range(200)]
    return [" ".join(rng.choices(vocabulary, k=rng.randrange(1, words))) for _ in range(n)]


def corpus_of_documents(folder):
    """Every 20th document is held out, over all files; one of them has nothing."""
    for i, n in enumerate((33, 7, 0, 58)):
        (folder / f"{i}.jsonl.gz").write_bytes(gzip.compress(as_jsonl(texts(i, n))))
    return {"source": folder}


def corpus_of_declared_splits(folder):
    (folder / "train").mkdir()
    for i in range(3):
        (folder / f"train/{i:02}.jsonl").write_bytes(as_jsonl(texts(i, 40)))
    (folder / "val.jsonl").write_bytes(as_jsonl(texts(8, 20)))
    (folder / "test.jsonl").write_bytes(as_jsonl(texts(9, 20)))
    return {"source": "pile", "text_dir": folder}


def corpus_of_domains(folder):
    """BabyLM's names, cleaned, with held-out files of the domains."""
    for i, domain in enumerate(("cbt", "qed", "switchboard")):
        for j, split in enumerate(("train", "dev")):
            lines = [f"{text}  , said I" for text in texts(10 * i + j, 60)]
            (folder / f"{domain}.{split}").write_text("\n".join(lines))
    return {"source": folder}


def corpus_of_ends(folder):
    """Domains without held-out files, the end of each of which is; one is compressed, and one a text of its own."""
    for i, name in enumerate(("cbt.txt", "qed.txt.gz", "gutenberg.txt")):
        text = "\n".join(texts(i, 80)).encode()
        (folder / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return {"source": "babylm", "text_dir": folder, "val_fraction": 0.1}


def corpus_of_separated_texts(folder):
    for i in range(3):
        (folder / f"{i}.txt").write_text("\n<|endoftext|>\n".join(texts(i, 30)))
    return {"source": folder, "document_separator": "eot", "val_fraction": 0.1}


def corpus_of_whole_texts(folder):
    for i in range(9):
        (folder / f"{i}.txt").write_text("\n".join(texts(i, 3)))
    return {"source": folder, "val_fraction": 0.2}


def corpus_of_articles(folder):
    for split in ("train", "valid"):
        (folder / f"wiki.{split}.tokens").write_text("".join(wiki_lines(split)))
    return {"source": "wikitext103", "text_dir": folder}


def corpus_of_rows(folder):
    for i in range(3):
        (folder / f"{i}.parquet").write_bytes(as_parquet(texts(i, 30)))
    return {"source": folder}


CORPORA = {
    "documents": corpus_of_documents, "declared": corpus_of_declared_splits, "domains": corpus_of_domains,
    "ends": corpus_of_ends, "separated": corpus_of_separated_texts, "whole": corpus_of_whole_texts,
    "articles": corpus_of_articles,
}  # fmt: skip
if importlib.util.find_spec("pyarrow"):
    CORPORA["rows"] = corpus_of_rows


@pytest.mark.parametrize("kind", CORPORA)
def test_parts_of_a_corpus_join_to_the_bytes_of_one_run(kind, tmp_path):
    """Of 1, 2 and 5 parts, and of more than there are files; meta.json, shards and the files of domains among them."""
    (tmp_path / "texts").mkdir()
    knobs = CORPORA[kind](tmp_path / "texts") | {"shard_tokens": 2000}
    prepare(tmp_path / "whole", **knobs)
    whole = data_files(tmp_path / "whole")
    assert "meta.json" in whole and sum(name.endswith(".bin") for name in whole) >= 2
    for n in (1, 2, 5, 11):
        folder = tmp_path / str(n)
        prepare_parts(folder, n, **knobs)
        assert not data_files(folder)
        prepare(folder, part="join", **knobs)
        assert data_files(folder) == whole, n
        assert not (folder / "preparing").exists()
    if kind == "domains":
        assert {"val_cbt_000.bin", "train_001.bin"} <= set(whole)


def test_each_part_trains_the_bpe_of_one_run(tmp_path):
    (tmp_path / "texts").mkdir()
    knobs = corpus_of_documents(tmp_path / "texts") | {"tokenizer": "bpe", "vocab_size": 320}
    prepare(tmp_path / "whole", **knobs)
    prepare_parts(tmp_path / "parts", 2, **knobs)
    prepare(tmp_path / "parts", part="join", **knobs)
    whole = data_files(tmp_path / "whole")
    assert "tokenizer.model" in whole and data_files(tmp_path / "parts") == whole
    # a tokenizer that is there already is read, and not trained
    knobs["tokenizer"] = tmp_path / "whole"
    prepare_parts(tmp_path / "named", 2, **knobs)
    prepare(tmp_path / "named", part="join", **knobs)
    assert data_files(tmp_path / "named")["train.bin"] == whole["train.bin"]


def test_a_part_downloads_what_it_reads_and_the_join_nothing(hub, tmp_path, monkeypatch):
    names = [f"train/{i:02}.jsonl" for i in range(3)]
    files = [*[("train", name) for name in names], ("val", "val.jsonl")]
    monkeypatch.setitem(corpora.sources.PLAIN, "pile", ("monology/pile", files))
    for i, (_, name) in enumerate(files):
        hub.files[f"/datasets/monology/pile/resolve/main/{name}"] = as_jsonl(texts(i, 30))
    (tmp_path / "one").mkdir()
    monkeypatch.chdir(tmp_path / "one")
    prepare("data", source="pile")
    assert len(hub.requests) == 4
    # on a machine of its own, as on a file system of its own
    for number in (1, 2):
        machine = tmp_path / f"machine_{number}"
        machine.mkdir()
        monkeypatch.chdir(machine)
        hub.requests.clear()
        prepare("data", source="pile", part=f"{number}/2")
        assert [path.split("/main/")[1] for path, *_ in hub.requests] == [files[i][1] for i in (number - 1, number + 1)]
    hub.requests.clear()
    shutil.copytree(tmp_path / "machine_1/data/part_1of2", machine / "data/part_1of2")
    prepare("data", source="pile", part="join")
    assert not hub.requests
    joined, whole = data_files(machine / "data"), data_files(tmp_path / "one/data")
    # the time of a download is in the hash of the source's files
    times = [json.loads(files.pop("meta.json")) for files in (joined, whole)]
    assert times[0]["settings"].pop("source_files") != times[1]["settings"].pop("source_files")
    assert joined == whole and times[0] == times[1]


def test_an_extracted_text_keeps_its_time(hub, tmp_path, monkeypatch):
    """By which a run that continues, and the join of parts, knows it again."""
    hub.files["/babylm_data.zip"] = babylm_zip()
    monkeypatch.setattr(corpora.sources, "BABYLM_2023", f"{hub.url}/babylm_data.zip")
    path = tmp_path / "babylm/cbt.train"
    corpora.sources.find_files("babylm", "", tmp_path)
    before, text = path.stat(), path.read_text()
    corpora.sources.find_files("babylm", "", tmp_path)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    path.write_text("cut")
    corpora.sources.find_files("babylm", "", tmp_path)
    assert path.read_text() == text and path.stat().st_mtime_ns == before.st_mtime_ns


def test_a_corpus_that_cannot_be_divided_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    for source in ("stdlib", "shakespeare", tmp_path / "a.txt"):
        for part in ("1/2", "join"):
            with pytest.raises(ValueError, match="cannot be divided, as it is not made of several files; leave out"):
                prepare(tmp_path / "o", source=source, part=part)
    with pytest.raises(ValueError, match="source 'finewebedu10B' is of ids already, so that there is nothing to div"):
        prepare(tmp_path / "o", source="finewebedu10B", part="1/2")


# ---------------------------------------------------------------------------------------------
# a corpus: what does not go together


@pytest.fixture
def parted(tmp_path):
    """(knobs, out_dir) of three parts of a corpus that are not joined yet."""
    (tmp_path / "texts").mkdir()
    knobs = corpus_of_documents(tmp_path / "texts")
    prepare_parts(tmp_path / "o", 3, **knobs)
    return knobs, tmp_path / "o"


def refusal(out_dir, **knobs):
    """The line with which a join ends, which changes nothing."""
    before = data_files(out_dir)
    with pytest.raises(ValueError) as caught:
        prepare(out_dir, part="join", **knobs)
    assert "\n" not in str(caught.value) and data_files(out_dir) == before
    return str(caught.value)


def test_a_part_of_a_corpus_that_is_missing_or_not_finished(parted):
    knobs, out_dir = parted
    (out_dir / "part_2of3").rename(out_dir / "elsewhere")
    assert "o lacks 1 of 3 parts: 2/3; run --part=2/3 first" in refusal(out_dir, **knobs)
    (out_dir / "part_2of3").mkdir()
    assert "part_2of3 is not finished; run the same command with --part=2/3, which c" in refusal(out_dir, **knobs)
    (out_dir / "part_2of3").rmdir()
    # done twice, or under another's name
    shutil.copytree(out_dir / "part_1of3", out_dir / "part_2of3")
    line = refusal(out_dir, **knobs)
    assert "part_2of3 is a part made with part='1/3', not '2/3'; copy it again, or delete" in line
    shutil.rmtree(out_dir / "part_2of3")
    (out_dir / "elsewhere").rename(out_dir / "part_2of3")
    prepare(out_dir, part="join", **knobs)


def test_parts_of_a_corpus_with_other_settings(parted, tmp_path):
    knobs, out_dir = parted
    assert "part_1of3 is a part made with val_fraction=0.05, not 0.1;" in refusal(out_dir, val_fraction=0.1, **knobs)
    with pytest.raises(ValueError, match=r"part_2of3 is a part made with clean=True, not False; delete it, or choose"):
        prepare(out_dir, part="2/3", clean=False, **knobs)
    (out_dir / "part_2of3").rename(out_dir / "elsewhere")
    prepare(out_dir, part="2/3", clean=False, **knobs)
    assert "part_2of3 is a part made with clean=False, not True;" in refusal(out_dir, **knobs)
    shutil.rmtree(out_dir / "part_2of3")
    prepare(out_dir, part="2/3", **knobs | {"source": shutil.copytree(tmp_path / "texts", tmp_path / "moved")})
    assert "part_2of3 is a part made with source=" in refusal(out_dir, **knobs)
    prepare(out_dir, part="1/2", **knobs)
    assert "o holds part_…of2 and part_…of3, which do not go together" in refusal(out_dir, **knobs)


def test_parts_of_a_corpus_that_changed_meanwhile(parted, tmp_path):
    knobs, out_dir = parted
    (tmp_path / "texts/4.jsonl").write_bytes(as_jsonl(texts(4, 9)))
    assert "part_1of3 is of a corpus with other files, as '" in refusal(out_dir, **knobs)
    # part 2 has file 1, and the new one
    prepare(out_dir, part="2/3", **knobs)
    (tmp_path / "texts/4.jsonl").unlink()
    assert "part_2of3 is of a corpus with other files, as '" in refusal(out_dir, **knobs)
    prepare(out_dir, part="2/3", **knobs)
    (tmp_path / "texts/1.jsonl.gz").write_bytes(gzip.compress(as_jsonl(texts(5, 11))))
    prepare(out_dir, part="2/3", **knobs)
    line = refusal(out_dir, **knobs)
    assert "part_2of3 has seen " in line and "1.jsonl.gz with " in line and ", part 1/3 with " in line
    # the other parts have not read it, but have to know it
    for part in ("1/3", "3/3"):
        shutil.rmtree(out_dir / f"part_{part[0]}of3")
        prepare(out_dir, part=part, **knobs)
    prepare(out_dir, part="join", **knobs)
    prepare(tmp_path / "whole", **knobs)
    assert data_files(out_dir) == data_files(tmp_path / "whole")


@pytest.mark.parametrize("name", ["ids_000.bin", "pieces.dat"])
def test_a_part_of_a_corpus_that_is_cut_or_damaged(name, parted):
    knobs, out_dir = parted
    path = out_dir / "part_1of3" / name
    content = path.read_bytes()
    for damaged in (content[:-2], content + b"\0\0", content[:5] + bytes([content[5] ^ 1]) + content[6:]):
        path.write_bytes(damaged)
        assert f"part_1of3 has a {name} with other bytes than when it was finished; copy it" in refusal(
            out_dir, **knobs
        )
    path.unlink()
    assert f"part_1of3 lacks {name}; copy it again, or delete" in refusal(out_dir, **knobs)
    path.write_bytes(content)
    prepare(out_dir, part="join", **knobs)


def rewrite(path, **changed):
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"settings": []}, "settings is missing or no dict"),
        ({"settings": {}}, r"is a part made with text_key=None, not 'text'"),
        ({"corpus": None}, "corpus is missing or no list"),
        ({"corpus": ["a"]}, "'a' is no file of a corpus"),
        ({"corpus": [[7, 1, 1]]}, "is of a corpus with other files"),
        ({"tokenizer": {"eot": 7}}, "lacks its tokenizer or its dtype"),
        ({"dtype": "int8"}, "lacks its tokenizer or its dtype"),
        ({"dtype": "uint32"}, "has another tokenizer than part 1/3"),
        ({"files": {}}, "has a ids_000.bin with other bytes"),
    ],
)
def test_part_json_is_not_believed(changed, message, parted):
    knobs, out_dir = parted
    rewrite(out_dir / "part_2of3/part.json", **changed)
    line = refusal(out_dir, **knobs)
    assert message in line and "part_2of3" in line


def test_pieces_in_another_order_are_refused(parted):
    """Whose hash is right: the file may come from somebody else."""
    knobs, out_dir = parted
    path = out_dir / "part_1of3/pieces.dat"
    pieces = np.fromfile(path, PIECE)
    assert set(pieces["file"]) == {0, 3}
    pieces[::-1].tofile(path)
    info = json.loads((out_dir / "part_1of3/part.json").read_text())
    info["files"]["pieces.dat"]["sha256"] = file_sha256(path)
    rewrite(out_dir / "part_1of3/part.json", **info)
    assert "part_1of3 has pieces out of order; copy it again, or delete" in refusal(out_dir, **knobs)


def test_a_finished_part_of_a_corpus_is_left_as_it_is(parted, capsys):
    knobs, out_dir = parted
    times = {path: path.stat().st_mtime_ns for path in out_dir.rglob("*.bin")}
    prepare(out_dir, part="2/3", **knobs)
    assert "part_2of3 is a finished part of these settings" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out_dir.rglob("*.bin")} == times and len(times) == 3


# ---------------------------------------------------------------------------------------------
# kill -9 at every moment


def killed_at(n, task, places):
    """Whether `task`, in a process of its own, was killed in front of the n-th call of `places` (owner, name)."""
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, -signal.SIGKILL)
        return code != 0
    try:
        calls = itertools.count()

        def counted(original):
            def call(*args, **kwargs):
                if next(calls) == n:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args, **kwargs)

            return call

        for owner, name in places:
            call = counted(getattr(owner, name))
            is_static = isinstance(vars(owner)[name], staticmethod)
            setattr(owner, name, staticmethod(call) if is_static else call)
        sys.stdout = io.StringIO()
        task()
        os._exit(0)
    finally:
        os._exit(1)


# what every change of a folder passes
CHANGES = [(os, "fsync"), (os, "truncate"), (Path, "replace"), (Path, "unlink"), (Path, "touch"), (Path, "rmdir")]


def kill_everywhere(task, is_right, folder, begun, places):
    """Kill `task` in front of each of these calls, one after the other; run again, it must be right. Returns the kills.

    folder: where it writes; begun: the folder that it is given each time.
    """
    for n in itertools.count():
        shutil.rmtree(folder)
        shutil.copytree(begun, folder)
        if not killed_at(n, task, places):
            assert is_right()
            return n
        task()
        assert is_right(), n


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["documents", "domains"])
def test_kill_9_of_a_part_of_a_corpus_and_of_the_join(kind, tmp_path, monkeypatch):
    # many batches, each of which is recorded
    monkeypatch.setattr(corpora.stream, "BATCH", 1200)
    (tmp_path / "texts").mkdir()
    knobs = CORPORA[kind](tmp_path / "texts") | {"shard_tokens": 2500}
    prepare(tmp_path / "whole", **knobs)
    whole = data_files(tmp_path / "whole")
    prepare_parts(tmp_path / "begun", 2, **knobs)
    part = data_files(tmp_path / "begun/part_1of2")
    (tmp_path / "empty").mkdir()
    (tmp_path / "o").mkdir()
    places = [*CHANGES, (SplitWriter, "write"), (prepare_data, "write_meta")]

    kills = kill_everywhere(
        lambda: prepare(tmp_path / "o", part="1/2", **knobs),
        lambda: data_files(tmp_path / "o/part_1of2") == part,
        tmp_path / "o",
        tmp_path / "empty",
        places,
    )
    assert kills > 20
    kills = kill_everywhere(
        lambda: prepare(tmp_path / "o", part="join", **knobs),
        lambda: data_files(tmp_path / "o") == whole,
        tmp_path / "o",
        tmp_path / "begun",
        places,
    )
    assert kills > 40


# ---------------------------------------------------------------------------------------------
# a cache, in this process


def make_part(out_dir, dataset, part, **changed):
    """A part as cache_teacher.py makes it, of a teacher that is a function of the row."""
    info, numbers = settings_for(dataset, **changed)
    info = part_settings(info, part)
    folder = part.folder(out_dir)
    folder.mkdir(parents=True)
    own = {}
    for split, of_split in info["splits"].items():
        own[split] = numbers[split][of_split["first_row"] :][: of_split["rows"]]
    writer = CacheWriter(folder, info)
    writer.check_settings()
    writer.begin(own)
    write_rows(writer, own)
    writer.flush()
    writer.finish()
    return folder


def make_parts(out_dir, dataset, n, **changed):
    for number in range(n, 0, -1):
        make_part(out_dir, dataset, Part(number, n), **changed)


def join_cache(out_dir, dataset, **changed):
    info, numbers = settings_for(dataset, **changed)
    check_parts(out_dir, info)
    writer = CacheWriter(out_dir, info)
    writer.check_settings()
    join(writer, parts_in(out_dir), numbers)


def cache_files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != ".lock"}


# 249 rows of train and 8 of val are 32 blocks and one
@pytest.mark.parametrize("n", [1, 2, 5, 33, 40])
@pytest.mark.parametrize("top_k, draws", [(WHOLE, 0), (4, 0), (0, 3), (4, 2)])
def test_parts_of_a_cache_join_to_the_bytes_of_one_run(top_k, draws, n, tmp_path, dataset):
    changed = {"top_k": top_k, "draws": draws, "number_format": "float16"}
    whole = make_cache(tmp_path / "whole", dataset, **changed)
    make_parts(tmp_path / "parts", dataset, n, **changed)
    assert not cache_files(tmp_path / "parts")
    join_cache(tmp_path / "parts", dataset, **changed)
    assert cache_files(tmp_path / "parts") == cache_files(whole)
    assert TeacherCache(tmp_path / "parts").info == TeacherCache(whole).info


def test_parts_of_a_cache_have_whole_blocks_and_ascending_rows(tmp_path, dataset):
    make_parts(tmp_path, dataset, 5)
    places = {"train": 0, "val": 0}
    for part in parts_in(tmp_path):
        info = json.loads((part.folder(tmp_path) / "cache.json").read_text())
        for split, of_split in info["splits"].items():
            assert of_split["rows"] == 0 or of_split["first_row"] == places[split]
            places[split] += of_split["rows"]
            assert places[split] % 8 == 0 or places[split] == 249
    assert places == {"train": 249, "val": 8}


@pytest.fixture
def parted_cache(tmp_path, dataset):
    make_parts(tmp_path / "c", dataset, 3)
    return tmp_path / "c"


def cache_refusal(out_dir, dataset, error=ValueError, **changed):
    with pytest.raises(error) as caught:
        join_cache(out_dir, dataset, **changed)
    assert "\n" not in str(caught.value) and not (out_dir / "cache.json").exists()
    return str(caught.value)


def test_a_part_of_a_cache_that_is_missing_or_not_finished(parted_cache, dataset, tmp_path):
    shutil.move(parted_cache / "part_2of3", tmp_path / "elsewhere")
    assert "c lacks 1 of 3 parts: 2/3; run --part=2/3 first" in cache_refusal(parted_cache, dataset)
    shutil.copytree(parted_cache / "part_1of3", parted_cache / "part_2of3")
    line = cache_refusal(parted_cache, dataset)
    assert "part_2of3 holds a part of part='1/3', this run has '2/3'; copy it again, or delete" in line
    (parted_cache / "part_2of3/cache.json").rename(parted_cache / "part_2of3/unfinished.json")
    line = cache_refusal(parted_cache, dataset)
    assert "part_2of3 is not finished; run the same command with --part=2/3, which continues it" in line
    shutil.rmtree(parted_cache / "part_2of3")
    shutil.move(tmp_path / "elsewhere", parted_cache / "part_2of3")
    join_cache(parted_cache, dataset)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"teacher_sha256": ["1"]}, "other teachers, by the hashes of their weights"),
        ({"tokenizer_hash": "1"}, "tokenizer_hash="),
        ({"seed": 2}, "seed=2, this run has 1"),
        ({"draws": 1}, "draws=1, this run has 2"),
        ({"temperature": 1.0}, "temperature=1.0, this run has 2.0"),
        ({"dtype": "bfloat16"}, "dtype='bfloat16', this run has 'float32'"),
        # a matmul of another shape may sum in another order
        ({"batch_size": 4}, "batch_size=4, this run has 8"),
    ],
)
def test_a_part_of_a_cache_with_other_settings(changed, message, parted_cache, dataset):
    shutil.rmtree(parted_cache / "part_2of3")
    make_part(parted_cache, dataset, Part(2, 3), **changed)
    line = cache_refusal(parted_cache, dataset)
    assert "part_2of3 holds a part of " in line and message in line and "; copy it again, or delete" in line
    # nor is the part itself continued, or taken for finished, with others than it was made with
    info, _ = settings_for(dataset)
    with pytest.raises(ValueError, match=r"part_2of3 holds a finished cache of .*; choose another --out_dir, or del"):
        CacheWriter(parted_cache / "part_2of3", part_settings(info, Part(2, 3))).check_settings()


def test_a_part_of_other_rows(parted_cache, dataset, tmp_path):
    shutil.rmtree(parted_cache / "part_3of3")
    other = write_dataset(tmp_path / "other", seed=1)
    make_part(parted_cache, other, Part(3, 3))
    line = cache_refusal(parted_cache, dataset)
    assert "part_3of3 holds a part of other token files, rows or eval_rows; copy it again" in line
    make_part(parted_cache, dataset, Part(1, 2))
    assert "holds part_…of2 and part_…of3, which do not go together" in cache_refusal(parted_cache, dataset)


@pytest.mark.parametrize("name", ["train_ids.bin", "val_entropy.bin", "train_rows.bin"])
def test_a_part_of_a_cache_that_is_cut_or_damaged(name, parted_cache, dataset, tmp_path):
    path = parted_cache / "part_3of3" / name
    content = path.read_bytes()
    assert content
    path.write_bytes(content[:-1])
    assert f"{name} is not there or not of {len(content):,} bytes; copy it again" in cache_refusal(
        parted_cache, dataset
    )
    path.write_bytes(content[:1] + bytes([content[1] ^ 1]) + content[2:])
    line = cache_refusal(parted_cache, dataset)
    assert f"{name} has other bytes than when it was finished; copy it again, or delete" in line
    with pytest.raises(ValueError, match="is an unfinished cache"):
        TeacherCache(parted_cache)
    # the parts in front of it are joined already, and the next join goes on behind them
    path.write_bytes(content)
    join_cache(parted_cache, dataset)
    assert cache_files(parted_cache) == cache_files(make_cache(tmp_path / "whole", dataset))


def test_a_part_of_a_cache_without_hashes(parted_cache, dataset):
    for files in ({}, None, ["train_ids.bin"]):
        rewrite(parted_cache / "part_2of3/cache.json", files=files)
        assert "part_2of3/cache.json lacks the hash of train_rows.bin; copy" in cache_refusal(parted_cache, dataset)


def test_parts_are_no_teacher(parted_cache):
    assert TeacherCache.is_one(parted_cache)
    with pytest.raises(ValueError, match=r"c holds parts of a cache; first join the parts: .* with --part=join"):
        TeacherCache(parted_cache)
    with pytest.raises(ValueError, match=r"part_2of3/cache.json is of part 2/3 of a cache; first join the parts"):
        TeacherCache(parted_cache / "part_2of3")


@pytest.mark.slow
def test_kill_9_of_a_part_of_a_cache_and_of_the_join(tmp_path, dataset):
    whole = cache_files(make_cache(tmp_path / "whole", dataset, batch_size=64))
    make_parts(tmp_path / "begun", dataset, 3, batch_size=64)
    part = cache_files(tmp_path / "begun/part_2of3")
    (tmp_path / "empty").mkdir()
    (tmp_path / "c").mkdir()

    def again():
        """make_part, where its folder may be there."""
        info, numbers = settings_for(dataset, batch_size=64)
        info = part_settings(info, Part(2, 3))
        folder = Part(2, 3).folder(tmp_path / "c")
        folder.mkdir(exist_ok=True)
        own = {}
        for split, of_split in info["splits"].items():
            own[split] = numbers[split][of_split["first_row"] :][: of_split["rows"]]
        writer = CacheWriter(folder, info)
        writer.check_settings()
        if writer.is_finished():
            return
        writer.begin(own)
        for block in writer.remaining():
            write_rows(writer, own, blocks=[block])
            writer.flush()
        writer.finish()

    def joined():
        if not (tmp_path / "c/cache.json").exists():
            join_cache(tmp_path / "c", dataset, batch_size=64)
        # as the script does, which removes what a kill in the last moment has left
        CacheWriter(tmp_path / "c", settings_for(dataset, batch_size=64)[0]).check_settings()

    places = [*CHANGES, (CacheWriter, "write"), (common.cache_writer, "allocate")]
    kills = kill_everywhere(
        again, lambda: cache_files(tmp_path / "c/part_2of3") == part, tmp_path / "c", tmp_path / "empty", places
    )
    assert kills > 30
    kills = kill_everywhere(
        joined, lambda: cache_files(tmp_path / "c") == whole, tmp_path / "c", tmp_path / "begun", places
    )
    assert kills > 60


# ---------------------------------------------------------------------------------------------
# the scripts, in processes of their own


@pytest.fixture
def cache_command(dataset, teacher, tmp_path):
    """cache_command(name, *more): the arguments of cache_teacher.py for a small cache in tmp_path/name."""

    def arguments(name, *more):
        shape = [f"--block_size={T}", "--batch_size=16", "--eval_rows=40", "--draws=2", "--device=cpu"]
        return [*shape, f"--dataset={dataset}", f"--teacher={teacher}", f"--out_dir={tmp_path / name}", *more]

    return arguments


def refused(script, args, ranks=1):
    """The one line of stderr with which a script ends."""
    done = run_script(script, *args, ok=False, ranks=ranks)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.slow
def test_cache_teacher_divides_its_rows_and_joins_them(cache_command, tmp_path):
    """Three parts, one of them by two ranks, as one run; then nothing is left to do, for parts neither."""
    run_script("cache_teacher.py", *cache_command("whole"))
    whole = cache_files(tmp_path / "whole")
    for number, ranks in ((3, 1), (1, 2), (2, 1)):
        done = run_script("cache_teacher.py", *cache_command("c", f"--part={number}/3"), ranks=ranks)
        assert f"finished {tmp_path / 'c'}/part_{number}of3" in done.stdout
        if number == 1:
            line = refused("cache_teacher.py", cache_command("c", "--part=join"))
            assert "lacks 1 of 3 parts: 2/3; run --part=2/3 first" in line
    done = run_script("cache_teacher.py", *cache_command("c", "--part=2/3"))
    assert done.stdout == f"{tmp_path / 'c'}/part_2of3 is a finished part of these settings\n"
    line = refused("cache_teacher.py", cache_command("c", "--part=join", "--temperature=1.5"), ranks=2)
    assert "part_1of3 holds a part of temperature=2.0, this run has 1.5; copy it again, or delete" in line
    done = run_script("cache_teacher.py", *cache_command("c", "--part=join"))
    assert done.stdout.endswith(f"finished {tmp_path / 'c'}; its folders part_… are no longer needed\n")
    assert cache_files(tmp_path / "c") == whole
    for part in ("join", "2/3", "1/7"):
        done = run_script("cache_teacher.py", *cache_command("c", f"--part={part}"), ranks=2)
        assert done.stdout == f"{tmp_path / 'c'} is a finished cache of these settings\n"
    assert not (tmp_path / "c/part_1of7").exists()
    # by two ranks, of which the first copies
    (tmp_path / "c/cache.json").unlink()
    run_script("cache_teacher.py", *cache_command("c", "--part=join"), ranks=2)
    assert cache_files(tmp_path / "c") == whole
    assert "part='4/3' is out of range" in refused("cache_teacher.py", cache_command("c", "--part=4/3"))


@pytest.mark.slow
def test_a_machine_with_another_device_joins(cache_command, tmp_path):
    """What "auto" stands for is the parts' to say; what the command says itself has to be theirs."""
    for number in (1, 2):
        more = ["--dtype=bfloat16", "--teacher_dtype=bfloat16"]
        run_script("cache_teacher.py", *cache_command("c", f"--part={number}/2", *more))
    line = refused("cache_teacher.py", cache_command("c", "--part=join", "--dtype=float32"))
    assert "dtype='bfloat16', this run has 'float32'" in line
    # on this CPU it is float32
    run_script("cache_teacher.py", *cache_command("c", "--part=join"))
    run_script("cache_teacher.py", *cache_command("whole", *more))
    assert cache_files(tmp_path / "c") == cache_files(tmp_path / "whole")
    done = run_script("cache_teacher.py", *cache_command("c", "--part=join"))
    assert "is a finished cache of these settings" in done.stdout


@pytest.mark.slow
def test_kill_9_of_cache_teacher_and_the_same_command_again(cache_command, dataset, tmp_path):
    """A part, once it has recorded something, and the join, once it has begun."""
    data = write_dataset(tmp_path / "data", tokens=120_000)
    more = [f"--dataset={data}", "--batch_size=2"]
    run_script("cache_teacher.py", *cache_command("whole", *more))
    run_script("cache_teacher.py", *cache_command("c", *more, "--part=1/2"))
    for part, file, is_begun in (("2/2", "part_2of2/done.bin", any), ("join", "unfinished.json", len)):
        command = [sys.executable, str(ROOT / "cache_teacher.py"), *cache_command("c", *more, f"--part={part}")]
        killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        path = tmp_path / "c" / file
        while killed.poll() is None and not (path.exists() and is_begun(path.read_bytes())):
            time.sleep(0.001)
        killed.kill()
        killed.wait()
        assert not (path.parent / "cache.json").exists()
        if part == "2/2":
            line = refused("cache_teacher.py", cache_command("c", *more, "--part=join"))
            assert "part_2of2 is not finished; run the same command with --part=2/2, which continues it" in line
        done = run_script("cache_teacher.py", *cache_command("c", *more, f"--part={part}"))
        assert part == "join" or "continuing after " in done.stdout
    assert cache_files(tmp_path / "c") == cache_files(tmp_path / "whole")


@pytest.mark.slow
def test_prepare_data_divides_its_files_and_joins_them(tmp_path):
    """As a user does it, with a killed part and with what is refused."""
    (tmp_path / "texts").mkdir()
    for i in range(4):
        (tmp_path / f"texts/{i}.jsonl").write_bytes(as_jsonl(texts(i, 3000, words=400)))
    command = [f"--source={tmp_path / 'texts'}", "--vocab_size=320"]
    run_script("prepare_data.py", *command, f"--out_dir={tmp_path / 'whole'}")
    command.append(f"--out_dir={tmp_path / 'o'}")
    done = run_script("prepare_data.py", *command, "--part=1/2")
    assert f"{tmp_path / 'o'}/part_1of2: part 1/2, 2 of 4 files; when all are there, --part=join" in done.stdout
    assert "lacks 1 of 2 parts: 2/2; run --part=2/2 first" in refused("prepare_data.py", [*command, "--part=join"])
    state = tmp_path / "o/part_2of2/preparing/state.json"
    killed = subprocess.Popen([sys.executable, str(ROOT / "prepare_data.py"), *command, "--part=2/2"])
    while killed.poll() is None and not state.exists():
        time.sleep(0.002)
    killed.kill()
    killed.wait()
    assert "part_2of2 is not finished; run the same" in refused("prepare_data.py", [*command, "--part=join"])
    done = run_script("prepare_data.py", *command, "--part=2/2")
    assert "going on after " in done.stdout
    line = refused("prepare_data.py", [*command, "--part=join", "--nfkc=true"])
    assert "part_1of2 is a part made with nfkc=False, not True; copy it again, or delete" in line
    done = run_script("prepare_data.py", *command, "--part=join")
    assert f"joined 2 parts; the folders {tmp_path / 'o'}/part_… are no longer needed" in done.stdout
    assert data_files(tmp_path / "o") == data_files(tmp_path / "whole")
    run_script("prepare_data.py", f"--check={tmp_path / 'o'}")
    assert "part='2': expected one like 3/16" in refused("prepare_data.py", [*command, "--part=2"])


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="needs a small file system of its own")
def test_a_disk_without_room_for_the_joined_files(cache_command, tmp_path):
    """It is said before anything is copied, and the same command goes on where there is room."""
    (tmp_path / "texts").mkdir()
    knobs = corpus_of_documents(tmp_path / "texts")
    data_command = [f"--source={knobs['source']}", "--tokenizer=bytes"]
    prepare_parts(tmp_path / "o", 2, **knobs)
    prepare(tmp_path / "whole_data", **knobs)
    for number in (1, 2):
        run_script("cache_teacher.py", *cache_command("c", f"--part={number}/2"))
    run_script("cache_teacher.py", *cache_command("whole"))
    disk = tmp_path / "disk"
    disk.mkdir()
    for name, script, command, whole in (
        ("o", "prepare_data.py", data_command, data_files(tmp_path / "whole_data")),
        ("c", "cache_teacher.py", cache_command("c"), cache_files(tmp_path / "whole")),
    ):
        pages = sum(path.stat().st_blocks for path in (tmp_path / name).rglob("*") if path.is_file()) // 8
        mount = ["mount", "-t", "tmpfs", "-o", f"size={(pages + 2) * os.sysconf('SC_PAGE_SIZE')}", "tmpfs", disk]
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("cannot mount here")
        try:
            shutil.copytree(tmp_path / name, disk / name)
            command = [*command, f"--out_dir={disk / name}", "--part=join"]
            line = refused(script, command)
            assert f"{disk / name} needs " in line and " bytes more " in line and " are free" in line
            subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
            run_script(script, *command)
            made = {name: content for name, content in data_files(disk / name).items() if name != ".lock"}
            assert made == whole
        finally:
            subprocess.run(["umount", disk], check=True)
