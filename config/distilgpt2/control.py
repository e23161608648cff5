# DistilGPT2's control, which nobody ran: GPT-2's six blocks trained on without a teacher, else as student_fixed.py.
# python distill.py config/distilgpt2/control.py
# First: python prepare_data.py config/data_openwebtext.py. GPT-2, whose blocks it has, is downloaded once.
# Hardware: one 80 GB GPU (9.6 GB used). Cost: about 4.7e18 FLOPs, 3.3 hours of an H100 at 40 % of 989 TFLOP/s.
# Result: not run at full length yet.

from config.distilgpt2.student_fixed import *

out_dir = "out/distilgpt2/82m_control"
weight_ce, weight_kl, weight_cos = 1.0, 0.0, 0.0  # the blocks still come from the teacher
