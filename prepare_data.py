"""Turn text into token files: train.bin, val.bin and meta.json.

    python prepare_data.py                                       # Python's own standard library, BPE 4,096
    python prepare_data.py config/babyllama/data.py                 # BabyLM, cleaned, BPE 16,000
    python prepare_data.py --source=my_texts/ --vocab_size=16000 --out_dir=data/mine
    python prepare_data.py --check=data/mine

Sources by name: stdlib, shakespeare, babylm, babylm_100m, babylm_2024_10m, babylm_2024_100m, fineweb_edu, openwebtext,
pile, wikitext103 (text), finewebedu10B (GPT-2's tokens).

In a folder, files (or folders) called train, val, valid, validation, dev, eval or test, or whose names begin or end
with one of these words, declare their split: validation text is never trained on, test text is left out.

A folder without meta.json is not a data set yet: it is written last. A run that was killed resumes when it is started
again, and ends with the same bytes. A data set of other settings is replaced only with --overwrite=true.

Several machines divide the files of a corpus: --part=1/16 on the first … --part=16/16 on the last, and then --part=join
makes the data set of one run, byte for byte (docs/distributed.md).

Read on in corpora/: sources, readers and splits say what text there is, stream puts it in order, encoding makes ids of
it, writing keeps them, parts divides all of it over machines.
"""

# before the imports below, so that Ctrl-C while they load ends in one line
from configurator import at_least, configure, nearest, one_of  # isort: split

import hashlib
import json
import os
import sys
import time
from functools import partial
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from common.files import file_sha256, resident, write_json
from common.meta import read_meta, tokenizer_meta
from common.parts import JOIN, Part, parse_part
from common.tokenizer import SentencePieceTokenizer
from corpora.checking import check_data
from corpora.choices import write_choices
from corpora.encoding import encode_ahead, make_tokenizer
from corpora.parts import (
    JoinedStream,
    PartPreparation,
    PartStream,
    check_room,
    copy_tokenizer,
    is_finished_part,
    joined_stats,
    open_parts,
    stats_of,
)
from corpora.readers import PLAIN_TEXT, SEPARATORS, File
from corpora.shards import use_shards
from corpora.sources import NAMES, find_files
from corpora.splits import announce_splits
from corpora.stream import Stream, batches
from corpora.writing import Preparation, check_replaceable

# The knobs that the token files depend on, kept in meta.json; `workers` is none of them.
SETTINGS = (
    "text_key",
    "clean",
    "tokenizer",
    "vocab_size",
    "nfkc",
    "val_fraction",
    "document_separator",
    "text_dir",
    "shard_tokens",
)


def prepare(config: dict):
    """Make the data set that the knobs ask for, and say what it holds."""
    started = time.perf_counter()
    part = parse_part(config["part"])
    check_source(config)
    source = config["source"]
    # abspath, so that --source=. takes the name of the current folder
    folder = Path(config["out_dir"] or f"data/{Path(os.path.abspath(source)).stem}")
    settings = settings_of(config)
    # Before anything is downloaded or trained: an hour later would be too late.
    check_replaceable(folder, settings, config["overwrite"])
    files = files_to_read(config, folder, part)
    if config["document_separator"] != "file":
        check_has_plain_text(files, config["document_separator"], settings["source"])
    if config["part"]:
        check_divisible(files, settings["source"])
    if part:
        prepare_part(part, files, folder, settings, config)
        return
    if config["part"] == JOIN:
        join_parts(files, folder, settings, config)
    elif any(file.form == ".bin" for file in files):
        use_shards(files, folder, settings["source"])
    else:
        prepare_texts(files, folder, settings, config)
    report(folder, time.perf_counter() - started)


def prepare_texts(files: list[File], folder: Path, settings: dict, config: dict):
    """Text to token files; continues where a killed run with the same settings and files stopped."""
    fingerprint = files_fingerprint(stats_of(files), settings["source"])
    preparation = Preparation(folder, settings | {"source_files": fingerprint})
    if not preparation.is_finished():
        stream = Stream(files, **stream_knobs(config))
        tok = choose_tokenizer(preparation, stream, config)
        encode = partial(encode_ahead, tok=tok, workers=config["workers"] or os.cpu_count())
        write_tokens(preparation, stream, encode, tokenizer_meta(tok), config["shard_tokens"])
        # The quickstart's multiple choice; other corpora come with tasks of their own.
        if config["source"] == "stdlib":
            write_choices(stream, preparation.work / "choices.jsonl")
        say_notes(stream)
        write_meta(preparation, tokenizer_meta(tok), settings["source"])
    preparation.install()


