"""Where the modules of a model are registered, and who else has their parameters."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from sparseinfer.layers.kinds import kind_of

__all__ = ["Tree", "reads_children"]


def reads_children(module: nn.Module) -> bool:
    """Whether a module multiplies by its children's weights itself, as torch's attention does.

    Example:
        >>> reads_children(nn.MultiheadAttention(8, 2)), reads_children(nn.Sequential())
        (True, False)
    """
    kind = kind_of(module)
    return kind is not None and kind.parts is not None


class Tree:
    """Where the modules and the Parameters of a model are registered.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4))
        >>> Tree(model).names[model[0]]
        ['0']
    """

    def __init__(self, model: nn.Module) -> None:
        self.names: dict[nn.Module, list[str]] = {}
        self.parents: dict[nn.Module, list[nn.Module]] = {}
        self._owners: dict[int, set[nn.Module]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            self.names.setdefault(module, []).append(name)
            if len(self.names[module]) > 1:
                continue
            for child in module.children():
                self.parents.setdefault(child, []).append(module)
            for parameter in (*module._parameters.values(), *module._buffers.values()):
                if parameter is not None:
                    self._owners.setdefault(id(parameter), set()).add(module)

    def is_out_projection(self, module: nn.Module) -> bool:
        """Whether an attention that reads this layer's weight is its only parent."""
        parents = self.parents.get(module, [])
        return len(parents) == 1 and reads_children(parents[0])

    def tied(self, parameters: Iterable[nn.Parameter], within: nn.Module) -> str:
        """Why parameters of `within` are another module's too; empty where they are not."""
        inside = set(within.modules())
        found = {
            owner
            for parameter in parameters
            for owner in self._owners.get(id(parameter), ())
            if owner not in inside
        }
        if not found:
            return ""
        named = sorted(f"{self.names[owner][0]} ({type(owner).__name__})" for owner in found)
        return f"its weight is the same Parameter as that of {', '.join(named)}"
