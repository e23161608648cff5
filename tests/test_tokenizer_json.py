"""The tokenizer.json and tokenizer_config.json that we write, read by tokenizers, give our ids.

transformers reads the two as they are: `python tests/make_golden.py --check` compares with it.
golden_tokenizer/ holds files that it was seen to read right.
"""

import io
import json
from pathlib import Path

import pytest
import sentencepiece
from conftest import TINY, run_script
from test_tokenizer import DATA, NASTY, trained_spec

from common.bpe import BPETokenizer
from common.tokenizer import ByteTokenizer, SentencePieceTokenizer, load_tokenizer

tokenizers = pytest.importorskip("tokenizers")
GOLDEN = Path(__file__).parent / "golden_tokenizer"
TEXT = Path(__file__).read_text(encoding="utf-8")
ODD = [
    *NASTY,
    "\u2581a \u2581\u2581b\u2581",  # SentencePiece's own blank
    "<0x0A><0x41>",
    "<unk><s></s>",
    "\ufeff\u200b\u200e\ufffe\uffff\U0010ffff",
    "\u00bd\u0301 \u00b2\ufe0f \ufb01n",
    "\u304b\u3099 \u1100\u1161\u11a8 e\u0323\u0302",  # composed by NFKC
    "\u32ff \U0001fbf0",  # newer than the NFKC of tokenizers
    *("-" * n + "  " * n for n in range(1, 40)),
]
MARKS = ["e\u0302\u0323", "\ufb01\u0301"]  # SentencePiece's NFKC leaves what Unicode's composes
SETTINGS = {
    "as trained here": {},
    "nfkc": {"normalization_rule_name": "nfkc"},
    "converted": {"add_dummy_prefix": True},  # such as Llama 2's
    "converted, single blanks": {"add_dummy_prefix": True, "remove_extra_whitespaces": True},
    "no byte fallback": {"byte_fallback": False},
}


def trained(**settings):
    """A SentencePiece tokenizer of 400 ids, of any settings."""
    model = io.BytesIO()
    as_here = {
        "model_type": "bpe",
        "vocab_size": 400,
        "byte_fallback": True,
        "add_dummy_prefix": False,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "minloglevel": 2,
    }
    lines = iter(TEXT.splitlines() * 3)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=model, **(as_here | settings))
    return SentencePieceTokenizer(model.getvalue())


def read_back(folder):
    """tokenizers' own tokenizer of the folder, special tokens read as text if tokenizer_config.json says so."""
    theirs = tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    config = json.loads((Path(folder) / "tokenizer_config.json").read_text(encoding="utf-8"))
    theirs.encode_special_tokens = config["split_special_tokens"]
    return theirs, config


def check(ours, folder, texts=ODD):
    """What `ours` saves in the folder gives its ids, text, eos and bos."""
    ours.save(folder)
    theirs, config = read_back(folder)
    for text in texts:
        ids = theirs.encode(text).ids
        assert ids == ours.encode(text), text[:50]
        is_unknown = 0 in ids and isinstance(ours, SentencePieceTokenizer)  # " ⁇ " here, "" there
        if not is_unknown:
            assert theirs.decode([*ids, ours.eot]) == ours.decode(ids), text[:50]
    assert theirs.token_to_id(config["eos_token"]) == ours.eot
    assert theirs.token_to_id(config["bos_token"]) == ours.bos
    assert theirs.get_vocab_size() == ours.vocab_size


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_ids_of_sentencepiece(settings, tmp_path):
    ours = trained(**settings)
    check(ours, tmp_path)
    again = load_tokenizer(tmp_path)  # of tokenizer.model, not of the tokenizer.json beside it
    assert isinstance(again, SentencePieceTokenizer) and again.hash == ours.hash


def test_ids_of_byte_level_bpe(tmp_path):
    check(ByteTokenizer(), tmp_path)
    spec = trained_spec()
    check(BPETokenizer(spec, eot=0), tmp_path)
    check(BPETokenizer(spec | {"normalizer": {"type": "NFC"}}, eot=0), tmp_path, NASTY[:9])


