# Four times the text of config/babyllama_small/data.py, in a BPE of as many ids: the second size of Baby Llama's study.
# python -m studies.babyllama.larger --only=data --corpus=<folder>    cuts the passages, then runs
# python prepare_data.py config/babyllama_larger/data.py
# Hardware: 2 CPU cores. Result: 527,033 tokens of training text (studies/babyllama).

from config.babyllama_small.data import *

text_dir = "data/babylm_larger_text"
out_dir = "data/babylm_larger"
