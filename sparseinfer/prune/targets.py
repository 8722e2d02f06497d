"""Which weights of a model may be pruned, and under which names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

from torch import Tensor, nn

from sparseinfer.layers.kinds import kind_of
from sparseinfer.prune.names import matches, prefixes
from sparseinfer.prune.takeover import carried_mask, make_plain, stored_parameter

__all__ = ["Target", "by_name", "find_targets", "unwrap"]


@dataclass
class Target:
    """One prunable weight: its full name, the module and attribute that hold it.

    `aliases` are all its full names (tied weights have several, `name` is the first);
    `output_dim` is the dimension of its output rows: 0, or 1 for transposed convolutions;
    `bias` names the parameter with one element an output, where there is one. `around` are the
    modules that it lies in, its own among them; the model itself only where that is its own.
    """

    name: str
    module: nn.Module
    attribute: str
    aliases: list[str]
    output_dim: int = 0
    bias: str | None = None
    around: list[nn.Module] = field(default_factory=list)

    @property
    def weight(self) -> nn.Parameter:
        """The parameter as it is now; a module may have got another one since.

        Behind a parametrization, such as fake quantisation's, it is what the weight is made from.
        """
        stored = stored_parameter(self.module, self.attribute)
        return self.module.get_parameter(self.attribute) if stored is None else stored[1]

    def canonical(self, tensor: Tensor) -> Tensor:
        """A view of a tensor of the weight's shape as [output, input, ...]."""
        return tensor.transpose(0, 1) if self.output_dim else tensor

    def matches(self, pattern: str) -> bool:
        """Whether a pattern names this weight, or a module that it lies in, by any of its names."""
        return any(matches(pattern, alias) for alias in self.aliases)


def unwrap(model: nn.Module) -> nn.Module:
    """The module that torch.compile wrapped, or the model itself: names then have no prefix."""
    return getattr(model, "_orig_mod", model)


def find_targets(
    model: nn.Module,
    targets: str | type | Iterable[str | type] | None = None,
    ignore: str | type | Iterable[str | type] = (),
) -> tuple[list[Target], dict[str, Tensor], dict[str, str]]:
    """List the weights to prune, the masks they carried, and what was left out and why.

    Linear, convolution (transposed too), recurrent and attention weights, wherever nested; never a
    bias, a normalisation or an embedding. `targets` and `ignore` are names or types of modules
    ("encoder" and `Encoder` take all within it), full names ("encoder.0.weight") or globs; a weight
    that any of its tied names ignores is ignored. Masks that weights to prune carry (see
    `carried_mask`) are taken off and returned, and the parameters stay the same objects.

    Raises:
        ValueError: a name matches no prunable weight, nothing is left to prune, a weight is
            computed by something other than a mask, or a weight that `targets` names is shared with
            a module that must not be pruned.

    Example:
        >>> found, _, _ = find_targets(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)))
        >>> [target.name for target in found]
        ['0.weight']
    """
    root = unwrap(model)
    wanted, ignored = _entries(targets), _entries(ignore)
    by_id: dict[object, Target] = {}
    holders: dict[object, list[tuple[nn.Module, str, str]]] = {}
    stored_names: set[str] = set()
    modules = dict(root.named_modules(remove_duplicate=False))
    for name, module in modules.items():
        for attribute, output_dim, bias in _weights(module):
            full = f"{name}.{attribute}" if name else attribute
            stored = stored_parameter(module, attribute)
            key: object = (id(module), attribute) if stored is None else id(stored[1])
            if stored is not None:
                stored_names.add(f"{name}.{stored[0]}" if name else stored[0])
            target = by_id.setdefault(key, Target(full, module, attribute, [], output_dim, bias))
            target.aliases.append(full)
            target.around += [modules[part] for part in prefixes(name)]
            holders.setdefault(key, []).append((module, attribute, full))
    found = list(by_id.values())
    if not found:
        raise ValueError(
            "expected a model with Linear, convolution, recurrent or attention layers, got none, "
            "try the model itself"
        )
    for option, entries in (("targets", wanted), ("ignore", ignored)):
        for entry in entries or ():
            if not any(_fits(target, entry) for target in found):
                raise _unknown(option, entry, found)
    shared = _shared(root, by_id, stored_names)
    masks: dict[str, Tensor] = {}
    carried: list[tuple[nn.Module, str, Tensor]] = []
    kept, skipped = [], {}
    for key, target in by_id.items():
        if wanted is not None and not any(_fits(target, entry) for entry in wanted):
            skipped[target.name] = "not among targets"
        elif any(_fits(target, entry) for entry in ignored or ()):
            skipped[target.name] = "ignored"
        elif target.name in shared:
            other = shared[target.name]
            if any(isinstance(entry, str) for entry in wanted or ()):
                raise ValueError(
                    f"expected weights that may be pruned, got {target.name!r}, which is the same "
                    f"parameter as {other!r}, try ignore=[{target.name!r}]"
                )
            skipped[target.name] = f"the same parameter as {other}, which is never pruned"
        else:
            kept.append(target)
            for module, attribute, full in holders[key]:
                mask = carried_mask(module, attribute, full)
                if mask is not None:
                    carried.append((module, attribute, mask))
                    masks[target.name] = masks.get(target.name, mask) & mask
    if not kept:
        raise ValueError(
            f"expected something to prune, got none of {[target.name for target in found]}, "
            "try fewer names in ignore"
        )
    # Last, and of these alone: what is refused or left out keeps its masks.
    for module, attribute, mask in carried:
        make_plain(module, attribute, mask)
    return kept, masks, skipped


