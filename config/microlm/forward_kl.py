# MicroLM's second stage with the forward KL, which pays for every token that the teacher finds likely.
# python distill.py config/microlm/forward_kl.py
# First: python train.py config/microlm/pretrain.py. The teacher is downloaded once.
# Hardware: one 80 GB GPU. Result: not run at full length yet.

from config.microlm.reverse_kl import *

out_dir = "out/microlm/forward_kl"
kl = "forward"
