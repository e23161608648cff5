# Baby Llama's student for two CPU cores, without a teacher: config/babyllama/control.py at small scale.
# python distill.py config/babyllama_small/control.py
# First: python -m studies.babyllama --only=data --corpus=<folder>
# Hardware: 2 CPU cores. Result: dev 4.5383 ± 0.0195 nats/token, three seeds (studies/babyllama).

from config.babyllama_small.student import *

out_dir = "out/babyllama_small/student_control"
weight_ce, weight_kl = 1.0, 0.0  # the teachers are not loaded
