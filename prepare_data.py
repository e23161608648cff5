"""Turn text into token files: train.bin, val.bin and meta.json.

    python prepare_data.py                                       # Python's own standard library, BPE 4,096
    python prepare_data.py config/data_babylm.py                 # BabyLM, cleaned, BPE 16,000
    python prepare_data.py --source=my_texts/ --vocab_size=16000 --out_dir=data/mine
    python prepare_data.py --check=data/mine

Sources by name: stdlib, shakespeare, babylm, babylm_100m, babylm_2024_10m, babylm_2024_100m, fineweb_edu, openwebtext,
pile, wikitext103 (text), finewebedu10B (GPT-2's tokens).

In a folder, files (or folders) called train, val, valid, validation, dev, eval or test, or whose names begin or end
with one of these words, declare their split: validation text is never trained on, test text is left out.

A folder without meta.json is not a data set yet: it is written last. A run that was killed goes on where it was when it
is started again, and ends with the same bytes. A data set of other settings is replaced only with --overwrite=true.
"""

# before the imports below, so that Ctrl-C while they load ends in one line
from configurator import at_least, configure, nearest, one_of  # isort: split

import hashlib
import json
import os
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.babylm import CLEAN
from common.checking import check_data
from common.corpus import END_OF_TEXT, NAMES, PLAIN_TEXT, SEPARATORS, File, find_files, pieces, stdlib
from common.data import Tokens, read_meta, tokenizer_meta
from common.files import file_sha256, resident
from common.tokenizer import ByteTokenizer, SentencePieceTokenizer, load_tokenizer
from common.writing import Run, check_replaceable, lock_folder, remove_data_set, write_json

BATCH = 1 << 22  # characters tokenised at once
BPE_SAMPLE = 1 << 26  # bytes of text that the BPE is trained on, spread over the training split

# ---------------------------------------------------------------------------------------------
# the stream: pieces of text in a fixed order, each with its place


@dataclass
class Piece:
    text: str
    ends: bool  # whether a document ends here
    split: str  # "train" or "val"
    domain: str = ""


class Stream:
    """The pieces of a corpus. The same for each pass over it; `done`, of 0 … 1, tells how far a pass is."""

    def __init__(self, files: list[File], text_key: str, val_fraction: float, clean: bool, separator: str):
        self.files, self.text_key, self.val_fraction, self.clean = files, text_key, val_fraction, clean
        self.separator = separator
        self.sizes, self.done = [f.path.stat().st_size for f in files], 0.0
        self.notes = {}  # what is odd about the text: the first file that is so

    def __iter__(self):
        if not self.files:
            yield from self.by_document(Piece(text, ends, "") for text, ends in stdlib())
            return
        undecided = [i for i, file in enumerate(self.files) if not file.split and not self.is_cut(i)]
        for i in range(len(self.files)):
            if i not in undecided:
                yield from self.of_file(i)
        yield from self.by_document(piece for i in undecided for piece in self.of_file(i))

    def is_cut(self, i: int) -> bool:
        """Whether the end of a file is held out: of a single text, or of a domain's without a .dev.

        Not where a file holds several documents: then some of them are, as a whole.
        """
        file = self.files[i]
        is_text = file.form in (".txt", ".train") and self.separator == "file"
        return not file.split and is_text and (len(self.files) == 1 or bool(file.domain))

    def of_file(self, i: int):
        """The pieces of a file, cleaned. Those of a file that is cut have their split, others have the file's."""
        file, where, read = self.files[i], {"bytes": 0}, 0
        cut = round((1 - self.val_fraction) * self.text_bytes(i)) if self.is_cut(i) else 0
        for text, ends in pieces(file, self.text_key, where, self.cleaning(file), self.separator):
            self.note(file, text)
            self.done = (sum(self.sizes[:i]) + where["bytes"]) / max(1, sum(self.sizes))
            if cut > read:
                encoded = text.encode()
                head = encoded[: cut - read].decode(errors="ignore")
                read, text = read + len(encoded), text[len(head) :]
                yield Piece(head, ends or read >= cut, "train", file.domain)
            if text:
                yield Piece(text, ends, "val" if cut else file.split, file.domain)

    def note(self, file: File, text: str):
        """Keep what is better said than left to be found in a model's samples."""
        if file.form in PLAIN_TEXT and END_OF_TEXT in text:
            what = f"has {END_OF_TEXT} in its text; documents end there only with --document_separator=eot"
            self.notes.setdefault(what, file.path)
        if "\ufffd" in text:
            what = "has U+FFFD in its text, which bytes become that are not UTF-8; if there are many, convert it"
            self.notes.setdefault(what, file.path)

    def text_bytes(self, i: int) -> int:
        """The bytes of a text; one that is compressed or cleaned has to be read for it."""
        file = self.files[i]
        if file.path.suffix not in (".gz", ".zst") and self.cleaning(file) is str:
            return self.sizes[i]
        return sum(len(text.encode()) for text, _ in pieces(file, self.text_key, None, self.cleaning(file)))

    def cleaning(self, file: File):
        return CLEAN.get(file.domain, str) if self.clean else str

    def by_document(self, found):
        """Every 20th document held out, for 0.05: spread evenly over the corpus."""
        document = 0
        for piece in found:
            share = self.val_fraction
            piece.split = "val" if int((document + 1) * share + 1e-9) > int(document * share + 1e-9) else "train"
            document += piece.ends
            yield piece


