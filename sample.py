"""Write text with a model.

    python sample.py --model=out/quickstart/teacher --prompt="def main():"

The model is any Hugging Face folder of a family we have, a run's out_dir, or the name of a hub repository.
"""

# before torch, so that Ctrl-C while it loads ends in one line
from configurator import at_least, configure  # isort: split

import torch

from common.pretrained import check_fits, find_model, load_pretrained
from common.runtime import Runtime
from common.tokenizer import load_tokenizer

model = ""  # model folder, a run's out_dir (its newest checkpoint), or a hub repository's name
prompt = ""  # text to continue; "" starts with the beginning-of-text id alone
num_samples = 1  # texts to write
max_tokens = 200  # tokens of each
temperature = 0.8  # 0: always the likeliest token
top_k = 50  # draw from the k likeliest tokens; 0: from all
seed = 1337  # of the draws
device = "auto"  # "auto", "cpu" or "cuda"
dtype = "auto"  # of the matmuls: bfloat16 on CUDA, float32 on the CPU
config = configure(globals())
at_least(config, 0, "max_tokens temperature top_k seed")
at_least(config, 1, "num_samples")

run = Runtime(device, dtype)
tokenizer = load_tokenizer(find_model(model))
net = load_pretrained(model, run.device, torch.float32)
check_fits(net, model, 1, tokenizer.vocab_size)
torch.manual_seed(seed)
ids = tokenizer.encode(prompt)
if not ids or tokenizer.bos != tokenizer.eot:  # a token of its own for the beginning of a text begins every text
    ids = [tokenizer.bos, *ids]
idx = torch.tensor([ids], device=run.device)  # (1, T)
for i in range(num_samples):
    with run.autocast():
        out = net.generate(idx, max_tokens, temperature, top_k, tokenizer.vocab_size, tokenizer.eot)
    if i:
        print("-" * 80)
    print(tokenizer.decode(out[0].tolist()))
