# FineWeb-Edu's 10 B-token sample (parquet) in OLMo's tokenizer: MicroLM's corpus, for both of its stages.
# python prepare_data.py config/data_fineweb_edu.py        needs pip install pyarrow
# In GPT-2's tokenizer it can be had as tokens: python prepare_data.py --source=finewebedu10B
# Hardware: any; a core encodes about 5 MB/s. Result: not run at full length yet.

source = "fineweb_edu"
tokenizer = "allenai/OLMo-1B-hf"
val_fraction = 0.001
out_dir = "data/fineweb_edu"
