# MicroLM's control run as published: AdamW. config/pretrain_124m.py is the same model, trained better.
# python train.py config/microlm/pretrain.py
# First: python prepare_data.py config/data_fineweb_edu.py
# Hardware: one 80 GB GPU (14.1 GB used). Cost: 8.0e18 FLOPs, 5.6 hours of an H100 at 40 % of 989 TFLOP/s.
# Result: not run at full length yet; published: passes HellaSwag 0.2955 (GPT-2 124M).

from config.pretrain_124m import *

out_dir = "out/microlm/pretrain"
optimizer = "adamw"
learning_rate, min_lr = 6e-4, 6e-5
