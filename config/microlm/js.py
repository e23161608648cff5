# MicroLM's second stage with the Jensen-Shannon divergence, between the two KLs.
# python distill.py config/microlm/js.py
# First: python train.py config/microlm/pretrain.py. The teacher is downloaded once.
# Hardware: one 80 GB GPU. Result: not run at full length yet.

from config.microlm.reverse_kl import *

out_dir = "out/microlm/js"
kl = "js"
