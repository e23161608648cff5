# Tiny Shakespeare, a byte a token.
# python prepare_data.py config/race/data.py
# Hardware: any, seconds. Result: 1.0 M tokens to learn from, 0.1 M held out.

source = "shakespeare"
tokenizer = "bytes"
out_dir = "data/shakespeare"
