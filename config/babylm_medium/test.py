# Other held-out documents than those of config/babylm_medium/data.py, in its tokens: what the studies report.
# python prepare_data.py config/babylm_medium/test.py
# First: config/babylm_medium/data.py, likewise
# Hardware: 2 CPU cores. Result: 95,094 tokens of held-out text in a second.

from config.babylm_medium.data import *

text_dir = "data/babylm_medium_test_text"
tokenizer = "data/babylm_medium"
out_dir = "data/babylm_medium_test"
