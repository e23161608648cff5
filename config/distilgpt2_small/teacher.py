# The teacher of DistilGPT2 for two CPU cores: a GPT of twelve blocks, as GPT-2 has.
# python train.py config/distilgpt2_small/teacher.py
# First: python -m studies.distilgpt2 --only=data --corpus=<folder>
# Hardware: 2 CPU cores. Result: test loss 4.2468 ± 0.0077 (studies/distilgpt2).

out_dir = "out/distilgpt2_small/teacher"
dataset = "data/babylm_medium"
block_size = 128

arch = "gpt"
n_layer, n_head, n_embd = 12, 4, 96  # 1.5 M parameters; 1/8, where GPT-2 has 12 / 768
vocab_multiple = 1

batch_size = 8
epochs = 2.0

optimizer = "normuon"  # AdamW at 1e-3 ends 0.3 nats above it or more (LOG.md), too weak to teach
learning_rate, min_lr = 5e-3, 0.0  # cosine to 0
warmup_steps = 100  # 5 %
weight_decay = 0.1
beta2 = 0.95

eval_interval = 480
eval_rows = 64  # fixed, random
save_interval = 500
keep_checkpoints = 1
log_interval = 25
