# MicroLM's second stage without a teacher, for two CPU cores: config/microlm/control.py at small scale.
# python distill.py config/microlm_small/control.py
# First: python train.py config/microlm_small/pretrain.py
# Hardware: 2 CPU cores. Result: see studies/microlm.

from config.microlm_small.reverse_kl import *

out_dir = "out/microlm_small/control"
weight_ce, weight_kl = 1.0, 0.0  # the teacher is not loaded
