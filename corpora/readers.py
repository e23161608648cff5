"""Files of text as documents in pieces: plain text, JSON lines and parquet, perhaps compressed.

`pieces` reads a file as (text, ends): a piece of a document, and whether the document ends with it. A piece has about
PIECE characters at most. Plain text is cut after a line, as cleaning needs whole lines: a BPE trained here, which also
merges line ends, may give a token or two there that it would not give the uncut text. Elsewhere cuts are where no merge
crosses. Memory holds one piece, one line of JSON, or one batch of parquet rows, never a whole file.
"""

import gzip
import io
import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from common.files import need

# The most characters in a piece, which bounds the memory that long documents take.
PIECE = 1 << 20
# Bytes of zstd that are decompressed at once: those of a malicious file may become 30,000 times as many.
COMPRESSED = 1 << 10
# Rows of parquet that are decoded at once: a whole row group, decoded to str, may be larger than memory.
PARQUET_ROWS = 256
# document_separator says where the documents of these end
PLAIN_TEXT = (".txt", ".train", ".dev")
# all but parquet, which has its own compression, may be followed by .gz or .zst
SUFFIXES = (*PLAIN_TEXT, ".jsonl", ".parquet")
END_OF_TEXT = "<|endoftext|>"

# What separates the documents inside a plain text file, by the values of document_separator.
SEPARATORS = {
    "file": None,  # nothing: a file is one document
    "line": re.compile(r"[\r\n]+"),
    "blank": re.compile(r"\r?\n(?:[ \t\r]*\n)+"),
    "eot": re.compile(re.escape(END_OF_TEXT)),
}
# not the blanks in front of the first word: they may be the indent of a program
LEADING_BLANK_LINES = re.compile(r"\A(?:[ \t]*[\r\n])*")
# the title of an article; those of sections have more than one "=": " = = Part = = "
WIKITEXT_TITLE = re.compile(r" = [^=].* = \r?\n")


@dataclass
class File:
    """A file of a corpus, with what is known about its text before it is read."""

    path: Path
    split: str = ""  # "train", "val", "test" (never read), or "": its name declares none
    domain: str = ""  # of a corpus with domains
    wikitext: bool = False  # its rows or lines are joined to articles

    @property
    def form(self) -> str:
        """The suffix that says how it is read, without that of its compression."""
        return Path(uncompressed_name(self.path.name)).suffix


def uncompressed_name(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".zst")


# ---------------------------------------------------------------------------------------------
# a file -> documents -> pieces


def pieces(file: File, text_key="text", clean=str, separator="file", on_read=None):
    """Yield (text, ends): a piece of a document, and whether the document ends with it.

    text_key: the JSON key or parquet column that holds the text. clean: a function of str that is given whole lines, or
    a whole document. separator: a key of SEPARATORS, used for plain text. on_read: called with the number of bytes of
    the file that have been read so far. ValueError for a damaged file.
    """
    try:
        with open(file.path, "rb") as raw:
            texts = cleaned(documents(file, raw, text_key), raw, clean, on_read)
            if separator != "file" and file.form in PLAIN_TEXT:
                texts = separate(texts, SEPARATORS[separator])
            for text, ends in texts:
                # A row of JSON or parquet, or a line that never ends, may be longer than PIECE.
                for start, stop in cuts(text):
                    yield text[start:stop], ends and stop == len(text)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{file.path} is damaged or was cut ({error}); fetch it again") from None


def cleaned(texts, raw, clean, on_read):
    """The texts of `documents`, cleaned; calls on_read with the bytes of the file that have been read so far."""
    for text, ends in texts:
        if on_read is not None:
            on_read(raw.tell())
        yield clean(text), ends


def documents(file: File, raw, text_key: str):
    """Yield (text, ends) of an open file: a whole row or line, or, of plain text, some of its lines."""
    if file.form == ".parquet":
        rows = parquet_rows(raw, file.path, text_key)
        if file.wikitext:
            yield from articles(rows)
            return
        for text in rows:
            yield text, True
        return
    # newline="": line ends stay as they are in the file. utf-8-sig: a byte order mark is not text.
    text_file = decompressed(raw, file.path)
    lines = io.TextIOWrapper(text_file, encoding="utf-8-sig", errors="replace", newline="")
    if file.form == ".jsonl":
        for text in json_rows(lines, file.path, text_key):
            yield text, True
    elif file.wikitext:
        yield from articles(lines)
    else:
        yield from whole_lines(lines)


def whole_lines(lines):
    """Yield (text, ends) of an open text file, a PIECE and the rest of its last line at a time.

    Lines stay whole, as the cleaning of BabyLM's domains needs them to be, unless one is longer than PIECE.
    """
    text = lines.read(PIECE)
    while text:
        if len(text) == PIECE:
            text += lines.readline(PIECE)
        # read ahead, to know whether the document ends here
        following = lines.read(PIECE)
        yield text, not following
        text = following


def cuts(text: str):
    """Yield (start, stop) of the pieces of a text; the last one ends with it."""
    start = 0
    while len(text) - start > PIECE:
        stop = last_word_end(text, start, start + PIECE)
        yield start, stop
        start = stop
    yield start, len(text)


