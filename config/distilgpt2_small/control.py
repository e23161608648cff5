# DistilGPT2's control for two CPU cores, without the teacher's losses: config/distilgpt2/control.py at small scale.
# python distill.py config/distilgpt2_small/control.py
# First: python train.py config/distilgpt2_small/teacher.py
# Hardware: 2 CPU cores. Result: test loss 4.3123 ± 0.0067 after 480 steps, as long as its student (studies/distilgpt2).

from config.distilgpt2_small.student_fixed import *

out_dir = "out/distilgpt2_small/control"
weight_ce, weight_kl, weight_cos = 1.0, 0.0, 0.0  # the blocks still come from the teacher
