# DistilPythia fixed: float32 weights, warm-up, rows without padding, the mean over tokens; else as published.
# python distill.py config/distilpythia/student_fixed.py
# First: python prepare_data.py config/data_pile.py. Teacher and student are downloaded once.
# Hardware: one 80 GB GPU (10.6 GB used). Cost: 3.2e17 FLOPs, 0.22 hours of an H100 at 40 % of 989 TFLOP/s.
# Result: not run at full length yet.

from config.distilpythia.student import *

out_dir = "out/distilpythia/fixed"
packing = "constant"  # each of the 537 M positions is a token
random_offset = True
batch_size = 16  # 256 micro-steps
loss_mean = "token"
weight_dtype = "float32"
warmup_steps = 8  # of 64
