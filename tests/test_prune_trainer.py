"""Pruning under transformers' Trainer: masks hold, checkpoints resume, the model ends plain."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from sparseinfer.prune import PolynomialDecay, Pruner
from sparseinfer.prune.trainer import PruningCallback


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.out = nn.Linear(4, 16), nn.Linear(16, 2)

    def forward(self, x, labels):
        logits = self.out(self.hidden(x).relu())
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


DATA = [{"x": torch.randn(4, generator=torch.Generator().manual_seed(i)), "labels": i % 2}
        for i in range(32)]  # fmt: skip


def run(folder, steps, resume=None):
    model = Classifier()
    pruner = Pruner(model, schedule=PolynomialDecay(0.0, 0.75, 0, 6, frequency=2))
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=8, save_steps=4,
        report_to=[], use_cpu=True, learning_rate=0.05, weight_decay=0.1, disable_tqdm=True,
        lr_scheduler_type="constant", logging_steps=100,
    )  # fmt: skip
    callback = PruningCallback(pruner)
    trainer = transformers.Trainer(model, arguments, train_dataset=DATA, callbacks=[callback])
    trainer.train(resume_from_checkpoint=resume)
    return model, pruner


def test_a_trainer_prunes_resumes_and_ends_with_a_plain_model(tmp_path):
    model, pruner = run(tmp_path / "whole", 8)
    zeros = sum(int((layer.weight == 0).sum()) for layer in (model.hidden, model.out))
    assert zeros == round(0.75 * 96) and pruner.steps == 8
    assert sorted(model.state_dict()) == ["hidden.bias", "hidden.weight", "out.bias", "out.weight"]
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    resumed, again = run(tmp_path / "whole", 8, str(checkpoint))
    assert again.steps == 8
    for name, mask in pruner.masks.items():
        assert torch.equal(mask, again.masks[name])
    assert torch.equal(model.hidden.weight, resumed.hidden.weight)
    (checkpoint / "pruner.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"pruner\.pt"):
        run(tmp_path / "whole", 8, str(checkpoint))
