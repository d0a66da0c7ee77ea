"""DINO: give small parts of an image the teacher's opinion of the large parts.

Letters used in shapes:
    V: views of an image, the two full ones first.
    T: views that the teacher sees, 2.
    B: images of this process.
    D: features of the encoder.
    K: prototypes.
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from lvmmed.augment.views import Views
from lvmmed.config import MethodConfig
from lvmmed.distributed import all_reduce_mean
from lvmmed.models.backbones import Backbone, Features
from lvmmed.models.initialization import seeded
from lvmmed.ssl.figures import partner_accuracy, teacher_agreement
from lvmmed.ssl.method import LossOutput, Method, MethodContext
from lvmmed.ssl.momentum import Teacher, cosine_momentum


class DinoConfig(MethodConfig):
    """Fields of DINO."""

    name: Literal["dino"] = "dino"
    """Row of the table of methods."""
    num_prototypes: int = Field(4096, ge=2)
    """Prototypes that images are spread over (paper 65536, for 1.3 million images)."""
    student_temperature: float = Field(0.1, gt=0)
    """Divides the student's cosines (Caron et al. 2021)."""
    teacher_temperature: float = Field(0.07, gt=0)
    """Divides the teacher's centred cosines after the warm-up (Caron et al. 2021)."""
    teacher_temperature_start: float = Field(0.04, gt=0)
    """The same at step 0, sharper (Caron et al. 2021)."""
    teacher_warmup_frac: float = Field(0.1, ge=0, le=1)
    """Share of the run over which the teacher's temperature changes (paper 30 of 300 epochs)."""
    momentum: float = Field(0.996, ge=0, le=1)
    """Of the teacher at step 0; rises to 1 (Caron et al. 2021)."""
    center_momentum: float = Field(0.9, ge=0, le=1)
    """Of the moving average of the teacher's outputs that centres them (Caron et al. 2021)."""
    frozen_frac: float = Field(0.01, ge=0, le=1)
    """Share of the run in which prototypes stay as they are (paper the first epoch of 100)."""
    hidden_width: int = Field(2048, ge=1)
    """Width of the head's two hidden layers (Caron et al. 2021)."""
    bottleneck_width: int = Field(256, ge=1)
    """Length of the vectors that are compared with prototypes (Caron et al. 2021)."""


