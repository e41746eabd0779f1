"""generate/: greedy continuations by transformers' `generate`, of the tied model and of it with the DoRA adapter.

Every choice is clear: the best logit leads the next by more than rounding can move it (else the prompt is not taken).
"""

import pathlib

import torch

import adapters
import models
from storing import generator, write_json

PROMPT_LENGTHS = [1, 4, 11, 26]
N_CANDIDATES = 60
MAX_NEW_TOKENS = 24
MIN_LEAD = 1e-3


def write(out: pathlib.Path) -> None:
    found = {}
    for name, model in [("tied", models.load(out / "tiny" / "tied")), ("dora", adapters.load(out, "dora"))]:
        prompts = [_lively_prompt(model, length) for length in PROMPT_LENGTHS]
        found[name] = [_continuation(model, prompt, None) for prompt in prompts]
        # The fifth new token of the last prompt, made the end token, ends it there; the others go on to theirs, if any.
        end = found[name][-1]["output_ids"][4]
        found[f"{name}.end"] = [_continuation(model, prompt, end) for prompt in prompts]
    write_json(out / "generate" / "greedy.json", {"max_new_tokens": MAX_NEW_TOKENS} | found)


def _lively_prompt(model, length: int) -> list[int]:
    """Random models soon repeat one token; of many prompts the one whose continuation has the most different ones."""
    draw = generator(f"generate {length}")
    candidates = torch.randint(0, models.TINY["vocab_size"], (N_CANDIDATES, length), generator=draw).tolist()
    return max(candidates, key=lambda prompt: len(set(_continuation(model, prompt, None)["output_ids"])))


def _continuation(model, prompt: list[int], end: int | None) -> dict:
    ids = torch.tensor([prompt])
    options = {"do_sample": False, "max_new_tokens": MAX_NEW_TOKENS, "pad_token_id": 0, "eos_token_id": end}
    answer = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        generation_config=_greedy(model, options),
        output_logits=True,
        return_dict_in_generate=True,
    )
    top = torch.cat(answer.logits).topk(2).values
    lead = (top[:, 0] - top[:, 1]).min().item()
    output_ids = answer.sequences[0, len(prompt) :].tolist()
    return {"input_ids": prompt, "end_id": end, "output_ids": output_ids if lead > MIN_LEAD else []}


def _greedy(model, options: dict):
    config = type(model.generation_config)(**options)
    config.bos_token_id = model.config.bos_token_id
    return config
