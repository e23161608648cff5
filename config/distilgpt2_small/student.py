# DistilGPT2 for two CPU cores, its mean and its rows as published: config/distilgpt2/student.py at small scale.
# python distill.py config/distilgpt2_small/student.py
# First: python train.py config/distilgpt2_small/teacher.py
# Hardware: 2 CPU cores. Result: test loss 4.3080 ± 0.0062 after 480 steps (studies/distilgpt2).

out_dir = "out/distilgpt2_small/student"
init_layers = "0,2,4,7,9,11"  # of the teacher, with its embeddings, final norm and head: 0.88 M parameters
freeze = "wpe"  # position embeddings
dropout = 0.1  # of the student; the teacher is in eval mode
dataset = "data/babylm_medium"
block_size = 128
packing = "documents"

teacher = "out/distilgpt2_small/teacher"
weight_ce, weight_kl, weight_cos = 2.0, 5.0, 1.0
temperature = 2.0

batch_size = 1
tokens_per_step = 8 * 128
loss_mean = "micro_step"  # a token of a short document weighs more than one of a long document
max_steps = 480  # half an epoch of packed rows

learning_rate, min_lr = 3e-3, 0.0
schedule = "linear"
warmup_steps = 24  # 5 %
weight_decay = 0.0
beta1, beta2, eps = 0.9, 0.98, 1e-6
grad_clip = 5.0

eval_interval = 120
eval_rows = 64  # fixed, random
save_interval = 500
keep_checkpoints = 1
log_interval = 20
