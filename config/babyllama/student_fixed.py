# Baby Llama with the KL of its formula, a mean over tokens; else as published.
# python distill.py config/babyllama/student_fixed.py
# First: config/babyllama/data.py with prepare_data.py, then both teachers: config/babyllama/gpt.py and
#        config/babyllama/llama.py with train.py.
# Hardware: one GPU. Result: not run at full length yet.

from config.babyllama.student import *

out_dir = "out/babyllama/58m_fixed"
kl_norm = "token"  # CE : KL is 1 : 4 a token