def prepare_part(part: Part, files: list[File], folder: Path, settings: dict, config: dict):
    """The ids of a part's files, in a folder of its own; continues where a killed run stopped."""
    # taken before the files are read, so that the next run notices a file that changes meanwhile
    stats = stats_of(files)
    needed = [entry for i, entry in enumerate(stats) if is_needed(i, part, config)]
    fingerprint = files_fingerprint(needed, settings["source"])
    settings = settings | {"part": str(part), "source_files": fingerprint}
    own_folder = part.folder(folder)
    n_files = sum(part.holds(i) for i in range(len(files)))
    if is_finished_part(own_folder, settings):
        print(f"{own_folder} is a finished part of these settings")
        return
    preparation = PartPreparation(own_folder, settings)
    if not preparation.is_finished():
        stream = PartStream(files, part=part, **stream_knobs(config))
        # Each part trains the BPE on the whole corpus, as a single run would: only then is it the same in all.
        training_stream = Stream(files, **stream_knobs(config)) if config["tokenizer"] == "bpe" else stream
        tok = choose_tokenizer(preparation, training_stream, config)
        meta = tokenizer_meta(tok)
        encode = partial(encode_ahead, tok=tok, workers=config["workers"] or os.cpu_count())
        write_tokens(preparation, stream, encode, meta, config["shard_tokens"])
        say_notes(stream)
        preparation.finish(stats, meta, dtype_for(meta))
    preparation.install()
    print(f"{own_folder}: part {part}, {n_files} of {len(files)} files; when all are there, --part={JOIN}", flush=True)


def join_parts(files: list[File], folder: Path, settings: dict, config: dict):
    """The data set of all parts; continues where a killed join stopped."""
    parts = open_parts(folder, settings, files)
    fingerprint = files_fingerprint(joined_stats(parts), settings["source"])
    preparation = Preparation(folder, settings | {"source_files": fingerprint})
    if not preparation.is_finished():
        check_room(folder, parts)
        meta = parts[0].info["tokenizer"]
        record_tokenizer(preparation, config["tokenizer"], meta["tokenizer_hash"])
        copy_tokenizer(parts[0], preparation.work)
        stream = JoinedStream(files, parts=parts, **stream_knobs(config))
        write_tokens(preparation, stream, stored_ids, meta, config["shard_tokens"])
        write_meta(preparation, meta, settings["source"])
    preparation.install()
    print(f"joined {len(parts)} parts; the folders {folder}/part_… are no longer needed", flush=True)


def say_notes(stream: Stream):
    """Print what is odd about the text, which is known only once all of it has been read."""
    for remark, path in stream.notes.items():
        print(f"note: {path} {remark}", flush=True)


def stream_knobs(config: dict) -> dict:
    return {
        "text_key": config["text_key"],
        "val_fraction": config["val_fraction"],
        "clean": config["clean"],
        "separator": config["document_separator"],
    }


# ---------------------------------------------------------------------------------------------
# what the knobs ask for


def check_source(config: dict):
    """ValueError where source, text_dir and document_separator do not go together."""
    source = config["source"]
    text_dir = config["text_dir"]
    if not source:
        names = ", ".join(NAMES)
        raise ValueError(f"source is empty; expected a file or a folder, or one of {names}")
    # The standard library is not made of files, and a path is the source itself.
    if text_dir and (source == "stdlib" or source not in NAMES):
        names_with_files = NAMES[1:]
        raise ValueError(
            f"text_dir is where the files of a named source lie, and source={source!r} is not one that has files"
            f"{nearest(source, names_with_files)}; for texts of your own give --source={text_dir} alone"
        )
    one_of(config, document_separator=SEPARATORS)
    # before anything is downloaded
    if config["part"] and source in ("stdlib", "shakespeare", "finewebedu10B") and not text_dir:
        check_divisible([], source)
    if not 0 < config["val_fraction"] <= 0.5:
        raise ValueError(f"val_fraction={config['val_fraction']} is not in 0 … 0.5")


def check_divisible(files: list[File], source: str):
    """ValueError where there are no files that several machines could divide."""
    remedy = "leave out --part"
    if any(file.form == ".bin" for file in files) or source == "finewebedu10B":
        raise ValueError(f"source {source!r} is of ids already, so that there is nothing to divide; {remedy}")
    if len(files) < 2:
        raise ValueError(f"source {source!r} cannot be divided, as it is not made of several files; {remedy}")


