"""Text from a model: what a prompt becomes, and what the model makes of it."""

import torch


def prompt_ids(tokenizer, prompt: str) -> list[int]:
    """The ids that generation starts from: those of the prompt, after a beginning-of-text id if any."""
    ids = tokenizer.encode(prompt)
    # An empty prompt starts from what the model has seen at the start of a text: `tokenizer.start`, as
    # the checkpoint's meta.json has it, else the beginning-of-text (or end-of-text) id.
    start = getattr(tokenizer, "start", None)
    if not ids and start:
        return list(start)
    # a token of its own for the beginning of a text begins every text; an end-of-text would end one
    if not ids or tokenizer.bos != tokenizer.eot:
        return [tokenizer.bos, *ids]
    return ids


def write_text(model, tokenizer, prompt: str, run, max_tokens=200, temperature=0.8, top_k=50) -> str:
    """The prompt and up to `max_tokens` tokens after it, by torch's random numbers.

    model: in eval mode.
    """
    idx = torch.tensor([prompt_ids(tokenizer, prompt)], device=run.device)  # (1, T)
    with run.autocast():
        # the head has padding beyond the tokenizer's ids, which it could not decode
        ids = model.generate(
            idx,
            max_tokens,
            temperature=temperature,
            top_k=top_k,
            vocab_size=tokenizer.vocab_size,
            eot=tokenizer.eot,
        )
    return tokenizer.decode(ids[0].tolist())
