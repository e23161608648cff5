"""Turn text into token files: train.bin, val.bin and meta.json.

    python prepare_data.py                                       # Python's own standard library, BPE 4,096
    python prepare_data.py --source=shakespeare --tokenizer=gpt2 --out_dir=data/shakespeare
    python prepare_data.py --source=my_texts/ --vocab_size=16000 --out_dir=data/mine

A folder without meta.json is not a data set yet: it is written last.
"""

import json
import os
import sys
import sysconfig
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.data import tokenizer_meta
from common.download import download
from common.tokenizer import FILES, ByteTokenizer, SentencePieceTokenizer, load_tokenizer
from configurator import configure

SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
PIECE = 1 << 20  # characters read at once; a longer .txt is read in pieces, cut at line ends
BATCH = 1 << 23  # characters tokenised at once
BPE_SAMPLE = 1 << 26  # characters the BPE is trained on, spread over the training split

# ---------------------------------------------------------------------------------------------
# sources: generators of (text, whether a document ends here)


def read_pieces(path: Path):
    """A text file as pieces of at most about PIECE characters; bytes that are not UTF-8 become U+FFFD."""
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        piece = file.read(PIECE)
        while piece:
            piece += file.readline() if len(piece) == PIECE else ""
            following = file.read(PIECE)
            yield piece, not following
            piece = following


def read_jsonl(path: Path):
    """The "text" of each line of a .jsonl file, a document each."""
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                text = json.loads(line)["text"]
                if not isinstance(text, str):
                    raise TypeError(f"text is {type(text).__name__}")
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(f'{path}, line {number}: expected JSON with a "text" ({error!r})') from None
            yield text.encode("utf-8", errors="replace").decode(), True  # half a surrogate pair becomes "?"


def read_stdlib():
    """Documentation topics and source of the Python that runs this, one document each, duplicates dropped.

    In the order of the path. Left out: tests and tables, which some systems do not install.
    """
    from pydoc_data.topics import topics

    seen, root = set(), Path(sysconfig.get_path("stdlib"))
    leave = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data",
             "encodings", "ensurepip", "lib2to3"}  # fmt: skip
    texts = [topics[name] for name in sorted(topics)]
    for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
        if not leave & set(path.relative_to(root).parts):
            texts.append(path.read_bytes().decode("utf-8", errors="replace").replace("\r\n", "\n"))
    for text in texts:
        if text.strip() and text not in seen:
            seen.add(text)
            yield text, True


def open_source(source: str):
    """(a function that gives a fresh generator, files by size in bytes or None) of a source's name or path."""
    if source == "stdlib":
        return read_stdlib, None
    path = download(SHAKESPEARE, "data/shakespeare/input.txt") if source == "shakespeare" else Path(source)
    files = sorted(p for p in path.rglob("*") if p.suffix in (".txt", ".jsonl")) if path.is_dir() else [path]
    if not path.exists() or not files:
        what = "holds no .txt or .jsonl" if path.exists() else "is not there"
        raise FileNotFoundError(f"source {source!r} {what}; expected stdlib, shakespeare, a file, or a folder of them")
    if path.is_file() and path.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"source {source!r}: expected .txt or .jsonl, not {path.suffix!r}; rename or convert it")

    def read():
        for file in files:
            yield from read_jsonl(file) if file.suffix == ".jsonl" else read_pieces(file)

    return read, files


# ---------------------------------------------------------------------------------------------
# the split, the tokenizer, the files


def split(read, files, val_fraction: float):
    """(text, whether a document ends here, "train" or "val") of a source.

    Validation is spread evenly, every 20th document for 0.05; of a single .txt it is the last val_fraction.
    """
    if files and len(files) == 1 and files[0].suffix == ".txt":
        cut = (1 - val_fraction) * sum(len(text) for text, _ in read())
        done = 0
        for text, ends in read():
            train = text[: max(0, round(cut) - done)]
            done += len(text)
            if train:
                yield train, ends or len(train) < len(text) or done == round(cut), "train"
            if len(train) < len(text):
                yield text[len(train) :], ends, "val"
        return
    document = 0
    for text, ends in read():
        held_out = int((document + 1) * val_fraction + 1e-9) > int(document * val_fraction + 1e-9)
        yield text, ends, "val" if held_out else "train"
        document += ends


