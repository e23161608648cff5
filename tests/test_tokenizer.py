"""The three tokenizers keep every character, and are told apart by their hash."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from common.tokenizer import ByteTokenizer, GPT2Tokenizer, SentencePieceTokenizer, load_tokenizer, tokenizer_meta

GPT2 = Path(__file__).resolve().parents[2] / "shared/data/tokenizers/gpt2"
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
    assert len(bpe.encode("return")) < 6 and bpe.decode(bpe.encode("\U0001f9ea")) == "\U0001f9ea"  # falls back to bytes
    again = SentencePieceTokenizer.train((Path(__file__).read_text() + text for text in TEXTS * 3), 400)
    assert again.model == bpe.model and again.hash == bpe.hash


def test_gpt2(gpt2):
    check(gpt2)
    assert gpt2.encode("Hello world") == [15496, 995] and (gpt2.vocab_size, gpt2.eot) == (50257, 50256)
    assert len({gpt2.hash, ByteTokenizer.hash}) == 2


def test_gpt2_without_network_is_one_line(tmp_path, monkeypatch):
    import tiktoken.load
    import tiktoken.registry

    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"tiktoken cannot download GPT-2's vocabulary \(ProxyError\); connect once"):
        GPT2Tokenizer()


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
    with pytest.raises(FileNotFoundError, match=r"tokenizer.model is not there"):
        load_tokenizer(tmp_path)
    (tmp_path / "meta.json").write_text(json.dumps(tokenizer_meta(bpe) | {"tokenizer": "wordpiece"}))
    with pytest.raises(ValueError, match="unknown tokenizer 'wordpiece'; known: bytes, bpe, gpt2"):
        load_tokenizer(tmp_path)