def test_nothing_is_added_to_a_text_or_cut_off(tmp_path):
    """As Llama 3's file puts a beginning in front of each text, and others cut after 512 tokens."""
    end = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    around = {
        "type": "TemplateProcessing",
        "single": [end, {"Sequence": {"id": "A", "type_id": 0}}, end],
        "pair": [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }
    cut = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    spec = trained_spec() | {"post_processor": around, "truncation": cut}
    as_it_is = tokenizers.Tokenizer.from_str(json.dumps(spec))
    assert as_it_is.encode("a b c d e f g h i j k").ids[0] == 0
    check(BPETokenizer(spec, eot=0), tmp_path, NASTY[:9])


def test_config_names_the_class_that_reads_the_file_as_it_is(tmp_path):
    """And no token_type_ids, which a GPT-2 in transformers embeds and adds."""
    ours = trained()
    ours.bos = ours.eot  # as prepare_data.py sets it
    for tokenizer, end in ((ours, "</s>"), (ByteTokenizer(), "<|endoftext|>")):
        tokenizer.save(tmp_path)
        config = json.loads((tmp_path / "tokenizer_config.json").read_text())
        assert config == {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": True,
            "model_input_names": ["input_ids", "attention_mask"],
            "eos_token": end,
            "bos_token": end,
        }


def test_golden_files_that_transformers_read(tmp_path):
    """A tokenizer.model gives the same hash and files as ever, and the ids of transformers."""
    golden = json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))
    ours = load_tokenizer(GOLDEN)
    assert ours.hash == golden["hash"]
    assert [ours.encode(text) for text in golden["texts"]] == golden["ids"]
    ours.save(tmp_path)
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (GOLDEN / name).read_bytes(), name


@pytest.mark.parametrize("folder", ["tokenizers/llama2", "checkpoints/stories260K_hf"])
def test_ids_of_real_converted_files(folder, tmp_path):
    if not (DATA / folder).is_dir():
        pytest.skip("the tokenizers and the corpus are not beside the project")
    paths = sorted((DATA / "babylm_like").glob("*.train"))
    corpus = [path.read_text(encoding="utf-8")[:50_000] for path in paths]
    check(load_tokenizer(DATA / folder), tmp_path, [*ODD, *MARKS, *corpus])


@pytest.mark.slow
def test_a_gpt_on_nfkc_bpe_is_saved_with_a_tokenizer_that_others_read(tmp_path):
    """Baby Llama's GPT teacher, small: from text to a checkpoint."""
    text = tmp_path / "text.txt"
    text.write_text((TEXT + "\ufb01ne caf\u00e9 \u00bd 🙂\n\n") * 3, encoding="utf-8")
    data = tmp_path / "data"
    run = tmp_path / "run"
    knobs = ["--vocab_size=400", "--nfkc=True"]
    made = run_script("prepare_data.py", f"--source={text}", *knobs, f"--out_dir={data}")
    knobs = [*TINY, "--arch=gpt", "--max_steps=1"]
    done = run_script("train.py", *knobs, f"--dataset={data}", f"--out_dir={run}")
    assert "note:" not in made.stderr + done.stderr
    ours = load_tokenizer(run)
    folder = run / "step_000001"
    check(ours, tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes(), name
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "gpt2"
    assert config["bos_token_id"] == config["eos_token_id"] == ours.eot == 2


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"model_type": "unigram"}, "is not a BPE model"),
        ({"user_defined_symbols": ["<keep>"]}, "has user-defined or unused pieces"),
        ({"treat_whitespace_as_suffix": True}, "has other rules for blanks"),
    ],
)
def test_what_no_json_can_say_is_said_once(settings, reason, tmp_path, capsys):
    ours = trained(**settings)
    for _ in range(3):
        ours.save(tmp_path)
    said = capsys.readouterr().err
    assert said.count("note:") == 1
    assert f"note: no tokenizer.json is written, as this tokenizer.model {reason}; transformers may" in said
    assert not (tmp_path / "tokenizer.json").exists()
    assert load_tokenizer(tmp_path).hash == ours.hash
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["eos_token"] == "</s>"
