# Text in GPT-2's tokenizer, to the loss that a straightforward loop has after ten minutes, in as little time as we can.
# python train.py config/race/text.py
# First: python prepare_data.py config/race/text_data.py
# Hardware: 2 CPU cores. Result: 5.594 nats/token after 140 steps and 203 s, one seed; AdamW's 5.616 takes it 210
# steps of twice the tokens, about 10 minutes (LOG.md).

out_dir = "out/race/text"
dataset = "data/race_text"
block_size = 256

arch = "llama"
n_layer, n_head, n_embd = 6, 6, 384
qk_norm = True

batch_size = 4  # 1,024 tokens a step; with 8, more tokens are needed (LOG.md)
max_steps = 140  # where the rate ends at 0

optimizer = "headmuon"
learning_rate = 5e-3  # 1e-2 and 2e-2 are worse (LOG.md)
min_lr = 0.0
warmup_steps = 5
schedule = "linear"

eval_interval = 10
eval_rows = 32
save_interval = 0
keep_best = False
