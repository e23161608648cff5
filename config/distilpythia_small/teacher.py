# DistilPythia's teacher for two CPU cores: Pythia's form, 2.9 times its student's parameters (published: 2.3).
# python train.py config/distilpythia_small/teacher.py
# First: python -m studies.distilpythia.fresh --n_layer=6 --n_head=6 --n_embd=144 --out_dir=<its init_from>
# Hardware: 2 CPU cores. Result: test 4.2343 ± 0.0060 nats/token, three seeds (studies/distilpythia).

from config.distilpythia_small.start import *

out_dir = "out/distilpythia_small/teacher"
init_from = "out/distilpythia_small/fresh_teacher"
n_layer, n_head, n_embd = 6, 6, 144  # 24 channels a head, as the student has
