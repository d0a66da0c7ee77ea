"""Expected values: hand counts, and a loop over pairs."""

import math

import pytest
import torch
from reference.ranks import run_ranks
from reference.ssl_rank_functions import partner_accuracy_of_rows

from lvmmed.ssl.figures import partner_accuracy, teacher_agreement


def test_partners_by_hand():
    first = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.1]])
    # the third image's partner has cosine -0.99 with it, the second's a positive one
    second = torch.tensor([[3.0, 0.1], [0.1, 1.0], [1.0, 0.0]])
    # image 0: its partner has cosine 0.999, but the third image's has 1, so it is wrong
    assert float(partner_accuracy(first, second)) == pytest.approx(1 / 3)
    assert float(partner_accuracy(first[:2], second[:2])) == 1.0


def test_it_equals_a_loop_over_pairs(generator):
    first = torch.randn(20, 3, generator=generator)
    second = first + 0.5 * torch.randn(20, 3, generator=generator)

    def cosine(a, b):
        return float(a @ b / math.sqrt(float(a @ a) * float(b @ b)))

    num_right = 0
    for i in range(20):
        nearest = max(range(20), key=lambda j: cosine(first[i], second[j]))
        num_right += nearest == i
    assert 0 < num_right < 20
    assert float(partner_accuracy(first, second)) == pytest.approx(num_right / 20)


@pytest.mark.parametrize("value", [1.0, 0.0])
def test_vectors_that_are_all_the_same_are_told_apart_by_nobody(value):
    same = torch.full((33, 7), value)
    assert float(partner_accuracy(same, same)) == 0.0


def test_a_single_image_has_no_other_and_nan_is_wrong():
    assert float(partner_accuracy(torch.ones(1, 3), torch.ones(1, 3))) == 1.0
    assert float(partner_accuracy(torch.eye(3), torch.eye(3) * math.nan)) == 0.0


def test_agreement_is_the_mean_cosine_over_images_and_views_by_hand():
    right, up, back = [1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]
    students = [torch.tensor([right, up]), torch.tensor([right, right])]
    teachers = [torch.tensor([right, right]), torch.tensor([back, [3.0, 4.0]])]
    # cosines 1 and 0 of the first view, -1 and 3/5 of the second
    assert float(teacher_agreement(students, teachers)) == pytest.approx(0.15)
    assert float(teacher_agreement(students[:1], teachers[:1])) == pytest.approx(0.5)


@pytest.mark.dist
def test_the_others_are_those_of_all_processes(generator):
    first = torch.randn(8, 3, generator=generator)
    second = first + 0.8 * torch.randn(8, 3, generator=generator)
    parts = run_ranks(partner_accuracy_of_rows, first, second)
    expected = partner_accuracy(first, second)
    torch.testing.assert_close(torch.stack(parts).mean(), expected)
