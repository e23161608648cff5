# OpenWebText (parquet) in GPT-2's tokenizer, as nanoGPT and DistilGPT2 use it.
# python prepare_data.py config/data_openwebtext.py        needs pip install pyarrow
# Hardware: any; a core encodes about 10 MB/s. Result: not run at full length yet.

source = "openwebtext"
tokenizer = "gpt2"
val_fraction = 0.0005
out_dir = "data/openwebtext"
