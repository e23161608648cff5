"""Cleaning of the BabyLM domains: a function for each, from whole lines of text to whole lines of text.

They follow the description of Baby Llama's cleaning (arXiv:2308.02019, section 4): runs of blanks, blanks before
punctuation, section marks of wikis, credit lines of subtitles, and "l" for "I" in upper-case subtitles.
"""

import re

# also no-break spaces and tabs; line ends stay, as the functions are given whole lines
BLANKS = re.compile(r"[^\S\n]+")
LINE_ENDS = re.compile(r"^ | $", re.MULTILINE)
# A mark is punctuation only if a blank or the line's end follows: " .com" keeps its blank.
BEFORE_PUNCTUATION = re.compile(r" +(?=[.,;:?!)\]](?:\s|$))")
WIKI_MARKS = re.compile(r"^(?:= ?)+([^=\n]+?)(?: ?=)+$", re.MULTILINE)
# Short lines that begin like a credit, or hold an address. Their length is bounded so that a long line of speech that
# happens to begin like one stays.
CREDITS = re.compile(
    r"^(?:\W*(?:sub(?:title)?s|captions|transcri(?:pt|bed)|translat(?:ion|ed)|(?:re)?sync(?:hroni[sz]ed|ed)?|corrections?"
    r"|ripped|downloaded)\b.{0,40}\b(?:by|from)\b.{0,60}|.{0,80}(?:\bwww\.\w|https?://|opensubtitles\.|addic7ed\.).{0,80})$\n?",
    re.MULTILINE | re.IGNORECASE,
)
# words of capitals and l with two capitals or an l in front ("POLlCE", "lT", not "Al"), and "l" as a word of its own
L_FOR_I = re.compile(
    r"\b(?:l[A-Zl']*[A-Z]|(?=(?:[l']*[A-Z]){2})[A-Z'][A-Zl']*l)[A-Zl']*\b|\bl(?=\s|'(?:m|ll|d|ve)\b)",
)


def blanks(text: str) -> str:
    """Runs of blanks become one blank; those at the ends of a line are removed.

    >>> blanks("one  two\\t three \\n  four")
    'one two three\\nfour'
    """
    return LINE_ENDS.sub("", BLANKS.sub(" ", text))


def aochildes(text: str) -> str:
    """Utterances to children: blanks before punctuation are removed.

    >>> aochildes("what's  that ?\\nit's a chicken .")
    "what's that?\\nit's a chicken."
    """
    return BEFORE_PUNCTUATION.sub("", blanks(text))


def bnc_spoken(text: str) -> str:
    """Transcribed speech.

    >>> bnc_spoken("well   I think , yes .")
    'well I think, yes.'
    """
    return BEFORE_PUNCTUATION.sub("", blanks(text))


def cbt(text: str) -> str:
    """Children's Book Test, in the tokens of the Penn Treebank: quotes, brackets and contractions are undone.

    >>> cbt("`` I do n't know , '' said Alice -LRB- softly -RRB- .")
    '"I don\\'t know," said Alice (softly).'
    """
    text = blanks(text).replace("-LRB-", "(").replace("-RRB-", ")")
    text = re.sub(r" (?=(?:n't|'(?:s|m|d|re|ve|ll))\b)", "", text)
    text = re.sub(r"\( +", "(", BEFORE_PUNCTUATION.sub("", text))
    return re.sub(r"`` ?", '"', re.sub(r" ?''", '"', text))


def children_stories(text: str) -> str:
    """Stories: lines of nothing but marks are removed.

    >>> children_stories("Once  upon\\n* * *\\na time")
    'Once upon\\na time'
    """
    return re.sub(r"^[*_=~ -]+\n", "", blanks(text), flags=re.MULTILINE)


def gutenberg(text: str) -> str:
    """Books: underscores around emphasised words, and notes of illustrations, are removed.

    >>> gutenberg("It was _very_ late.\\n[Illustration: The inn]\\nHe  slept.")
    'It was very late.\\nHe slept.'
    """
    text = re.sub(r"^\[Illustration[^\]\n]*\]\n?", "", blanks(text), flags=re.MULTILINE)
    return re.sub(r"\b_|_\b", "", text)


def open_subtitles(text: str) -> str:
    """Subtitles: credit lines are removed, and "l" in words of capitals becomes the "I" that a scanner misread.

    >>> open_subtitles("lT'S THE POLlCE!\\nSubtitles by Bob\\nI'll  go")
    "IT'S THE POLICE!\\nI'll go"
    """
    without_credits = CREDITS.sub("", blanks(text))
    return L_FOR_I.sub(lambda word: word[0].replace("l", "I"), without_credits)


def qed(text: str) -> str:
    """Captions of talks: cleaned as subtitles are, and as speech.

    >>> qed("Captions by volunteers\\nWlLL  IT WORK ?")
    'WILL IT WORK?'
    """
    return BEFORE_PUNCTUATION.sub("", open_subtitles(text))


def wikipedia(text: str) -> str:
    """Articles: the marks around the titles of articles and sections are removed.

    >>> wikipedia("= = = Paris = = =\\nIt is  a city .\\n== History ==")
    'Paris\\nIt is a city.\\nHistory'
    """
    return BEFORE_PUNCTUATION.sub("", WIKI_MARKS.sub(r"\1", blanks(text)))


def switchboard(text: str) -> str:
    """Telephone conversations: cleaned as speech; the letter of the speaker stays.

    >>> switchboard("A:\\t Uh-huh  .\\nB: Okay .")
    'A: Uh-huh.\\nB: Okay.'
    """
    return BEFORE_PUNCTUATION.sub("", blanks(text))


CLEAN = {  # by the names of the files of the 2023 release and of later ones
    "aochildes": aochildes, "childes": aochildes, "bnc_spoken": bnc_spoken, "cbt": cbt,
    "children_stories": children_stories, "gutenberg": gutenberg, "open_subtitles": open_subtitles, "qed": qed,
    "simple_wikipedia": wikipedia, "simple_wiki": wikipedia, "wikipedia": wikipedia, "switchboard": switchboard,
}  # fmt: skip
