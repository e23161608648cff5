# MicroLM's second stage with the forward KL, for two CPU cores: config/microlm/forward_kl.py at small scale.
# python distill.py config/microlm_small/forward_kl.py
# First: python train.py config/microlm_small/pretrain.py, and config/microlm_small/teacher.py likewise
# Hardware: 2 CPU cores. Result: see studies/microlm.

from config.microlm_small.reverse_kl import *

out_dir = "out/microlm_small/forward_kl"
kl = "forward"
