# Baby Llama's first teacher: GPT-2 of 705 M parameters on the ten million words of BabyLM (arXiv:2308.02019).
# python train.py config/babyllama/gpt.py
# First: python prepare_data.py config/babyllama/data.py
# The original kept the epoch with the lowest dev loss; here that is out/babyllama/gpt_705m/best, beside the last.
# Hardware: one 80 GB GPU (14.6 GB used). Cost: about 2.5e17 FLOPs, 0.18 hours of an H100 at 40 % of 989 TFLOP/s.
# Result: not run at full length yet.

out_dir = "out/babyllama/gpt_705m"
dataset = "data/babylm"
block_size = 128
random_offset = False  # contiguous chunks, in a new order every epoch

arch = "gpt"
n_layer, n_head, n_embd = 24, 16, 1536  # 704.7 M parameters, the head tied
dropout = 0.1
vocab_multiple = 1  # 16,000 as it is

batch_size = 8
tokens_per_step = 128 * 128  # 128 rows, on any number of GPUs
epochs = 4.0

learning_rate, min_lr = 2.5e-4, 0.0  # cosine to 0
warmup_steps = 300
weight_decay = 0.0  # this and dropout: as transformers' trainer and GPT-2 have them by themselves
beta2 = 0.999  # beta2 and clipping: the defaults of transformers' trainer

eval_interval = 900  # about once an epoch
eval_rows = 8192  # fixed, random
save_interval = 900
