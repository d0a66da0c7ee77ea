"""DeepCluster v2: name the cluster that an image's embedding fell into in the last epoch.

Letters used in shapes:
    B: images of this process.
    N: images that are trained on.
    H: clusterings.
    K: prototypes of a clustering.
    F: features of an embedding.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from lvmmed.augment.views import Views
from lvmmed.config import MethodConfig
from lvmmed.distributed import all_gather
from lvmmed.models.backbones import Backbone, Features
from lvmmed.models.heads import Projector
from lvmmed.ssl.clustering import spherical_kmeans
from lvmmed.ssl.figures import TIE_COSINE, partner_accuracy
from lvmmed.ssl.method import LossOutput, Method, MethodContext, RunFacts
from lvmmed.types import InputError


class DeepclusterConfig(MethodConfig):
    """Fields of DeepCluster v2."""

    name: Literal["deepcluster"] = "deepcluster"
    """Row of the table of methods."""
    num_prototypes: tuple[Annotated[int, Field(ge=2)], ...] = Field((300, 300, 300), min_length=1)
    """Clusters of each clustering (paper three times 3000, of 1.3 million images)."""
    temperature: float = Field(0.1, gt=0)
    """Divides cosines with prototypes (Caron et al. 2020)."""
    recluster_every: int = Field(1, ge=1)
    """Epochs between two clusterings (Caron et al. 2020: 1)."""
    kmeans_iterations: int = Field(10, ge=1)
    """Moves of the centroids in a clustering."""
    projection_width: int = Field(128, ge=1)
    """Length of an embedding (Caron et al. 2020)."""
    projector_hidden_layers: int = Field(1, ge=0)
    """Hidden layers, each linear, batch normalisation, relu; 1 makes a two-layer MLP."""
    projector_hidden_width: int = Field(2048, ge=1)
    """Width of the hidden layers (Caron et al. 2020)."""


def check_deepcluster(config: DeepclusterConfig, facts: RunFacts) -> None:
    """Refuse more prototypes than there are images to cluster.

    Args:
        config: of the method.
        facts: of the run.

    Raises:
        InputError: fewer images than prototypes of one clustering.
    """
    most = max(config.num_prototypes)
    if most > facts.num_images:
        raise InputError(
            f"method.num_prototypes: got {most}, need at most the {facts.num_images} images that "
            f"are trained on; lower it with --set method.num_prototypes=[{facts.num_images // 4}] "
            "or less, or prepare more images"
        )


def cluster_loss(
    embeddings: Sequence[Float[Tensor, "B F"]],
    centroids: Sequence[Float[Tensor, "_ F"]],
    assignments: Int64[Tensor, "H B"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """Name the cluster of each image from each of its views.

    Mean over clusterings h, views v and images of -log softmax(z_v . C_h / t)[a_h], with the
    embedding z, centroids C and the image's cluster a.

    Args:
        embeddings: of each view; unit vectors.
        centroids: of each clustering; unit vectors, in numbers of their own.
        assignments: cluster of each image in each clustering.
        temperature: t above.

    Returns:
        A number; log K when all centroids are alike.

    Source:
        Caron et al. 2020 (SwAV), appendix on DeepCluster-v2: centroids as prototypes, several
        clusterings at once.
    """
    terms = [
        functional.cross_entropy(one @ prototypes.T / temperature, clusters)
        for prototypes, clusters in zip(centroids, assignments, strict=True)
        for one in embeddings
    ]
    return torch.stack(terms).mean()


class Deepcluster(Method):
    """Cluster all images once an epoch, and learn to name the cluster of each.

    Embeddings of every image wait in a memory. After each epoch they are clustered by spherical
    k-means several times; until the next clustering every view of an image, small crops too, has
    to be nearest to the centroid of the image's cluster.

    Differs from the paper in: before the first step all images are embedded once, so that the first
    clusters are of images; clusterings differ by their start and by the view (first and second in
    turn) whose embeddings they group; an empty cluster moves to an image that fits badly; an epoch
    is rounded up to whole steps; batch normalisation of the projector sees one view at a time; only
    full views move the encoder's running statistics. An image that an epoch leaves out keeps its
    embedding.
    """

    memory: Float[Tensor, "2 N F"]
    is_remembered: Bool[Tensor, " N"]
    assignments: Int64[Tensor, "H N"]
    seed: Int64[Tensor, ""]

    def __init__(self, config: DeepclusterConfig, context: MethodContext) -> None:
        super().__init__()
        self.config = config
        self.steps_between = config.recluster_every * context.facts.steps_per_epoch
        generator = context.generator or torch.Generator().manual_seed(0)
        self.projector = Projector(
            context.backbone.width,
            config.projection_width,
            num_hidden=config.projector_hidden_layers,
            hidden_width=config.projector_hidden_width,
            generator=generator,
        )
        num, width = context.facts.num_images, config.projection_width
        self.register_buffer("memory", torch.zeros(2, num, width))
        self.register_buffer("is_remembered", torch.zeros(num, dtype=torch.bool))
        heads = len(config.num_prototypes)
        self.register_buffer("assignments", torch.zeros(heads, num, dtype=torch.long))
        for head, num_prototypes in enumerate(config.num_prototypes):
            self.register_buffer(f"centroids_{head}", torch.zeros(num_prototypes, width))
        self.register_buffer("seed", torch.randint(2**62, (), generator=generator))
        self._new: tuple[Tensor, Tensor] | None = None

    def training_loss(
        self,
        views: list[Views],
        features: list[Features],
        *,
        step: int,  # noqa: ARG002
        generator: torch.Generator,  # noqa: ARG002
    ) -> LossOutput:
        """Name clusters; the memory takes up the step in `after_step` only.

        Args:
            views: two full views, then small crops; the first one's `image_index` is used.
            features: of each view.
            step: not used.
            generator: not used, nothing is random.

        Returns:
            The cross-entropy of cluster names.
        """
        index = _image_index(views)
        embeddings = self._embed(features)
        with torch.autocast(self.memory.device.type, enabled=False):
            loss = cluster_loss(
                embeddings,
                self._centroids(),
                self.assignments[:, index],
                temperature=self.config.temperature,
            )
        self._new = index, torch.stack([one.detach() for one in embeddings[:2]], dim=1)
        return LossOutput(total=loss, terms={"cluster_loss": loss.detach()})

    @torch.no_grad()
    def diagnostics(
        self,
        views: list[Views],
        features: list[Features],
        *,
        step: int,  # noqa: ARG002
        generator: torch.Generator,  # noqa: ARG002
    ) -> dict[str, float]:
        """Judge the embeddings of the batch and the present clusters.

        Args:
            views: as for `training_loss`.
            features: as for `training_loss`.
            step: not used.
            generator: not used.

        Returns:
            partner_accuracy: share of images whose other view is the nearest of all.
            cluster_accuracy: share of images nearest to the centroid of their cluster, mean over
                clusterings; a tie is wrong.
            clusters_used: share of clusters that hold an image.
            cluster_balance: entropy of cluster sizes, 1 for equal sizes to 0 for all in one.
        """
        index = _image_index(views)
        with torch.autocast(self.memory.device.type, enabled=False):
            first, second = self._embed(features[:2])
            accuracy = partner_accuracy(first, second)
            named = [
                _named_right(first @ centroids.T, clusters[index])
                for centroids, clusters in zip(self._centroids(), self.assignments, strict=True)
            ]
        shares = [
            clusters.bincount(minlength=num) / len(clusters)
            for num, clusters in zip(self.config.num_prototypes, self.assignments, strict=True)
        ]
        balance = [torch.special.entr(one).sum() / math.log(len(one)) for one in shares]
        return {
            "partner_accuracy": float(accuracy),
            "cluster_accuracy": float(torch.stack(named).mean()),
            "clusters_used": float((torch.cat(shares) > 0).float().mean()),
            "cluster_balance": float(torch.stack(balance).mean()),
        }

    @torch.no_grad()
    def remember(self, views: list[Views], features: list[Features]) -> None:
        """Take in images before the first step; the first clustering follows when all are in.

        Args:
            views: two views of some images, with their `image_index`.
            features: of both views.
        """
        embeddings = torch.stack(self._embed(features[:2]), dim=1)
        self._memorise(_image_index(views), embeddings)
        if bool(self.is_remembered.all()):
            self._cluster(0)

    @torch.no_grad()
    def after_step(self, step: int, backbone: Backbone) -> None:  # noqa: ARG002
        """Take up the step's embeddings, and cluster all images when an epoch is over.

        Args:
            step: number of the step that was taken.
            backbone: not used.
        """
        if self._new is not None:
            self._memorise(*self._new)
            self._new = None
        if (step + 1) % self.steps_between == 0:
            self._cluster((step + 1) // self.steps_between)

    def _embed(self, features: list[Features]) -> list[Float[Tensor, "B F"]]:
        with torch.autocast(self.memory.device.type, enabled=False):
            return [
                functional.normalize(self.projector(one.pooled.float()), dim=1) for one in features
            ]

    def _centroids(self) -> list[Float[Tensor, "_ F"]]:
        heads = range(len(self.config.num_prototypes))
        return [self.get_buffer(f"centroids_{head}") for head in heads]

    def _memorise(self, index: Int64[Tensor, " B"], embeddings: Float[Tensor, "B 2 F"]) -> None:
        """Write the rows of all processes; of an image that comes twice the last one counts."""
        index = all_gather(index.double()).long()
        embeddings = all_gather(embeddings)
        place = torch.arange(len(index), device=index.device)
        last = torch.zeros_like(self.assignments[0]).scatter_reduce(0, index, place, "amax")
        self.memory[:, index] = embeddings[last[index]].transpose(0, 1)
        self.is_remembered[index] = True

    def _cluster(self, number: int) -> None:
        """Cluster the memory; the same on every process, and after a resume."""
        num_heads = len(self.config.num_prototypes)
        for head, centroids in enumerate(self._centroids()):
            seed = int(self.seed) + number * num_heads + head
            clustering = spherical_kmeans(
                self.memory[head % 2],
                len(centroids),
                num_iterations=self.config.kmeans_iterations,
                generator=torch.Generator().manual_seed(seed),
            )
            centroids.copy_(clustering.centroids)
            self.assignments[head] = clustering.assignment


def _image_index(views: list[Views]) -> Int64[Tensor, " B"]:
    index = views[0].image_index
    if index is None:
        raise ValueError("views[0].image_index: got None, need the number of each image")
    return index


def _named_right(scores: Float[Tensor, "B K"], clusters: Int64[Tensor, " B"]) -> Float[Tensor, ""]:
    """Share of images whose own cluster scores higher than all others."""
    place = clusters.unsqueeze(1)
    own, others = scores.gather(1, place), scores.scatter(1, place, float("-inf"))
    return (own - TIE_COSINE > others).all(1).to(scores.dtype).mean()
