# The text of config/babylm_medium/data.py in another tokenizer of as many ids: what the other teacher learns from.
# python prepare_data.py config/microlm_small/other_data.py
# First: config/babylm_medium/data.py and config/microlm_small/other_tokenizer.py, likewise
# Hardware: 2 CPU cores. Result: see studies/microlm.

from config.babylm_medium.data import *

tokenizer = "data/babylm_medium_subtitles"
out_dir = "data/babylm_medium_other"
