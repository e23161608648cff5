"""Tokenizers keep every character, give the reference's ids, and are told apart by their hash."""

import hashlib
import json
import shutil
import unicodedata
from pathlib import Path

import pytest

import common.download
from common.bpe import BPETokenizer
from common.meta import tokenizer_meta
from common.spm import proto_fields
from common.tokenizer import ByteTokenizer, GPT2Tokenizer, SentencePieceTokenizer, load_tokenizer

DATA = Path(__file__).resolve().parents[2] / "shared/data"
GPT2 = DATA / "tokenizers/gpt2"
TEXTS = ["def f(x):\n\treturn  x + 1\n\n\n", "", " ", "\n", "naïve café — 北京 🙂", "a\r\nb\0c", "</s><|endoftext|><s>",
         "0123456789 " * 5, "  leading and trailing  "]  # fmt: skip


@pytest.fixture(scope="module")
def bpe():
    return SentencePieceTokenizer.train((Path(__file__).read_text() + text for text in TEXTS * 3), 400)


@pytest.fixture
def gpt2(tmp_path, monkeypatch):
    """tiktoken's own gpt2, its two downloads already in its cache."""
    if not GPT2.is_dir():
        pytest.skip("GPT-2's vocabulary is not beside the project")
    base = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
    for name in ("vocab.bpe", "encoder.json"):
        shutil.copyfile(GPT2 / name, tmp_path / hashlib.sha1(f"{base}{name}".encode()).hexdigest())
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    return GPT2Tokenizer()


def check(tokenizer):
    for text, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS)):
        assert list(ids) == tokenizer.encode(text) and tokenizer.decode(ids) == text
        assert tokenizer.eot not in ids and all(0 <= i < tokenizer.vocab_size for i in ids)
        assert tokenizer.decode([*ids, tokenizer.eot]) == text


def test_bytes():
    check(ByteTokenizer())
    assert ByteTokenizer().encode("é") == [0xC3, 0xA9] and ByteTokenizer().vocab_size == 257


def test_bpe(bpe):
    check(bpe)
    assert bpe.vocab_size == 400
    assert (
        len(bpe.encode("tokenizer")) < 5 and bpe.decode(bpe.encode("\U0001f9ea")) == "\U0001f9ea"
    )  # falls back to bytes
    again = SentencePieceTokenizer.train((Path(__file__).read_text() + text for text in TEXTS * 3), 400)
    assert again.model == bpe.model and again.hash == bpe.hash


def test_gpt2(gpt2):
    check(gpt2)
    assert gpt2.encode("Hello world") == [15496, 995] and (gpt2.vocab_size, gpt2.eot) == (50257, 50256)
    assert gpt2.hash != ByteTokenizer().hash


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    """tiktoken with an empty cache, a hub that nobody serves."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    monkeypatch.setattr(common.download, "WAIT", 0)


def test_gpt2_without_network_is_one_line_or_a_folder(no_network, tmp_path):
    with pytest.raises(
        OSError, match=r"cannot download GPT-2's vocabulary, by tiktoken \(ProxyError\) or from the hub"
    ):
        load_tokenizer("gpt2")
    if GPT2.is_dir():
        folder = tmp_path / "hf_home/nanodistill/gpt2/main"  # as an earlier download left it
        shutil.copyfile(GPT2 / "encoder.json", folder / "vocab.json")
        shutil.copyfile(GPT2 / "vocab.bpe", folder / "merges.txt")
        (folder / ".complete-tokenizer").touch()
        tokenizer = load_tokenizer("gpt2")
        assert tokenizer.kind == "gpt2" and tokenizer.hash == load_tokenizer(GPT2).hash
        assert tokenizer.encode("Hello world") == [15496, 995]


def test_a_folder_gives_its_tokenizer_back_and_an_exchanged_file_is_refused(bpe, tmp_path):
    bpe.save(tmp_path)
    assert load_tokenizer(tmp_path).hash == bpe.hash  # a Hugging Face folder has no meta.json
    (tmp_path / "meta.json").write_text(json.dumps(tokenizer_meta(bpe)))
    assert load_tokenizer(tmp_path).encode("abc") == bpe.encode("abc")
    SentencePieceTokenizer.train([Path(__file__).read_text()], 390).save(tmp_path)
    with pytest.raises(ValueError, match=r"has hash .* but meta.json says"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"tokenizer.model is not a SentencePiece model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(ValueError, match=r"put the tokenizer.model that it was made from beside it"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"meta.json that names tokenizer 'bpe', but not its files"):
        load_tokenizer(tmp_path)
    (tmp_path / "meta.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"has no tokenizer: expected tokenizer.model, tokenizer.json, or vocab"
    ):
        load_tokenizer(tmp_path)


# ---------------------------------------------------------------------------------------------
# byte-level BPE against Hugging Face's tokenizers

NASTY = [
    *TEXTS,
    "\t\t \t",
    "\n\n\n  x",
    "a  b   c" + " " * 40 + "d",
    "e\u0301 n\u0303 \u212b \ufb01",
    "👩\u200d👩\u200d👧 🇩🇪",
    "日本語 한국어 ไทย",
    "\0\0",
    "I'll we'VE can't 3.14159 1234567",
    "\u00a0\u2003 x\u0085y",
    "<keep> <keep>x<|endoftext|>  <keep>",
    "x" * 9_999,
    " " * 9_999 + "x",
]
LONG = ["x" * 1_000_000, " " * 100_000 + "x"]


def nfc(text):
    return unicodedata.normalize("NFC", text)


def reference(spec):
    """tokenizers' own tokenizer of a tokenizer.json; special tokens left out, so that their text is text."""
    tokenizers = pytest.importorskip("tokenizers")
    plain = [t for t in spec["added_tokens"] if not t["special"]]
    return tokenizers.Tokenizer.from_str(json.dumps(spec | {"added_tokens": plain}))


