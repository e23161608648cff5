# MicroLM's control run for two CPU cores: config/microlm/pretrain.py at small scale.
# python train.py config/microlm_small/pretrain.py
# First: python -m studies.microlm --only=data --corpus=<folder of <domain>.train and .dev>
# Hardware: 2 CPU cores. Result: see studies/microlm.

out_dir = "out/microlm_small/pretrain"
dataset = "data/babylm_medium"
block_size = 128
random_offset = False  # packed rows, in a new order every epoch

arch = "llama"
n_layer, n_head, n_embd, n_inner = 4, 3, 96, 256  # 0.64 M parameters with the tied head, as published

batch_size = 8
epochs = 2.0  # 3 tokens for each parameter; published: 81

learning_rate, min_lr = 3e-3, 3e-4  # cosine to a tenth
warmup_steps = 72  # of 1,934, the published share of the steps
weight_decay = 0.1
beta1, beta2 = 0.9, 0.95
grad_clip = 1.0

eval_interval = 1000  # scoring all domains takes as long as 100 steps
eval_rows = 64
save_interval = 1000
keep_checkpoints = 1
keep_best = False
log_interval = 25
