# Baby Llama's student for two CPU cores, the KL at its published scale: config/babyllama/student.py at small scale.
# python distill.py config/babyllama_small/student.py
# First: config/babyllama_small/gpt.py and config/babyllama_small/llama.py with train.py
# Hardware: 2 CPU cores. Result: dev 4.5294 ± 0.0070 nats/token, three seeds (studies/babyllama).

out_dir = "out/babyllama_small/student"
dataset = "data/babylm_small"
block_size = 128
random_offset = False  # contiguous chunks, in a new order every epoch

teacher = "out/babyllama_small/gpt,out/babyllama_small/llama"  # the mean of their logits
weight_ce, weight_kl = 0.5, 0.5
temperature = 2.0
kl_norm = "sequence"  # block_size times the mean over tokens, as published

arch = "llama"
n_layer, n_head, n_embd, n_inner = 3, 3, 96, 192  # 0.57 M parameters; 1/32, as 16 / 512
tie_word_embeddings = False
vocab_multiple = 1

batch_size = 8
epochs = 6.0

learning_rate, min_lr = 3e-3, 0.0  # cosine to 0
warmup_steps = 50
weight_decay = 0.1
beta2 = 0.999

eval_interval = 115  # about once an epoch
eval_rows = 64  # fixed, random
save_interval = 500
keep_checkpoints = 1
log_interval = 25
