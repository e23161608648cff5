# DistilPythia's second variant for two CPU cores: config/distilpythia/student_constant.py at small scale.
# python distill.py config/distilpythia_small/student_constant.py
# First: config/distilpythia_small/start.py and config/distilpythia_small/teacher.py with train.py
# Hardware: 2 CPU cores. Result: test 4.3299 ± 0.0090 nats/token, three seeds (studies/distilpythia).

from config.distilpythia_small.student import *

out_dir = "out/distilpythia_small/constant"
packing = "constant"
random_offset = False
