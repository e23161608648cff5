# The GPT of Baby Llama's two teachers for two CPU cores: 11.8 times its student, as wide for its depth as published.
# python train.py config/babyllama_small/gpt.py
# First: python -m studies.babyllama --only=data --corpus=<folder>
# Hardware: 2 CPU cores. Result: dev 4.6948 ± 0.0035 nats/token, three seeds (studies/babyllama).

out_dir = "out/babyllama_small/gpt"
dataset = "data/babylm_small"
block_size = 128
random_offset = False  # contiguous chunks, in a new order every epoch

arch = "gpt"
n_layer, n_head, n_embd = 5, 5, 320  # 6.7 M parameters; 1/64, as 24 / 1536
vocab_multiple = 1

batch_size = 8
epochs = 6.0

learning_rate, min_lr = 5e-4, 0.0  # cosine to 0
warmup_steps = 50
weight_decay = 0.1
beta2 = 0.999

eval_interval = 115  # about once an epoch
eval_rows = 64  # fixed, random
save_interval = 500
keep_checkpoints = 1
log_interval = 25
