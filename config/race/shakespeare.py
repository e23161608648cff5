# Tiny Shakespeare, a byte a token, to 1.88 nats per byte in as few seconds as we can: what bench.py --part=race runs.
# python train.py config/race/shakespeare.py
# First: python prepare_data.py config/race/data.py
# Hardware: 2 CPU cores. Result: 1.87 nats/byte after 180 steps and 12 s (docs/training.md).

out_dir = "out/race/shakespeare"
dataset = "data/shakespeare"
block_size = 64

arch = "llama"
n_layer, n_head, n_embd = 4, 4, 128
qk_norm = True

batch_size = 12  # 768 tokens a step, as in nanoGPT's example for CPUs
max_steps = 200  # where the rate ends at 0, just after the loss is reached

optimizer = "headmuon"
learning_rate = 1e-2
min_lr = 0.0
warmup_steps = 10
schedule = "linear"

eval_interval = 10
eval_rows = 256
save_interval = 0
keep_best = False
