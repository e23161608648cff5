# The quickstart's students: 1 M parameters, from the same weights on the same batches, with and without the teacher.
# python distill.py config/quickstart/student.py --out_dir=out/quickstart/forward_kl
# python distill.py config/quickstart/student.py --out_dir=out/quickstart/reverse_kl --kl=reverse
# python distill.py config/quickstart/student.py --out_dir=out/quickstart/alone --weight_ce=1 --weight_kl=0
# First: python train.py config/quickstart/teacher.py
# Hardware: 2 CPU cores, under a minute each. Result: see the README's table; `make quickstart` makes it again.

out_dir = "out/quickstart/student"
dataset = "data/stdlib"
block_size = 128

teacher = "out/quickstart/teacher"
kl = "forward"
weight_ce, weight_kl = 0.1, 0.9
temperature = 1.0

arch = "llama"
n_layer, n_head, n_embd = 2, 4, 128
qk_norm = True

batch_size = 8
max_steps = 300

optimizer = "headmuon"
learning_rate = 1e-2  # the best of 2.5e-3, 5e-3 and 1e-2 for the student alone (LOG.md)
min_lr = 0.0
warmup_steps = 20

eval_interval = 150
save_interval = 150
eval_tasks = "data/stdlib/choices.jsonl"
eval_tasks_interval = 300  # at the start and at the end
log_interval = 20
