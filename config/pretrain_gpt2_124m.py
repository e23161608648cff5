# GPT-2 124M from scratch on OpenWebText, as nanoGPT trains it.
# python train.py config/pretrain_gpt2_124m.py
# First: python prepare_data.py config/data_openwebtext.py
# Hardware: one 80 GB GPU (10.7 GB used). Cost: 2.4e20 FLOPs, 165 hours of an H100 at 40 % of 989 TFLOP/s.
# Result: not run at full length yet; nanoGPT reports a val loss of 2.85 after 600,000 steps.

out_dir = "out/gpt2_124m"
dataset = "data/openwebtext"
block_size = 1024

arch = "gpt"
n_layer, n_head, n_embd = 12, 12, 768  # 124.5 M parameters, embedding and head tied
dropout = 0.0

batch_size = 12
tokens_per_step = 480 * 1024  # 491,520: 40 micro-steps on one GPU, 5 on each of 8
max_steps = 600_000

learning_rate = 6e-4
min_lr = 6e-5
warmup_steps = 2000
weight_decay = 0.1
beta1, beta2 = 0.9, 0.95

eval_interval = 1000
eval_rows = 2400
save_interval = 2000
eval_tasks = "hellaswag"
eval_tasks_interval = 2000
