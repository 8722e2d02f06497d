"""Winning accuracy back: fine-tuning, distillation, BatchNorm, lottery tickets, sensitivity."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sparseinfer.prune import Pruner
from sparseinfer.prune.lottery import lottery_ticket
from sparseinfer.prune.recover import (
    distillation_loss,
    fine_tune,
    prune_to_floor,
    reestimate_batchnorm,
)
from sparseinfer.prune.sensitivity import Sensitivity, scan_sensitivity


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(),
                         nn.Linear(24, 3))  # fmt: skip


def problem():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(256, 12, generator=generator)
    return x, (x[:, :3] + 0.5 * x[:, 3:6]).argmax(1)


X, Y = problem()


def batches():
    return [(X[i : i + 32], Y[i : i + 32]) for i in range(0, 256, 32)]


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def accuracy(model):
    return float((model(X).argmax(1) == Y).float().mean())


def trained():
    model = network()
    fine_tune(model, batches, loss, torch.optim.Adam(model.parameters(), 0.01), epochs=15)
    return model


# ---- fine-tuning


def test_fine_tuning_recovers_accuracy_with_the_masks_held():
    model = trained()
    pruner = Pruner(model)
    pruner.prune(0.8)
    before = accuracy(model)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1)
    result = fine_tune(model, batches, loss, optimizer, epochs=10, pruner=pruner, evaluate=accuracy)
    assert result.steps == 80 and len(result.accuracy) == 10
    assert accuracy(model) == result.accuracy[-1] > before + 0.05
    assert pruner.sparsity == pytest.approx(0.8, abs=1e-3)
    assert all(torch.count_nonzero(t.weight[~pruner.masks[t.name]]) == 0 for t in pruner.targets)


@pytest.mark.parametrize(
    ("rate", "expected"),
    [("cosine", [1.0, 0.5, 0.0]), ("step", [1.0, 0.1, 0.01]), (None, [1.0] * 3)],
)
def test_learning_rates_fall_as_named(rate, expected):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    seen = []

    def watched(net, batch):
        seen.append(optimizer.param_groups[0]["lr"])
        return 0.0 * loss(net, batch)

    fine_tune(model, batches, watched, optimizer, epochs=2, rate=rate)
    seen.append(optimizer.param_groups[0]["lr"])
    assert [seen[0], seen[8], seen[16]] == pytest.approx(expected)


def test_a_scheduler_of_ones_own_is_stepped():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    own = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    fine_tune(model, lambda: batches()[:3], loss, optimizer, epochs=1, rate=own)
    assert optimizer.param_groups[0]["lr"] == 0.125


def test_early_stopping_goes_back_to_the_best_weights():
    model = network()
    pruner = Pruner(model)
    pruner.prune(0.5)
    figures = iter([0.5, 0.7, 0.6, 0.65, 0.9])
    states = []

    def evaluate(net):
        assert not net.training and not torch.is_grad_enabled()
        states.append(copy.deepcopy(net.state_dict()))
        return next(figures)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    result = fine_tune(
        model, batches, loss, optimizer, epochs=5, pruner=pruner, evaluate=evaluate, patience=2
    )
    assert result.stopped_early and result.best == 0.7 and len(result.accuracy) == 4
    assert all(torch.equal(v, states[1][k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    "options",
    [dict(epochs=0), dict(epochs=1, rate="linear"), dict(epochs=1, patience=2),
     dict(epochs=1, patience=0, evaluate=accuracy), dict(epochs=1, batches=lambda: [])],
)  # fmt: skip
def test_fine_tuning_refuses_options_that_mean_nothing(options):
    model = network()
    given = dict(batches=batches, loss=loss, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="expected"):
        fine_tune(model, **{**given, **options})


# ---- distillation


def test_distillation_follows_the_published_formula():
    student, teacher, labels = torch.randn(5, 4), torch.randn(5, 4), torch.randint(0, 4, (5,))
    T = 3.0
    p, q = (teacher / T).softmax(1), (student / T).softmax(1)
    soft = T**2 * (p * (p.log() - q.log())).sum(1).mean()
    hard = nn.functional.cross_entropy(student, labels)
    found = distillation_loss(student, teacher, labels, temperature=T, weight=0.7)
    assert float(found) == pytest.approx(float(0.7 * soft + 0.3 * hard), rel=1e-5)
    assert float(distillation_loss(student, teacher, temperature=T)) == pytest.approx(
        float(soft), rel=1e-5
    )


def test_distillation_teaches_a_pruned_model_and_leaves_the_teacher_alone():
    teacher = trained()
    teacher.zero_grad()
    student = copy.deepcopy(teacher)
    pruner = Pruner(student)
    pruner.prune(0.8)
    before = accuracy(student)

    def learn(net, batch):
        logits = teacher(batch[0])
        return distillation_loss(net(batch[0]), logits, temperature=2.0)

    optimizer = torch.optim.Adam(student.parameters(), 0.01)
    fine_tune(student, batches, learn, optimizer, epochs=8, pruner=pruner)
    assert accuracy(student) > before + 0.05
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("options", [dict(temperature=0.0), dict(weight=1.5), dict(weight=-0.1)])
def test_distillation_refuses_what_means_nothing(options):
    with pytest.raises(ValueError, match=r"expected .* got .* try"):
        distillation_loss(torch.ones(1, 2), torch.ones(1, 2), **options)
    with pytest.raises(ValueError, match="one shape"):
        distillation_loss(torch.ones(1, 2), torch.ones(2, 2))


# ---- BatchNorm


def test_batchnorm_statistics_are_averages_over_the_batches():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    model[1].momentum = 0.3
    model.eval()
    data = [torch.randn(16, 3) for _ in range(4)]
    weights = copy.deepcopy(model[0].state_dict())
    assert reestimate_batchnorm(model, [(x, None) for x in data], lambda m, b: m(b[0])) == 1
    outputs = [model[0](x) for x in data]
    mean = torch.stack([out.mean(0) for out in outputs]).mean(0)
    var = torch.stack([out.var(0) for out in outputs]).mean(0)
    assert torch.allclose(model[1].running_mean, mean, atol=1e-6)
    assert torch.allclose(model[1].running_var, var, atol=1e-6)
    assert model[1].momentum == 0.3 and not any(m.training for m in model.modules())
    assert all(torch.equal(v, weights[k]) for k, v in model[0].state_dict().items())


def test_batchnorm_reestimation_wants_batches_only_where_there_are_norms():
    assert reestimate_batchnorm(nn.Linear(2, 2), []) == 0
    with pytest.raises(ValueError, match="at least one batch"):
        reestimate_batchnorm(nn.BatchNorm1d(2), [])


# ---- another try


def test_pruning_is_tried_again_until_accuracy_stays_above_the_floor():
    model = trained()
    kept = copy.deepcopy(model.state_dict())
    attempts = [
        {"schedule": 0.95, "criterion": "random"},
        {"schedule": 0.95},
        {"schedule": 0.3, "scope": "layer"},
    ]
    found, tried = prune_to_floor(model, attempts, accuracy, floor=accuracy(model) - 0.05)
    assert [attempt.accepted for attempt in tried] == [False, False, True]
    assert tried[2].options == attempts[2] and accuracy(found) == tried[2].accuracy
    assert int((found[2].weight == 0).sum()) == round(0.3 * 576)
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())


def test_an_attempt_may_recover_before_it_is_judged():
    def recover(net, pruner):
        optimizer = torch.optim.Adam(net.parameters(), 0.01)
        fine_tune(net, batches, loss, optimizer, epochs=5, pruner=pruner)

    model = trained()
    _, alone = prune_to_floor(model, [{"schedule": 0.8}], accuracy, floor=0.0)
    _, recovered = prune_to_floor(model, [{"schedule": 0.8}], accuracy, 0.0, recover=recover)
    assert recovered[0].accuracy > alone[0].accuracy


def test_no_attempt_above_the_floor_is_an_error_that_lists_them():
    with pytest.raises(ValueError, match=r"'schedule': 0.9.*'schedule': 0.8"):
        prune_to_floor(trained(), [{"schedule": 0.9}, {"schedule": 0.8}], accuracy, floor=2.0)


# ---- lottery tickets


def lottery_training(model, training):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    training.hold(optimizer)
    for batch in batches()[training.start :]:
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()


@pytest.mark.parametrize(("rounds", "kept"), [(1, 0.5), (3, 0.125), (5, 0.03125)])
def test_lottery_rounds_keep_a_half_an_eighth_and_a_thirtysecond(rounds, kept):
    model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 20))
    x = torch.randn(8, 12)

    def train(net, training):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        training.hold(optimizer)
        for _ in range(3):
            net(x).square().mean().backward()
            optimizer.step()

    masks, found = lottery_ticket(model, train, amount=0.5, rounds=rounds, scope="layer")
    assert len(found) == rounds + 1 and found[-1].kept == pytest.approx(kept)
    kept_weights = sum(int(torch.count_nonzero(m.weight)) for m in (model[0], model[2]))
    assert kept_weights == sum(int(mask.sum()) for mask in masks.values()) == 1024 * kept


def test_lottery_rewinds_survivors_to_the_initial_weights():
    model = network()
    initial = copy.deepcopy(model.state_dict())
    starts = []

    def train(net, training):
        starts.append(copy.deepcopy(net.state_dict()))
        lottery_training(net, training)

    masks, found = lottery_ticket(model, train, amount=0.5, rounds=2, evaluate=accuracy)
    for state in starts[1:]:
        for name, value in state.items():
            alive = value != 0 if name in masks else torch.ones_like(value, dtype=torch.bool)
            assert torch.equal(value[alive], initial[name][alive])
    assert all(torch.equal(starts[2][name] != 0, mask) for name, mask in masks.items())
    assert not bool(((starts[2]["2.weight"] != 0) & (starts[1]["2.weight"] == 0)).any())
    assert all(0.0 <= state.accuracy <= 1.0 for state in found)


def test_lottery_rewinds_to_a_later_step():
    model, alone = network(), network()
    starts, positions = [], []

    def train(net, training):
        starts.append(copy.deepcopy(net.state_dict()))
        positions.append(training.start)
        lottery_training(net, training)

    masks, _ = lottery_ticket(model, train, amount=0.5, rounds=1, rewind_step=3)
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for batch in batches()[:3]:
        optimizer.zero_grad()
        loss(alone, batch).backward()
        optimizer.step()
    assert positions == [0, 3]
    for name, value in alone.state_dict().items():
        expected = value * masks[name] if name in masks else value
        assert torch.equal(starts[1][name], expected)


def test_lottery_by_taylor_uses_the_gradients_of_its_round():
    _, found = lottery_ticket(network(), lottery_training, rounds=2, criterion="taylor")
    assert [state.kept for state in found] == pytest.approx([1.0, 0.5, 0.25], abs=1e-3)


@pytest.mark.parametrize("options", [dict(amount=0.0), dict(amount=1.0), dict(rounds=0),
                                     dict(rewind_step=-1), dict(schedule=0.5),
                                     dict(rewind_step=99)])  # fmt: skip
def test_lottery_refuses_what_means_nothing(options):
    with pytest.raises(ValueError, match=r"expected .* got .* try"):
        lottery_ticket(network(), lottery_training, **options)


def test_lottery_wants_its_optimizer_held():
    with pytest.raises(RuntimeError, match=r"training\.hold"):
        lottery_ticket(network(), lambda net, training: None)


# ---- sensitivity


def test_a_scan_prunes_one_layer_at_a_time_and_leaves_the_model():
    model = trained()
    kept = copy.deepcopy(model.state_dict())
    seen = []

    def evaluate(net):
        seen.append([float((net[i].weight == 0).float().mean()) for i in (0, 2, 4)])
        return accuracy(net)

    found = scan_sensitivity(model, evaluate, sparsities=[0.5, 0.9], ignore="4")
    assert seen == [[0, 0, 0], [0.5, 0, 0], [pytest.approx(0.9, abs=0.01), 0, 0], [0, 0.5, 0],
                    [0, pytest.approx(0.9, abs=0.01), 0]]  # fmt: skip
    assert found.baseline == accuracy(model) and list(found.accuracy) == ["0.weight", "2.weight"]
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())
    assert found.accuracy["0.weight"][1] < found.accuracy["0.weight"][0]


def made_up():
    accuracy = {"easy": [0.99, 0.98], "hard": [0.8, 0.2], "tiny": [0.99, 0.99]}
    costs = {"easy": [100.0, 50, 10], "hard": [100.0, 50, 10], "tiny": [1.0, 0.5, 0.1]}
    return Sensitivity(1.0, [0.5, 0.9], accuracy, {"size": costs})


def test_ratios_prune_what_bears_it_first_and_meet_the_target():
    found = made_up()
    assert found.ratios(1.0) == {"easy": 0.0, "hard": 0.0, "tiny": 0.0}
    mild = found.ratios(0.6)
    assert mild["easy"] == 0.9 and mild["hard"] == 0.0
    strong = found.ratios(0.31)
    assert strong["easy"] == 0.9 and strong["hard"] == 0.5
    for fraction in (0.9, 0.6, 0.31, 0.12):
        ratios = found.ratios(fraction)
        costs = found.costs["size"]
        total = sum(costs[n][[0.0, 0.5, 0.9].index(ratio)] for n, ratio in ratios.items())
        assert total <= fraction * 201 * (1 + 1e-9)


def test_ratios_that_cannot_be_had_are_refused():
    with pytest.raises(ValueError, match=r"reach 0\.100 of the dense size"):
        made_up().ratios(0.05)
    with pytest.raises(ValueError, match="got 'latency'"):
        made_up().ratios(0.5, of="latency")
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        made_up().ratios(0.0)


def test_ratios_of_size_and_flops_hold_when_pruned():
    model = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4))
    x = torch.randn(2, 2, 8, 8)
    found = scan_sensitivity(model, lambda net: 1.0, sparsities=[0.5, 0.9], example_inputs=x)
    # Multiply-adds: 144 weights at 2 x 64 pixels, 2048 weights at 2 rows.
    assert found.costs["flops"] == {
        "0.weight": pytest.approx([144 * 128, 72 * 128, 14.4 * 128]),
        "3.weight": pytest.approx([4096, 2048, 409.6]),
    }
    ratios = found.ratios(0.5, of="size")
    pruner = Pruner(model, ratios=ratios)
    pruner.step()
    assert pruner.sparsity >= 0.5 - 1e-3
    # Most multiply-adds are the convolution's: the linear layer alone cannot halve them.
    assert found.ratios(0.5, of="flops")["0.weight"] >= 0.5


def test_latency_of_layers_is_measured_on_this_machine():
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 8))
    x = torch.randn(32, 256)
    found = scan_sensitivity(
        model, lambda net: 1.0, sparsities=[0.5, 0.95], example_inputs=x, latency=True
    )
    for cost in found.costs["latency"].values():
        assert len(cost) == 3 and cost[0] > 0
        assert all(0 < value <= cost[0] for value in cost)


@pytest.mark.parametrize("options", [dict(sparsities=[]), dict(sparsities=[0.5, 0.5]),
                                     dict(sparsities=[0.9, 0.5]), dict(sparsities=[0.0]),
                                     dict(latency=True), dict(schedule=0.5)])  # fmt: skip
def test_scans_refuse_what_means_nothing(options):
    with pytest.raises(ValueError, match=r"expected .* got .* try"):
        scan_sensitivity(network(), accuracy, **options)


def test_a_scan_is_drawn(tmp_path):
    made_up().plot(tmp_path / "lines.png")
    found = made_up()
    found.accuracy = {"_fc.weight": next(iter(found.accuracy.values()))}
    found.plot(tmp_path / "lines.svg")
    assert (tmp_path / "lines.png").read_bytes().startswith(b"\x89PNG")
