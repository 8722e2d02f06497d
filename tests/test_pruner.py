"""Masks that hold: through optimisers, mixed precision, compilation, copies, resumed training."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from sparseinfer.prune import OneShot, PolynomialDecay, Pruner
from sparseinfer.prune.merge import apply_masks, masks_of, merge_lora


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the networks are tiny: threads would only wait for each other
    yield
    torch.set_num_threads(before)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def loss_of(model):
    return nn.functional.cross_entropy(model(torch.randn(8, 1, 6, 6)), torch.randint(0, 3, (8,)))


def train_step(model, optimizer):
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()


def zeros(tensor):
    return int((tensor == 0).sum())


def assert_held(pruner):
    assert pruner.sparsity > 0
    for target in pruner.targets:
        assert torch.count_nonzero(target.weight[~pruner.masks[target.name]]) == 0


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.1),
    "adamw-amsgrad": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.05),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.05),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.05),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.05),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masks_hold_under_every_optimizer_and_its_state_is_masked(name):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    schedule = PolynomialDecay(0.3, 0.9, begin_step=2, end_step=12, frequency=5)
    pruner = Pruner(model, optimizer, schedule)
    before = {key: mask.clone() for key, mask in pruner.masks.items()}
    for _ in range(20):
        train_step(model, optimizer)
        pruner.step()
        for target in pruner.targets:
            mask = pruner.masks[target.name]
            assert not bool((mask & ~before[target.name]).any()), "a pruned weight came back"
            assert torch.count_nonzero(target.weight[~mask]) == 0
            for value in optimizer.state[target.weight].values():
                if isinstance(value, torch.Tensor) and value.shape == mask.shape:
                    assert torch.count_nonzero(value[~mask]) == 0
            before[target.name] = mask.clone()
    assert_held(pruner)
    assert pruner.sparsity == pytest.approx(0.9, abs=1e-3)


def test_masks_hold_where_step_is_forgotten():
    model = network()
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    pruner = Pruner(model, optimizer)
    pruner.prune(0.9)
    for _ in range(3):
        train_step(model, optimizer)
        assert_held(pruner)


def test_an_optimizer_made_later_is_held_and_several_are():
    model = network()
    pruner = Pruner(model)
    pruner.prune(0.5)
    optimizers = [
        torch.optim.SGD(model[:4].parameters(), lr=0.1, momentum=0.9),
        torch.optim.Adam(model[4:].parameters(), lr=0.1),
    ]
    for optimizer in optimizers:
        pruner.hold(optimizer)
    for _ in range(2):
        loss_of(model).backward()
        for optimizer in optimizers:
            optimizer.step()
        assert_held(pruner)


def test_without_an_optimizer_step_holds():
    model = network()
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    pruner = Pruner(model, schedule=0.5)
    for _ in range(3):
        train_step(model, optimizer)
        pruner.step()
        assert_held(pruner)


def test_masks_hold_under_autocast_and_a_gradient_scaler():
    model = network()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    pruner = Pruner(model, optimizer, OneShot(0.8, step=1))
    for _ in range(4):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        pruner.step()
    assert_held(pruner)


def test_masks_hold_under_gradient_accumulation():
    model = network()
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    pruner = Pruner(model, optimizer, 0.8)
    for _ in range(3):
        optimizer.zero_grad()
        for _ in range(3):
            (loss_of(model) / 3).backward()
        optimizer.step()
        pruner.step()
        assert_held(pruner)
    assert pruner.steps == 3


@pytest.mark.parametrize("compiled_first", [True, False])
def test_masks_hold_in_a_compiled_model(compiled_first):
    model = network()
    compiled = torch.compile(model, backend="eager")
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    pruner = Pruner(compiled if compiled_first else model, optimizer, 0.8, ignore="6")
    assert list(pruner.masks) == ["0.weight", "3.0.weight"]
    for _ in range(3):
        train_step(compiled, optimizer)
        pruner.step()
        assert_held(pruner)
    model.eval(), compiled.eval()
    x = torch.randn(2, 1, 6, 6)
    assert torch.equal(compiled(x), model(x))


def test_masks_follow_a_model_to_another_dtype_and_memory_format():
    model = network().to(memory_format=torch.channels_last)
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    pruner = Pruner(model, optimizer, 0.8)
    train_step(model, optimizer)
    pruner.step()
    model.double()
    pruner.apply()
    assert_held(pruner)


def test_taylor_accumulates_at_each_optimizer_step_and_starts_anew_after_pruning():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = Pruner(model, optimizer, OneShot(0.5, step=2), criterion="taylor")
    expected = torch.zeros_like(model[6].weight)
    for _ in range(3):
        train_step(model, optimizer)
        expected += (model[6].weight.grad * model[6].weight).abs()
        if pruner.steps == 2:
            assert torch.allclose(pruner.criterion.scores["6.weight"], expected)
        pruner.step()
    assert pruner.criterion.scores == {} and pruner.sparsity == pytest.approx(0.5, abs=1e-3)


def test_taylor_takes_gradients_by_hand():
    model = network()
    pruner = Pruner(model, criterion="taylor")
    loss_of(model).backward()
    pruner.accumulate()
    pruner.prune(0.5)
    assert_held(pruner)


# ---- copies and files


def test_a_deep_copy_of_model_optimizer_and_pruner_is_independent_and_holds():
    model = network()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    pruner = Pruner(model, optimizer, 0.8)
    train_step(model, optimizer)
    pruner.step()
    other_model, other_optimizer, other = copy.deepcopy((model, optimizer, pruner))
    kept = [parameter.clone() for parameter in model.parameters()]
    train_step(other_model, other_optimizer)
    assert_held(other)
    assert all(torch.equal(a, b) for a, b in zip(kept, model.parameters(), strict=True))
    train_step(model, optimizer)
    assert_held(pruner)


def test_a_checkpoint_is_no_larger_while_masks_are_held():
    def size(state):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return buffer.tell()

    model = nn.Linear(256, 256)
    dense = size(model.state_dict())
    pruner = Pruner(model)
    pruner.prune(0.9)
    assert size(model.state_dict()) == dense
    assert size(pruner.state_dict()) < 256 * 256 / 8 + 4096


def test_resumed_training_is_the_uninterrupted_one():
    def start():
        model = network()
        optimizer = OPTIMIZERS["adam"](model.parameters())
        schedule = PolynomialDecay(0.2, 0.9, 0, 8, frequency=2)
        return model, optimizer, Pruner(model, optimizer, schedule)

    def train(model, optimizer, pruner, steps):
        for step in steps:
            torch.manual_seed(step)
            train_step(model, optimizer)
            pruner.step()

    whole = start()
    train(*whole, range(12))
    first = start()
    train(*first, range(5))
    buffer = io.BytesIO()
    torch.save([part.state_dict() for part in first], buffer)
    buffer.seek(0)
    second = start()
    for part, state in zip(second, torch.load(buffer, weights_only=True), strict=True):
        part.load_state_dict(state)
    train(*second, range(5, 12))
    for a, b in zip(whole[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(a, b)
    assert second[2].steps == 12


def test_taylor_sums_are_resumed():
    model = network()
    pruner = Pruner(model, criterion="taylor")
    loss_of(model).backward()
    pruner.accumulate()
    other = Pruner(network(), criterion="taylor")
    other.load_state_dict(pruner.state_dict())
    pruner.prune(0.5), other.prune(0.5)
    assert all(torch.equal(mask, other.masks[name]) for name, mask in pruner.masks.items())


def _broken(change):
    state = Pruner(network()).state_dict()
    change(state)
    return state


@pytest.mark.parametrize(
    "state",
    [
        _broken(lambda s: s.update(version=2)),
        _broken(lambda s: s.update(steps=-1)),
        _broken(lambda s: s.update(steps="3")),
        _broken(lambda s: s.update(masks=[])),
        _broken(lambda s: s["masks"].pop("6.weight")),
        _broken(lambda s: s["masks"]["6.weight"].update(shape=[2, 12])),
        _broken(lambda s: s["masks"]["6.weight"].update(bits=torch.zeros(2, dtype=torch.uint8))),
        _broken(lambda s: s["masks"]["6.weight"].update(bits=torch.zeros(3))),
        _broken(lambda s: s["masks"].update({"6.weight": 3})),
        _broken(lambda s: s.update(sums={"6.weight": torch.zeros(1)})),
        _broken(lambda s: s.update(sums=None)),
        {},
    ],
)
def test_a_state_that_does_not_fit_is_refused(state):
    with pytest.raises(ValueError, match=r"expected .*"):
        Pruner(network()).load_state_dict(state)


# ---- the end


def test_finalize_leaves_a_plain_model_without_hooks_or_buffers():
    model = network()
    keys = list(model.state_dict())
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    schedule = PolynomialDecay(0.0, 0.5, 0, 1, frequency=1)
    pruner = Pruner(model, optimizer, schedule, ignore=["0", "6"])
    for _ in range(2):
        train_step(model, optimizer)
        pruner.step()
    assert pruner.finalize() is model
    assert list(model.state_dict()) == keys
    assert zeros(model[3][0].weight) == 8 * 8 * 9 // 2 and zeros(model[0].weight) == 0
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert not optimizer._optimizer_step_post_hooks and not optimizer._optimizer_step_pre_hooks
    with pytest.raises(RuntimeError, match="before finalize"):
        pruner.step()


def test_finalize_refuses_an_unfinished_schedule():
    pruner = Pruner(network(), None, PolynomialDecay(0.0, 0.5, 0, 3, frequency=1))
    for _ in range(3):
        pruner.step()
    with pytest.raises(RuntimeError, match=r"at least 4 calls of step.*got 3"):
        pruner.finalize()
    pruner.step()
    pruner.finalize()


def test_masks_of_several_rounds_multiply():
    model = network()
    pruner = Pruner(model, criterion="random")
    total = sum(mask.numel() for mask in pruner.masks.values())
    before = None
    kept = total
    for _ in range(4):
        pruner.prune(0.5)
        kept -= round(0.5 * kept)
        assert sum(int(mask.sum()) for mask in pruner.masks.values()) == kept
        if before is not None:
            assert all(not (pruner.masks[n] & ~before[n]).any() for n in before)
        before = {name: mask.clone() for name, mask in pruner.masks.items()}
        for target in pruner.targets:  # grown weights do not come back
            target.weight.data[~pruner.masks[target.name]] = 100.0


# ---- merging


def test_merging_an_adapter_keeps_the_zeros_when_asked():
    for layer, A, B in (
        (nn.Linear(8, 6), torch.randn(2, 8), torch.randn(6, 2)),
        (nn.Conv2d(4, 6, 3), torch.randn(2, 4, 3, 3), torch.randn(6, 2, 1, 1)),
    ):
        pruner = Pruner(layer)
        pruner.prune(0.5)
        before, mask = layer.weight.detach().clone(), pruner.masks["weight"]
        merge_lora(layer, A, B, scaling=2.0)
        delta = (2.0 * B.flatten(1) @ A.flatten(1)).reshape(before.shape)
        assert torch.equal(layer.weight != 0, mask)
        assert torch.allclose(layer.weight, before + delta * mask, atol=1e-6)
        merge_lora(layer, A, B, keep_mask=False)
        assert zeros(layer.weight) == 0
        with pytest.raises(ValueError, match="rank"):
            merge_lora(layer, A[:, :3], B)


def test_masks_are_taken_before_and_applied_after_any_merge():
    model = network()
    pruner = Pruner(model, ignore="6")
    pruner.prune(0.5)
    masks = masks_of(model)
    assert masks.keys() == pruner.masks.keys()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    apply_masks(model, masks)
    assert_held(pruner)
    with pytest.raises(ValueError, match="no such parameter"):
        apply_masks(model, {"typo": torch.ones(1)})
    with pytest.raises(ValueError, match="shape"):
        apply_masks(model, {"0.weight": torch.ones(1).bool()})