def batches(stream):
    """Pieces in lists of about BATCH characters."""
    now, size = [], 0
    for piece in stream:
        now.append(piece)
        size += len(piece.text)
        if size >= BATCH:
            yield now
            now, size = [], 0
    if now:
        yield now


# ---------------------------------------------------------------------------------------------
# text -> ids -> files


def make_tokenizer(kind: str, vocab_size: int, nfkc: bool, stream: Stream):
    """The tokenizer of that kind, or of the folder or hub repository of that name.

    "bpe" is trained on the training split of the stream, of which a spread sample where it is large.
    """
    if kind == "bytes":
        return ByteTokenizer()
    if kind in ("char", "chars", "character", "characters") and not Path(kind).exists():
        raise ValueError(f"tokenizer={kind!r}: there is none of characters; --tokenizer=bytes is the nearest, 257 ids")
    if kind == "gpt2":
        return load_tokenizer(kind)
    if kind != "bpe":
        try:
            return load_tokenizer(kind)
        except OSError as error:
            near = nearest(kind.lower(), ("bytes", "bpe", "gpt2"))
            raise type(error)(f"tokenizer={kind!r} is not one of bytes, bpe, gpt2{near}; and {error}") from None
    if not 300 <= vocab_size <= 65536:
        raise ValueError(f"vocab_size={vocab_size}: a bpe needs 300 to 65,536 (bytes come first, ids are uint16)")
    every = -(-sum(stream.sizes) // BPE_SAMPLE) or 1  # of compressed files a larger part is taken
    sample = "the training split" if every == 1 else f"one in {every} pieces of the training split"
    print(f"training a BPE of {vocab_size:,} on {sample} …", flush=True)
    training = (piece.text for piece in stream if piece.split == "train")
    return SentencePieceTokenizer.train(islice(training, 0, None, every), vocab_size, nfkc)


def tokenize(run: Run, stream: Stream, tok, workers: int, shard_tokens: int):
    """Write all splits; the text is read and cleaned while other cores encode what came before."""
    dtype = "uint16" if tok.vocab_size <= 65536 else "uint32"
    run.restore(dtype, shard_tokens)
    bar = tqdm(unit="tok", unit_scale=True, desc="tokenize", disable=not sys.stderr.isatty())
    started = spoken = time.perf_counter()
    tokens, waiting, todo = 0, deque(), batches(islice(iter(stream), run.pieces, None))
    with bar, ThreadPoolExecutor(1) as pool:
        while True:
            batch = next(todo, None)
            if batch:
                waiting.append((batch, pool.submit(tok.encode_arrays, [p.text for p in batch], workers)))
            if len(waiting) > 1 or (waiting and not batch):
                now, encoded = waiting.popleft()
                for piece, ids in zip(now, encoded.result()):
                    record(run, piece, ids, tok.eot, dtype, shard_tokens)
                    tokens += len(ids)
                bar.total = round(tokens / stream.done) if stream.done else None
                bar.update(tokens - bar.n)
                if bar.disable and time.perf_counter() - spoken > 30:  # a log file has no bar
                    spoken = time.perf_counter()
                    rate = tokens / (spoken - started)
                    print(f"{stream.done:.0%} read | {tokens:,} tokens | {rate:,.0f} tokens/s", flush=True)
                run.pieces += len(now)
                run.save()
            if not (batch or waiting):
                return


def record(run: Run, piece: Piece, ids: np.ndarray, eot: int, dtype: str, shard_tokens: int):
    """A piece's ids into the files of its split, and, held out of a domain, of that."""
    n_bytes = len(piece.text.encode())
    names = [piece.split, f"val_{piece.domain}"] if piece.domain and piece.split == "val" else [piece.split]
    for name in names:
        run.split(name, dtype, shard_tokens).write(ids, n_bytes, piece.ends, eot)
    if piece.domain:
        counts = run.domains.setdefault(piece.domain, [0, 0])
        counts[:] = counts[0] + len(ids), counts[1] + n_bytes


def finish(run: Run, tok, source: str):
    """Name the files, count, hash, and write meta.json."""
    for name in ("train", "val"):
        if not (name in run.splits and run.splits[name].tokens):
            what = "it has no text" if not run.splits else "too few documents for val_fraction; change it"
            raise ValueError(f"source {source!r}: the {name} split is empty: {what}")
    dtype = next(iter(run.splits.values())).dtype
    meta = tokenizer_meta(tok) | {"source": source, "settings": run.settings, "dtype": dtype, "files": {}}
    meta["domains"] = {d: {"tokens": t, "bytes": b} for d, (t, b) in sorted(run.domains.items())}
    for name, split in run.splits.items():
        meta |= {f"{name}_tokens": split.tokens, f"{name}_bytes": split.bytes, f"{name}_documents": split.documents}
        meta[f"{name}_files"] = split.names()
        for file, path in zip(split.names(), split.shards()):
            meta["files"][file] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    write_json(run.work / "meta.json", meta)


def report(folder: Path, seconds: float):
    """What a data set holds, and what it took."""
    meta = read_meta(folder)
    for name in ("train", "val"):
        tokens, n_bytes, files = meta[f"{name}_tokens"], meta[f"{name}_bytes"], meta[f"{name}_files"]
        shown = folder / files[0] if len(files) == 1 else f"{folder / files[0]} … {files[-1]}"
        print(
            f"{shown}: {tokens:,} tokens, {meta[f'{name}_documents']:,} documents, {n_bytes / tokens:.3f} bytes a token"
        )
    if meta["domains"]:
        print("bytes a token:", ", ".join(f"{d} {c['bytes'] / c['tokens']:.2f}" for d, c in meta["domains"].items()))
    total = meta["train_tokens"] + meta["val_tokens"]
    peak = f", peak memory {resident(peak=True) / 1e6:,.0f} MB" if Path("/proc/self/status").is_file() else ""
    print(f"{seconds:.1f} s, {total / seconds:,.0f} tokens/s{peak}")


def write_choices(stream, path: Path, lines=6, limit=500):
    """HellaSwag-shaped questions from held-out documents: which line comes next? Three wrong ones from the same text.

    No substitute for HellaSwag: something of its form to score without a download.
    """
    rng, rows = np.random.default_rng(0), []
    for piece in stream:
        if piece.split != "val" or len(rows) >= limit:
            continue
        parts = [p for p in piece.text.splitlines() if len(p.strip()) >= 20]
        starts = range(0, len(parts) - lines - 4, lines + 20)
        for start in list(starts)[:20]:
            right = parts[start + lines].strip()
            others = [p.strip() for p in parts if p.strip() != right]
            if len(set(others)) < 3:
                continue
            endings = list(rng.choice(sorted(set(others)), 3, replace=False))
            label = int(rng.integers(4))
            endings.insert(label, right)
            ctx = "\n".join(parts[start : start + lines]) + "\n"
            rows.append(json.dumps({"ctx": ctx, "endings": [str(e) for e in endings], "label": label}))
    path.write_text("".join(f"{row}\n" for row in rows[:limit]), encoding="utf-8")


# ---------------------------------------------------------------------------------------------
# what is asked for, and the splits it comes in


def announce_splits(files: list[File]) -> list[File]:
    """Say which splits the names of the files declare, if any; the files but for those of a test split."""
    shown = []
    for split in ("train", "val", "test"):
        names = [f.path.name for f in files if f.split == split]
        if names:
            more = ", …" if len(names) > 2 else ""
            files_of = "1 file" if len(names) == 1 else f"{len(names)} files"
            left_out = ", left out" if split == "test" else ""
            shown.append(f"{split} {files_of} ({', '.join(names[:2])}{more}){left_out}")
    if any(f.split in ("val", "test") for f in files):
        print(f"splits by the names of the files: {'; '.join(shown)}", flush=True)
    return [f for f in files if f.split != "test"]


def check_source(config: dict):
    """ValueError where source, text_dir and document_separator do not go together."""
    source, text_dir = config["source"], config["text_dir"]
    if not source:
        raise ValueError(f"source is empty; expected a file or a folder, or one of {', '.join(NAMES)}")
    if text_dir and (source == "stdlib" or source not in NAMES):
        raise ValueError(
            f"text_dir is where the files of a named source lie, and source={source!r} is not one that has files"
            f"{nearest(source, NAMES[1:])}; for texts of your own give --source={text_dir} alone"
        )
    one_of(config, document_separator=SEPARATORS)
    if not 0 < config["val_fraction"] <= 0.5:
        raise ValueError(f"val_fraction={config['val_fraction']} is not in 0 … 0.5")


# ---------------------------------------------------------------------------------------------
# sets that are tokens already


def use_tokens(files: list[File], folder: Path, source: str):
    """Make files of GPT-2's ids with headers a data set as they are: only meta.json is written, and the tokenizer."""
    tok, lock = load_tokenizer("gpt2"), lock_folder(folder)
    meta = tokenizer_meta(tok) | {"source": source, "dtype": "uint16", "domains": {}, "files": {}}
    for name in ("train", "val"):
        paths = [f.path for f in files if f.split == name]
        inside = [str(p.relative_to(folder) if p.is_relative_to(folder) else p.resolve()) for p in paths]
        tokens, lengths = Tokens(paths, "uint16"), np.append(tok.byte_lengths(), np.zeros(1 << 16, dtype=np.int64))
        if not len(tokens):
            raise ValueError(f"source {source!r}: no file with {name} in its name; expected <name>_{name}_000000.bin")
        documents, n_bytes = 0, 0
        for ids in tokens.maps:
            for first in range(0, len(ids), 1 << 24):
                part = np.asarray(ids[first : first + (1 << 24)])
                documents, n_bytes = documents + int((part == tok.eot).sum()), n_bytes + int(lengths[part].sum())
        meta |= {f"{name}_tokens": len(tokens), f"{name}_bytes": n_bytes, f"{name}_documents": documents}
        meta[f"{name}_files"] = inside
        meta["files"] |= {n: {"bytes": p.stat().st_size, "sha256": file_sha256(p)} for n, p in zip(inside, paths)}
    remove_data_set(folder, keep=[f.path for f in files])
    tok.save(folder)
    write_json(folder / "meta.json", meta)
    lock.close()


if __name__ == "__main__":
    source = "stdlib"  # a name above, a .txt, .jsonl or .parquet file (perhaps with .gz or .zst), a folder of them
    text_dir = ""  # where the files of a named source lie already; "": they are downloaded
    text_key = "text"  # of .jsonl: the key, of .parquet: the column that holds the text
    document_separator = "file"  # of texts: each a document, or "line", "blank" line or "eot" (<|endoftext|>) ends one
    clean = True  # clean the domains of BabyLM, told by the names of their files
    tokenizer = "bpe"  # "bytes" (257 ids), "bpe" (SentencePiece, trained here), "gpt2", or a model's folder or name
    vocab_size = 4096  # of the bpe; at most 65,536
    nfkc = False  # bpe: normalise text by Unicode's NFKC first
    val_fraction = 0.05  # held out where the source holds nothing out itself: of documents, or a text's end
    shard_tokens = 100_000_000  # in a file; where one is enough it is train.bin, else train_000.bin, …
    workers = 0  # cores that encode; 0: all. The files do not depend on it
    out_dir = ""  # where train.bin, val.bin, meta.json and the tokenizer go; "": data/ and the source's name
    overwrite = False  # replace a data set in out_dir that was made with other settings
    check = ""  # a data set to check, instead of making one
    config = configure(globals())

    at_least(config, 1, "shard_tokens")
    at_least(config, 0, "workers")
    if check:
        check_data(Path(check))
        sys.exit()
    check_source(config)
    started, folder = time.perf_counter(), Path(out_dir or f"data/{Path(os.path.abspath(source)).stem}")
    is_stdlib = source == "stdlib"
    source = f"stdlib of Python {sys.version.split()[0]}" if is_stdlib else source
    names = "text_key clean tokenizer vocab_size nfkc val_fraction document_separator text_dir shard_tokens"
    settings = {name: config[name] for name in names.split()} | {"source": source}
    check_replaceable(folder, settings, overwrite)
    place = folder if source == "finewebedu10B" else Path("data/downloads") / source
    files = [] if is_stdlib else announce_splits(find_files(source, text_dir, place))
    if document_separator != "file" and not any(file.form in PLAIN_TEXT for file in files):
        what = f"document_separator={document_separator!r} is for {', '.join(PLAIN_TEXT)} files"
        raise ValueError(f"{what}, and source {source!r} has none; leave it out")
    if any(file.form == ".bin" for file in files):
        use_tokens(files, folder, source)
    else:
        stats = [(str(f.path), f.path.stat().st_size, f.path.stat().st_mtime_ns) for f in files]
        digest = hashlib.sha256(json.dumps([source, stats]).encode()).hexdigest()
        run = Run(folder, settings | {"source_files": digest})
        if not run.is_finished():
            stream = Stream(files, text_key, val_fraction, clean, document_separator)
            model = run.work / "tokenizer.model"
            tok = SentencePieceTokenizer(model.read_bytes()) if tokenizer == "bpe" and run.tokenizer else None
            tok = tok or make_tokenizer(tokenizer, vocab_size, nfkc, stream)
            tok.bos = tok.eot  # documents are told apart by eot alone; no model that learns from them sees bos
            if run.tokenizer not in ("", tok.hash):
                raise ValueError(f"{tokenizer} has become another tokenizer; delete {run.work} to start anew")
            tok.save(run.work)
            run.tokenizer = tok.hash
            tokenize(run, stream, tok, workers or os.cpu_count(), shard_tokens)
            if is_stdlib:
                write_choices(stream, run.work / "choices.jsonl")
            for what, path in stream.notes.items():
                print(f"note: {path} {what}", flush=True)
            finish(run, tok, source)
        run.install()
    report(folder, time.perf_counter() - started)
