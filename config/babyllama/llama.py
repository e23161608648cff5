# Baby Llama's second teacher: a LLaMA of 360 M parameters on the ten million words of BabyLM (arXiv:2308.02019).
# python train.py config/babyllama/llama.py
# First: python prepare_data.py config/babyllama/data.py
# The original kept the epoch with the lowest dev loss; here that is out/babyllama/llama_360m/best, beside the last.
# Hardware: one 80 GB GPU (9.8 GB used). Cost: about 1.2e17 FLOPs, 0.086 hours of an H100 at 40 % of 989 TFLOP/s.
# Result: not run at full length yet.

out_dir = "out/babyllama/llama_360m"
dataset = "data/babylm"
block_size = 128
random_offset = False  # contiguous chunks, in a new order every epoch

arch = "llama"
n_layer, n_head, n_embd, n_inner = 24, 8, 1024, 3072
tie_word_embeddings = False  # 360.0 M parameters
vocab_multiple = 1  # 16,000 as it is

batch_size = 16
tokens_per_step = 128 * 128  # 128 rows, on any number of GPUs
epochs = 4.0

learning_rate, min_lr = 3e-4, 0.0  # cosine to 0
warmup_steps = 300
weight_decay = 0.0  # as transformers' trainer has it by itself
beta2 = 0.999  # beta2 and clipping: the defaults of transformers' trainer

eval_interval = 900  # about once an epoch
eval_rows = 8192  # fixed, random
save_interval = 900
