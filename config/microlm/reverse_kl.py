# MicroLM's second stage as published: reverse KL from OLMo-1B, nothing else changed.
# python distill.py config/microlm/reverse_kl.py
# First: python train.py config/microlm/pretrain.py. The teacher is downloaded once.
# Hardware: one 80 GB GPU (13.4 GB used). Cost: 3.4e18 FLOPs, 2.4 hours of an H100 at 40 % of 989 TFLOP/s.
# Result: not run at full length yet; published: it made the student worse.

from config.rkld_olmo import *

out_dir = "out/microlm/reverse_kl"
init_from = "out/microlm/pretrain"
optimizer = "adamw"
learning_rate, min_lr = 6e-4, 6e-5
