# BabyLM 2023 strict-small (10 M words in ten domains), cleaned, in a BPE of 16,000 trained on it: Baby Llama's corpus.
# python prepare_data.py config/babyllama/data.py          100 M words: --source=babylm_100m --out_dir=data/babylm_100m
# With files that you have already, <domain>.train and <domain>.dev: --text_dir=<folder>
# Hardware: 2 CPU cores. Result: 10 M words of like text take half a minute and 0.62 GB (docs/data.md).

source = "babylm"
tokenizer = "bpe"
vocab_size = 16000
nfkc = True  # as Baby Llama's tokenizer; without it text decodes to itself
out_dir = "data/babylm"
