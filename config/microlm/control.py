# MicroLM's second stage without a teacher: the control run trained on, for as many tokens, at the same rates.
# python distill.py config/microlm/control.py
# First: python train.py config/microlm/pretrain.py
# Hardware: one 80 GB GPU (10.3 GB used). Cost: 8.4e17 FLOPs, 0.59 hours of an H100 at 40 % of 989 TFLOP/s.
# Result: not run at full length yet.

from config.microlm.reverse_kl import *

out_dir = "out/microlm/control"
weight_ce, weight_kl = 1.0, 0.0  # the teacher is not loaded
