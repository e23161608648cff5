# A 150th of a corpus of BabyLM's form, in a BPE of 1,500: the data of the study of Baby Llama (studies/babyllama).
# python -m studies.babyllama --only=data --corpus=<folder of <domain>.train and .dev>    cuts the passages, then runs
# python prepare_data.py config/babyllama_small/data.py
# Hardware: 2 CPU cores. Result: 129,853 tokens of training text in a second.

source = "babylm"
text_dir = "data/babylm_small_text"
tokenizer = "bpe"
vocab_size = 1500  # of 16,000, what 67,000 words can fill
nfkc = True
out_dir = "data/babylm_small"
