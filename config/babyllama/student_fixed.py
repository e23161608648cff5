# Baby Llama with the KL of its formula, a mean over tokens: config/babyllama_58m.py but for kl_norm.
# python distill.py config/babyllama_58m_fixed.py
# First: config/data_babylm.py with prepare_data.py, then both teachers: config/babyllama_gpt_705m.py and
#        config/babyllama_llama_360m.py with train.py.
# Hardware: one GPU. Result: not run at full length yet.

out_dir = "out/babyllama/58m_fixed"
dataset = "data/babylm"
block_size = 128
random_offset = False  # contiguous chunks, in a new order every epoch; True was slightly better

teacher = "out/babyllama/gpt_705m,out/babyllama/llama_360m"  # the mean of their logits
weight_ce, weight_kl = 0.5, 0.5
temperature = 2.0
kl_norm = "token"  # the formula's: CE : KL is 1 : 4 a token

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
