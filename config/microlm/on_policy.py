# MicroLM's second stage with text of the student's own in a quarter of the micro-steps (GKD, arXiv:2306.13649).
# python distill.py config/microlm/on_policy.py
# First: python train.py config/microlm/pretrain.py. The teacher is downloaded once.
# Hardware: one 80 GB GPU (25.1 GB used). Cost: 3.4e18 FLOPs, 2.4 hours of an H100 at 40 % of 989 TFLOP/s.
#           On top comes the time of writing, not measured: 3.6 million passes of the student over one token of 32 rows.
# Result: not run at full length yet; at small scale, see studies/onpolicy.

from config.microlm.reverse_kl import *

out_dir = "out/microlm/on_policy"
on_policy = 0.25  # the published run has none: its reverse KL is on the data's text
prompt_tokens = "64-256"
response_tokens = 256
batch_size = 32  # of the 512 rows of a step: text is written a micro-step at a time
