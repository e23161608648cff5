# The LLaMA of Baby Llama's two teachers for two CPU cores: 6.1 times its student, as wide for its depth as published.
# python train.py config/babyllama_small/llama.py
# First: python -m studies.babyllama --only=data --corpus=<folder>
# Hardware: 2 CPU cores. Result: dev 4.5010 ± 0.0067 nats/token, three seeds (studies/babyllama).

out_dir = "out/babyllama_small/llama"
dataset = "data/babylm_small"
block_size = 128
random_offset = False  # contiguous chunks, in a new order every epoch

arch = "llama"
n_layer, n_head, n_embd, n_inner = 5, 4, 208, 624  # 3.4 M parameters; 1/41.6, as 24 / 1024
tie_word_embeddings = False
vocab_multiple = 1

batch_size = 8
epochs = 6.0

learning_rate, min_lr = 1e-3, 0.0  # cosine to 0
warmup_steps = 50
weight_decay = 0.1
beta2 = 0.999

eval_interval = 115  # about once an epoch
eval_rows = 64  # fixed, random
save_interval = 500
keep_checkpoints = 1
log_interval = 25