def added(i, content, special=False, normalized=False):
    return {"id": i, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": normalized, "special": special}  # fmt: skip


def trained_spec():
    """A tokenizer.json of 601 ids trained by tokenizers, with an end-of-text token and five added ones."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=596, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    tokenizer.train_from_iterator([Path(__file__).read_text(), *TEXTS] * 3, trainer)
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] += [added(596, "  ", normalized=True), added(597, "    ", normalized=True),
                             added(598, "<keep>"), added(599, "n\u0303", normalized=True),
                             added(600, "<keep>x", normalized=True)]  # fmt: skip
    return spec


@pytest.fixture(scope="module")
def spec():
    return trained_spec()


SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
SPLIT += r"|\s*[\r\n]+|\s+(?!\S)|\s+"


def split(pattern, behavior, invert):
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    first = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}
    return {"type": "Sequence", "pretokenizers": [first, byte_level]}


SPLIT_AT_BLANKS = {"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize("normalizer", [None, {"type": "NFC"}, {"type": "Sequence", "normalizers": [{"type": "NFC"}]}])
@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        None,
        split(SPLIT, "Isolated", False),
        split(SPLIT, "Removed", True),
        split(r"\p{L}+|\p{N}{1,3}", "Isolated", False),
    ],
)
def test_ids_equal_those_of_tokenizers(spec, normalizer, pre_tokenizer, tmp_path):
    changed = spec | {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer or spec["pre_tokenizer"]}
    theirs, ours = reference(changed), BPETokenizer(changed, eot=0)
    for text, ids in zip(NASTY, ours.encode_batch(NASTY)):
        assert ids == ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, text[:50]
        decoded = ours.decode(ids)  # an added token is written as the file spells it, not as NFC does
        assert decoded == text or (normalizer and nfc(decoded) == nfc(text))
    ours.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.hash, again.eot, again.bos, again.vocab_size) == (ours.hash, 0, 0, 601)


def test_a_piece_that_is_a_token_is_not_merged_where_the_file_says_so(spec):
    """Llama 3's ignore_merges: a token that no merge makes."""
    model = spec["model"] | {"vocab": spec["model"]["vocab"] | {"\u0120zqzqzq": 601}}
    text = "a zqzqzq zqzqzqzq"
    for ignore in (False, True):
        changed = spec | {"model": model | {"ignore_merges": ignore}}
        ids = BPETokenizer(changed, eot=0).encode(text)
        assert ids == reference(changed).encode(text, add_special_tokens=False).ids and (601 in ids) == ignore


def test_several_pairs_may_make_one_token(spec):
    """As in Llama 3's tokenizer.json, which lists every pair of tokens that a token can be cut into."""
    vocab = spec["model"]["vocab"]
    merges = []
    for pair in spec["model"]["merges"]:
        token = "".join(pair)
        pairs = [[token[:i], token[i:]] for i in range(1, len(token))]
        merges += [p for p in pairs if all(part in vocab and vocab[part] < vocab[token] for part in p)]
    assert len(merges) > len(spec["model"]["merges"]) + 20
    every = spec | {"model": spec["model"] | {"merges": merges, "ignore_merges": True}}
    ours, theirs = BPETokenizer(every, eot=0), reference(every)
    for text in [*TEXTS, *NASTY]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids


def test_searched_tokens_have_their_bytes(spec):
    """They would be missing in bits per byte; special ones stand for no text."""
    tokens = [added(601, "   "), added(602, "é", normalized=True), added(603, "<pad>", special=True)]
    tokenizer = BPETokenizer(spec | {"added_tokens": spec["added_tokens"] + tokens}, eot=0)
    assert tokenizer.byte_lengths()[601:].tolist() == [3, 2, 0]
    text = "a   b é   "
    assert 601 in tokenizer.encode(text) and sum(tokenizer.byte_lengths()[tokenizer.encode(text)]) == len(text.encode())


def test_lone_surrogates_become_the_replacement_character(bpe, spec):
    for tokenizer in (
        bpe,
        ByteTokenizer(),
        BPETokenizer(spec, eot=0),
        BPETokenizer(spec | {"normalizer": {"type": "NFC"}}),
    ):
        assert tokenizer.decode(tokenizer.encode("a\ud800b\udc00\ud83d\ude42")) == "a\ufffdb\ufffd🙂"
        ids = [tokenizer.encode("a\ufffdb"), tokenizer.encode("c")]
        assert tokenizer.encode_batch(["a\ud800b", "c"]) == ids
        assert [array.tolist() for array in tokenizer.encode_arrays(["a\ud800b", "c"], 1)] == ids


def test_the_halves_of_a_surrogate_pair_are_normalised_as_their_character(spec):
    """U+1D15E, a half note, is two characters in NFC."""
    tokenizer = BPETokenizer(spec | {"normalizer": {"type": "NFC"}})
    half_note = "\ud834\udd5e"
    assert tokenizer.encode(half_note) == tokenizer.encode("\U0001d15e") == tokenizer.encode("\U0001d157\U0001d165")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "gpt_neox_20b", "dolma2"])