def is_needed(i: int, part: Part | None, config: dict) -> bool:
    """Whether this process reads file number i of the corpus."""
    if config["part"] == JOIN:
        return False
    return part is None or part.holds(i) or config["tokenizer"] == "bpe"


def settings_of(config: dict) -> dict:
    """The knobs as meta.json keeps them. The source stdlib has its version, on which its text depends."""
    settings = {name: config[name] for name in SETTINGS}
    settings["source"] = config["source"]
    if config["source"] == "stdlib":
        version = sys.version.split()[0]
        settings["source"] = f"stdlib of Python {version}"
    return settings


def files_to_read(config: dict, folder: Path, part: Part | None) -> list[File]:
    """The files of the source, without those of a test split; none for the standard library, which is no list of files.

    Downloads a named corpus, but only the files that this part needs: the others may not exist here. Prints which
    splits the names of the files declare.
    """
    source = config["source"]
    if source == "stdlib":
        return []
    downloads = Path("data/downloads") / source
    # This source's shards are token files already, so they go straight into the data set's folder.
    if source == "finewebedu10B":
        downloads = folder
    files = find_files(source, config["text_dir"], downloads, needs=lambda i: is_needed(i, part, config))
    announce_splits(files)
    return [file for file in files if file.split != "test"]


def check_has_plain_text(files: list[File], separator: str, source: str):
    if not any(file.form in PLAIN_TEXT for file in files):
        what = f"document_separator={separator!r} is for {', '.join(PLAIN_TEXT)} files"
        raise ValueError(f"{what}, and source {source!r} has none; leave it out")


