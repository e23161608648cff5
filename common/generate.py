"""Text from a model: the ids of a prompt, and the text that the model continues it with."""

from collections.abc import Iterable, Iterator

import torch


def prompt_ids(tokenizer, prompt: str) -> list[int]:
    """The ids that generation starts from: those of the prompt, after a beginning-of-text id if any."""
    ids = tokenizer.encode(prompt)
    # An empty prompt starts from what the model has seen at the start of a text: `tokenizer.start`, from
    # the checkpoint's meta.json, else the beginning-of-text (or end-of-text) id.
    start = getattr(tokenizer, "start", None)
    if not ids and start:
        return list(start)
    # a beginning-of-text token begins every text; where it is the end-of-text token, it would only end one
    if not ids or tokenizer.bos != tokenizer.eot:
        return [tokenizer.bos, *ids]
    return ids


def start_note(tokenizer) -> str:
    """What an empty prompt starts from, in words: "starting from the end of another text (id 256)"."""
    ids = prompt_ids(tokenizer, "")
    names = {tokenizer.bos: "the beginning of a text", tokenizer.eot: "the end of another text"}
    if len(ids) == 1 and ids[0] in names:
        return f"starting from {names[ids[0]]} (id {ids[0]})"
    return f"starting from {tokenizer.decode(ids)!r} (ids {ids}), as the training data does"


def stream_text(model, tokenizer, prompt: str, run, max_tokens=200, temperature=0.8, top_k=50) -> Iterator[str]:
    """The prompt and up to `max_tokens` tokens after it, drawn by torch's random numbers, piece by piece.

    model: in eval mode.
    """
    idx = torch.tensor([prompt_ids(tokenizer, prompt)], device=run.device)  # (1, T)
    with run.autocast(), run.any_shape():
        # the head has padding beyond the tokenizer's ids, which it could not decode
        growing = model.stream(
            idx,
            max_tokens,
            temperature=temperature,
            top_k=top_k,
            vocab_size=tokenizer.vocab_size,
            eot=tokenizer.eot,
        )
        yield from decode_growing(tokenizer, (ids[0].tolist() for ids in growing))


def write_text(model, tokenizer, prompt: str, run, max_tokens=200, temperature=0.8, top_k=50) -> str:
    """`stream_text` in one piece."""
    pieces = stream_text(model, tokenizer, prompt, run, max_tokens=max_tokens, temperature=temperature, top_k=top_k)
    return "".join(pieces)


def decode_growing(tokenizer, growing_ids: Iterable[list[int]]) -> Iterator[str]:
    """The text of ids that grow by appending, in pieces: joined they are the text of the last ids.

    Of bytes, "é" is two ids: [[65], [65, 0xC3], [65, 0xC3, 0xA9]] gives "A", "é".
    """
    n_shown = 0
    text = ""
    for ids in growing_ids:
        # All ids each time: what a token stands for depends on those before it (SentencePiece drops
        # the blank of a text's first word, and a character may be spread over several tokens).
        text = tokenizer.decode(ids)
        # An unfinished character decodes to U+FFFD. The text before it does not change any more.
        n_final = len(text.rstrip("\ufffd"))
        if n_final > n_shown:
            yield text[n_shown:n_final]
            n_shown = n_final
    if len(text) > n_shown:
        yield text[n_shown:]
