"""Two gloo processes against one process on the joined rows; the latter uses plain torch only."""

import pytest
import torch
from reference import rank_functions
from reference.ranks import run_ranks

from lvmmed import distributed


def test_alone_nothing_is_shared(generator):
    rows = torch.randn(3, 2, generator=generator)
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.all_gather(rows) is rows
    assert distributed.all_reduce_sum(rows) is rows
    assert distributed.local_slice(7) == slice(0, 7)
    distributed.barrier()
    with distributed.session("cpu") as device:
        assert device == torch.device("cpu")
        assert not distributed.is_initialized()


def test_mean_and_variance_are_those_of_the_rows(generator):
    rows = torch.randn(9, 4, generator=generator) + 1000.0
    mean, variance = distributed.mean_and_var(rows)
    torch.testing.assert_close(mean, rows.mean(0))
    torch.testing.assert_close(variance, rows.var(0, correction=0))


def test_a_session_of_torchrun_starts_and_ends_a_group(monkeypatch):
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "2"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    started = []
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda backend, **_: started.append(backend)
    )
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: started.append("ended"))
    with distributed.session("cpu"):
        pass
    assert started == ["gloo", "ended"]


@pytest.mark.dist
def test_gathered_rows_give_the_loss_and_gradient_of_one_process(generator):
    all_rows = torch.randn(6, 3, generator=generator)
    joined = all_rows.clone().requires_grad_()
    loss = rank_functions.nonlinear_loss(joined, joined)
    loss.backward()
    answers = run_ranks(rank_functions.gather_loss, all_rows)
    for answer in answers:
        torch.testing.assert_close(answer["loss"], loss.detach())
    torch.testing.assert_close(torch.cat([a["gradient"] for a in answers]), joined.grad)


@pytest.mark.dist
def test_shared_statistics_give_the_loss_and_gradient_of_one_process(generator):
    all_rows = torch.randn(6, 3, generator=generator)
    weights = torch.randn(6, 1, generator=generator)
    joined = all_rows.clone().requires_grad_()
    variance, mean = torch.var_mean(joined, dim=0, correction=0)
    loss = (((joined - mean) / (variance + 0.1).sqrt()).pow(3) * weights).mean()
    loss.backward()
    answers = run_ranks(rank_functions.standardised_loss, all_rows, weights)
    for answer in answers:
        torch.testing.assert_close(answer["mean"], mean.detach())
        torch.testing.assert_close(answer["variance"], variance.detach())
        torch.testing.assert_close(answer["loss"], loss.detach())
    torch.testing.assert_close(torch.cat([a["gradient"] for a in answers]), joined.grad)


@pytest.mark.dist
def test_averaged_gradients_are_those_of_the_joined_batch(generator):
    all_rows = torch.randn(6, 3, generator=generator)
    layer = torch.nn.Linear(3, 2)
    torch.nn.init.constant_(layer.weight, 0.3)
    torch.nn.init.constant_(layer.bias, 0.1)
    layer(all_rows).pow(3).mean().backward()
    for answer in run_ranks(rank_functions.averaged_gradients, all_rows):
        torch.testing.assert_close(answer[0], layer.weight.grad)
        torch.testing.assert_close(answer[1], layer.bias.grad)
        assert answer[2] is None


@pytest.mark.dist
def test_shared_batch_norm_gives_the_step_of_one_process(generator):
    images = torch.randn(4, 3, 7, 7, generator=generator)
    expected = rank_functions.convolutional_step(images, 0)
    for answer in run_ranks(rank_functions.convolutional_step, images, 0):
        torch.testing.assert_close(answer["gradients"], expected["gradients"])
        torch.testing.assert_close(answer["state"], expected["state"])


def test_rows_that_do_not_divide_are_refused(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(ValueError, match="num_items: got 7, need a multiple of 2 ranks"):
        distributed.local_slice(7)