def last_word_end(text: str, start: int, limit: int) -> int:
    """Where a piece that begins at `start` ends: before a blank that follows a word, else at `limit`.

    Our tokenizers merge a blank with the word after it, and blanks with each other: no merge crosses this place.
    """
    stop = limit
    # a text may be nothing but blanks: after 100 of them any place will do
    for _ in range(100):
        blank = text.rfind(" ", start + 1, stop)
        if blank < 0:
            return limit
        if not text[blank - 1].isspace():
            return blank
        stop = blank
    return stop


# ---------------------------------------------------------------------------------------------
# documents inside a plain text file


def separate(texts, separator: re.Pattern):
    """Yield (text, ends) of the documents inside a file, which is given as its consecutive (text, ends).

    The separators are dropped, with the blank lines and line ends around them, and so are blank documents. The result
    does not depend on where one of the given texts ends and the next begins.
    """
    held = ""  # the end of the text so far, which may hold the beginning of a separator
    is_open = False  # whether the beginning of the current document was yielded already
    for text, _ in texts:
        *ended_here, rest = separator.split(held + text)
        for document in ended_here:
            # The end of an open document is yielded even if it is blank, as the caller waits for it.
            if document.strip() or is_open:
                yield without_line_ends(document, is_open), True
            is_open = False
        if not is_open:
            rest = LEADING_BLANK_LINES.sub("", rest)
        # The last characters may be the beginning of a separator. Full pieces of the text before them are yielded now,
        # so that a document may be larger than memory.
        settled = rest[: -len(END_OF_TEXT)]
        *full_pieces, (last_start, _) = cuts(settled)
        for start, stop in full_pieces:
            yield rest[start:stop], False
            is_open = True
        held = rest[last_start:]
    # The last document of a file needs no separator behind it.
    if held.strip() or is_open:
        yield without_line_ends(held, is_open), True


def without_line_ends(text: str, is_open: bool) -> str:
    """A whole document, or the end of an open one, without the line ends around it.

    The end of an open document stays as it is if it is nothing but line ends, as an empty piece could not end it.
    """
    if is_open:
        return text.rstrip("\r\n") or text
    return LEADING_BLANK_LINES.sub("", text).rstrip("\r\n")


# ---------------------------------------------------------------------------------------------
# forms of files


def decompressed(raw, path: Path):
    """An open binary file, decompressed as its name says."""
    if path.suffix == ".gz":
        return gzip.GzipFile(fileobj=raw)
    if path.suffix == ".zst":
        return io.BufferedReader(ZstdFile(raw, need("zstandard", path)))
    return raw


class ZstdFile(io.RawIOBase):
    """An open zstd file, decompressed: one frame, or several as pzstd writes them. EOFError where it is damaged or cut.

    zstandard's own reader silently takes a file that was cut for a shorter one.
    """

    def __init__(self, raw, zstandard):
        self.raw = raw
        self.decompressor = zstandard.ZstdDecompressor()
        self.damage = zstandard.ZstdError
        self.frame = None  # the decompressor of the current frame, None between two
        self.compressed = b""
        self.decompressed = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self.decompressed:
            self.compressed = self.compressed or self.raw.read(COMPRESSED)
            if not self.compressed:
                if self.frame:
                    raise EOFError("it ends within a frame")
                return 0
            self.decompress()
        n = min(len(buffer), len(self.decompressed))
        buffer[:n] = self.decompressed[:n]
        self.decompressed = self.decompressed[n:]
        return n

    def decompress(self):
        """Decompress the bytes in self.compressed, up to the end of their frame."""
        self.frame = self.frame or self.decompressor.decompressobj()
        try:
            self.decompressed = memoryview(self.frame.decompress(self.compressed))
        except self.damage as error:
            raise EOFError(str(error)) from None
        self.compressed = b""
        if self.frame.eof:
            self.compressed = self.frame.unused_data
            self.frame = None


def json_rows(lines, path: Path, text_key: str):
    """The text of each line of a .jsonl file. ValueError with the line's number."""
    for number, line in enumerate(lines, 1):
        # files that were joined or edited by hand have blank lines
        if not line.strip():
            continue
        try:
            text = json.loads(line)[text_key]
            if not isinstance(text, str):
                raise TypeError(f"it is {type(text).__name__}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            expected = f'expected JSON with a "{text_key}"'
            raise ValueError(f"{path}, line {number}: {expected} ({error!r})") from None
        # JSON may hold half a surrogate pair, which UTF-8 cannot: it becomes "?".
        yield text.encode("utf-8", errors="replace").decode()


def parquet_rows(raw, path: Path, text_key: str):
    """The texts of a column of a parquet file. ValueError if it lacks the column or is damaged."""
    parquet = need("pyarrow.parquet", path)
    try:
        table = parquet.ParquetFile(raw)
        columns = table.schema_arrow.names
        if text_key not in columns:
            raise ValueError(f"{path} has no column {text_key!r}; name one of {', '.join(columns)}")
        for batch in table.iter_batches(PARQUET_ROWS, columns=[text_key]):
            for text in batch[text_key].to_pylist():
                # a cell may be null, which is a document without text
                yield text or ""
    except (need("pyarrow", path).ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is damaged or was cut ({reason}); fetch it again") from None


def articles(lines):
    """Yield (text, True) of WikiText's lines joined to articles, each of which begins with a line " = Title = "."""
    article = []
    for line in lines:
        if WIKITEXT_TITLE.fullmatch(line) and article:
            yield "".join(article), True
            article = []
        article.append(line)
    if article:
        yield "".join(article), True
