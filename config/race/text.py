# Text in GPT-2's tokenizer, to a loss that takes a straightforward loop eleven minutes, in as little time as we can.
# python train.py config/race/text.py
# First: python prepare_data.py config/race/text_data.py
# Hardware: 2 CPU cores. Result: 5.61 nats/token after 115 steps and 196 s (docs/training.md).

out_dir = "out/race/text"
dataset = "data/race_text"
block_size = 256

arch = "llama"
n_layer, n_head, n_embd = 6, 6, 384
qk_norm = True

batch_size = 4  # 1,024 tokens a step; with 8, more tokens are needed (LOG.md)
max_steps = 130  # where the rate ends at 0, just after the loss is reached

optimizer = "headmuon"
learning_rate = 4e-3  # 1e-2 and 2e-2 are worse (LOG.md)
min_lr = 0.0
warmup_steps = 5
schedule = "linear"
beta1 = 0.8  # AdamW's, of embedding and norms: 130 steps are few

eval_interval = 5
eval_rows = 32
save_interval = 0
keep_best = False
