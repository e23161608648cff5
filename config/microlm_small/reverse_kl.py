# MicroLM's second stage as published, for two CPU cores: config/microlm/reverse_kl.py at small scale.
# python distill.py config/microlm_small/reverse_kl.py
# First: python train.py config/microlm_small/pretrain.py, and config/microlm_small/teacher.py likewise
# Hardware: 2 CPU cores. Result: see studies/microlm.

out_dir = "out/microlm_small/reverse_kl"
init_from = "out/microlm_small/pretrain"  # the student starts from the control run
dataset = "data/babylm_medium"
block_size = 128
random_offset = False

teacher = "out/microlm_small/teacher"
kl = "reverse"
weight_ce, weight_kl = 0.0, 1.0  # nothing but KL(student || teacher)
temperature = 1.0

batch_size = 8
epochs = 0.2  # a tenth of the control run's, as published

learning_rate, min_lr = 3e-3, 3e-4  # the peak of the control run once more, as published
warmup_steps = 10  # of 194, the published share of the steps
weight_decay = 0.1
beta1, beta2 = 0.9, 0.95
grad_clip = 1.0

eval_interval = 0  # at the end alone: scoring all domains takes as long as 50 steps
eval_rows = 64
save_interval = 1000
keep_checkpoints = 1
keep_best = False
log_interval = 10
