"""Write text with a model.

    python sample.py --model=out/quickstart/teacher --prompt="def main():"

The model is any Hugging Face folder of a family we have, a run's out_dir, or the name of a hub repository.
"""

# before torch, so that Ctrl-C while it loads ends in one line
from configurator import at_least, configure  # isort: split

import sys

import torch

from common.generate import start_note, stream_text
from common.pretrained import check_fits, find_model, load_pretrained
from common.runtime import Runtime
from common.tokenizer import load_tokenizer

model = ""  # model folder, a run's out_dir (its newest checkpoint), or a hub repository's name
prompt = ""  # text to continue; "" starts as the rows that the model was trained on do
num_samples = 1  # texts to write
max_tokens = 200  # tokens of each
temperature = 0.8  # 0: always the likeliest token; else 0.001 or more
top_k = 50  # draw from the k likeliest tokens; 0: from all
seed = 1337  # of the draws
device = "auto"  # "auto", "cpu", "cuda" or "mps"
dtype = "auto"  # of the matmuls: bfloat16 on a GPU that has it, else float32
config = configure(globals())
at_least(config, 0, "max_tokens temperature top_k seed")
at_least(config, 1, "num_samples")
if temperature > 0:
    at_least(config, 1e-3, "temperature")  # logits divided by less may be beyond float32

run = Runtime(device, dtype)
folder = find_model(model)
tokenizer = load_tokenizer(folder)
net = load_pretrained(folder, run.device, torch.float32)
check_fits(net, model, 1, tokenizer.vocab_size)
torch.manual_seed(seed)
if not tokenizer.encode(prompt):  # on stderr: stdout is text alone
    print(f"sample.py: an empty prompt, {start_note(tokenizer)}", file=sys.stderr)
for i in range(num_samples):
    if i:
        print("-" * 80)
    # flushed, so that the text appears as it is written, even through a pipe
    pieces = stream_text(net, tokenizer, prompt, run, max_tokens=max_tokens, temperature=temperature, top_k=top_k)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
