# A modern 124M (LLaMA: rotary, SwiGLU, RMSNorm, no biases) on FineWeb-Edu's 10 B tokens: MicroLM's control run with
# NorMuon, at small scale 0.48 nats/token better than AdamW (LOG.md). As published: config/microlm/pretrain.py.
# python train.py config/pretrain_124m.py
# torchrun --standalone --nproc_per_node=8 train.py config/pretrain_124m.py
# First: python prepare_data.py config/data_fineweb_edu.py
# Hardware: one 80 GB GPU (13.8 GB used). Cost: 8.0e18 FLOPs, 5.6 hours of an H100 at 40 % of 989 TFLOP/s.
# Result: not run at full length yet; MicroLM's passes HellaSwag 0.2955 (GPT-2 124M).

out_dir = "out/pretrain_124m"
dataset = "data/fineweb_edu"
block_size = 1024

arch = "llama"
n_layer, n_head, n_embd, n_inner = 12, 12, 768, 2048  # 123.6 M parameters with the tied head of 50,304

batch_size = 16
tokens_per_step = 512 * 1024  # 524,288, on any number of GPUs: 32 micro-steps on one, 4 on each of 8
max_steps = 19_073  # 10 B tokens

optimizer = "normuon"
learning_rate = 2e-3  # a guess: AdamW's is 6e-4, and at small scale Muon's best was 5 times AdamW's (LOG.md)
min_lr = 2e-4
warmup_steps = 715  # 375 M tokens, as GPT-3
weight_decay = 0.1
beta1, beta2 = 0.9, 0.95
grad_clip = 1.0

eval_interval = 250
eval_rows = 20 * 64  # 1.3 M tokens
save_interval = 1000
eval_tasks = "hellaswag"
eval_tasks_interval = 250
