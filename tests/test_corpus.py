"""Corpora to token files: every form of input, kills, workers, shards, damage; and the cleaning of BabyLM's domains."""

import doctest
import gzip
import hashlib
import importlib.util
import io
import itertools
import json
import random
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_script, write_dataset

import corpora.babylm
import corpora.readers
import corpora.sources
import corpora.splits
import corpora.writing
from common.data import TokenData, Tokens
from common.tokenizer import ByteTokenizer, load_tokenizer
from corpora.babylm import CLEAN
from corpora.readers import PIECE, SEPARATORS, File, articles, cuts, pieces, separate
from corpora.sources import NAMES, extract, fetch_babylm, find_files, local_files
from corpora.writing import SplitWriter, lock_folder

BABYLM = ROOT.parent / "shared/data/babylm_like"


@pytest.mark.parametrize("module", [corpora.splits, corpora.writing], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module):
    outcome = doctest.testmod(module)
    assert outcome.attempted > 0 and outcome.failed == 0


def test_examples_of_the_cleaning():
    assert doctest.testmod(corpora.babylm).failed == 0
    assert {"aochildes", "bnc_spoken", "cbt", "children_stories", "gutenberg", "open_subtitles", "qed",
            "simple_wikipedia", "switchboard", "wikipedia"} <= set(CLEAN)  # fmt: skip


@pytest.mark.parametrize("name", CLEAN)
def test_cleaning_is_of_lines_and_leaves_clean_text(name):
    """Lines do not see each other, so that pieces may be cut at any line end; what is clean stays."""
    lines = ["Hello there , you .", "I think \t so", "= = = Title = = =", "", "plain text.", "lT'S  HERE"]
    whole = CLEAN[name]("\n".join(lines))
    assert whole == "\n".join(CLEAN[name](line) for line in lines) and CLEAN[name](whole) == whole


# ---------------------------------------------------------------------------------------------
# files -> documents

DOCUMENTS = [f"document {i}: café {'x ' * (i % 7)}\nline" for i in range(23)]


def write_forms(folder):
    """The same documents in every form there is a package for; {form: path}."""
    lines = "".join(json.dumps({"text": d, "id": 1}) + "\n" for d in DOCUMENTS).encode()
    files = {"jsonl": lines, "jsonl.gz": gzip.compress(lines)}
    if importlib.util.find_spec("zstandard"):
        import zstandard

        half = len(lines) // 2  # two frames, as pzstd writes them
        files["jsonl.zst"] = zstandard.compress(lines[:half]) + zstandard.compress(lines[half:])
    if importlib.util.find_spec("pyarrow"):
        import pyarrow.parquet

        table, buffer = pyarrow.table({"id": list(range(23)), "text": DOCUMENTS}), io.BytesIO()
        pyarrow.parquet.write_table(table, buffer, row_group_size=7)
        files["parquet"] = buffer.getvalue()
    for form, content in files.items():
        (folder / f"a.{form}").write_bytes(content)
    return {form: folder / f"a.{form}" for form in files}


