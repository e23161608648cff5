# The LLaMA of Baby Llama's teachers, four times config/babyllama_small/llama.py: 5.8 times its student.
# python train.py config/babyllama_larger/llama.py
# First: python -m studies.babyllama.larger --only=data --corpus=<folder>
# Hardware: 2 CPU cores. Result: dev 4.0113 ± 0.0015 nats/token, three seeds (studies/babyllama).

from config.babyllama_small.llama import *

out_dir = "out/babyllama_larger/llama"
dataset = "data/babylm_larger"
n_layer, n_head, n_embd, n_inner = 8, 8, 352, 1056  # 13.9 M parameters; 1/44, as 24 / 1024
epochs = 3.0

warmup_steps = 100
eval_interval = 513  # about once an epoch
