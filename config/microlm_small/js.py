# MicroLM's second stage with the Jensen-Shannon divergence, for two CPU cores: config/microlm/js.py at small scale.
# python distill.py config/microlm_small/js.py
# First: python train.py config/microlm_small/pretrain.py, and config/microlm_small/teacher.py likewise
# Hardware: 2 CPU cores. Result: see studies/microlm.

from config.microlm_small.reverse_kl import *

out_dir = "out/microlm_small/js"
kl = "js"
