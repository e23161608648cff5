# Baby Llama with the KL of its formula, a mean over tokens; else as published.
# python distill.py config/babyllama/student_fixed.py
# First: config/babyllama/data.py with prepare_data.py, then both teachers: config/babyllama/gpt.py and
#        config/babyllama/llama.py with train.py.
# Hardware: one 80 GB GPU (7.8 GB used). Cost: about 2.1e17 FLOPs, 0.15 hours of an H100 at 40 % of 989 TFLOP/s.
# Result: not run at full length yet.

from config.babyllama.student import *

out_dir = "out/babyllama/58m_fixed"
kl_norm = "token"  # CE : KL is 1 : 4 a token