def test_documents_of_every_form(tmp_path):
    for form, path in write_forms(tmp_path).items():
        assert list(pieces(File(path))) == [(d, True) for d in DOCUMENTS], form
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"a\r\n\xffb"))
    assert list(pieces(File(tmp_path / "b.txt.gz"))) == [("a\r\n\ufffdb", True)]
    (tmp_path / "c.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "behind a byte order mark"}')
    assert list(pieces(File(tmp_path / "c.jsonl"))) == [("behind a byte order mark", True)]


def test_another_key_and_its_absence(tmp_path):
    forms = write_forms(tmp_path)
    (tmp_path / "c.jsonl").write_text('{"content": "a"}\n\n{"content": "b"}\n')
    assert [t for t, _ in pieces(File(tmp_path / "c.jsonl"), "content")] == ["a", "b"]
    with pytest.raises(ValueError, match=r'c.jsonl, line 1: expected JSON with a "text"'):
        list(pieces(File(tmp_path / "c.jsonl")))
    if "parquet" in forms:
        with pytest.raises(ValueError, match="has no column 'content'; name one of id, text"):
            list(pieces(File(forms["parquet"]), "content"))


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    for name, package in (("a.parquet", "pyarrow"), ("a.jsonl.zst", "zstandard")):
        (tmp_path / name).write_bytes(b"x")
        for module in ("pyarrow", "pyarrow.parquet", "zstandard"):
            monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(
            ValueError, match=f"is read through {package}, which is not installed: pip install {package}"
        ):
            list(pieces(File(tmp_path / name)))


@pytest.mark.slow
def test_the_help_lists_every_corpus_and_every_key_once():
    shown = run_script("prepare_data.py", "--help").stdout
    assert all(re.search(rf"\b{name}\b", shown) for name in NAMES)
    keys = re.findall(r"^  --(\w+)=", shown, re.MULTILINE)
    assert len(keys) == len(set(keys)) == 15 and keys[0] == "source"


def test_wikitext_is_joined_to_articles():
    lines = ["\n", " = One = \n", "\n", " text \n", " = = Part = = \n", " more \n", " = Two = \n", " end \n"]
    found = [text for text, _ in articles(lines)]
    assert found == ["\n", "".join(lines[1:6]), "".join(lines[6:])] and "".join(found) == "".join(lines)
    # as git writes them on Windows
    crlf = [line.replace("\n", "\r\n") for line in lines]
    assert [text.replace("\r", "") for text, _ in articles(crlf)] == found


def test_a_domain_is_no_number(tmp_path):
    """The file of its held-out text, val_000.bin, would be the first shard of val."""
    for name in ("000.train", "000.dev"):
        (tmp_path / name).write_text("text")
    with pytest.raises(ValueError, match=r"000\.dev: a domain cannot be a number, 000; rename the file"):
        local_files(tmp_path)


def test_long_texts_are_cut_in_front_of_blanks():
    words = "word  two\nthree " * 200_000
    for text in (words, "x" * (3 * PIECE), "", "a" * PIECE, " " * (2 * PIECE)):
        parts = [text[a:b] for a, b in cuts(text)]
        assert "".join(parts) == text and all(len(p) <= PIECE for p in parts)
    parts = [words[a:b] for a, b in cuts(words)]
    assert len(parts) > 2 and all(a[-1] in "dwore" and b[0] == " " for a, b in itertools.pairwise(parts))


@pytest.mark.slow
def test_damaged_files_are_one_line(tmp_path):
    whole = gzip.compress(b'{"text": "abc"}\n' * 9999)
    cases = {"cut.jsonl.gz": whole[: len(whole) // 2], "bad.jsonl.gz": whole[:50] + b"\0" * 60, "no.jsonl.gz": b"text"}
    cases |= {"cut.parquet": b"PAR1abc"} if "parquet" in write_forms(tmp_path) else {}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        done = run_script("prepare_data.py", f"--source={tmp_path / name}", f"--out_dir={tmp_path / 'o'}", ok=False)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        assert f"{name} is damaged or was cut" in done.stderr or f"{name}, line " in done.stderr
        assert not (tmp_path / "o/meta.json").exists()


# ---------------------------------------------------------------------------------------------
# named corpora


def test_domains_and_their_held_out_files(tmp_path):
    for name in ("cbt.train", "cbt.dev", "qed.train", "qed.dev", "README.md", "cbt.test"):
        (tmp_path / name).write_text("text")
    files = find_files("babylm", str(tmp_path), tmp_path)
    assert [(f.domain, f.split, f.path.name) for f in files] == [
        (d, split, f"{d}.{form}") for d in ("cbt", "qed") for split, form in (("val", "dev"), ("train", "train"))
    ]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/simple_wikipedia.txt").write_text("text")
    assert [(f.domain, f.split) for f in find_files("babylm", str(tmp_path / "texts"), tmp_path)] == [
        ("simple_wikipedia", "")
    ]
    assert [(f.domain, f.split) for f in find_files(str(tmp_path / "texts"), "", tmp_path)] == [("", "")]
    with pytest.raises(
        FileNotFoundError, match=r"source .babyllm. is not there; .* or one of stdlib, .*; did you mean 'babylm'"
    ):
        find_files("babyllm", "", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has none of .txt, .train, .dev, .jsonl, .parquet"):
        find_files(str(tmp_path / "empty"), "", tmp_path)


def babylm_zip(extra=()):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in ("10M/cbt.train", "100M/cbt.train", "dev/cbt.dev", "test/cbt.test"):
            file.writestr(f"babylm_data/babylm_{name}", f"{name} , text\n" * 50)
        file.writestr("__MACOSX/babylm_10M/._cbt.train", "junk")
        for name in extra:
            file.writestr(name, "evil")
    return buffer.getvalue()


def test_babylm_releases_from_their_archives(hub, tmp_path, monkeypatch):
    hub.files["/babylm_data.zip"] = babylm_zip()
    monkeypatch.setattr(corpora.sources, "BABYLM_2023", f"{hub.url}/babylm_data.zip")
    files = find_files("babylm", "", tmp_path / "2023")
    assert [(f.domain, f.split) for f in files] == [("cbt", "val"), ("cbt", "train")]
    assert files[1].path.read_text().startswith("10M/cbt.train")
    assert find_files("babylm_100m", "", tmp_path / "2023")[1].path.read_text().startswith("100M")

    def listing(name, link, folder=False):
        links = {"files": {"links": {"related": {"href": link}}}}
        return {"attributes": {"name": name}, "links": {"download": link}, "relationships": links if folder else {}}

    monkeypatch.setattr(corpora.sources, "OSF", f"{hub.url}/osf/")
    hub.files["/osf/?page[size]=100"] = json.dumps({"data": [listing("text_data", f"{hub.url}/texts/", True)]}).encode()
    items = [listing(n, f"{hub.url}/download/{n}") for n in ("train_10M.zip", "dev.zip")]
    hub.files["/texts/?page[size]=100"] = json.dumps({"data": items}).encode()
    hub.files["/download/train_10M.zip"] = hub.files["/download/dev.zip"] = babylm_zip()
    hub.files = {k.replace("[", "%5B").replace("]", "%5D"): v for k, v in hub.files.items()}
    assert len(find_files("babylm_2024_10m", "", tmp_path / "2024")) == 2
    with pytest.raises(OSError, match=r"does not tell where train_100M.zip is \(StopIteration\); fetch it by hand"):
        fetch_babylm("babylm_2024_100m", tmp_path / "2024")


def test_corpora_of_plain_files_come_from_the_hub(hub, tmp_path, monkeypatch):
    forms = write_forms(tmp_path)
    monkeypatch.setitem(
        corpora.sources.PLAIN, "pile", ("monology/pile", [("train", "train/00.jsonl"), ("val", "val.jsonl")])
    )
    for name in ("train/00.jsonl", "val.jsonl"):
        hub.files[f"/datasets/monology/pile/resolve/main/{name}"] = forms["jsonl"].read_bytes()
    hub.trouble["/datasets/monology/pile/resolve/main/val.jsonl"] = [503, "cut"]
    files = find_files("pile", "", tmp_path / "pile")
    assert [(f.split, f.path.read_bytes()) for f in files] == [
        (s, forms["jsonl"].read_bytes()) for s in ("train", "val")
    ]


@pytest.mark.parametrize("name", ["../evil.train", "/tmp/evil.train", "a/../../evil.dev"])
def test_an_archive_that_writes_elsewhere_is_refused(tmp_path, name):
    (tmp_path / "a.zip").write_bytes(babylm_zip([name]))
    with pytest.raises(ValueError, match="which would be written elsewhere; delete it"):
        extract(tmp_path / "a.zip", tmp_path / "out/deep")
    assert not list(tmp_path.rglob("evil*")) and not Path("/tmp/evil.train").exists()
    (tmp_path / "b.zip").write_bytes(babylm_zip()[:-30])
    with pytest.raises(ValueError, match=r"b.zip is damaged .*; delete it to fetch it again"):
        extract(tmp_path / "b.zip", tmp_path / "out")


# ---------------------------------------------------------------------------------------------
# splits that names declare


def split_texts(folder):
    """The documents of a data set of bytes: {"train": [text], "val": [text]}."""
    meta, tokenizer, found = json.loads((folder / "meta.json").read_text()), ByteTokenizer(), {}
    for name in ("train", "val"):
        tokens = Tokens([folder / file for file in meta[f"{name}_files"]], "uint16")
        places = zip(*(part.tolist() for part in tokens.documents(tokenizer.eot)))
        found[name] = [tokenizer.decode(tokens.take(start, length).tolist()) for start, length in places]
    return found


def as_jsonl(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def as_parquet(lines):
    from pyarrow import parquet, table

    buffer = io.BytesIO()
    parquet.write_table(table({"text": lines}), buffer)
    return buffer.getvalue()


def wiki_lines(name):
    """Two articles as WikiText has them: titles, sections and paragraphs, a line each."""
    articles = ([f" = {name} {i} = \n", "\n", f" text of {name} \n", " = = Part = = \n", " more \n"] for i in range(2))
    return list(itertools.chain(*articles))


def layouts():
    """(id, source, {file: content}, the validation documents): public layouts and folders of one's own."""
    train, val, test = ([f"{split} document {i}" for i in range(30)] for split in ("train", "val", "test"))
    pile = {"train/00.jsonl": as_jsonl(train), "val.jsonl": as_jsonl(val), "test.jsonl": as_jsonl(test)}
    yield "pile", "pile", pile, val
    articles = ["".join(wiki_lines("val")[:5]), "".join(wiki_lines("val")[5:])]
    tokens = {f"wiki.{s}.tokens": "".join(wiki_lines(s[:5])).encode() for s in ("train", "test")}
    tokens["wiki.valid.tokens"] = "".join(wiki_lines("val")).encode()
    yield "wiki.tokens", "wikitext103", tokens, articles
    if importlib.util.find_spec("pyarrow"):
        rows = {
            "train-00000-of-00002": "train", "train-00001-of-00002": "train", "validation-00000-of-00001": "val",
            "test-00000-of-00001": "test",
        }  # fmt: skip
        parquet = {f"{name}.parquet": as_parquet(wiki_lines(split)) for name, split in rows.items()}
        yield "wikitext", "wikitext103", parquet, articles
    own = {"TinyStories-train.txt": b"train text", "TinyStories-valid.txt": b"val text", "test.txt": b"test text"}
    yield "words", "", own, ["val text"]


@pytest.mark.slow
@pytest.mark.parametrize("source, files, held_out", [c[1:] for c in layouts()], ids=[c[0] for c in layouts()])
def test_splits_stay_apart_wherever_the_files_lie(source, files, held_out, tmp_path):
    """Not a document of validation or test in train.bin, and all of validation, and nothing else, in val.bin."""
    place = tmp_path / "mine"
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    where = [f"--source={source}", f"--text_dir={place}"] if source else [f"--source={place}"]
    done = run_script("prepare_data.py", *where, "--tokenizer=bytes", f"--out_dir={tmp_path / 'o'}")
    found = split_texts(tmp_path / "o")
    assert found["val"] == held_out
    assert found["train"] and not re.search("val|test", "".join(found["train"]))
    said = [line for line in done.stdout.splitlines() if line.startswith("splits by the names of the files: train ")]
    assert len(said) == 1 and "val 1 file (" in said[0] and said[0].endswith("left out")


@pytest.mark.parametrize(
    "files, splits",
    [
        (["a.txt", "b.txt"], ["", ""]),
        (["train.txt", "train_2.txt"], ["", ""]),  # nothing is held out by name: document by document
        (["a.txt", "val.txt"], ["train", "val"]),
        (["a.txt", "test.txt"], ["", "test"]),
        (["attest.txt", "contest/latest.txt", "validity.txt"], ["", "", ""]),
        (["train/deep/val-notes.txt", "validation/00.txt"], ["train", "val"]),
        (["babylm_dev/a.txt", "babylm_train/a.txt"], ["val", "train"]),
        (["00.jsonl", "test.jsonl", "val.jsonl"], ["train", "test", "val"]),  # the Pile's, in one folder
        (["cbt.dev", "cbt.train", "more.txt"], ["val", "train", "train"]),
    ],
)
def test_names_that_declare_a_split(files, splits, tmp_path):
    for name in files:
        (tmp_path / "t" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "t" / name).write_text("text")
    assert [f.split for f in find_files(str(tmp_path / "t"), "", tmp_path)] == splits


def test_what_cannot_be_split_is_refused(tmp_path):
    (tmp_path / "held").mkdir()
    for name in ("valid.txt", "test.txt"):
        (tmp_path / "held" / name).write_text("text")
    with pytest.raises(
        ValueError, match=r"all files are for validation or test \(test.txt, valid.txt\), none to train on"
    ):
        find_files(str(tmp_path / "held"), "", tmp_path)
    write_shard(tmp_path / "held/set_val_000000.bin", [1])
    write_shard(tmp_path / "held/medieval_train_000000.bin", [1])
    with pytest.raises(ValueError, match=r"holds ids \(medieval_train_000000.bin\) and text \(test.txt\)"):
        find_files(str(tmp_path / "held"), "", tmp_path)
    for name in ("valid.txt", "test.txt"):
        (tmp_path / "held" / name).unlink()
    write_shard(tmp_path / "held/set_test_000000.bin", [1])
    found = find_files(str(tmp_path / "held"), "", tmp_path)
    assert [f.split for f in found] == ["train", "test", "val"]


@pytest.mark.slow
def test_the_check_counts_documents_of_both_splits(tmp_path):
    documents = [f"document {i % 43}, twice or once" for i in range(60)]  # 0 … 16 twice
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(documents))
    args = [
        "--tokenizer=bytes",
        "--val_fraction=0.25",
        f"--out_dir={tmp_path / 'o'}",
        f"--source={tmp_path / 'a.jsonl'}",
    ]
    run_script("prepare_data.py", *args)
    found = split_texts(tmp_path / "o")
    leaked = [text for text in found["val"] if text in found["train"]]
    assert 0 < len(leaked) < len(found["val"]) == 15
    share = sum(len(text) + 1 for text in leaked) / sum(len(text) + 1 for text in found["val"])
    done = run_script("prepare_data.py", f"--check={tmp_path / 'o'}")
    assert (
        f"warning: {len(leaked)} of 15 validation documents ({share:.1%} of its tokens) are in train as well, the "
        f"first: {leaked[0]!r}"
    ) in done.stdout
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(documents[:40]))
    run_script("prepare_data.py", *args)
    done = run_script("prepare_data.py", f"--check={tmp_path / 'o'}")
    assert "none of the 10 validation documents is in train as well" in done.stdout and "warning" not in done.stdout


# ---------------------------------------------------------------------------------------------
# documents inside a text file


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_documents_inside_a_text_do_not_depend_on_how_it_is_read(size, monkeypatch):
    """Separators, of whatever form, cut in two by the end of a text; line ends around them go, others stay."""
    monkeypatch.setattr(corpora.readers, "PIECE", 20)
    texts = {
        "line": ["one", "  two ", "a line of more than twenty characters"],
        "blank": ["one\nline", "  two\r\nlines ", "a paragraph of\nmore than twenty characters"],
        "eot": ["one\n\nline", "two", "a story of\nmore than\n\ntwenty characters <|endof"],
    }
    separators = {
        "line": ["\n", "\r\n", "\n\n\n"],
        "blank": ["\n\n", "\r\n \r\n", "\n \n\n\t\n"],
        "eot": ["<|endoftext|>", "\n<|endoftext|>\r\n", "\n<|endoftext|>\n\n<|endoftext|>"],
    }
    for name, documents in texts.items():
        for first, second in itertools.product(separators[name], repeat=2):
            text = first + documents[0] + first + documents[1] + second + documents[2] + second
            parts = [(text[i : i + size], False) for i in range(0, len(text), size)]
            found, now = [], ""
            for piece, ends in separate(parts, SEPARATORS[name]):
                assert piece
                now += piece
                if ends:
                    found.append(now)
                    now = ""
            assert found == documents and not now, (name, first, second)


SEPARATED = {"line": "{}\n", "blank": "{}\n\n", "eot": "{}\n<|endoftext|>\n"}


@pytest.mark.slow
@pytest.mark.parametrize("separator", SEPARATED)
def test_documents_inside_text_files(separator, tmp_path):
    """Whole documents are held out, over two files as over one; a file's last needs no separator behind it."""
    documents = [f"a story, number {i}, of a café" for i in range(40)]
    for name, part in (("a.txt", documents[:17]), ("b.txt.gz", documents[17:])):
        text = "".join(SEPARATED[separator].format(d) for d in part).removesuffix("<|endoftext|>\n").encode()
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    args = [f"--source={tmp_path}", "--tokenizer=bytes", f"--document_separator={separator}", "--val_fraction=0.1"]
    run_script("prepare_data.py", *args, f"--out_dir={tmp_path / 'o'}")
    found = split_texts(tmp_path / "o")
    assert found["val"] == documents[9::10] and len(found["train"]) == 36
    assert sorted(found["train"] + found["val"]) == sorted(documents)
    assert json.loads((tmp_path / "o/meta.json").read_text())["settings"]["document_separator"] == separator


@pytest.mark.slow
def test_separated_documents_after_a_kill_and_for_any_number_of_workers(tmp_path):
    """The same bytes, with a BPE that is trained on them."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randrange(2, 9))) for _ in range(1000)]
    stories = (" ".join(rng.choices(words, k=rng.randrange(20, 2000))) for _ in range(2000))
    (tmp_path / "a.txt").write_text("\n<|endoftext|>\n".join(stories))
    args = [f"--source={tmp_path / 'a.txt'}", "--vocab_size=300", "--document_separator=eot"]
    run_script("prepare_data.py", *args, "--workers=1", f"--out_dir={tmp_path / 'whole'}")
    killed = [*args, "--workers=3", f"--out_dir={tmp_path / 'killed'}"]
    state = tmp_path / "killed/preparing/state.json"
    process = subprocess.Popen([sys.executable, str(ROOT / "prepare_data.py"), *killed], stdout=subprocess.DEVNULL)
    while process.poll() is None and not state.exists():
        time.sleep(0.002)
    process.kill()
    process.wait()
    done = run_script("prepare_data.py", *killed)
    assert "going on after" in done.stdout
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    meta = json.loads((tmp_path / "killed/meta.json").read_text())
    assert (meta["train_documents"], meta["val_documents"]) == (1900, 100)


@pytest.mark.slow
def test_what_is_odd_about_a_text_is_said(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one story\n<|endoftext|>\nanother caf\xe9\n" * 20)
    args = [f"--source={tmp_path / 'a.txt'}", "--tokenizer=bytes", f"--out_dir={tmp_path / 'o'}"]
    done = run_script("prepare_data.py", *args)
    assert "a.txt has <|endoftext|> in its text; documents end there only with --document_separator=eot" in done.stdout
    assert "a.txt has U+FFFD in its text, which bytes become that are not UTF-8" in done.stdout
    done = run_script("prepare_data.py", *args, "--document_separator=eot", "--overwrite=true")
    assert "<|endoftext|>" not in done.stdout and len(split_texts(tmp_path / "o")["train"]) == 20


# ---------------------------------------------------------------------------------------------
# token files


def contents(folder):
    """{name: its SHA-256} of all that a preparation makes."""
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.iterdir())
        if p.suffix in (".bin", ".model")
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder of .jsonl.gz documents, large enough for several batches."""
    folder, rng = tmp_path_factory.mktemp("corpus"), random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randrange(2, 9))) for _ in range(3000)]
    for i in range(3):
        rows = (json.dumps({"text": " ".join(rng.choices(words, k=rng.randrange(1, 4000)))}) for _ in range(400))
        (folder / f"{i}.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode(), 1))
    return folder


@pytest.mark.slow
def test_files_do_not_depend_on_the_workers_and_are_what_the_text_says(corpus, tmp_path):
    made = []
    for workers in (1, 2, 8):
        args = [f"--source={corpus}", "--vocab_size=400", "--shard_tokens=300000", f"--workers={workers}"]
        run_script("prepare_data.py", *args, f"--out_dir={tmp_path / str(workers)}")
        made.append(contents(tmp_path / str(workers)))
    assert made[0] == made[1] == made[2] and {"train_000.bin", "train_001.bin"} <= set(made[0])
    folder = tmp_path / "8"
    meta, tokenizer = json.loads((folder / "meta.json").read_text()), load_tokenizer(folder)
    stream = Tokens([folder / name for name in meta["train_files"]], "uint16")
    sizes = [(folder / name).stat().st_size for name in meta["train_files"]]
    assert set(sizes[:-1]) == {600000} and len(stream) == meta["train_tokens"]
    texts = [text for f in find_files(str(corpus), "", tmp_path) for text, _ in pieces(f)]
    train = [text for i, text in enumerate(texts) if (i + 1) % 20]
    starts, lengths = stream.documents(tokenizer.eot)
    assert len(starts) == meta["train_documents"] == len(train)
    for i in range(0, len(train), 97):
        assert tokenizer.decode(stream.take(int(starts[i]), int(lengths[i])).tolist()) == train[i]
    done = run_script("prepare_data.py", f"--check={folder}")
    assert f"train: {meta['train_tokens']:,} tokens in {len(sizes)} files" in done.stdout


@pytest.mark.slow
def test_kill_9_at_ten_moments_and_the_same_bytes_in_the_end(corpus, tmp_path):
    args = [f"--source={corpus}", "--vocab_size=400", "--shard_tokens=300000"]
    command = [sys.executable, str(ROOT / "prepare_data.py"), *args]
    start = time.perf_counter()
    # as those that are killed, from an interpreter of its own: the moments are shares of its time
    subprocess.run([*command, f"--out_dir={tmp_path / 'whole'}"], check=True, stdout=subprocess.DEVNULL)
    whole, rng = time.perf_counter() - start, random.Random(0)
    command += [f"--out_dir={tmp_path / 'killed'}"]
    kills, state = 0, tmp_path / "killed/preparing/state.json"
    for _ in range(60):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        if kills < 10:
            time.sleep(whole * rng.uniform(0.3, 1.0))
        while kills >= 10 and process.poll() is None and not state.exists():
            time.sleep(0.002)  # the last one: as soon as there is something to go on from
        kills += process.poll() is None
        process.kill()
        process.wait()
        if (tmp_path / "killed/meta.json").exists():  # it was finished: that moment proves nothing
            assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
            (tmp_path / "killed/meta.json").unlink()
        elif kills > 10:
            break
    done = run_script("prepare_data.py", *args, f"--out_dir={tmp_path / 'killed'}")
    assert kills == 11 and "going on after" in done.stdout
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert (tmp_path / "killed/meta.json").read_text() == (tmp_path / "whole/meta.json").read_text()


@pytest.mark.slow
def test_a_kill_while_the_finished_files_are_moved(corpus, tmp_path):
    """As it would lie on the disk: some files at their place, some not, meta.json not yet."""
    args = [f"--source={corpus}", "--tokenizer=bytes", "--val_fraction=0.01", f"--out_dir={tmp_path / 'o'}"]
    run_script("prepare_data.py", *args)
    before, work = contents(tmp_path / "o"), tmp_path / "o/preparing"
    assert set(before) == {"train.bin", "val.bin"}
    work.mkdir()
    (tmp_path / "o/meta.json").rename(work / "meta.json")
    (tmp_path / "o/val.bin").rename(work / "val_000.bin")
    run_script("prepare_data.py", *args)
    assert contents(tmp_path / "o") == before and not work.exists() and load_tokenizer(tmp_path / "o")


@pytest.mark.slow
def test_other_settings_start_anew_and_a_finished_set_stays_until_the_new_one_is(corpus, tmp_path):
    (tmp_path / "a.txt").write_text("some text\n" * 1000)
    args = [f"--source={tmp_path / 'a.txt'}", "--tokenizer=bytes", f"--out_dir={tmp_path / 'o'}"]
    run_script("prepare_data.py", *args)
    before = contents(tmp_path / "o")
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n' * 30 + "{")
    bad = [f"--source={tmp_path / 'bad.jsonl'}", *args[1:], "--overwrite=true"]
    done = run_script("prepare_data.py", *bad, ok=False)
    assert done.returncode == 2 and "bad.jsonl, line 31: expected JSON" in done.stderr
    assert (
        {k: v for k, v in contents(tmp_path / "o").items() if k in before} == before if (tmp_path / "o").is_dir() else 0
    )
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n' * 40)
    run_script("prepare_data.py", *bad)
    assert json.loads((tmp_path / "o/meta.json").read_text())["train_documents"] == 38
    assert not (tmp_path / "o/preparing").exists()


@pytest.mark.slow
def test_a_data_set_of_other_settings_is_overwritten_only_when_asked(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"text {name}\n" * 1000)
    out = tmp_path / "o"
    args = [f"--source={tmp_path / 'a.txt'}", "--tokenizer=bytes", f"--out_dir={out}"]
    run_script("prepare_data.py", *args)
    before = contents(out)
    other = [f"--source={tmp_path / 'b.txt'}", *args[1:], "--val_fraction=0.1"]
    done = run_script("prepare_data.py", *other, ok=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"o is a data set made with source='{tmp_path / 'a.txt'}', not '{tmp_path / 'b.txt'}'" in done.stderr
    assert ", val_fraction=0.05, not 0.1; choose another" in done.stderr
    assert "replace it with --overwrite=true" in done.stderr and contents(out) == before
    meta = json.loads((out / "meta.json").read_text())  # as earlier versions wrote it
    del meta["settings"]["document_separator"], meta["settings"]["text_dir"]
    (out / "meta.json").write_text(json.dumps(meta))
    done = run_script("prepare_data.py", *args, "--document_separator=line", ok=False)
    assert done.returncode == 2 and "made with document_separator='file', not 'line'" in done.stderr
    (tmp_path / "a.txt").write_text("text that has changed\n" * 1000)
    run_script("prepare_data.py", *args)  # the same settings again: the text may have changed
    assert contents(out) != before
    run_script("prepare_data.py", *other, "--overwrite=true", "--shard_tokens=2000")
    assert {"train_000.bin", "val.bin"} <= set(contents(out)) and "train.bin" not in contents(out)


@pytest.mark.slow
def test_two_that_prepare_the_same_folder(tmp_path):
    """The second is refused while the first is at work, and not once that was killed."""
    (tmp_path / "a.txt").write_text("some text\n" * 100)
    lock = lock_folder(tmp_path / "o")
    args = [f"--source={tmp_path / 'a.txt'}", "--tokenizer=bytes", f"--out_dir={tmp_path / 'o'}"]
    done = run_script("prepare_data.py", *args, ok=False)
    assert done.returncode == 2 and "o is being prepared by another process; wait for it" in done.stderr
    lock.close()
    run_script("prepare_data.py", *args)


def test_more_than_a_thousand_shards_go_on_after_a_kill(tmp_path):
    """What comes after the record is cut off, and nothing else; here the first 998 shards were written before."""
    split = SplitWriter(tmp_path, "train", "uint16", 2, tokens=1996)
    split.write(np.arange(15, dtype=np.uint32), 15, False, 9)
    state = split.state()
    split.write(np.arange(50, dtype=np.uint32), 50, False, 9)
    split.close()
    (tmp_path / "train_val_001.bin").touch()  # another split's
    restored = SplitWriter(tmp_path, "train", "uint16", 2)
    restored.restore(state)
    restored.write(np.arange(15, 20, dtype=np.uint32), 5, False, 9)
    restored.close()
    shards = restored.shards()[998:]
    assert np.array_equal(Tokens(shards, "uint16").take(0, 20), np.arange(20)) and shards[2].name == "train_1000.bin"
    assert len(list(tmp_path.glob("*.bin"))) == 11


@pytest.mark.slow
def test_odd_texts(tmp_path):
    """Empty documents count for nothing; a 200 MB line fits; what has no text is one line."""
    rows = ["", "a", "", "b", "", "\ud800c"] * 10
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    run_script(
        "prepare_data.py", f"--source={tmp_path / 'a.jsonl'}", "--tokenizer=bytes", f"--out_dir={tmp_path / 'o'}"
    )
    meta = json.loads((tmp_path / "o/meta.json").read_text())
    assert meta["train_documents"] + meta["val_documents"] == 30 and meta["train_bytes"] + meta["val_bytes"] == 40
    (tmp_path / "b.jsonl").write_text('{"text": ""}\n' * 50)
    done = run_script("prepare_data.py", f"--source={tmp_path / 'b.jsonl'}", "--tokenizer=bytes", ok=False)
    assert done.returncode == 2 and "the train split is empty: it has no text" in done.stderr
    with open(tmp_path / "long.txt", "w") as file:
        for _ in range(200):
            file.write("word " * 200_000)
    out = tmp_path / "long"
    done = run_script("prepare_data.py", f"--source={tmp_path / 'long.txt'}", "--tokenizer=bytes", f"--out_dir={out}")
    meta = json.loads((out / "meta.json").read_text())
    assert meta["train_bytes"] + meta["val_bytes"] == 200_000_000
    assert int(re.search(r"peak memory ([\d,]+) MB", done.stdout)[1].replace(",", "")) < 1000


@pytest.mark.slow
def test_domains_have_their_own_validation(tmp_path):
    for domain in ("cbt", "qed"):
        for split, n in (("train", 400), ("dev", 100)):
            (tmp_path / f"{domain}.{split}").write_text(f"{domain}  said ,\n" * n)
    out = tmp_path / "o"
    run_script("prepare_data.py", f"--source={tmp_path}", "--tokenizer=bytes", f"--out_dir={out}")
    meta = json.loads((out / "meta.json").read_text())
    assert (
        list(meta["domains"]) == ["cbt", "qed"]
        and meta["val_tokens"] == meta["val_cbt_tokens"] + meta["val_qed_tokens"]
    )
    text = ByteTokenizer().decode(np.fromfile(out / "val_cbt.bin", "<u2").tolist())
    assert text == "cbt said,\n" * 100
    tiny = ["--n_layer=1", "--n_embd=16", "--n_head=2", "--block_size=16", "--max_steps=2", "--eval_rows=8"]
    done = run_script("train.py", *tiny, f"--dataset={out}", f"--out_dir={tmp_path / 'run'}", "--device=cpu")
    assert "val/cbt " in done.stdout and " val/cbt " in (tmp_path / "run/log.txt").read_text()
    uncleaned = ["--clean=False", "--overwrite=true"]
    run_script("prepare_data.py", f"--source={tmp_path}", "--tokenizer=bytes", f"--out_dir={out}", *uncleaned)
    assert np.fromfile(out / "val_cbt.bin", "<u2").tobytes() != b"" and json.loads((out / "meta.json").read_text())[
        "val_cbt_bytes"] == 100 * len("cbt  said ,\n")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("dev", [True, False])
def test_a_document_ends_though_its_last_piece_is_cleaned_away(dev, tmp_path):
    """Else the next domain would go on in the same document, and no text would follow an end-of-text id."""
    line = "The whale was white.\n"
    long = line * (PIECE // len(line) + 1) + "[Illustration: THE END]\n"
    (tmp_path / "gutenberg.train").write_text(long)
    (tmp_path / "qed.train").write_text("Good evening.\n" * 40)
    for domain in ("gutenberg", "qed") if dev else ():
        (tmp_path / f"{domain}.dev").write_text("A few words.\n" * 9)
    out = tmp_path / "o"
    run_script("prepare_data.py", f"--source={tmp_path}", "--tokenizer=bytes", f"--out_dir={out}")
    meta = json.loads((out / "meta.json").read_text())
    eot = ByteTokenizer().eot
    for split in ("train", "val"):
        ids = np.fromfile(out / f"{split}.bin", "<u2")
        ends = np.flatnonzero(ids == eot)
        assert len(ends) == meta[f"{split}_documents"] == 2, split
        # the last id is an end, and no document is empty
        assert ends[-1] == len(ids) - 1 and np.diff([-1, *ends]).min() > 1


@pytest.mark.slow
def test_a_domain_is_a_label_of_the_log_without_blanks(tmp_path):
    for split in ("train", "dev"):
        (tmp_path / f"My  Books.{split}").write_text("some words here\n" * 200)
    out = tmp_path / "o"
    run_script("prepare_data.py", f"--source={tmp_path}", "--tokenizer=bytes", f"--out_dir={out}")
    assert list(json.loads((out / "meta.json").read_text())["domains"]) == ["My_Books"]
    tiny = ["--n_layer=1", "--n_embd=16", "--n_head=2", "--block_size=16", "--max_steps=2", "--eval_rows=8"]
    run_script("train.py", *tiny, f"--dataset={out}", f"--out_dir={tmp_path / 'run'}", "--device=cpu")
    lines = (tmp_path / "run/log.txt").read_text().splitlines()
    assert "val/My_Books" in {line.split()[1] for line in lines} and all(len(line.split()) == 3 for line in lines)


def write_shard(path, ids, said=None):
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, len(ids) if said is None else said
    path.write_bytes(header.tobytes() + np.array(ids, dtype="<u2").tobytes())


@pytest.mark.slow
def test_shards_with_headers_are_used_as_they_are(tmp_path, monkeypatch):
    gpt2 = ROOT.parent / "shared/data/tokenizers/gpt2"
    if not gpt2.is_dir():
        pytest.skip("GPT-2's vocabulary is not beside the project")
    tok, shards = load_tokenizer(gpt2), tmp_path / "shards"
    ids = [i for _ in range(40) for i in [tok.eot, *tok.encode("Hello world, a document")]]
    shards.mkdir()
    write_shard(shards / "set_train_000001.bin", ids[:150])
    write_shard(shards / "set_train_000002.bin", ids[150:])
    write_shard(shards / "set_val_000000.bin", ids[:100])
    home = tmp_path / "hf_home/nanodistill/gpt2/main"
    home.mkdir(parents=True)
    for name, other in (("vocab.json", "encoder.json"), ("merges.txt", "vocab.bpe")):
        (home / name).write_bytes((gpt2 / other).read_bytes())
    (home / ".complete-tokenizer").touch()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    out = tmp_path / "o"
    run_script("prepare_data.py", f"--source={shards}", f"--out_dir={out}")
    data = TokenData(out, "train", 16, 0, 4)
    assert np.array_equal(data.tokens.take(0, len(ids)), ids) and len(data.tokens) == len(ids)
    meta = json.loads((out / "meta.json").read_text())
    assert meta["train_documents"] == 40 and meta["train_bytes"] == 40 * len("Hello world, a document")
    assert "ids to 50,256: as meta.json says" in run_script("prepare_data.py", f"--check={out}").stdout
    write_shard(shards / "set_train_000002.bin", ids[150:], said=1000)
    with pytest.raises(ValueError, match="but its header says 1000 ids; it was cut, fetch it again"):
        TokenData(out, "train", 16, 0, 4)
    done = run_script("prepare_data.py", f"--check={out}", ok=False)
    assert done.returncode == 2 and "its bytes are not those that meta.json was written for" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not BABYLM.is_dir(), reason="the corpus of ten million words is not here")
def test_the_cleaned_text_of_every_domain_survives_encoding(tmp_path):
    run_script("prepare_data.py", f"--source={BABYLM}", "--vocab_size=2000", f"--out_dir={tmp_path}")
    tokenizer = load_tokenizer(tmp_path)
    train = Tokens([tmp_path / "train.bin"], "uint16")
    documents = iter(zip(*train.documents(tokenizer.eot)))
    for f in find_files(str(BABYLM), "", tmp_path):
        text = CLEAN.get(f.domain, str)("".join(text for text, _ in pieces(f)))
        ids = np.fromfile(tmp_path / f"val_{f.domain}.bin", "<u2") if f.split == "val" else train.take(*next(documents))
        assert tokenizer.decode(ids.tolist()) == text, f.path.name


def test_every_named_corpus_is_in_the_help_and_in_the_docs():
    help_text = (ROOT / "prepare_data.py").read_text().split('"""')[1]
    page = (ROOT / "docs/data.md").read_text()
    for name in NAMES:
        assert re.search(rf"\b{name}\b", help_text), f"{name} is not in the docstring of prepare_data.py"
        assert re.search(rf"\b{name}\b", page), f"{name} is not in docs/data.md"


def test_write_dataset_passes_for_old_sets(tmp_path):
    """Sets without a list of files, as earlier versions wrote them."""
    assert TokenData(write_dataset(tmp_path), "train", 16, 0, 4).batch(0, 0)[0].shape == (4, 16)
