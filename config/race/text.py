# BabyLM's texts in GPT-2's tokenizer, 6 x 384: what bench.py --part=race --course=text runs.
# python train.py config/race/text.py
# First: python prepare_data.py config/race/text_data.py
# Hardware: 2 CPU cores. Result: not measured yet.

out_dir = "out/race/text"
dataset = "data/race_text"
block_size = 256

arch = "llama"
n_layer, n_head, n_embd = 6, 6, 384
qk_norm = True

batch_size = 8
max_steps = 60  # where the rate ends at 0 when the loss is reached

optimizer = "headmuon"
learning_rate = 1e-2
min_lr = 0.0
warmup_steps = 5
schedule = "linear"

eval_interval = 5
eval_rows = 64
save_interval = 0
keep_best = False
