"""Turn text into token files: train.bin, val.bin and meta.json.

    python prepare_data.py                                       # Python's own standard library, BPE 4,096
    python prepare_data.py config/data_babylm.py                 # BabyLM, cleaned, BPE 16,000
    python prepare_data.py --source=my_texts/ --vocab_size=16000 --out_dir=data/mine
    python prepare_data.py --check=data/mine

Sources by name: stdlib, shakespeare, babylm, babylm_100m, babylm_2024_10m, babylm_2024_100m, fineweb_edu, openwebtext,
pile, wikitext103 (text), finewebedu10B (GPT-2's tokens).

A folder without meta.json is not a data set yet: it is written last. A run that was killed goes on where it was when it
is started again, and ends with the same bytes.
"""

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
from common.corpus import File, find_files, pieces, stdlib
from common.data import Tokens, read_meta, tokenizer_meta
from common.files import file_sha256, resident
from common.tokenizer import ByteTokenizer, SentencePieceTokenizer, load_tokenizer
from common.writing import Run, write_json
from configurator import at_least, configure

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

    def __init__(self, files: list[File], text_key: str, val_fraction: float, clean: bool):
        self.files, self.text_key, self.val_fraction, self.clean = files, text_key, val_fraction, clean
        self.sizes, self.done = [f.path.stat().st_size for f in files], 0.0

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
        """Whether the end of a file is held out: of a single text, or of a domain's without a .dev."""
        file = self.files[i]
        return not file.split and file.form in (".txt", ".train") and (len(self.files) == 1 or bool(file.domain))

    def of_file(self, i: int):
        """The pieces of a file, cleaned. Those of a file that is cut have their split, others have the file's."""
        file, where, read = self.files[i], {"bytes": 0}, 0
        cut = round((1 - self.val_fraction) * self.text_bytes(i)) if self.is_cut(i) else 0
        for text, ends in pieces(file, self.text_key, where, self.cleaning(file)):
            self.done = (sum(self.sizes[:i]) + where["bytes"]) / max(1, sum(self.sizes))
            if cut > read:
                encoded = text.encode()
                head = encoded[: cut - read].decode(errors="ignore")
                read, text = read + len(encoded), text[len(head) :]
                yield Piece(head, ends or read >= cut, "train", file.domain)
            if text:
                yield Piece(text, ends, "val" if cut else file.split, file.domain)

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
    if kind != "bpe":
        try:
            tokenizer = load_tokenizer(kind)
        except OSError as error:
            raise type(error)(f"tokenizer={kind!r} is not one of bytes, bpe, gpt2, and {error}") from None
        return tokenizer
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
# sets that are tokens already, and the check of any


def use_tokens(files: list[File], folder: Path, source: str):
    """Make files of GPT-2's ids with headers a data set as they are: only meta.json is written, and the tokenizer."""
    tok = load_tokenizer("gpt2")
    folder.mkdir(parents=True, exist_ok=True)
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
    tok.save(folder)
    write_json(folder / "meta.json", meta)


def check_data(folder: Path):
    """ValueError unless every file is there with the size, hash and ids that meta.json says; prints a sample."""
    meta, tok = read_meta(folder), load_tokenizer(folder)
    for name, said in meta.get("files", {}).items():
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there, but meta.json names it; prepare the data again")
        if path.stat().st_size != said["bytes"] or file_sha256(path) != said["sha256"]:
            raise ValueError(f"{path}: its bytes are not those that meta.json was written for; prepare the data again")
    for name in ("train", "val"):
        tokens = Tokens([folder / n for n in meta[f"{name}_files"]], meta["dtype"])
        largest = max(int(ids[i : i + (1 << 24)].max()) for ids in tokens.maps for i in range(0, len(ids), 1 << 24))
        if len(tokens) != meta[f"{name}_tokens"] or largest >= meta["vocab_size"]:
            raise ValueError(f"{folder}: {len(tokens)} {name} tokens up to id {largest}, which meta.json does not say")
        print(f"{name}: {len(tokens):,} tokens in {len(tokens.maps)} files, ids to {largest:,}: as meta.json says")
    print(f"the first of val: {tok.decode(tokens.take(0, min(100, len(tokens))).tolist())!r}")


if __name__ == "__main__":
    source = "stdlib"  # a name above, a .txt, .jsonl or .parquet file (perhaps with .gz or .zst), a folder of them
    text_dir = ""  # where the files of a named source lie already; "": they are downloaded
    text_key = "text"  # of .jsonl: the key, of .parquet: the column that holds the text
    clean = True  # clean the domains of BabyLM, told by the names of their files
    tokenizer = "bpe"  # "bytes" (257 ids), "bpe" (SentencePiece, trained here), "gpt2", or a model's folder or name
    vocab_size = 4096  # of the bpe; at most 65,536
    nfkc = False  # bpe: normalise text by Unicode's NFKC first
    val_fraction = 0.05  # held out where the source holds nothing out itself: of documents, or a text's end
    shard_tokens = 100_000_000  # in a file; where one is enough it is train.bin, else train_000.bin, …
    workers = 0  # cores that encode; 0: all. The files do not depend on it
    out_dir = ""  # where train.bin, val.bin, meta.json and the tokenizer go; "": data/ and the source's name
    check = ""  # a data set to check, instead of making one
    config = configure(globals())

    at_least(config, 1, "shard_tokens")
    at_least(config, 0, "workers")
    if check:
        check_data(Path(check))
        sys.exit()
    if not 0 < val_fraction <= 0.5:
        raise ValueError(f"val_fraction={val_fraction} is not in 0 … 0.5")
    started, folder = time.perf_counter(), Path(out_dir or f"data/{Path(source).stem}")
    is_stdlib = source == "stdlib" and not text_dir
    place = folder if source == "finewebedu10B" else Path("data/downloads") / source
    files = [] if is_stdlib else find_files(source, text_dir, place)
    source = f"stdlib of Python {sys.version.split()[0]}" if is_stdlib else source
    if any(file.form == ".bin" for file in files):
        use_tokens(files, folder, source)
    else:
        knobs = {k: config[k] for k in ("text_key", "clean", "tokenizer", "vocab_size", "nfkc", "val_fraction")}
        stats = [(str(f.path), f.path.stat().st_size, f.path.stat().st_mtime_ns) for f in files]
        digest = hashlib.sha256(json.dumps([source, stats]).encode()).hexdigest()
        run = Run(folder, knobs | {"shard_tokens": shard_tokens, "source": source, "source_files": digest})
        if not run.is_finished():
            stream = Stream(files, text_key, val_fraction, clean)
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
            finish(run, tok, source)
        run.install()
    report(folder, time.perf_counter() - started)