def make_tokenizer(kind: str, vocab_size: int, texts, characters: int):
    """The tokenizer of that kind, or of the folder or hub repository of that name.

    "bpe" is trained on `texts`, of which a spread sample where they are large.
    """
    if kind == "bytes":
        return ByteTokenizer()
    if kind != "bpe":
        try:
            tokenizer = load_tokenizer(kind)
        except OSError as error:
            raise type(error)(f"tokenizer={kind!r} is not one of bytes, bpe, gpt2, and {error}") from None
        if tokenizer.vocab_size > 65536:
            raise ValueError(f"tokenizer={kind!r} has {tokenizer.vocab_size:,} ids, but train.bin holds uint16: 65,536")
        tokenizer.bos = tokenizer.eot  # documents are told apart by eot alone; no model sees bos
        return tokenizer
    if not 300 <= vocab_size <= 65535:
        raise ValueError(f"vocab_size={vocab_size}: a bpe needs 300 to 65,535 (bytes come first, ids are uint16)")
    every = -(-characters // BPE_SAMPLE)
    print(f"training a BPE of {vocab_size:,} on {characters / every / 1e6:.1f} M characters …", flush=True)
    return SentencePieceTokenizer.train((t for i, t in enumerate(texts) if i % every == 0), vocab_size)


class Writer:
    """One split's .bin, written aside; counts tokens, bytes of text and documents."""

    def __init__(self, path: Path):
        self.path, self.file = path, open(path.with_suffix(".writing"), "wb")
        self.tokens = self.bytes = self.documents = 0

    def write(self, ids: list[int], n_bytes: int, ends: bool, eot: int):
        ids = np.array([*ids, eot] if ends else ids, dtype="<u2")
        self.file.write(ids.tobytes())
        self.tokens, self.bytes, self.documents = self.tokens + len(ids), self.bytes + n_bytes, self.documents + ends


def batches(items):
    """Items (text, …) in lists of about BATCH characters."""
    now, size = [], 0
    for item in items:
        now.append(item)
        size += len(item[0])
        if size >= BATCH:
            yield now
            now, size = [], 0
    if now:
        yield now


def write_split(items, tokenizer, folder: Path, characters: int) -> dict[str, Writer]:
    """Write folder/train.writing and val.writing from (text, ends, split) items; returns the Writers by split."""
    writers = {name: Writer(folder / f"{name}.bin") for name in ("train", "val")}
    bar = tqdm(total=characters, unit="ch", unit_scale=True, desc="tokenize", disable=not sys.stderr.isatty())
    with bar:
        for batch in batches(items):
            for (text, ends, name), ids in zip(batch, tokenizer.encode_batch([text for text, *_ in batch])):
                writers[name].write(ids, len(text.encode("utf-8", errors="replace")), ends, tokenizer.eot)
                bar.update(len(text))
    for writer in writers.values():
        writer.file.flush()
        os.fsync(writer.file.fileno())
        writer.file.close()
    return writers


def write_choices(items, path: Path, lines=6, limit=500):
    """HellaSwag-shaped questions from held-out documents: which line comes next? Three wrong ones from the same text.

    No substitute for HellaSwag: something of its form to score without a download.
    """
    rng, rows = np.random.default_rng(0), []
    for text, _, name in items:
        if name != "val" or len(rows) >= limit:
            continue
        parts = [p for p in text.splitlines() if len(p.strip()) >= 20]
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


if __name__ == "__main__":
    source = "stdlib"  # "stdlib", "shakespeare" (downloaded), a .txt or .jsonl file, or a folder of them
    tokenizer = "bpe"  # "bytes" (257 ids), "bpe" (SentencePiece, trained here), "gpt2", or a model's folder or name
    vocab_size = 4096  # of the bpe; at most 65,535
    val_fraction = 0.05  # of the documents, or of a single text, held out in val.bin
    out_dir = ""  # where train.bin, val.bin, meta.json and the tokenizer go; "": data/ and the source's name
    config = configure(globals())

    if not 0 < val_fraction <= 0.5:
        raise ValueError(f"val_fraction={val_fraction} is not in 0 … 0.5")
    read, files = open_source(source)
    folder = Path(out_dir or f"data/{Path(source).stem}")
    characters = sum(len(text) for text, _ in read())
    if not characters:
        raise ValueError(f"source {source!r} has no text")
    training = (text for text, _, name in split(read, files, val_fraction) if name == "train")
    tok = make_tokenizer(tokenizer, vocab_size, training, characters)
    folder.mkdir(parents=True, exist_ok=True)
    writers = write_split(split(read, files, val_fraction), tok, folder, characters)
    if empty := [name for name, writer in writers.items() if not writer.tokens]:
        raise ValueError(f"the {empty[0]} split is empty: too few documents for val_fraction={val_fraction}; change it")
    for old in ("meta.json", "choices.jsonl", *FILES):  # without meta.json the folder is no data set
        (folder / old).unlink(missing_ok=True)
    for writer in writers.values():
        writer.path.with_suffix(".writing").replace(writer.path)
    tok.save(folder)
    if source == "stdlib":
        write_choices(split(read, files, val_fraction), folder / "choices.jsonl")
        source = f"stdlib of Python {sys.version.split()[0]}"
    meta = tokenizer_meta(tok) | {"source": source, "dtype": "uint16"}
    for name, writer in writers.items():
        meta |= {f"{name}_tokens": writer.tokens, f"{name}_bytes": writer.bytes, f"{name}_documents": writer.documents}
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    for w in writers.values():
        print(f"{w.path}: {w.tokens:,} tokens, {w.documents:,} documents, {w.bytes / w.tokens:.3f} bytes a token")
