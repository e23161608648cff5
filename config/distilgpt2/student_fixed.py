# DistilGPT2 fixed: full rows and the mean over all tokens of a step.
# python distill.py config/distilgpt2/student_fixed.py
# First: python prepare_data.py config/data_openwebtext.py. The teacher is downloaded once.
# Hardware: one 80 GB GPU (10.5 GB used). Cost: about 7.1e18 FLOPs, 5 hours of an H100 at 40 % of 989 TFLOP/s.
# Result: not run at full length yet.

from config.distilgpt2.student import *

out_dir = "out/distilgpt2/82m_fixed"
packing = "constant"
batch_size = 20  # 25 micro-steps
loss_mean = "token"
warmup_steps = 880  # 5 % of 17,600 steps
