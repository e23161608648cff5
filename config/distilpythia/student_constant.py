# DistilPythia's second variant: rows of constant length, cut from the stream of documents; else as published.
# python distill.py config/distilpythia/student_constant.py
# First: python prepare_data.py config/data_pile.py. Teacher and student are downloaded once.
# Hardware: one 80 GB GPU (6.9 GB used). Cost: 3.2e17 FLOPs, 0.22 hours of an H100 at 40 % of 989 TFLOP/s.
# Result: not run at full length yet; published: LAMBADA's perplexity 140.81 -> 403.78, SciQ 65.0 -> 59.2 %.

from config.distilpythia.student import *

out_dir = "out/distilpythia/constant"
packing = "constant"
random_offset = False
