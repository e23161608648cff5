# Baby Llama's student, four times config/babyllama_small/student.py, with the published scale of the KL.
# python distill.py config/babyllama_larger/student.py
# First: config/babyllama_larger/llama.py with train.py
# Hardware: 2 CPU cores. Result: dev 4.0194 ± 0.0021 nats/token, three seeds (studies/babyllama).

from config.babyllama_small.student import *

out_dir = "out/babyllama_larger/student"
dataset = "data/babylm_larger"
teacher = "out/babyllama_larger/llama"  # alone: at small scale it taught as well as both
n_layer, n_head, n_embd, n_inner = 6, 4, 176, 352  # 2.4 M parameters; 1/29, as 16 / 512
epochs = 3.0

warmup_steps = 100
eval_interval = 513  # about once an epoch
