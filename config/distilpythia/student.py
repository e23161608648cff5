# DistilPythia as published: Pythia-70M, from its own weights, taught by Pythia-160M; one document per row.
# python distill.py config/distilpythia/student.py
# First: python prepare_data.py config/data_pile.py. Teacher and student are downloaded once.
# config/distilpythia/student_fixed.py fixes the suspected causes.
# Hardware: one 80 GB GPU (6.9 GB used). Cost: 3.2e17 FLOPs, 0.22 hours of an H100 at 40 % of 989 TFLOP/s.
# Result: not run at full length yet; published: LAMBADA's perplexity 140.81 -> 420.70, SciQ 65.0 -> 61.3 %.

out_dir = "out/distilpythia/documents"
init_from = "EleutherAI/pythia-70m"  # 6 x 512; no layers of the teacher's 12 x 768 fit
dataset = "data/pile"
block_size = 2048
packing = "documents"  # one document a row, padded or cut; padding is known by a row's length, not by its id

teacher = "EleutherAI/pythia-160m"
weight_ce, weight_kl = 0.5, 0.5
temperature = 2.0

batch_size = 2  # 2,048 micro-steps
tokens_per_step = 4096 * 2048
loss_mean = "micro_step"  # as transformers' trainer: the mean of the micro-steps' means
max_steps = 64  # 537 M positions

learning_rate = 1e-4
schedule = "constant"
warmup_steps = 0
weight_dtype = "bfloat16"  # the weights and all that is kept with them: small updates are lost
weight_decay = 0.0  # this, beta2 and clipping: the defaults of transformers' trainer
beta2 = 0.999

eval_interval = 8
eval_rows = 256
save_interval = 16
eval_tasks = "lambada,piqa,sciq"
eval_tasks_interval = 16
log_interval = 1