def files_fingerprint(stats: list[list], source: str) -> str:
    """A hash that changes with the source and with the names, sizes and times of its files, as `stats_of` has them."""
    return hashlib.sha256(json.dumps([source, stats]).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------
# text -> ids -> files


def choose_tokenizer(preparation: Preparation, stream: Stream, config: dict):
    """The tokenizer of the data set, saved beside its token files."""
    kind = config["tokenizer"]
    if kind == "bpe" and preparation.tokenizer_hash:
        # It was trained before the kill.
        model = preparation.work / "tokenizer.model"
        tok = SentencePieceTokenizer(model.read_bytes())
    else:
        tok = make_tokenizer(kind, config["vocab_size"], config["nfkc"], stream)
    # Documents are separated by eot alone, so no model that learns from them ever sees bos.
    tok.bos = tok.eot
    record_tokenizer(preparation, kind, tok.hash)
    tok.save(preparation.work)
    return tok


def record_tokenizer(preparation: Preparation, kind: str, tokenizer_hash: str):
    """Keep the hash for a run that continues. ValueError if a killed run wrote ids of another tokenizer."""
    if preparation.tokenizer_hash not in ("", tokenizer_hash):
        remedy = f"delete {preparation.work} to start anew"
        raise ValueError(f"{kind} has become another tokenizer; {remedy}")
    preparation.tokenizer_hash = tokenizer_hash


def dtype_for(meta: dict) -> str:
    """The type of the ids in token files: two bytes each wherever they are enough."""
    return "uint16" if meta["vocab_size"] <= 65536 else "uint32"


def stored_ids(batches):
    """Yield (batch, the ids of each of its pieces), as `encode_ahead` does, of pieces that parts have encoded."""
    for batch in batches:
        yield batch, [piece.ids for piece in batch]


def write_tokens(preparation: Preparation, stream: Stream, encode, meta: dict, shard_tokens: int):
    """Write the token files of all splits, and record after each batch what is on the disk.

    encode: a function from batches of pieces to these with their ids. meta: what meta.json says of the tokenizer.
    """
    dtype = dtype_for(meta)
    eot = meta["eot"]
    preparation.restore(dtype, shard_tokens)
    # Pieces come in the same order in each pass: those that an earlier run recorded are read and skipped.
    new_pieces = islice(iter(stream), preparation.pieces, None)
    with Progress(stream) as progress:
        for batch, ids_of_batch in encode(batches(new_pieces)):
            for piece, ids in zip(batch, ids_of_batch):
                preparation.write(piece, ids, eot=eot, dtype=dtype, shard_tokens=shard_tokens)
                progress.tokens += len(ids)
            progress.show()
            preparation.pieces += len(batch)
            preparation.save()


class Progress:
    """A bar on a terminal; in a log file, which can show none, a line every 30 seconds."""

    def __init__(self, stream: Stream):
        self.stream = stream
        self.tokens = 0
        self.started = time.perf_counter()
        self.last_line = self.started
        self.bar = tqdm(unit="tok", unit_scale=True, desc="tokenize", disable=not sys.stderr.isatty())

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()

    def show(self):
        done = self.stream.done
        # No share is known for the standard library, which is not made of files.
        self.bar.total = round(self.tokens / done) if done else None
        self.bar.update(self.tokens - self.bar.n)
        now = time.perf_counter()
        if self.bar.disable and now - self.last_line > 30:
            self.last_line = now
            rate = self.tokens / (now - self.started)
            print(f"{done:.0%} read | {self.tokens:,} tokens | {rate:,.0f} tokens/s", flush=True)


# ---------------------------------------------------------------------------------------------
# what the data set holds


def write_meta(preparation: Preparation, tokenizer_info: dict, source: str):
    """Count tokens, hash files, and write meta.json. ValueError if a split is empty."""
    splits = preparation.splits
    # A data set needs both: one to train on and one to evaluate with.
    for name in ("train", "val"):
        if name not in splits or splits[name].tokens == 0:
            reason = "too few documents for val_fraction; change it"
            if not splits:
                reason = "it has no text"
            raise ValueError(f"source {source!r}: the {name} split is empty: {reason}")
    meta = dict(tokenizer_info)
    meta["source"] = source
    meta["settings"] = preparation.settings
    meta["dtype"] = splits["train"].dtype
    meta["files"] = {}
    meta["domains"] = {}
    for domain, (tokens, n_bytes) in sorted(preparation.domains.items()):
        meta["domains"][domain] = {"tokens": tokens, "bytes": n_bytes}
    for name, split in splits.items():
        meta[f"{name}_tokens"] = split.tokens
        meta[f"{name}_bytes"] = split.bytes
        meta[f"{name}_documents"] = split.documents
        meta[f"{name}_files"] = split.final_names()
        for file, path in zip(split.final_names(), split.shards()):
            meta["files"][file] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    write_json(preparation.work / "meta.json", meta)


def report(folder: Path, seconds: float):
    """Print what a data set holds, and what it took."""
    meta = read_meta(folder)
    for split in ("train", "val"):
        tokens = meta[f"{split}_tokens"]
        documents = meta[f"{split}_documents"]
        bytes_per_token = meta[f"{split}_bytes"] / tokens
        first, *others = meta[f"{split}_files"]
        where = str(folder / first)
        if others:
            where += f" … {others[-1]}"
        print(f"{where}: {tokens:,} tokens, {documents:,} documents, {bytes_per_token:.3f} bytes a token")
    # Few bytes a token: the tokenizer suits that domain less.
    rates = []
    for domain, counts in meta["domains"].items():
        rates.append(f"{domain} {counts['bytes'] / counts['tokens']:.2f}")
    if rates:
        print("bytes a token:", ", ".join(rates))
    # /proc exists on Linux only.
    peak = ""
    if Path("/proc/self/status").is_file():
        peak = f", peak memory {resident(peak=True) / 1e6:,.0f} MB"
    total = meta["train_tokens"] + meta["val_tokens"]
    print(f"{seconds:.1f} s, {total / seconds:,.0f} tokens/s{peak}")


if __name__ == "__main__":
    source = "stdlib"  # a name above, a .parquet, .txt or .jsonl file (the latter two perhaps .gz or .zst), a folder
    text_dir = ""  # where the files of a named source lie already; "": they are downloaded
    text_key = "text"  # of .jsonl: the key, of .parquet: the column that holds the text
    document_separator = "file"  # a document: a text "file", a "line", or up to a "blank" line or "eot" (<|endoftext|>)
    clean = True  # clean the domains of BabyLM, told by the names of their files
    tokenizer = "bpe"  # "bytes" (257 ids), "bpe" (SentencePiece, trained here), "gpt2", or a model's folder or name
    vocab_size = 4096  # of the bpe; at most 65,536
    nfkc = False  # bpe: normalise text by Unicode's NFKC first
    val_fraction = 0.05  # share of documents, or of a single text (its end), held out if the source has no split itself
    shard_tokens = 100_000_000  # most tokens in a file; one file is called train.bin, several train_000.bin, …
    workers = 0  # cores to encode with; 0: all. The files do not depend on it
    out_dir = ""  # where train.bin, val.bin, meta.json and the tokenizer go; "": data/ and the source's name
    overwrite = False  # replace a data set in out_dir that was made with other settings
    part = ""  # "3/16": the third of sixteen parts, for as many machines; "join": the data set of them; "": all at once
    check = ""  # a data set to check, instead of making one
    config = configure(globals())

    at_least(config, 1, "shard_tokens")
    at_least(config, 0, "workers")
    if check:
        check_data(Path(check))
    else:
        prepare(config)
