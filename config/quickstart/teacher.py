# The quickstart's teacher: a 2.6 M LLaMA on the source and documentation of Python's standard library.
# python train.py config/quickstart/teacher.py             First: python prepare_data.py
# Hardware: 2 CPU cores, under 2 minutes. Result: see the README's table; `make quickstart` makes it again.

out_dir = "out/quickstart/teacher"
dataset = "data/stdlib"
block_size = 128

arch = "llama"
n_layer, n_head, n_embd = 4, 6, 192
qk_norm = True  # 0.04 nats/token lower after 400 steps (LOG.md); checkpoints have Qwen3's form

batch_size = 8  # 8 * 128 = 1,024 tokens a step: many small steps do more here than few large ones
max_steps = 490

optimizer = "headmuon"  # 4.44 nats/token after 400 steps, where Muon has 4.53 (LOG.md)
learning_rate = 5e-3
min_lr = 0.0
warmup_steps = 30

eval_interval = 245
save_interval = 245
eval_tasks = "data/stdlib/choices.jsonl"  # which line comes next? HellaSwag's form, from the held-out files
eval_tasks_interval = 490  # at the start and at the end: one takes as long as 20 steps
log_interval = 20