def test_ids_of_real_tokenizers_on_real_text(name):
    if not (DATA / "tokenizers" / name).is_dir():
        pytest.skip("the tokenizers and the corpus are not beside the project")
    ours = load_tokenizer(DATA / "tokenizers" / name)
    theirs = reference(ours.spec)
    for path in sorted((DATA / "babylm_like").glob("*.train")):
        text = path.read_bytes()[:2_000_000].decode("utf-8", errors="ignore")
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False).ids, path.name
        assert ours.decode(ids) == (nfc(text) if ours.nfc else text)
    for text in [*NASTY, *LONG]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, text[:50]


def test_the_hash_is_of_what_decides_the_ids(spec, bpe, tmp_path):
    """Not of the bytes of a file: another order, another format, special tokens and training notes do not count."""
    base = BPETokenizer(spec, eot=0).hash
    vocab = dict(reversed(spec["model"]["vocab"].items()))
    merges = [" ".join(pair) for pair in spec["model"]["merges"]]  # as older files have them
    same = spec | {"model": spec["model"] | {"vocab": vocab, "merges": merges}, "post_processor": None}
    assert (
        BPETokenizer(same | {"added_tokens": spec["added_tokens"] + [added(601, "<pad>", special=True)]}).hash == base
    )
    for other in ({"normalizer": {"type": "NFC"}}, {"pre_tokenizer": split(SPLIT, "Isolated", False)},
                  {"added_tokens": spec["added_tokens"][:-1]},
                  {"model": spec["model"] | {"merges": spec["model"]["merges"][:-1]}}):  # fmt: skip
        assert BPETokenizer(spec | other).hash != base, list(other)
    (tmp_path / "vocab.json").write_text(json.dumps(spec["model"]["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    plain = BPETokenizer(spec | {"added_tokens": spec["added_tokens"][:1]})
    old = load_tokenizer(tmp_path)
    assert (old.hash, old.eot, old.bos) == (plain.hash, 0, 0) and old.encode(TEXTS[0]) == plain.encode(TEXTS[0])
    (old, notes) = next((whole, contents) for number, whole, contents in proto_fields(bpe.model) if number == 2)
    notes += b"\x0a\x05a.txt"  # field 1 of how it was trained: a file
    new = b"\x12" + bytes([len(notes) % 128 + 128, len(notes) // 128]) + notes
    assert SentencePieceTokenizer(bpe.model.replace(old, new)).hash == bpe.hash and old != new
    longer = SentencePieceTokenizer.train((Path(__file__).read_text() + text for text in TEXTS * 3), 401)
    assert longer.hash != bpe.hash


def test_hashes_are_those_of_earlier_data_sets():
    """As meta.json of data sets and checkpoints has them; seen on 2026-11-24."""
    assert ByteTokenizer().hash == "1f4e06f69577e33e"
    spec = ByteTokenizer().spec
    tokens = [added(257, "  ", normalized=True), added(258, "<keep>"), added(259, "<pad>", special=True)]
    searched = spec | {"normalizer": {"type": "NFC"}, "added_tokens": spec["added_tokens"] + tokens}
    assert BPETokenizer(searched).hash == "13b8f1d11388a23a"
    for name, digest in (
        ("gpt2", "1dcc75834d580aad"),
        ("gpt_neox_20b", "af5759bc24a47ac3"),
        ("dolma2", "e16dce3f22fb9951"),
        ("llama2", "bce8e8c0f13307fa"),
    ):
        if (DATA / "tokenizers" / name).is_dir():
            assert load_tokenizer(DATA / "tokenizers" / name).hash == digest, name


def test_bos_and_eot_come_from_the_files_beside(spec, tmp_path):
    BPETokenizer(spec, eot=0).save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<keep>"}, "bos_token": None}))
    assert (load_tokenizer(tmp_path).eot, load_tokenizer(tmp_path).bos) == (598, 598)
    # null is an answer, as in Qwen3's files: the id in config.json is not put before a text
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 0, "bos_token_id": 597}))
    assert (load_tokenizer(tmp_path).eot, load_tokenizer(tmp_path).bos) == (598, 598)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [598, 0], "bos_token_id": 597}))
    assert (load_tokenizer(tmp_path).eot, load_tokenizer(tmp_path).bos) == (598, 597)
    (tmp_path / "config.json").write_text("{}")
    assert load_tokenizer(tmp_path).eot == 0  # <|endoftext|>
    nameless = json.dumps(spec).replace("<|endoftext|>", "<|the_end|>")
    (tmp_path / "tokenizer.json").write_text(nameless)
    with pytest.raises(ValueError, match=r"tokenizer.json has no <\|endoftext\|>, .*; name its eos_token in"):
        load_tokenizer(tmp_path)


