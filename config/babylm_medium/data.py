# A 20th of a corpus of BabyLM's form in documents, in a BPE of 2,048: the data of three studies at small scale.
# python -m studies.distilgpt2 --only=data --corpus=<folder of <domain>.train and .dev>    cuts the documents, then runs
# python prepare_data.py config/babylm_medium/data.py
# Hardware: 2 CPU cores. Result: 990,529 tokens of training text in two seconds.

source = "babylm"
text_dir = "data/babylm_medium_text"
document_separator = "eot"
tokenizer = "bpe"
vocab_size = 2048
nfkc = True
out_dir = "data/babylm_medium"
