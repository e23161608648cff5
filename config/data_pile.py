# The Pile but for its copyrighted parts (30 files of .jsonl.zst) in Pythia's tokenizer: DistilPythia's corpus.
# python prepare_data.py config/data_pile.py               needs pip install zstandard
# Hardware: any; a core encodes about 5 MB/s. Result: not run at full length yet.

source = "pile"
tokenizer = "EleutherAI/pythia-160m"
out_dir = "data/pile"
