# BabyLM's texts in GPT-2's tokenizer, for the second course of bench.py --part=race.
# python prepare_data.py config/race/text_data.py
# Hardware: any, a minute. Result: not measured yet.

source = "babylm"
tokenizer = "gpt2"
out_dir = "data/race_text"
