# What DistilPythia's student starts from, for two CPU cores: a small model of Pythia's form, pretrained.
# python train.py config/distilpythia_small/start.py
# First: python -m studies.distilpythia.fresh --out_dir=out/distilpythia_small/fresh_start
# Hardware: 2 CPU cores. Result: test 4.3376 ± 0.0086 nats/token, three seeds (studies/distilpythia).

out_dir = "out/distilpythia_small/start"
init_from = "out/distilpythia_small/fresh_start"  # new weights: train.py's arch has no GPT-NeoX
dataset = "data/babylm_medium"
block_size = 128

arch = "gpt"
n_layer, n_head, n_embd = 3, 4, 96  # half the teacher's depth and two thirds of its width, as 6 x 512 of 12 x 768
tie_word_embeddings = False

batch_size = 8
epochs = 2.0

learning_rate, min_lr = 3e-3, 3e-4  # cosine to a tenth, as Pythia's 1e-3 to 1e-4
warmup_steps = 100
weight_decay = 0.01  # this and beta2 as Pythia's
beta2 = 0.95

eval_interval = 500
eval_rows = 64
save_interval = 500
keep_checkpoints = 1
log_interval = 50
