"""orpo/: TRL's ORPO trainer on (prompt, chosen, rejected) triples through the DoRA model, and its odds ratio at the edge.

The trainer itself tokenizes, pads and computes. The tokenizer is a stand-in whose words name their ids.
"""

import itertools
import pathlib
import tempfile

import mpmath
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models as tokenizer_models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

import adapters
import models
from storing import generator, save_tensors, write_json

BETA = 0.3
END = 2
# Prompt, chosen and rejected lengths, end token included; the answers of the third are one token: the end token alone.
BATCHES = [[(7, 5, 4), (12, 2, 9), (3, 1, 1)], [(1, 8, 8), (20, 3, 6)]]


def write(out: pathlib.Path) -> None:
    batches = _triples()
    trainer = _trainer(out, [triple for batch in batches for triple in batch])
    model = trainer.model
    features = iter(trainer.train_dataset)
    figures, tensors, mean = [], {}, {}
    for idx, batch in enumerate(batches):
        inputs = trainer.data_collator([next(features) for _ in batch])
        _check_tokens(inputs, batch)
        loss, metrics = trainer.compute_loss(model, inputs, return_outputs=True)
        loss.backward()
        found = {key: gradient.clone() for key, gradient in adapters.gradients(model).items()}
        model.zero_grad()
        for key, gradient in found.items():
            mean[key] = mean.get(key, 0) + gradient / len(batches)

        completion = _loss_on_completion(trainer, model, inputs)
        completion[0].backward()
        if idx == 0:
            tensors |= {f"completion.{key}": gradient.clone() for key, gradient in adapters.gradients(model).items()}
        model.zero_grad()
        figures.append(
            {
                "triples": batch,
                "all": {"loss": loss.item()} | {key: value for key, value in metrics.items() if "logits" not in key},
                "completion": {"loss": completion[0].item(), "nll_loss": completion[1].item()},
            }
        )
    tensors |= {f"all.{key}": gradient for key, gradient in mean.items()}
    write_json(out / "orpo" / "expected.json", {"beta": BETA, "batches": figures})
    save_tensors(out / "orpo" / "gradients.safetensors", tensors)
    write_json(out / "orpo" / "odds_ratio.json", _odds_ratios())


def _triples() -> list[list[dict]]:
    draw = generator("orpo")

    def ids(length: int) -> list[int]:
        return torch.randint(3, models.TINY["vocab_size"], (length,), generator=draw).tolist()

    return [
        [
            {"prompt": ids(prompt), "chosen": ids(chosen - 1) + [END], "rejected": ids(rejected - 1) + [END]}
            for prompt, chosen, rejected in batch
        ]
        for batch in BATCHES
    ]


def _word(idx: int) -> str:
    return f"<{idx}>"


def _check_tokens(inputs: dict, batch: list[dict]) -> None:
    """The trainer sees the ids that the fixture names, with the answer as its target."""
    for row, triple in enumerate(batch):
        for side in ("chosen", "rejected"):
            ids = triple["prompt"] + triple[side]
            assert inputs[f"{side}_input_ids"][row, : len(ids)].tolist() == ids
            labels = inputs[f"{side}_labels"][row]
            assert labels[labels != -100].tolist() == triple[side]


def _trainer(out: pathlib.Path, triples: list[dict]) -> ORPOTrainer:
    """The trainer adds the end token to the answers by itself. Its folder is never written to."""
    words = {_word(idx): idx for idx in range(models.TINY["vocab_size"])}
    tokenizer = Tokenizer(tokenizer_models.WordLevel(words, unk_token=_word(0)))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    rows = [
        {
            "prompt": " ".join(map(_word, triple["prompt"])),
            "chosen": "".join(f" {_word(idx)}" for idx in triple["chosen"][:-1]),
            "rejected": "".join(f" {_word(idx)}" for idx in triple["rejected"][:-1]),
        }
        for triple in triples
    ]
    with tempfile.TemporaryDirectory() as scratch:
        settings = ORPOConfig(
            output_dir=scratch,
            beta=BETA,
            max_length=64,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            remove_unused_columns=False,
            report_to="none",
            disable_tqdm=True,
        )
        return ORPOTrainer(
            model=adapters.load(out, "dora"),
            args=settings,
            train_dataset=Dataset.from_list(rows),
            processing_class=PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=_word(END), pad_token=_word(0)),
        )


def _loss_on_completion(trainer: ORPOTrainer, model, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """`nll_on: completion`, which TRL has not: the same odds ratio, the token mean over the chosen answers alone."""
    chosen_logps, rejected_logps, chosen_logits, *_ = trainer.concatenated_forward(model, inputs)
    labels = inputs["chosen_labels"][:, 1:]
    nll = torch.nn.functional.cross_entropy(chosen_logits[:, : labels.shape[1]].flatten(0, 1), labels.flatten())
    losses, *_ = trainer.odds_ratio_loss(chosen_logps, rejected_logps)
    return nll - losses.mean(), nll


def _odds_ratios() -> dict[str, list[float]]:
    """`log_odds`, `ratio` and d ratio / d logp by 60 digits, for pairs of mean log-probabilities exact in f32: near 0,
    on both sides of -ln 2 where log(1 - exp) is best computed in another way, and far below."""
    values = [torch.tensor(value).item() for value in [-1e-6, -1e-4, -0.01, -0.69, -0.6932, -3.0, -90.0]]
    mpmath.mp.dps = 60
    columns = {key: [] for key in ["chosen", "rejected", "log_odds", "ratio", "d_chosen", "d_rejected"]}
    for chosen, rejected in itertools.product(values, values):
        lc, lr = mpmath.mpf(chosen), mpmath.mpf(rejected)
        log_odds = (lc - lr) - (mpmath.log(1 - mpmath.exp(lc)) - mpmath.log(1 - mpmath.exp(lr)))
        slope = 1 / (1 + mpmath.exp(log_odds))  # d logsigmoid(log_odds) / d log_odds
        ratio = -mpmath.log(1 + mpmath.exp(-log_odds))
        row = [chosen, rejected, log_odds, ratio, slope / (1 - mpmath.exp(lc)), -slope / (1 - mpmath.exp(lr))]
        for column, value in zip(columns.values(), row, strict=True):
            column.append(float(value))
    return columns
