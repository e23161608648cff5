# Another BPE of 2,048, of the subtitles alone: 6 of its merges have the id that they have in data/babylm_medium.
# python prepare_data.py config/microlm_small/other_tokenizer.py
# First: python -m studies.microlm --only=data --corpus=<folder>    puts the subtitles into a folder, and runs this
# Hardware: 2 CPU cores. Result: see studies/microlm.

from config.babylm_medium.data import *

text_dir = "data/babylm_medium_subtitles_text"
out_dir = "data/babylm_medium_subtitles"
