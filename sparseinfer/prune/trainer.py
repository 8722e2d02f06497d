"""Prunes while transformers' Trainer trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from sparseinfer.files import staged
from sparseinfer.prune.pruner import Pruner

__all__ = ["PruningCallback"]

STATE_FILE = "pruner.pt"


class PruningCallback(TrainerCallback):
    """Steps a `Pruner` after every optimiser step of a Trainer, and saves it in each checkpoint.

    Training resumed from a checkpoint goes on with the masks and the step in its `pruner.pt`. At
    the end of training the pruner is finalised, if its schedule has come to its end.

    Example:
        >>> pruner = Pruner(torch.nn.Linear(2, 2), schedule=0.5)
        >>> callback = PruningCallback(pruner)  # Trainer(model, ..., callbacks=[callback])
    """

    def __init__(self, pruner: Pruner) -> None:
        self.pruner = pruner

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hold the Trainer's optimiser, and resume.

        Raises:
            FileNotFoundError: training resumes from a checkpoint without a pruner's state.
        """
        self.pruner.hold(kwargs["optimizer"])
        if state.global_step:
            folders = [Path(args.output_dir) / f"checkpoint-{state.global_step}"]
            if isinstance(args.resume_from_checkpoint, str):
                folders.append(Path(args.resume_from_checkpoint))
            found = [folder / STATE_FILE for folder in folders if (folder / STATE_FILE).is_file()]
            if not found:
                raise FileNotFoundError(
                    f"expected {STATE_FILE} in the checkpoint of step {state.global_step}, got "
                    "none, try resuming from a checkpoint that this callback saved"
                )
            self.pruner.load_state_dict(torch.load(found[0], weights_only=True))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Step the pruner."""
        self.pruner.step()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the pruner's state into the checkpoint."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        with staged([folder / STATE_FILE]) as (unfinished,):
            torch.save(self.pruner.state_dict(), unfinished)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Finalise the pruner where its schedule is done."""
        schedule = self.pruner.schedule
        if schedule is None or self.pruner.steps > schedule.last_update:
            self.pruner.finalize()
