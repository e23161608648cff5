# DistilPythia's control, which nobody ran: the fixed recipe without a teacher, Pythia-70M trained on.
# python distill.py config/distilpythia/control.py
# First: python prepare_data.py config/data_pile.py. The student is downloaded once.
# Hardware: one 80 GB GPU (9.5 GB used). Cost: 1.6e17 FLOPs, 0.12 hours of an H100 at 40 % of 989 TFLOP/s.
# Result: not run at full length yet.

from config.distilpythia.student_fixed import *

out_dir = "out/distilpythia/control"
weight_ce, weight_kl = 1.0, 0.0  # the teacher is not loaded
