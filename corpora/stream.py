"""A corpus as one stream: pieces of text in a fixed order, each with its split."""

from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from corpora.babylm import CLEAN
from corpora.readers import END_OF_TEXT, PLAIN_TEXT, File, pieces
from corpora.sources import stdlib
from corpora.splits import Piece, hold_out_documents, hold_out_end, split_rule

# Characters that are encoded at once: enough pieces for all cores.
BATCH = 1 << 22

# Notes on oddities that would otherwise be noticed only in a model's samples.
HAS_END_OF_TEXT = f"has {END_OF_TEXT} in its text; documents end there only with --document_separator=eot"
HAS_REPLACEMENTS = "has U+FFFD in its text, which bytes become that are not UTF-8; if there are many, convert it"


@dataclass
class Stream:
    """The pieces of a corpus, the same in each pass over it. Without files it is the standard library.

    `done`, from 0 to 1, is how much of the files the current pass has read. `notes`, filled on the way: {what is odd
    about the text: the first file with it}.
    """

    files: list[File]
    text_key: str = "text"
    val_fraction: float = 0.05
    # whether the domains of BabyLM are cleaned
    clean: bool = True
    separator: str = "file"
    done: float = 0.0
    notes: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self):
        # bytes on the disk; compressed files have more bytes of text
        self.sizes = [file.path.stat().st_size for file in self.files]

    def __iter__(self):
        """Files with a declared split, or of which the end is held out, come before those divided by document."""
        if not self.files:
            documents = (Piece(text, ends) for text, ends in stdlib())
            yield from hold_out_documents(documents, self.val_fraction)
            return
        decided, undivided = self.order()
        for i in decided:
            yield from self.decided_pieces(i)
        # documents are counted over all of these files, so that the share is right for many short files too
        documents = chain.from_iterable(self.file_pieces(i) for i in undivided)
        yield from hold_out_documents(documents, self.val_fraction)

    def order(self) -> tuple[list[int], list[int]]:
        """The numbers of the files whose splits do not depend on other files, which come first, and of the others."""
        decided = []
        undivided = []
        for i in range(len(self.files)):
            numbers = undivided if self.rule(i) == "document" else decided
            numbers.append(i)
        return decided, undivided

    def rule(self, i: int) -> str:
        """What decides the split of a file's documents; see split_rule."""
        return split_rule(self.files[i], len(self.files) == 1, self.separator)

    def decided_pieces(self, i: int):
        """Yield the pieces of a file with a declared split, or of which the end is held out."""
        if self.rule(i) == "name":
            return self.file_pieces(i)
        train_bytes = round((1 - self.val_fraction) * self.text_bytes(i))
        return hold_out_end(self.file_pieces(i), train_bytes)

    def file_pieces(self, i: int):
        """Yield the pieces of a file, cleaned, with the split that its name declares, if any."""
        file = self.files[i]
        bytes_before = sum(self.sizes[:i])
        bytes_in_all = max(1, sum(self.sizes))

        # progress in bytes on the disk, as the length of the text may be unknown
        def track(bytes_read: int):
            self.done = (bytes_before + bytes_read) / bytes_in_all

        texts = pieces(
            file,
            text_key=self.text_key,
            clean=self.cleaning(file),
            separator=self.separator,
            on_read=track,
        )
        is_open = False  # whether a piece of the document was yielded, and its end was not
        for text, ends in texts:
            self.note(file, text)
            # An empty document is dropped, and not counted as one to hold out. But the last piece of an open one ends
            # it, even if cleaning has left nothing of that piece.
            if text or (ends and is_open):
                is_open = not ends
                yield Piece(text, ends, split=file.split, domain=file.domain, file=i)

    def note(self, file: File, text: str):
        # only plain text: in JSON and parquet documents are separate, and their text may mention the token
        if file.form in PLAIN_TEXT and END_OF_TEXT in text:
            self.notes.setdefault(HAS_END_OF_TEXT, file.path)
        if "\ufffd" in text:
            self.notes.setdefault(HAS_REPLACEMENTS, file.path)

    def text_bytes(self, i: int) -> int:
        """The bytes of a file's text, which has to be read for that if it is compressed or cleaned."""
        file = self.files[i]
        clean = self.cleaning(file)
        # by its name, as that decides how the file is read
        is_compressed = file.path.suffix in (".gz", ".zst")
        if clean is str and not is_compressed:
            return self.sizes[i]
        return sum(len(text.encode()) for text, _ in pieces(file, self.text_key, clean=clean))

    def cleaning(self, file: File):
        """The function that cleans the text of a file's domain; str, which changes nothing, if there is none."""
        if self.clean:
            return CLEAN.get(file.domain, str)
        return str


def batches(stream):
    """Yield the pieces of a stream in lists of about BATCH characters."""
    batch = []
    size = 0
    for piece in stream:
        batch.append(piece)
        size += len(piece)
        if size >= BATCH:
            yield batch
            batch = []
            size = 0
    if batch:
        yield batch