def test_two_tokens_of_one_id_are_refused(spec):
    vocab = spec["model"]["vocab"]
    with pytest.raises(ValueError, match="has two tokens with the same id"):
        BPETokenizer(spec | {"model": spec["model"] | {"vocab": vocab | {"!": vocab["#"]}}}, eot=0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model": {"type": "Unigram", "vocab": [], "merges": []}}, "model type 'Unigram' is not implemented"),
        ({"model": {"unk_token": "<unk>"}}, "unk_token='<unk>' is not implemented"),
        ({"model": {"byte_fallback": True}}, "byte_fallback=True is not implemented"),
        ({"model": {"vocab": {"a": 0}}}, "has no token for the byte 0"),
        ({"model": {"merges": 7}}, "is not a tokenizer.json of byte-level BPE"),
        ({"model": {"merges": [["a", "t"], ["\u0120", "a"]]}}, "after id .*; not implemented"),
        ({"model": {"merges": ["a t h"]}}, "a/tokenizer.json: the merge 'a t h' is not a pair of tokens"),
        ({"added_tokens": [added(9, "")]}, "has an empty added token"),
        ({"normalizer": {"type": "NFKC"}}, "normalizer 'NFKC' is not implemented, only NFC"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre-tokenizer 'Whitespace' is not implemented"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "add_prefix_space .* is not implemented"),
        (
            {"pre_tokenizer": split(SPLIT, "MergedWithNext", False)},
            "behavior 'MergedWithNext' of Split is not implemented",
        ),
        (
            {"pre_tokenizer": split(SPLIT, "Isolated", True)},
            "behavior 'Isolated' of Split is not implemented, .* with invert",
        ),
        ({"pre_tokenizer": SPLIT_AT_BLANKS}, "Split by {'String': ' '} is not implemented, only by a Regex"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": []}}, "has no ByteLevel"),
        ({"pre_tokenizer": split("(", "Isolated", False)}, "tiktoken refuses its pattern or its ids"),
        ({"added_tokens": [added(-5, "x", special=True)]}, "tiktoken refuses its pattern or its ids"),
        ({"added_tokens": [added(1 << 40, "x", special=True)]}, "tiktoken refuses its pattern or its ids"),
        ({"added_tokens": [added(9, "x") | {"lstrip": True}]}, "lstrip of the added token 'x' is not implemented"),
    ],
)
def test_what_we_do_not_have_is_refused_by_name(spec, change, message):
    if "model" in change:
        change = {"model": spec["model"] | change["model"]}
    with pytest.raises(ValueError, match=message):
        BPETokenizer(spec | change, "a/tokenizer.json", eot=0)
