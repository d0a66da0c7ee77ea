"""The matching of a whole batch: oracles try all permutations, or are plain arithmetic."""

import itertools

import pytest
import torch

from lvmmed.matching.imle import draw_gumbel
from lvmmed.ssl.batch_assignment import batch_assignment_loss


@pytest.mark.parametrize("is_relative", [False, True])
def test_every_draw_of_noise_is_assigned_as_by_trying_all_permutations(is_relative):
    """Two matchings of four images under three draws, which come one after another."""
    generator = torch.Generator().manual_seed(1)
    sides = torch.randn(2, 2, 4, 5, generator=generator)
    sides[1, 0] = sides[0, 0] + 0.5 * sides[1, 0]  # the first matching is the easier one
    noise = draw_gumbel((6, 4, 4), generator=torch.Generator().manual_seed(2), device="cpu")
    num_wrong = torch.zeros(3, 2)
    for sample, matching in itertools.product(range(3), range(2)):
        s, t = sides[:, matching]
        cosines = torch.nn.functional.cosine_similarity(s[:, None], t[None], dim=2)
        unit = cosines.std(correction=0) if is_relative else 1.0
        worth = cosines + 0.8 * unit * noise[2 * sample + matching] - 0.2 * torch.eye(4)
        best = max(
            itertools.permutations(range(4)),
            key=lambda p, worth=worth: sum(float(worth[i, p[i]]) for i in range(4)),
        )
        num_wrong[sample, matching] = sum(node != i for i, node in enumerate(best))
    found = batch_assignment_loss(
        *sides,
        size=4,
        noise=0.8,
        is_relative=is_relative,
        margin=0.2,
        num_samples=3,
        generator=torch.Generator().manual_seed(2),
    )
    torch.testing.assert_close(found.accuracy, 1 - num_wrong.mean(0) / 4)
    assert float(found.loss) == pytest.approx(2 * float(num_wrong.mean()) / 4)


def test_a_batch_that_is_cut_has_the_mean_over_its_images(generator):
    """Six images in parts of four and two: each part's loss counts by its images."""
    sides = torch.randn(2, 1, 6, 5, generator=generator)
    sides[1, :, :4] = sides[0, :, :4]  # the first part is matched without fault, the other not
    sides[1, :, 4:] = sides[0, :, 4:].flip(1)
    settings = {"noise": 0.0, "is_relative": False, "margin": 0.0, "num_samples": 1}

    def run(first, last, size):
        s, t = sides[:, :, first:last]
        return batch_assignment_loss(s, t, size=size, generator=generator, **settings)

    whole, head, tail = run(0, 6, 4), run(0, 4, 4), run(4, 6, 2)
    assert (float(head.loss), float(tail.loss)) == (0, 2)
    assert float(whole.loss) == pytest.approx(2 * 2 / 6)
    assert whole.accuracy.tolist() == pytest.approx([4 / 6])
