# DistilPythia as published for two CPU cores: config/distilpythia/student.py at small scale.
# python distill.py config/distilpythia_small/student.py
# First: config/distilpythia_small/start.py and config/distilpythia_small/teacher.py with train.py
# Hardware: 2 CPU cores. Result: test 4.3315 ± 0.0084 nats/token, three seeds (studies/distilpythia).

out_dir = "out/distilpythia_small/documents"
init_from = "out/distilpythia_small/start"
dataset = "data/babylm_medium"
block_size = 128
packing = "documents"  # one document a row, padded or cut; padding is known by a row's length, not by its id

teacher = "out/distilpythia_small/teacher"
weight_ce, weight_kl = 0.5, 0.5
temperature = 2.0

batch_size = 2
tokens_per_step = 32 * 128  # 16 micro-steps
loss_mean = "micro_step"  # as transformers' trainer: the mean of the micro-steps' means
max_steps = 64

learning_rate = 3e-4  # a tenth of what the student was pretrained with, and where that ended: so are the published 1e-4
schedule = "constant"
warmup_steps = 0
weight_dtype = "bfloat16"  # the weights and all that is kept with them: small updates are lost
weight_decay = 0.0  # this, beta2 and clipping: the defaults of transformers' trainer
beta2 = 0.999

eval_interval = 16
eval_rows = 64
save_interval = 64
keep_checkpoints = 1
log_interval = 1
