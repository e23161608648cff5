# MicroLM's second stage with text of the student's own in a quarter of the micro-steps (GKD, arXiv:2306.13649).
# python distill.py config/microlm/on_policy.py
# First: python train.py config/microlm/pretrain.py. The teacher is downloaded once.
# Hardware: one 80 GB GPU (14.3 GB used). Cost: 3.4e18 FLOPs, 2.4 hours of an H100 at 40 % of 989 TFLOP/s.
# Result: not run at full length yet; in small, see studies/onpolicy.

from config.microlm.reverse_kl import *

out_dir = "out/microlm/on_policy"
on_policy = 0.25  # the published run has none: its reverse KL is on the data's text
prompt_tokens = "64-512"
response_tokens = 512
