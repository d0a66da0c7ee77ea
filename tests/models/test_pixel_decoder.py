"""Expected values: a loop of the definition in tests/reference, and what must not matter."""

import torch
from reference.masked_patches import position_loop

from lvmmed.models.pixel_decoder import PixelDecoder, grid_positions


def _decoder(seed=0, **fields):
    fields = {"grid": 3, "patch_px": 4, "width": 16, "depth": 2, "num_heads": 2, **fields}
    return PixelDecoder(5, **fields, generator=torch.Generator().manual_seed(seed))


VISIBLE, HIDDEN = [0, 1, 8], [2, 3, 4, 5, 6, 7]
"""Of the nine patches of an image."""


def _encoded(generator, num=2):
    feature_map = torch.randn(num, 5, 3, 3, generator=generator)
    return feature_map, torch.tensor([VISIBLE] * num), torch.tensor([HIDDEN] * num)


def test_positions_are_the_waves_of_row_and_column():
    positions = grid_positions(2, 3, 8)
    expected = [position_loop(row, col, 8) for row in range(2) for col in range(3)]
    torch.testing.assert_close(positions, torch.tensor(expected))


def test_positions_tell_all_cells_apart():
    positions = grid_positions(14, 14, 32)
    apart = torch.cdist(positions, positions) + torch.eye(196)
    assert apart.min() > 0.1


def test_every_hidden_patch_gets_its_pixels(generator):
    predicted = _decoder()(*_encoded(generator))
    assert predicted.shape == (2, 6, 3 * 4 * 4)


def test_what_stands_where_nothing_was_encoded_does_not_matter(generator):
    feature_map, visible, hidden = _encoded(generator)
    decoder = _decoder()
    spoilt = feature_map.clone()
    spoilt.flatten(2)[:, :, HIDDEN] = 7.0
    assert torch.equal(decoder(feature_map, visible, hidden), decoder(spoilt, visible, hidden))


def test_patches_are_drawn_in_the_order_asked_for(generator):
    feature_map, visible, hidden = _encoded(generator)
    decoder = _decoder()
    forth, back = (decoder(feature_map, visible, some) for some in (hidden, hidden.flip(1)))
    torch.testing.assert_close(forth, back.flip(1))
    other = decoder(feature_map, visible.flip(1), hidden)
    torch.testing.assert_close(forth, other)


def test_hidden_patches_depend_on_visible_ones_and_on_their_own_place(generator):
    feature_map, visible, hidden = _encoded(generator)
    decoder = _decoder()
    predicted = decoder(feature_map, visible, hidden)
    assert not torch.allclose(predicted[:, 1], predicted[:, 2])
    other = decoder(feature_map.roll(1, 0), visible, hidden)
    assert not torch.allclose(other[:, 1], predicted[:, 1])
    torch.testing.assert_close(other.roll(1, 0), predicted)


def test_weights_come_from_the_generator_alone():
    before = torch.get_rng_state()
    first, again, other = _decoder(), _decoder(), _decoder(seed=1)
    assert torch.equal(before, torch.get_rng_state())
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.exit.weight, other.exit.weight)


def test_its_size_is_that_of_its_fields():
    decoder = _decoder(width=8, depth=3)
    assert len(decoder.blocks) == 3
    assert decoder.entry.weight.shape == (8, 5)
    assert decoder.blocks[0].linear1.weight.shape == (32, 8)
    assert "positions" not in decoder.state_dict()
