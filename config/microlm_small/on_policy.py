# MicroLM's second stage with a quarter of own text, for two CPU cores: config/microlm/on_policy.py at small scale.
# python distill.py config/microlm_small/on_policy.py
# First: python train.py config/microlm_small/pretrain.py, and config/microlm_small/teacher.py likewise
# Hardware: 2 CPU cores. Result: see studies/microlm.

from config.microlm_small.reverse_kl import *

out_dir = "out/microlm_small/on_policy"
on_policy = 0.25
prompt_tokens = "8-32"
response_tokens = 32  # a quarter of a row, as there
