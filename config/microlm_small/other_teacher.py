# A teacher of another tokenizer: the shape is the student's teacher's, and an id means another text.
# python train.py config/microlm_small/other_teacher.py
# First: python -m studies.microlm --only=data --corpus=<folder of <domain>.train and .dev>
# Hardware: 2 CPU cores. Result: see studies/microlm.

from config.microlm_small.teacher import *

out_dir = "out/microlm_small/other_teacher"
dataset = "data/babylm_medium_other"
epochs = 1.0
