"""Which split a document belongs to: train, val, or test, which is never read. Everything that decides it is here.

The first of these rules that applies decides:

1. The name of its file, or of a folder around it, declares the split (`declare_splits`).
2. It is a single text, or the text of a domain: the end of it is validation text (`hold_out_end`).
3. Every n-th document is validation text, as a whole (`hold_out_documents`).

`split_rule` says which of them applies to a file.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from corpora.readers import File, uncompressed_name

# Words in the names of public corpora, and the split that they mean.
SPLIT_WORDS = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "eval": "val",
    "test": "test",
}


@dataclass
class Piece:
    """A piece of a document's text, and where it belongs."""

    text: str
    ends: bool  # whether the document ends with it
    split: str = ""  # "train" or "val"; "" until a rule has decided it
    domain: str = ""
    file: int = 0  # the number of its file in the corpus

    def __len__(self) -> int:
        return len(self.text)

    @property
    def n_bytes(self) -> int:
        return len(self.text.encode())


def split_rule(file: File, is_only_file: bool, separator: str) -> str:
    """What decides the split of a file's documents: its "name", the "end" of its text, or the "document"'s number."""
    if file.split:
        return "name"
    # of a file with several documents, some are held out whole
    is_one_document = file.form in (".txt", ".train") and separator == "file"
    if is_one_document and (is_only_file or file.domain):
        return "end"
    return "document"


# ---------------------------------------------------------------------------------------------
# 1. names that declare a split


def declare_splits(files: list[File], source: Path):
    """Set the split of each file below `source` to what its name declares, or to "" if that says nothing.

    If a name declares validation, files that declare nothing are training text. If none does, declaring training means
    nothing, as some of that text has to be held out. Files of ids are never cut or divided: those that declare nothing
    are training ids.
    """
    for file in files:
        file.split = declared_split(file, source)
    # what "train" means depends on all files
    has_validation = any(file.split == "val" for file in files)
    for file in files:
        if file.split in ("train", ""):
            is_training = has_validation or file.form == ".bin"
            file.split = "train" if is_training else ""


def declared_split(file: File, source: Path) -> str:
    """The split that the name of a file below `source` declares: "train", "val", "test", or "" where it does not.

    One of SPLIT_WORDS is the suffix (BabyLM's cbt.dev), or the name of a folder that the file lies in (the Pile's
    train/00.jsonl.zst), or the first or last word of the file's name, else of a folder's (validation-00000-of-00001,
    TinyStories-valid, babylm_dev). A source that is a single file declares nothing by its name, only by its suffix.
    """
    if file.form in (".train", ".dev"):
        return SPLIT_WORDS[file.form.removeprefix(".")]
    # Whoever names a single file wants it read, whatever it is called.
    if file.path == source:
        return ""
    folders = [name.lower() for name in file.path.relative_to(source).parts[:-1]]
    # nearest first: a file in train/dev/ belongs to dev
    folders.reverse()
    for folder in folders:
        if folder in SPLIT_WORDS:
            return SPLIT_WORDS[folder]
    stem = uncompressed_name(file.path.name.lower()).removesuffix(file.form.lower())
    # the file's own name first, as it is more specific than those of its folders
    for name in (stem, *folders):
        words = words_of_name(name)
        # Any word counts in the name of a shard. The name of a text may be a title, with such a word inside by chance.
        if file.form != ".bin":
            words = words[:1] + words[-1:]
        for word in words:
            if word in SPLIT_WORDS:
                return SPLIT_WORDS[word]
    return ""


def words_of_name(name: str) -> list[str]:
    """The words between blanks, "-", "_" and ".", without the numbers of shards.

    >>> words_of_name("validation-00000-of-00001")
    ['validation']
    """
    words = re.split(r"[-_.\s]+", name)
    return [word for word in words if word and word != "of" and not word.isdecimal()]


def announce_splits(files: list[File]):
    """Print which splits the names of the files declare, if they declare validation or test."""
    if not any(file.split in ("val", "test") for file in files):
        return
    descriptions = []
    for split in ("train", "val", "test"):
        names = [file.path.name for file in files if file.split == split]
        if names:
            descriptions.append(describe_split(split, names))
    print(f"splits by the names of the files: {'; '.join(descriptions)}", flush=True)


def describe_split(split: str, names: list[str]) -> str:
    """A split, how many files it has, and the first two of their names.

    >>> describe_split("test", ["a-test.txt"])
    'test 1 file (a-test.txt), left out'
    """
    number = "1 file" if len(names) == 1 else f"{len(names)} files"
    examples = ", ".join(names[:2])
    if len(names) > 2:
        examples += ", …"
    left_out = ", left out" if split == "test" else ""
    return f"{split} {number} ({examples}){left_out}"


# ---------------------------------------------------------------------------------------------
# 2. and 3. what is held out where no name decides


def hold_out_end(pieces, train_bytes: int):
    """Yield the pieces of one text: its first train_bytes bytes are training text, the rest is validation text.

    The piece with the boundary is divided there, before a character that the boundary would cut in two.
    """
    bytes_read = 0
    val_is_open = False  # whether a piece of the validation text was yielded, and its end was not
    for piece in pieces:
        if bytes_read < train_bytes:
            # bytes, not characters: their number in a file is known without reading it
            encoded = piece.text.encode()
            head = encoded[: train_bytes - bytes_read].decode(errors="ignore")
            bytes_read += len(encoded)
            # the training text is a document that ends at the boundary
            ends = piece.ends or bytes_read >= train_bytes
            yield Piece(text=head, ends=ends, split="train", domain=piece.domain, file=piece.file)
            piece.text = piece.text[len(head) :]
        # a last piece of which cleaning left nothing still ends its document
        if piece.text or (piece.ends and val_is_open):
            val_is_open = not piece.ends
            piece.split = "val"
            yield piece


def hold_out_documents(pieces, val_fraction: float):
    """Yield the pieces with their split: for 0.05, every 20th document of the corpus is validation text."""
    document = 0
    for piece in pieces:
        piece.split = "val" if is_held_out(document, val_fraction) else "train"
        # counted at its end, so that all pieces of a document have the same number, and so the same split
        document += piece.ends
        yield piece


def is_held_out(document: int, val_fraction: float) -> bool:
    """Whether the count of documents to hold out reaches its next whole number with this one.

    >>> [i for i in range(60) if is_held_out(i, 0.05)]
    [19, 39, 59]
    """
    # 1e-9, as 20 * 0.05 may be rounded to just below 1
    before = int(document * val_fraction + 1e-9)
    after = int((document + 1) * val_fraction + 1e-9)
    return after > before
