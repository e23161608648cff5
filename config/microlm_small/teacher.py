# The teacher of MicroLM's second stage for two CPU cores, in the place of OLMo-1B: larger, trained longer, same tokens.
# python train.py config/microlm_small/teacher.py
# First: python -m studies.microlm --only=data --corpus=<folder of <domain>.train and .dev>
# Hardware: 2 CPU cores. Result: see studies/microlm.

from config.microlm_small.pretrain import *

out_dir = "out/microlm_small/teacher"
n_layer, n_head, n_embd, n_inner = 6, 5, 160, 448
epochs = 2.0
