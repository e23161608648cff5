"""A folder with new weights of Pythia's architecture, for train.py to start from: its `arch` has only GPT-2 and LLaMA.

python -m studies.distilpythia.fresh --n_layer=6 --n_head=6 --n_embd=144 --out_dir=out/fresh
"""

# before torch, so that Ctrl-C while it loads ends in one line
from configurator import at_least, configure  # isort: split

import torch

from common.pretrained import save_pretrained
from common.tokenizer import load_tokenizer
from model import GPT, GPTConfig


def pythia(*, vocab_size: int, block_size: int, n_layer: int, n_head: int, n_embd: int) -> GPT:
    """A GPT with the changes of GPT-NeoX; LayerNorm and biases are as in GPT-2."""
    shape = GPTConfig(
        vocab_size=vocab_size,
        block_size=block_size,
        n_layer=n_layer,
        n_head=n_head,
        n_embd=n_embd,
        tie_word_embeddings=False,
        rotary_pct=0.25,
        parallel_residual=True,
        exact_gelu=True,
    )
    return GPT(shape)


def main():
    at_least(config, 1, "n_layer n_head n_embd block_size")
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(dataset)
    net = pythia(vocab_size=tokenizer.vocab_size, block_size=block_size, n_layer=n_layer, n_head=n_head, n_embd=n_embd)
    save_pretrained(net, out_dir, tokenizer)
    print(f"{out_dir}: {net.n_params():,} parameters")


if __name__ == "__main__":
    n_layer = 3  # blocks
    n_head = 4
    n_embd = 96  # width of the residual stream
    block_size = 128  # positions
    dataset = "data/babylm_medium"  # whose tokenizer and vocabulary the model has
    seed = 1337
    out_dir = "out/distilpythia_small/fresh_start"
    config = configure(globals())
    main()
