"""Grouping images by their embeddings: balanced soft assignments, and k-means on the sphere.

Letters used in shapes:
    B: images of this process.
    Q: further images, the same on all processes.
    K: prototypes, or clusters.
    N: images that are clustered.
    F: features of an embedding.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lvmmed.distributed import all_gather, rank

CHUNK = 8192
"""Images compared with all centroids at once."""
NO_DIRECTION = 1e-6
"""A sum of unit vectors shorter than this points nowhere."""


@torch.no_grad()
def balanced_codes(
    scores: Float[Tensor, "B K"],
    *,
    epsilon: float,
    num_iterations: int,
    further: Float[Tensor, "Q K"] | None = None,
) -> Float[Tensor, "B K"]:
    """Share out images over prototypes so that all prototypes get equal parts (Sinkhorn-Knopp).

    Q = exp(scores / epsilon) over the images of all processes, then in turn: scale each prototype's
    column to the sum 1 / K, scale each image's row to the sum 1 / images; at last rows to 1.

    Args:
        scores: cosines of this process's images with the prototypes.
        epsilon: smoothness; small makes codes sharp. As logarithms are iterated, none overflows.
        num_iterations: pairs of scalings, at least 1. After a few, columns are nearly equal.
        further: scores of images that are shared out along and get no code back (a queue).

    Returns:
        Codes of this process's images, rows of sum 1, in fp32 or better, without gradient.

    Source:
        Caron et al. 2020 (SwAV), section 3.1, equations 3 to 5; codes are kept soft.
    """
    dtype = torch.promote_types(scores.dtype, torch.float32)
    logs = all_gather(scores.to(dtype))
    if further is not None:
        logs = torch.cat([logs, further.to(dtype)])
    logs = logs / epsilon
    for _ in range(num_iterations):
        # constant factors (1 / K, 1 / images) fall out in the last scaling of rows
        logs = logs - logs.logsumexp(0, keepdim=True)
        logs = logs - logs.logsumexp(1, keepdim=True)
    start = rank() * len(scores)
    return logs[start : start + len(scores)].exp()


@dataclass(frozen=True, kw_only=True, slots=True)
class Clustering:
    """Result of `spherical_kmeans`.

    Attributes:
        centroids: unit vectors.
        assignment: number of the nearest centroid of each image.
    """

    centroids: Float[Tensor, "K F"]
    assignment: Int64[Tensor, " N"]


@torch.no_grad()
def spherical_kmeans(
    embeddings: Float[Tensor, "N F"],
    num_clusters: int,
    *,
    num_iterations: int,
    generator: torch.Generator,
) -> Clustering:
    """Cluster unit vectors by cosine.

    Starts from distinct images drawn at random. Each iteration assigns every image to the centroid
    of the largest cosine and makes each centroid the direction of the sum of its images; a centroid
    without images moves to the image with the smallest cosine to its own centroid (the next empty
    one to the next such image) among images that are not alone in their cluster. A cluster may
    still be empty at the end: equal images cannot be parted.

    The same inputs give the same answer, on a GPU too: sums are products with 0/1 matrices, not
    atomic additions.

    Args:
        embeddings: unit vectors, at least as many as clusters.
        num_clusters: K.
        num_iterations: moves of the centroids.
        generator: CPU generator of the start.

    Returns:
        Centroids and the assignment to them.
    """
    drawn = torch.randperm(len(embeddings), generator=generator)[:num_clusters]
    centroids = embeddings[drawn.to(embeddings.device)]
    for _ in range(num_iterations):
        assignment, cosine = _nearest(embeddings, centroids)
        sums, counts = _sums(embeddings, assignment, num_clusters)
        lengths = sums.norm(dim=1, keepdim=True)
        moved = torch.where(lengths > NO_DIRECTION, sums / lengths.clamp(min=1e-12), centroids)
        centroids = _reseated(moved, embeddings, assignment, cosine, counts)
    return Clustering(centroids=centroids, assignment=_nearest(embeddings, centroids)[0])


def _nearest(
    embeddings: Float[Tensor, "N F"], centroids: Float[Tensor, "K F"]
) -> tuple[Int64[Tensor, " N"], Float[Tensor, " N"]]:
    """Number of, and cosine with, the nearest centroid of each image."""
    parts = [(chunk @ centroids.T).max(1) for chunk in torch.split(embeddings, CHUNK)]
    assignment = torch.cat([part.indices for part in parts])
    return assignment, torch.cat([part.values for part in parts])


def _sums(
    embeddings: Float[Tensor, "N F"], assignment: Int64[Tensor, " N"], num_clusters: int
) -> tuple[Float[Tensor, "K F"], Float[Tensor, " K"]]:
    """Sum and number of the images of each cluster."""
    sums = embeddings.new_zeros(num_clusters, embeddings.shape[1])
    counts = embeddings.new_zeros(num_clusters)
    for chunk, own in zip(
        torch.split(embeddings, CHUNK), torch.split(assignment, CHUNK), strict=True
    ):
        members = chunk.new_zeros(len(chunk), num_clusters).scatter_(1, own.unsqueeze(1), 1.0)
        sums += members.T @ chunk
        counts += members.sum(0)
    return sums, counts


def _reseated(
    centroids: Float[Tensor, "K F"],
    embeddings: Float[Tensor, "N F"],
    assignment: Int64[Tensor, " N"],
    cosine: Float[Tensor, " N"],
    counts: Float[Tensor, " K"],
) -> Float[Tensor, "K F"]:
    """Move centroids without images to those images that fit their own centroid the least."""
    empty = (counts == 0).nonzero().squeeze(1)
    if len(empty) == 0:
        return centroids
    is_alone = counts[assignment] == 1
    worst = cosine.masked_fill(is_alone, float("inf")).argsort(stable=True)[: len(empty)]
    return centroids.index_copy(0, empty, embeddings[worst])