class PrototypeHead(nn.Module):
    """Cosines of an image with prototypes, by way of a three-layer MLP.

    The prototypes are a linear layer whose rows are scaled to length 1: weight normalisation with
    a frozen norm.

    Args:
        config: widths and number of prototypes.
        width: D, features in.
        generator: source of the weights.
    """

    def __init__(
        self, config: DinoConfig, width: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        hidden, bottleneck = config.hidden_width, config.bottleneck_width
        with seeded(generator):
            self.layers = nn.Sequential(
                nn.Linear(width, hidden),
                nn.GELU(),
                nn.Linear(hidden, hidden),
                nn.GELU(),
                nn.Linear(hidden, bottleneck),
            )
            self.prototypes = nn.Linear(bottleneck, config.num_prototypes, bias=False)
            for layer in self.layers:
                if isinstance(layer, nn.Linear):  # as the hidden layers of a transformer
                    nn.init.trunc_normal_(layer.weight, std=0.02)
                    nn.init.zeros_(layer.bias)

    def forward(
        self, features: Float[Tensor, "B D"], *, is_frozen: bool = False
    ) -> Float[Tensor, "B K"]:
        """Compare images with prototypes.

        Args:
            features: pooled, a row an image.
            is_frozen: let no gradient reach the prototypes.

        Returns:
            Cosines.
        """
        prototypes = self.prototypes.weight
        prototypes = prototypes.detach() if is_frozen else prototypes
        unit = functional.normalize(self.layers(features), dim=1)
        return unit @ functional.normalize(prototypes, dim=1).T


def cross_view_entropy(
    student: Float[Tensor, "V B K"], teacher: Float[Tensor, "T B K"]
) -> Float[Tensor, ""]:
    """Cross-entropy of the student's opinion of a view and the teacher's of another one.

    loss = mean over t, v != t and images b of -sum over k of teacher[t, b, k] * student[v, b, k].

    Args:
        student: log-probabilities of all views.
        teacher: probabilities of the first T views.

    Returns:
        Mean in nats.

    Source:
        Caron et al. 2021, equation 3 and algorithm 1.
    """
    num_teacher, num_images = teacher.shape[:2]
    pairs = -torch.einsum("tbk,vbk->tv", teacher, student) / num_images
    same = torch.eye(*pairs.shape, dtype=torch.bool, device=pairs.device)
    return pairs.masked_fill(same, 0.0).sum() / (pairs.numel() - num_teacher)


class Dino(Method):
    """Learn from a teacher that sees an image in full, without labels.

    Teacher and student sort images onto prototypes; the student, which sees small crops as well,
    is trained to agree with the teacher's opinion of another view. The teacher follows the student
    by a moving average; its opinions are centred, so that no prototype takes all images, and
    sharpened, so that they do not spread evenly.

    Differs from the paper (Caron et al. 2021) in: the warm-up of the teacher's temperature and the
    freezing of prototypes are shares of the run; views of one size pass the encoder in one call,
    and only full ones move its running statistics; both full views come from one distribution and
    are not solarised (the paper takes those of BYOL, of different chances of blur and
    solarisation); weight decay is constant; the encoder that is kept is the student's (the paper
    keeps the teacher's).
    """

    center: Float[Tensor, " K"]

    def __init__(self, config: DinoConfig, context: MethodContext) -> None:
        super().__init__()
        self.config = config
        self.num_steps = context.facts.num_steps
        self.head = PrototypeHead(config, context.backbone.width, generator=context.generator)
        self.teacher = Teacher(context.backbone, self.head)
        self.register_buffer("center", torch.zeros(config.num_prototypes))
        self._new_center: Tensor | None = None

    def training_loss(
        self,
        views: list[Views],
        features: list[Features],
        *,
        step: int,
        generator: torch.Generator,  # noqa: ARG002
    ) -> LossOutput:
        """Teach every view the teacher's opinion of the first two; the centre moves afterwards.

        Args:
            views: two full views, which the teacher encodes, then small crops.
            features: of all views.
            step: number of the step; sets temperature and freezing.
            generator: not used, nothing is random.

        Returns:
            The cross-entropy over all pairs of different views.
        """
        with torch.autocast(self.center.device.type, enabled=False):
            is_frozen = step < round(self.config.frozen_frac * self.num_steps)
            student = self._student(features, is_frozen=is_frozen)
            outputs = torch.stack(self.teacher.project(views[:2]))
            teacher = self._opinions(outputs, step=step)
            loss = cross_view_entropy(
                functional.log_softmax(student / self.config.student_temperature, dim=2), teacher
            )
        self._new_center = outputs.mean((0, 1))
        return LossOutput(total=loss, terms={"cross_entropy": loss.detach()})

    @torch.no_grad()
    def diagnostics(
        self,
        views: list[Views],
        features: list[Features],
        *,
        step: int,
        generator: torch.Generator,  # noqa: ARG002
    ) -> dict[str, float]:
        """Judge how images are spread over prototypes, and whether they are told apart.

        Args:
            views: as for `training_loss`.
            features: as for `training_loss`.
            step: number of the step.
            generator: not used.

        Returns:
            partner_accuracy: share of images whose student output for the first view is nearer to
                the teacher's for their second than to that of any other image of the batch.
            teacher_agreement: mean cosine of the student's and the teacher's outputs for different
                full views, not centred; near 1 with a partner_accuracy at chance is collapse.
            prototype_agreement: share of images whose strongest prototype is the student's in the
                first view and the teacher's in the second.
            teacher_entropy: of the teacher's opinions in nats; 0 names one prototype, log K none.
            prototypes_used: exp of the entropy of the mean opinion, 1 to K.
            teacher_momentum: in force at this step.
        """
        with torch.autocast(self.center.device.type, enabled=False):
            students = self._student(features[:2], is_frozen=True)
            outputs = torch.stack(self.teacher.project(views[:2]))
            opinions = self._opinions(outputs, step=step)
        student, teacher = students[0] - self.center, outputs[1] - self.center
        same_prototype = (student.argmax(1) == teacher.argmax(1)).float().mean()
        usage = _entropy(all_reduce_mean(opinions.mean((0, 1))))
        return {
            "partner_accuracy": float(partner_accuracy(student, teacher)),
            "teacher_agreement": float(teacher_agreement(list(students), list(outputs.flip(0)))),
            "prototype_agreement": float(same_prototype),
            "teacher_entropy": float(_entropy(opinions).mean()),
            "prototypes_used": float(usage.exp()),
            "teacher_momentum": self._momentum_at(step),
        }

    @torch.no_grad()
    def after_step(self, step: int, backbone: Backbone) -> None:
        """Let the teacher follow, and move the centre by the step's outputs of all processes.

        Args:
            step: number of the step that was taken.
            backbone: the encoder after it.
        """
        self.teacher.follow(backbone, self.head, momentum=self._momentum_at(step))
        if self._new_center is not None:
            self.center.lerp_(all_reduce_mean(self._new_center), 1 - self.config.center_momentum)
            self._new_center = None

    def _student(self, features: list[Features], *, is_frozen: bool) -> Float[Tensor, "V B K"]:
        pooled = torch.cat([one.pooled.float() for one in features])
        cosines: Tensor = self.head(pooled, is_frozen=is_frozen)
        return cosines.reshape(len(features), -1, cosines.shape[1])

    def _opinions(self, outputs: Float[Tensor, "T B K"], *, step: int) -> Float[Tensor, "T B K"]:
        temperature = teacher_temperature_at(step, num_steps=self.num_steps, config=self.config)
        return torch.softmax((outputs - self.center) / temperature, dim=2)

    def _momentum_at(self, step: int) -> float:
        return cosine_momentum(step, num_steps=self.num_steps, start=self.config.momentum)


def teacher_temperature_at(step: int, *, num_steps: int, config: DinoConfig) -> float:
    """Temperature of the teacher: linear over the warm-up, then constant.

    Args:
        step: number of the step, from 0.
        num_steps: length of the run.
        config: temperatures at the start and after the warm-up, and its share of the run.

    Returns:
        A positive number.
    """
    num_warmup = round(config.teacher_warmup_frac * num_steps)
    done = min(1.0, step / num_warmup) if num_warmup else 1.0
    start = config.teacher_temperature_start
    return start + (config.teacher_temperature - start) * done


def _entropy(probabilities: Float[Tensor, "*rest K"]) -> Float[Tensor, "*rest"]:
    return -torch.xlogy(probabilities, probabilities).sum(-1)
