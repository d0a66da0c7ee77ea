"""Expected values are counts and set relations worked out by hand or with a plain loop."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvmmed.data.sampling import BatchSampler
from lvmmed.types import InputError

SIZES = st.tuples(st.integers(1, 90), st.integers(0, 200)).map(lambda t: (t[0], t[0] + t[1]))


def stream(sampler: BatchSampler, num_batches: int) -> list[int]:
    return [int(i) for step in range(num_batches) for i in sampler.batch(step)]


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 2**40))
def test_every_epoch_is_a_permutation_and_no_batch_repeats_an_image(sizes, seed):
    batch_size, num_images = sizes
    sampler = BatchSampler(num_images, batch_size=batch_size, seed=seed)
    num_batches = 5 * num_images // batch_size + 1
    drawn = stream(sampler, num_batches)
    for epoch in range(5):
        part = drawn[epoch * num_images : (epoch + 1) * num_images]
        assert sorted(part) == list(range(num_images))
    for step in range(num_batches):
        assert len(set(sampler.batch(step).tolist())) == batch_size


@settings(max_examples=30, deadline=None)
@given(
    sizes=SIZES, seed=st.integers(0, 99), steps=st.lists(st.integers(0, 60), min_size=1, max_size=8)
)
def test_a_batch_depends_on_seed_and_step_only(sizes, seed, steps):
    batch_size, num_images = sizes
    labels = [str(i % 3) for i in range(num_images)]
    for extra in ({}, {"groups": labels}):
        used = BatchSampler(num_images, batch_size=batch_size, seed=seed, **extra)
        for step in steps:
            fresh = BatchSampler(num_images, batch_size=batch_size, seed=seed, **extra)
            batch = used.batch(step)
            assert batch.dtype == np.int64
            np.testing.assert_array_equal(batch, fresh.batch(step))


def test_seeds_and_epochs_differ():
    first, second = (BatchSampler(100, batch_size=100, seed=seed) for seed in (0, 1))
    assert first.batch(0).tolist() != second.batch(0).tolist()
    assert first.batch(0).tolist() != first.batch(1).tolist()
    assert first.batch(0).tolist() != list(range(100))


def test_the_first_image_of_an_epoch_is_uniform():
    # 4000 epochs of 8 images: 500 each by symmetry; 5 sigma of a binomial is 105.
    sampler = BatchSampler(8, batch_size=8, seed=3)
    counts = Counter(int(sampler.batch(step)[0]) for step in range(4000))
    assert all(abs(counts[i] - 500) < 105 for i in range(8))


@pytest.mark.parametrize(("num_images", "steps"), [(100, 4), (96, 3), (32, 1), (33, 2)])
def test_steps_per_epoch_rounds_up(num_images, steps):
    sampler = BatchSampler(num_images, batch_size=32, seed=0)
    assert sampler.steps_per_epoch == steps
    assert sampler.images_per_epoch == num_images


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=5),
    batch_size=st.integers(2, 30),
    seed=st.integers(0, 99),
)
def test_groups_are_drawn_equally_often_and_each_without_replacement(sizes, batch_size, seed):
    groups = [f"g{g}" for g, size in enumerate(sizes) for _ in range(size)]
    if len(groups) < batch_size:
        return
    sampler = BatchSampler(len(groups), batch_size=batch_size, seed=seed, groups=groups)
    drawn = stream(sampler, 40)
    shares, free = fill(sizes, batch_size)
    for stop in range(batch_size, len(drawn) + 1, batch_size):
        counts = Counter(groups[i] for i in drawn[:stop])
        assert all(counts[f"g{g}"] == share * stop // batch_size for g, share in shares.items())
        values = [counts[f"g{g}"] for g in free]
        assert max(values) - min(values) <= 1
    for g, size in enumerate(sizes):
        own = [i for i in drawn if groups[i] == f"g{g}"]
        for start in range(0, len(own) - size + 1, size):
            assert len(set(own[start : start + size])) == size


def fill(sizes, batch_size):
    """Slots of a batch filled one by one, round and round, until a group has no more to give."""
    left, given_to, slots = list(sizes), [0] * len(sizes), batch_size
    while slots:
        giving = [g for g, num in enumerate(left) if num]
        if slots < len(giving):
            break
        for g in giving:
            left[g], given_to[g], slots = left[g] - 1, given_to[g] + 1, slots - 1
    # who has nothing left before the last, unfinished round gives all to every batch
    most = max(given_to) + bool(slots)
    return (
        {g: size for g, size in enumerate(sizes) if size < most},
        [g for g, size in enumerate(sizes) if size >= most],
    )


def test_a_rare_group_is_once_in_a_batch_and_the_others_share_the_rest():
    # 64 images of three groups: the 2 and the 10 of the small ones, 52 of the large one
    sizes = {"a": 1000, "b": 2, "c": 10}
    groups = [name for name, size in sizes.items() for _ in range(size)]
    sampler = BatchSampler(len(groups), batch_size=64, seed=0, groups=groups)
    for step in range(30):
        batch = sampler.batch(step)
        assert len(set(batch.tolist())) == 64
        assert Counter(groups[i] for i in batch) == {"a": 52, "b": 2, "c": 10}
        # spread out: graphs of 16 as the batch stands have 2 or 3 of c
        graphs = np.array(groups)[batch].reshape(4, 16)
        assert set((graphs == "c").sum(1).tolist()) <= {2, 3}


def test_a_group_that_fills_no_block_is_refused():
    groups, blocks = ["many"] * 100 + ["few"] * 10, ["v"] * 110
    arguments = {"batch_size": 32, "seed": 0, "blocks": blocks, "block_size": 16}
    with pytest.raises(InputError, match=r"'few' with 10 images .* 16 of a graph.* at most 10"):
        BatchSampler(110, groups=groups, **arguments)
    BatchSampler(110, **arguments)


def test_a_large_group_does_not_repeat_an_image_in_a_batch():
    groups = ["a"] * 60 + ["b"] * 300
    sampler = BatchSampler(360, batch_size=40, seed=0, groups=groups)
    for step in range(60):
        assert len(set(sampler.batch(step).tolist())) == 40


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    block_size=st.integers(2, 8),
    seed=st.integers(0, 99),
)
def test_blocks_share_a_value_and_no_image_is_dropped(sizes, block_size, seed):
    blocks = [f"v{v}" for v, size in enumerate(sizes) for _ in range(size)]
    num_images = len(blocks)
    if num_images < block_size:
        return
    sampler = BatchSampler(
        num_images, batch_size=block_size, seed=seed, blocks=blocks, block_size=block_size
    )
    small = {f"v{v}" for v, size in enumerate(sizes) if size < block_size}
    assert sampler.num_merged == sum(size for size in sizes if size < block_size)
    # By hand: ceil(size / block) blocks a large value, ceil(all small / block) merged ones.
    num_blocks = sum(-(-size // block_size) for size in sizes if size >= block_size)
    num_blocks += -(-sampler.num_merged // block_size)
    assert sampler.steps_per_epoch == num_blocks
    assert sampler.images_per_epoch == num_blocks * block_size
    for epoch in range(2):
        seen: set[int] = set()
        num_mixed = 0
        for step in range(epoch * num_blocks, (epoch + 1) * num_blocks):
            images = sampler.batch(step).tolist()
            assert len(set(images)) == block_size
            values = {blocks[i] for i in images}
            num_mixed += bool(values & small)
            assert len(values) == 1 or values & small
            seen |= set(images)
        assert seen == set(range(num_images))
        assert num_mixed <= -(-sampler.num_merged // block_size)


def test_block_order_is_shuffled_and_differs_between_epochs():
    blocks = [f"v{i // 8}" for i in range(80)]
    sampler = BatchSampler(80, batch_size=80, seed=0, blocks=blocks, block_size=8)
    first, second = ([blocks[i] for i in sampler.batch(step)[::8]] for step in (0, 1))
    assert sorted(first) == sorted(second)
    assert first != second


def test_blocks_with_groups_share_both_values():
    groups = ["CT"] * 64 + ["MRI"] * 16
    blocks = [f"v{i % 4}" for i in range(80)]
    sampler = BatchSampler(80, batch_size=16, seed=0, groups=groups, blocks=blocks, block_size=4)
    for step in range(12):
        quads = sampler.batch(step).reshape(-1, 4).tolist()
        for quad in quads:
            assert len({(groups[i], blocks[i]) for i in quad}) == 1
        assert Counter(groups[quad[0]] for quad in quads) == {"CT": 2, "MRI": 2}


def test_missing_values_are_a_value_of_their_own():
    blocks = [None] * 8 + [""] * 8
    sampler = BatchSampler(16, batch_size=8, seed=0, blocks=blocks, block_size=8)
    for step in range(4):
        assert len({blocks[i] is None for i in sampler.batch(step)}) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 64}, r"got 64, but there are only 10 images; set train.batch_size to at"),
        ({"batch_size": 0}, r"batch_size: got 0, need at least 1"),
        ({"batch_size": 4, "groups": ["a"]}, r"groups: got 1 values, need one for each of 10"),
        ({"batch_size": 4, "blocks": ["a"] * 10, "block_size": 1}, r"block_size: got 1"),
        ({"batch_size": 4, "block_size": 2}, r"block_size: got 2 without blocks"),
        (
            {"batch_size": 9, "blocks": ["a"] * 10, "block_size": 4},
            r"got 9, need a multiple of the block of 4 images; set train.batch_size to 8",
        ),
    ],
)
def test_impossible_sizes_are_refused_with_the_remedy(arguments, message):
    with pytest.raises(InputError, match=message):
        BatchSampler(10, seed=0, **arguments)


def test_negative_steps_are_refused():
    with pytest.raises(ValueError, match="step: got -1"):
        BatchSampler(10, batch_size=2, seed=0).batch(-1)


def test_groups_of_equal_size_are_shuffled_apart():
    sampler = BatchSampler(80, batch_size=80, seed=0, groups=["a"] * 40 + ["b"] * 40)
    batch = sampler.batch(0)
    assert batch[batch < 40].tolist() != (batch[batch >= 40] - 40).tolist()


@pytest.mark.parametrize("sizes", [(70, 300), (61, 100), (95, 75)])
def test_a_group_of_three_shares_repeats_no_image_where_its_epochs_meet(sizes):
    groups = ["a"] * sizes[0] + ["b"] * sizes[1]
    sampler = BatchSampler(sum(sizes), batch_size=40, seed=0, groups=groups)
    for step in range(60):
        assert len(set(sampler.batch(step).tolist())) == 40


def test_who_shares_a_block_differs_between_epochs():
    sampler = BatchSampler(32, batch_size=32, seed=0, blocks=["a"] * 16 + ["b"] * 16, block_size=4)
    first, second = (
        {frozenset(block) for block in sampler.batch(step).reshape(-1, 4).tolist()}
        for step in (0, 1)
    )
    assert len(first) == len(second) == 8
    assert first != second
