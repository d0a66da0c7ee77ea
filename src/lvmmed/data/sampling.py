"""Which images a training step sees: a pure function of (seed, step), without a loader.

Letters used in shapes:
    B: images of a batch.
    N: images of a sampler.
"""

from collections.abc import Sequence

import numpy as np

from lvmmed.types import InputError


class BatchSampler:
    """Endless stream of shuffled epochs, cut into batches at any step.

    The stream is made of units: single images, or with `blocks` runs of `block_size` images that
    share a block value (one graph each). Every group has a stream of its own units: epoch after
    epoch, each a fresh permutation without replacement. The groups take turns, unit by unit, so
    each is drawn equally often and small groups come round more often; without `groups` there is
    one group. A group with fewer units than its share of a batch gives all it has to every batch,
    once, and the others share the rest. Batches straddle the borders of epochs, so nothing is
    dropped.

    Repeats inside a batch: without groups and blocks there are none (the border of two epochs is
    mended by swapping). With `groups`, one that holds more than its share of a batch and less than
    three times as much may repeat images in it, at most once. With `blocks` an image occurs at most
    once in a block, and again in another block of the same epoch only where it tops one up.

    A block value whose number of images is no multiple of `block_size` has its last block topped
    up with other images of the same value. Values with fewer images than `block_size` are laid
    end to end, in random order, and cut into merged blocks of several values (`num_merged` counts
    their images); the last of these is topped up from within the group. With both `groups` and
    `blocks`, a block shares both values.

    Args:
        num_images: images to draw from, N.
        batch_size: images a batch, B.
        seed: start of every permutation, at least 0.
        groups: value per image whose kinds are drawn equally often (None counts as a kind).
        blocks: value per image that a block shares (None counts as a value).
        block_size: images a block; at least 2 with `blocks`, else unused and 0.

    Raises:
        InputError: fewer images than a batch, a batch that is no multiple of the block, groups or
            blocks of another length than num_images, or a group that does not fill a block.
    """

    def __init__(
        self,
        num_images: int,
        *,
        batch_size: int,
        seed: int,
        groups: Sequence[str | None] | None = None,
        blocks: Sequence[str | None] | None = None,
        block_size: int = 0,
    ) -> None:
        problem = _size_problem(num_images, batch_size, block_size, blocks is not None)
        if problem is not None:
            raise InputError(problem)
        self.num_images = num_images
        self.batch_size = batch_size
        self._seed = seed
        self._unit = block_size if blocks is not None else 1
        group_codes = _codes(groups, num_images, "groups")
        self._block_codes = _codes(blocks, num_images, "blocks")
        members = np.argsort(group_codes, kind="stable")
        starts = np.cumsum(np.bincount(group_codes))[:-1]
        self._groups: list[np.ndarray] = np.split(members, starts)
        if groups is not None:
            _refuse_small_groups(groups, self._groups, block_size)
        counts = [self._count_units(rows) for rows in self._groups]
        self._num_units = [num for num, _ in counts]
        self.num_merged = sum(merged for _, merged in counts)
        self._shares, self._turns = _shares(self._num_units, batch_size // self._unit)
        self._cache: dict[int, tuple[int, np.ndarray]] = {}

    @property
    def images_per_epoch(self) -> int:
        """Images drawn until as many units were drawn as all groups hold.

        All images, and those that top up blocks. Without `groups` every image was seen by then;
        with them a large group may need longer.
        """
        return sum(self._num_units) * self._unit

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches that an epoch touches: `images_per_epoch` over the batch, rounded up.

        As batches straddle the borders of epochs, several epochs take fewer steps than as many
        times this number.
        """
        return -(-self.images_per_epoch // self.batch_size)

    def batch(self, step: int) -> np.ndarray:
        """List the images of one step; the same answer in any order of calls.

        Args:
            step: number of the step, from 0.

        Returns:
            int64 [B] indices below num_images.

        Raises:
            ValueError: step is negative.
        """
        if step < 0:
            raise ValueError(f"step: got {step}, steps count from 0")
        num_turns = self.batch_size // self._unit - sum(self._shares.values())
        positions = step * num_turns + np.arange(num_turns)
        in_turn = np.empty((num_turns, self._unit), dtype=np.int64)
        for turn, group in enumerate(self._turns):
            is_turn = positions % len(self._turns) == turn
            in_turn[is_turn] = self._take(group, positions[is_turn] // len(self._turns))
        drawn, places = [in_turn], [_spread(num_turns)]
        for group, share in self._shares.items():
            drawn.append(self._take(group, step * share + np.arange(share)))
            places.append(_spread(share))
        order = np.argsort(np.concatenate(places), kind="stable")
        return np.concatenate(drawn)[order].reshape(-1)

    def _take(self, group: int, positions: np.ndarray) -> np.ndarray:
        """Units at ascending positions of one group's endless stream, [len(positions), unit]."""
        epochs = positions // self._num_units[group]
        parts = [np.empty((0, self._unit), dtype=np.int64)]
        for epoch in np.unique(epochs).tolist():
            offsets = positions[epochs == epoch] - epoch * self._num_units[group]
            parts.append(self._epoch(group, epoch)[offsets])
        return np.concatenate(parts)

    def _epoch(self, group: int, epoch: int) -> np.ndarray:
        """Order of one epoch of one group, [num_units, unit]; the last one asked for is kept."""
        cached_epoch, order = self._cache.get(group, (-1, None))
        if order is None or cached_epoch != epoch:
            order = self._draw_blocks(group, epoch) if self._unit > 1 else None
            if order is None:
                order = self._draw_images(group, epoch)[:, None]
            self._cache[group] = (epoch, order)
        return order

    def _generator(self, group: int, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, group, epoch])

    def _draw_images(self, group: int, epoch: int) -> np.ndarray:
        """Permutation of a group whose head repeats nothing of the last epoch's tail.

        Only the head changes, so the tail that the next epoch looks at is that of the plain
        permutation and no chain of epochs has to be walked. The one exception is a single group
        under two batches in size; its chain starts at the epoch drawn last, or else at the first.
        """
        size = self._num_units[group]
        walks_chain = len(self._groups) == 1 and size < 2 * self.batch_size - 1
        previous = np.empty(0, dtype=np.int64)
        first = 0 if walks_chain else max(epoch - 1, 0)
        cached_epoch, cached = self._cache.get(group, (epoch, None))
        if cached is not None and first <= cached_epoch < epoch:
            first, previous = cached_epoch + 1, cached[:, 0]
        for e in range(first, epoch + 1):
            order = self._generator(group, e).permutation(self._groups[group])
            tail, head = self._seam(size, e)
            kept_tail = 0 if walks_chain else self._seam(size, e + 1)[0]
            if previous.size and tail:
                _separate(order, avoid=previous[-tail:], head=head, stop=size - kept_tail)
            previous = order
        return previous

    def _seam(self, size: int, epoch: int) -> tuple[int, int]:
        """Lengths of the tail before and the head of an epoch that must not share images."""
        if len(self._groups) == 1:
            tail = epoch * size % self.batch_size
            return tail, self.batch_size - tail
        share = min(-(-self.batch_size // len(self._groups)), size // 3)
        return share, share

    def _count_units(self, rows: np.ndarray) -> tuple[int, int]:
        """Units an epoch of these images has, and how many images lie in merged blocks."""
        if self._unit == 1:
            return len(rows), 0
        sizes = np.bincount(self._block_codes[rows])
        num_small = int(sizes[sizes < self._unit].sum())
        num_whole = int((-(-sizes[sizes >= self._unit] // self._unit)).sum())
        return num_whole - (-num_small // self._unit), num_small

    def _draw_blocks(self, group: int, epoch: int) -> np.ndarray:
        """Shuffled blocks of one epoch of a group, [num_units, block_size]."""
        generator = self._generator(group, epoch)
        rows = generator.permutation(self._groups[group])
        codes = self._block_codes[rows]
        grouped = rows[np.argsort(codes, kind="stable")]
        sizes = np.bincount(codes)
        runs = np.split(grouped, np.cumsum(sizes[sizes > 0])[:-1])
        large = [run for run in runs if len(run) >= self._unit]
        small = [run for run in runs if len(run) < self._unit]
        pieces = [_top_up(run, run, self._unit) for run in large]
        if small:
            merged = np.concatenate([small[i] for i in generator.permutation(len(small))])
            spare = np.concatenate([merged, *large])
            if len(merged) < self._unit:
                spare = np.concatenate([*large, merged]) if large else merged
            pieces.append(_top_up(merged, spare, self._unit))
        blocks = np.concatenate(pieces).reshape(-1, self._unit)
        return generator.permutation(blocks, axis=0)


def _shares(num_units: Sequence[int], batch_units: int) -> tuple[dict[int, int], list[int]]:
    """Split groups into those that give all their units to every batch and those that take turns.

    Args:
        num_units: units of each group; together at least those of a batch.
        batch_units: units of a batch.

    Returns:
        Units a batch of each group of the first kind, and the groups of the second.
    """
    shares: dict[int, int] = {}
    turns = list(range(len(num_units)))
    while True:
        level = -(-(batch_units - sum(shares.values())) // len(turns))
        too_small = {group: num_units[group] for group in turns if num_units[group] < level}
        if not too_small:
            return shares, turns
        shares.update(too_small)
        turns = [group for group in turns if group not in too_small]


def _spread(num: int) -> np.ndarray:
    """Middles of equal parts of 0..1, float64 [num]."""
    return (np.arange(num) + 0.5) / max(num, 1)


def _refuse_small_groups(
    groups: Sequence[str | None], members: Sequence[np.ndarray], block_size: int
) -> None:
    """Refuse a group whose images do not fill a block, as it would hold copies of them."""
    for rows in members:
        if len(rows) < block_size:
            raise InputError(
                f"groups: got {groups[rows[0]]!r} with {len(rows)} images to train on, need at "
                f"least the {block_size} of a graph, which would hold copies; set data.balance to "
                f"none, method.graph_size to at most {len(rows)}, or leave these images out"
            )


def _size_problem(
    num_images: int, batch_size: int, block_size: int, has_blocks: bool
) -> str | None:
    """Say why sizes cannot give a batch, with the remedy; None where they can."""
    if batch_size < 1:
        return f"batch_size: got {batch_size}, need at least 1"
    if num_images < batch_size:
        return (
            f"batch_size: got {batch_size}, but there are only {num_images} images; "
            f"set train.batch_size to at most {num_images} or prepare more images"
        )
    if has_blocks and block_size < 2:
        return f"block_size: got {block_size}, blocks hold at least 2 images"
    if has_blocks and batch_size % block_size:
        return (
            f"batch_size: got {batch_size}, need a multiple of the block of {block_size} images; "
            f"set train.batch_size to {max(batch_size // block_size, 1) * block_size}"
        )
    if not has_blocks and block_size:
        return f"block_size: got {block_size} without blocks; leave it at 0"
    return None


def _codes(values: Sequence[str | None] | None, num_images: int, name: str) -> np.ndarray:
    """Number the distinct values from 0 in sorted order, int64 [N]; all 0 without values."""
    if values is None:
        return np.zeros(num_images, dtype=np.int64)
    if len(values) != num_images:
        raise InputError(f"{name}: got {len(values)} values, need one for each of {num_images}")
    # A prefix keeps None apart from every text, the empty one too.
    keys = ["-" if value is None else f"+{value}" for value in values]
    number = {key: code for code, key in enumerate(sorted(set(keys)))}
    return np.fromiter((number[key] for key in keys), dtype=np.int64, count=num_images)


def _separate(order: np.ndarray, *, avoid: np.ndarray, head: int, stop: int) -> None:
    """Swap images of `avoid` out of order[:head], in place, against others of order[head:stop]."""
    clashing = np.flatnonzero(np.isin(order[:head], avoid))
    is_free = ~np.isin(order[head:stop], avoid)
    partners = head + np.flatnonzero(is_free)[: len(clashing)]
    clashing = clashing[: len(partners)]
    order[clashing], order[partners] = order[partners], order[clashing]


def _top_up(run: np.ndarray, spare: np.ndarray, unit: int) -> np.ndarray:
    """Lengthen a run to a multiple of unit with the first of spare, again and again if need be."""
    missing = -len(run) % unit
    return np.concatenate([run, np.resize(spare, missing)]) if missing else run
