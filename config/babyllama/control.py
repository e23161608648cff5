# Baby Llama's student without a teacher: the same data, order, steps and weights at the start.
# python distill.py config/babyllama/control.py
# First: python prepare_data.py config/babyllama/data.py
# Hardware: one 80 GB GPU (3.7 GB used). Cost: about 2.7e16 FLOPs, 0.019 hours of an H100 at 40 % of 989 TFLOP/s.
# Result: not run at full length yet.

from config.babyllama.student import *

out_dir = "out/babyllama/58m_control"
weight_ce, weight_kl = 1.0, 0.0  # the teachers are not loaded
