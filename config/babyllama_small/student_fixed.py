# Baby Llama's student for two CPU cores, with the KL of its formula: config/babyllama/student_fixed.py at small scale.
# python distill.py config/babyllama_small/student_fixed.py
# First: config/babyllama_small/gpt.py and config/babyllama_small/llama.py with train.py
# Hardware: 2 CPU cores. Result: dev 4.4801 ± 0.0131 nats/token, three seeds (studies/babyllama).

from config.babyllama_small.student import *

out_dir = "out/babyllama_small/student_fixed"
kl_norm = "token"  # CE : KL is 1 : 4 a token
