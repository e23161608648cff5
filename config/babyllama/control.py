# Baby Llama's student without a teacher: the same data, order, steps and weights at the start.
# python distill.py config/babyllama_58m_control.py
# First: python prepare_data.py config/data_babylm.py
# Hardware: one GPU. Result: not run at full length yet.

out_dir = "out/babyllama/58m_control"
dataset = "data/babylm"
block_size = 128
random_offset = False  # contiguous chunks, in a new order every epoch; True was slightly better

weight_ce, weight_kl = 1.0, 0.0

arch = "llama"
n_layer, n_head, n_embd, n_inner = 16, 8, 512, 1024
tie_word_embeddings = False  # 58.3 M parameters
vocab_multiple = 1  # 16,000 as it is

batch_size = 32
tokens_per_step = 32 * 128
epochs = 6.0

learning_rate, min_lr = 2.5e-4, 0.0  # cosine to 0
warmup_steps = 200
weight_decay = 0.1
beta2 = 0.999  # beta2 and clipping: as transformers' trainer has them by itself

eval_interval = 3700  # about once an epoch
eval_rows = 8192  # fixed, random
save_interval = 3700
