# MicroLM's second stage with the forward KL, which pays for every token that the teacher finds likely.
# python distill.py config/microlm/forward_kl.py
# First: python train.py config/microlm/pretrain.py. The teacher is downloaded once.
# Hardware: one 80 GB GPU (13.4 GB used). Cost: 3.4e18 FLOPs, 2.4 hours of an H100 at 40 % of 989 TFLOP/s.
# Result: not run at full length yet.

from config.microlm.reverse_kl import *

out_dir = "out/microlm/forward_kl"
kl = "forward"
