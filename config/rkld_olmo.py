# MicroLM's second stage: its 124M student taught by OLMo-1B with the reverse KL, token by token.
# python distill.py config/rkld_olmo.py
# First: config/pretrain_124m.py on data made with OLMo's tokenizer. Another one is refused, although GPT-2's padded
#        head and OLMo's are both 50,304 wide. The teacher is downloaded once.
# Hardware: one 80 GB GPU (13.1 GB used). Cost: 3.4e18 FLOPs, 2.4 hours of an H100 at 40 % of 989 TFLOP/s.
# Result: not run at full length yet; MicroLM reports that it hurt the student.

out_dir = "out/rkld_olmo"
init_from = "out/pretrain_124m"  # the student starts from the control run
dataset = "data/fineweb_edu"
block_size = 1024

teacher = "allenai/OLMo-1B-hf"
kl = "reverse"
weight_ce, weight_kl, weight_cos = 0.0, 1.0, 0.0  # nothing but KL(student || teacher)
temperature = 1.0

batch_size = 8
tokens_per_step = 512 * 1024  # 524,288: 64 micro-steps on one GPU
max_steps = 2000

optimizer = "normuon"  # this and the rates: as the control run
learning_rate = 2e-3
min_lr = 2e-4
warmup_steps = 100
weight_decay = 0.1
beta1, beta2 = 0.9, 0.95

eval_interval = 100
eval_rows = 20 * 64
save_interval = 500
eval_tasks = "hellaswag"
eval_tasks_interval = 100
