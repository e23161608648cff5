# BabyLM's 10 million words in GPT-2's tokenizer, for the race on text.
# python prepare_data.py config/race/text_data.py
# With files that you have already, <domain>.train and <domain>.dev: --text_dir=<folder>
# Hardware: any, half a minute. Result: 13.6 M tokens to learn from, 1.4 M held out, of like text.

source = "babylm"
tokenizer = "gpt2"
out_dir = "data/race_text"
