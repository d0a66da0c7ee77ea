"""Expected numbers are hand arithmetic, in comments."""

import math

import pytest
import timm
import torch

from lvmmed.config import TrainConfig
from lvmmed.engine.optim import (
    Lars,
    build_optimizer,
    lars_update,
    learning_rate_at,
    parameter_groups,
    set_learning_rate,
)


def rates(num_steps, **fields):
    config = TrainConfig(steps=num_steps, learning_rate=8.0, **fields)
    return [learning_rate_at(step, num_steps=num_steps, config=config) for step in range(num_steps)]


def test_warm_up_rises_in_equal_steps_to_the_peak():
    assert rates(10, warmup_frac=0.4, schedule="constant") == [2, 4, 6, 8, 8, 8, 8, 8, 8, 8]


def test_cosine_falls_from_the_peak_towards_zero():
    # cosine over 4 steps: 4 * (1 + cos(0, 45, 90, 135 degrees))
    root = math.sqrt(0.5)
    expected = [8.0, 4 * (1 + root), 4.0, 4 * (1 - root)]
    assert rates(4, warmup_frac=0.0, schedule="cosine") == pytest.approx(expected)


def test_halving_happens_at_fifths_of_the_run():
    expected = [8, 8, 4, 4, 2, 2, 1, 1, 0.5, 0.5]
    assert rates(10, warmup_frac=0.0, schedule="halving") == expected


def test_a_run_of_one_step_has_the_peak():
    for schedule in ("cosine", "constant", "halving"):
        assert rates(1, warmup_frac=0.1, schedule=schedule) == [8.0]


def test_biases_norms_and_tokens_are_exempt_from_decay_and_frozen_ones_absent():
    module = torch.nn.Module()
    module.convolution = torch.nn.Conv2d(1, 2, 3)
    module.norm = torch.nn.BatchNorm2d(2)
    module.pos_embed = torch.nn.Parameter(torch.zeros(1, 4, 2))
    module.frozen = torch.nn.Parameter(torch.zeros(2, 2), requires_grad=False)
    module.alias = module.convolution
    decayed, exempt = parameter_groups(module.named_parameters(), weight_decay=0.5)
    assert [p.shape for p in decayed["params"]] == [(2, 1, 3, 3)]
    assert len(exempt["params"]) == 4
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.5, 0.0)


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "samvit_base_patch16_224",
        "swin_tiny_patch4_window7_224",
        "beit_base_patch16_224",
    ],
)
def test_what_timm_takes_no_decay_of_is_exempt(name):
    """timm's transformers say it themselves, of positions and tokens beside vectors."""
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    decayed = parameter_groups(model.named_parameters(), weight_decay=0.5)[0]["params"]
    theirs = model.no_weight_decay()
    tables = [n for n, _ in model.named_parameters() if n in theirs or "rel_pos" in n]
    assert tables
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    expected = {n for n, p in model.named_parameters() if p.ndim > 1 and n not in tables}
    assert {names[id(parameter)] for parameter in decayed} == expected


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adamw", torch.optim.AdamW),
        ("adam", torch.optim.Adam),
        ("sgd", torch.optim.SGD),
        ("lars", Lars),
    ],
)
def test_every_optimizer_moves_every_parameter_down_the_gradient(name, kind):
    torch.manual_seed(0)
    layer = torch.nn.Linear(2, 2)
    before = [p.detach().clone() for p in layer.parameters()]
    optimizer = build_optimizer(layer, TrainConfig(steps=1, optimizer=name, learning_rate=0.1))
    assert type(optimizer) is kind
    sum(p.sum() for p in layer.parameters()).backward()
    optimizer.step()
    for old, new in zip(before, layer.parameters(), strict=True):
        assert (new < old).all()


