# DistilPythia fixed, for two CPU cores: config/distilpythia/student_fixed.py at small scale.
# python distill.py config/distilpythia_small/student_fixed.py
# First: config/distilpythia_small/start.py and config/distilpythia_small/teacher.py with train.py
# Hardware: 2 CPU cores. Result: test 4.3280 ± 0.0080 nats/token, three seeds (studies/distilpythia).

from config.distilpythia_small.student import *

out_dir = "out/distilpythia_small/fixed"
packing = "constant"  # each position is a token
random_offset = True
batch_size = 8  # 4 micro-steps
loss_mean = "token"
weight_dtype = "float32"
warmup_steps = 8  # of 64
