# MicroLM's second stage with the Jensen-Shannon divergence, between the two KLs.
# python distill.py config/microlm/js.py
# First: python train.py config/microlm/pretrain.py. The teacher is downloaded once.
# Hardware: one 80 GB GPU (13.8 GB used). Cost: 3.4e18 FLOPs, 2.4 hours of an H100 at 40 % of 989 TFLOP/s.
# Result: not run at full length yet.

from config.microlm.reverse_kl import *

out_dir = "out/microlm/js"
kl = "js"