def by_name(
    targets: Sequence[Target], values: Mapping[str, float], *, fill: bool = False
) -> dict[str, float]:
    """Values by the weights' full names, from values by pattern; the first that fits counts.

    `fill` gives the weights that no pattern fits 0.

    Raises:
        ValueError: a pattern matches no weight.

    Example:
        >>> found, _, _ = find_targets(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
        >>> by_name(found, {"0": 0.5, "*": 0.9})
        {'0.weight': 0.5, '1.weight': 0.9}
    """
    for pattern in values:
        if not any(target.matches(pattern) for target in targets):
            raise ValueError(
                f"expected names of layers to prune, got {pattern!r}, "
                f"try one of {[target.name for target in targets]}"
            )
    found = {}
    for target in targets:
        fitting = [value for pattern, value in values.items() if target.matches(pattern)]
        if fitting or (fill and values):
            found[target.name] = fitting[0] if fitting else 0.0
    return found


def _entries(given: str | type | Iterable[str | type] | None) -> list[str | type] | None:
    if given is None:
        return None
    return [given] if isinstance(given, (str, type)) else list(given)


def _fits(target: Target, entry: str | type) -> bool:
    if isinstance(entry, str):
        return target.matches(entry)
    return any(isinstance(module, entry) for module in target.around)


def _unknown(option: str, entry: str | type, found: Sequence[Target]) -> ValueError:
    layers = [target.name.rpartition(".")[0] for target in found]
    names = list(dict.fromkeys([*layers, *(part for name in layers for part in prefixes(name))]))
    near = get_close_matches(str(entry), names, n=5, cutoff=0.3) or names[:8]
    return ValueError(
        f"expected {option} to name prunable layers, got {entry!r}, which matches none, "
        f"try one of {near}"
    )


def _weights(module: nn.Module) -> list[tuple[str, int, str | None]]:
    """Attribute, output dimension and bias of each prunable weight that a module itself holds."""
    kind = kind_of(module)
    if kind is None:
        return []
    names = kind.weights(module)
    if names == ["weight"]:
        grouped = kind.output_dim == 1 and getattr(module, "groups", 1) != 1
        bias = "bias" if getattr(module, "bias", None) is not None and not grouped else None
        return [("weight", kind.output_dim, bias)]
    if kind.parts is None:
        return [(name, 0, None) for name in sorted(names)]
    return [(name, 0, "in_proj_bias" if name == "in_proj_weight" else None) for name in names]


def _shared(
    root: nn.Module, by_id: Mapping[object, Target], stored_names: Collection[str]
) -> dict[str, str]:
    """Targets whose parameter also sits where nothing may be pruned, and where that is."""
    shared = {}
    for name, parameter in root.named_parameters(remove_duplicate=False):
        target = by_id.get(id(parameter))
        if target is not None and name not in stored_names:
            shared[target.name] = name
    return shared