def test_set_learning_rate_reaches_every_group():
    optimizer = build_optimizer(torch.nn.Linear(2, 2), TrainConfig(steps=1))
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_lars_update_by_hand():
    # w = (3, 4): |w| = 5. g + 0.5 w = (4.5, -2) + (1.5, 2) = (6, 0): norm 6. trust 1e-3.
    weights, gradient = torch.tensor([3.0, 4.0]), torch.tensor([4.5, -2.0])
    update = lars_update(weights, gradient, weight_decay=0.5, adapts=True)
    torch.testing.assert_close(update, torch.tensor([1e-3 * 5 / 6 * 6, 0.0]))
    plain = lars_update(weights, gradient, weight_decay=0.5, adapts=False)
    torch.testing.assert_close(plain, torch.tensor([6.0, 0.0]))


def test_lars_leaves_the_update_alone_where_a_norm_is_zero():
    zeros, gradient = torch.zeros(2), torch.tensor([1.0, 2.0])
    for weights, slope in ((zeros, gradient), (gradient, zeros)):
        update = lars_update(weights, slope, weight_decay=0.0, adapts=True)
        torch.testing.assert_close(update, slope)


def test_two_lars_steps_by_hand():
    # w = 4, g = 2 always, no decay. Step 1: u = 1e-3*4/2*2 = 4e-3, v = 4e-3, w = 4 - 100*4e-3 = 3.6
    # Step 2: u = 1e-3 * 3.6, v = 0.9*4e-3 + 3.6e-3 = 7.2e-3, w = 3.6 - 0.72 = 2.88
    weight = torch.nn.Parameter(torch.tensor([[4.0]]))
    optimizer = Lars([weight], lr=100.0)
    for expected in (3.6, 2.88):
        weight.grad = torch.tensor([[2.0]])
        optimizer.step()
        assert weight.item() == pytest.approx(expected)


def test_lars_resumes_from_its_state():
    def run(weight, optimizer, num_steps):
        for _ in range(num_steps):
            weight.grad = weight.detach() ** 2
            optimizer.step()

    straight = torch.nn.Parameter(torch.ones(2, 2))
    run(straight, Lars([straight], lr=10.0), 4)
    first = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = Lars([first], lr=10.0)
    run(first, optimizer, 2)
    second = torch.nn.Parameter(first.detach().clone())
    resumed = Lars([second], lr=10.0)
    resumed.load_state_dict(optimizer.state_dict())
    run(second, resumed, 2)
    assert torch.equal(straight, second)


def test_cosine_falls_over_what_the_warm_up_leaves():
    # 2 steps of warm-up to 8, then 4 * (1 + cos(0, 60, 120 degrees))
    config = TrainConfig(steps=5, learning_rate=8.0, warmup_frac=0.4, schedule="cosine")
    rates = [learning_rate_at(step, num_steps=5, config=config) for step in range(5)]
    assert rates == pytest.approx([4, 8, 8, 6, 2])


@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_a_second_step_carries_nine_tenths_of_the_first(name):
    # a vector has plain SGD steps: 0.1, then 0.1 + 0.9 x 0.1
    module = torch.nn.Module()
    module.bias = torch.nn.Parameter(torch.zeros(1))
    optimizer = build_optimizer(module, TrainConfig(steps=2, optimizer=name, learning_rate=0.1))
    for expected in (-0.1, -0.29):
        module.bias.grad = torch.ones(1)
        optimizer.step()
        assert module.bias.item() == pytest.approx(expected)


def test_lars_takes_plain_steps_on_biases():
    module = torch.nn.Module()
    module.bias = torch.nn.Parameter(torch.ones(1))
    optimizer = build_optimizer(module, TrainConfig(steps=1, optimizer="lars", learning_rate=0.1))
    module.bias.grad = torch.ones(1)
    optimizer.step()
    assert module.bias.item() == pytest.approx(0.9)


def test_a_lars_step_has_the_decay_in_it_by_hand():
    # w = (3, 4): |w| = 5. g + 0.5 w = (4.5, -2) + (1.5, 2) = (6, 0): step 1e-3 * 5 / 6 * 6 * lr 100
    weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    groups = [{"params": [weight], "weight_decay": 0.5, "adapts": True}]
    optimizer = Lars(groups, lr=100.0)
    weight.grad = torch.tensor([[4.5, -2.0]])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([[2.5, 4.0]]))
