"""The table of self-supervised methods: one row a method."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lvmmed.config import MethodConfig
from lvmmed.ssl.advice import Advice
from lvmmed.ssl.barlow_twins import BarlowTwins, BarlowTwinsConfig
from lvmmed.ssl.byol import Byol, ByolConfig
from lvmmed.ssl.deepcluster import Deepcluster, DeepclusterConfig, check_deepcluster
from lvmmed.ssl.dino import Dino, DinoConfig
from lvmmed.ssl.lvm_med import LvmMed
from lvmmed.ssl.lvm_med_config import LvmMedConfig, check_lvm_med
from lvmmed.ssl.mae import Mae, MaeConfig, check_mae
from lvmmed.ssl.method import Method, MethodContext, RunFacts
from lvmmed.ssl.moco import Moco, MocoConfig, check_moco
from lvmmed.ssl.simclr import Simclr, SimclrConfig
from lvmmed.ssl.swav import Swav, SwavConfig, check_swav
from lvmmed.ssl.vicreg import Vicreg, VicregConfig
from lvmmed.ssl.vicregl import Vicregl, VicreglConfig, check_vicregl


def _nothing_to_check(config: Any, facts: RunFacts) -> None:
    """Accept every run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodRow:
    """What is needed to run a method.

    Attributes:
        config: class of its configuration.
        build: (configuration, context) -> the method on the CPU; heads are initialised from the
            context's generator.
        summary: one line for lists and help texts.
        source: paper it is written from.
        advice: what to do when a run of it goes wrong, for alarms.
        check: (configuration, facts of a run) -> refuses with an InputError, before anything
            loads, what the method cannot do, and names the remedy.
        takes_small_crops: whether it makes use of `views.small_crops`.
        needs_memory: whether it is shown all images once before the first step (`remember`).
    """

    config: type[MethodConfig]
    build: Callable[[Any, MethodContext], Method]
    summary: str
    source: str
    advice: Advice
    check: Callable[[Any, RunFacts], None] = _nothing_to_check
    takes_small_crops: bool = False
    needs_memory: bool = False


METHODS: dict[str, MethodRow] = {
    "lvm-med": MethodRow(
        config=LvmMedConfig,
        build=LvmMed,
        summary="second-order graph matching between two views of a batch",
        source="Nguyen et al. 2023, arXiv 2306.11925",
        advice=Advice(
            figure="matching_accuracy",
            collapse="lower train.learning_rate; projections that are centred "
            "(method.centering=true) and nodes that keep themselves (method.residual=true), as in "
            "the recipe lvm-med, hold images apart",
            chance="train longer; where method.centering, method.residual, method.margin or "
            "method.noise are not those of the recipe lvm-med, take its values",
        ),
        check=check_lvm_med,
        takes_small_crops=True,
    ),
    "simclr": MethodRow(
        config=SimclrConfig,
        build=Simclr,
        summary="contrast each view with all other images of the batch",
        source="Chen et al. 2020, arXiv 2002.05709",
        advice=Advice(
            figure="contrast_accuracy",
            collapse="lower train.learning_rate, or method.temperature, which spreads images",
            chance="train longer, raise train.learning_rate, or make views of an image share more "
            "(views.scale)",
        ),
    ),
    "moco": MethodRow(
        config=MocoConfig,
        build=Moco,
        summary="contrast a view with a queue of views from the last steps",
        source="He et al. 2019, arXiv 1911.05722; v2 Chen et al. 2020, arXiv 2003.04297",
        advice=Advice(
            collapse="lower train.learning_rate, or method.temperature, which spreads images",
            chance="for short runs lower method.momentum (0.99) and method.queue_length, whose "
            "keys are of an encoder of long ago; or train longer",
        ),
        check=check_moco,
    ),
    "byol": MethodRow(
        config=ByolConfig,
        build=Byol,
        summary="predict what a slow copy of the network makes of the other view",
        source="Grill et al. 2020, arXiv 2006.07733",
        advice=Advice(
            collapse="lower train.learning_rate; keep method.momentum at 0.9 or more, as a fast "
            "teacher lets both networks agree on a constant",
            chance="for short runs lower method.momentum (0.97), as the teacher is still near its "
            "start; or train longer",
        ),
    ),
    "barlow-twins": MethodRow(
        config=BarlowTwinsConfig,
        build=BarlowTwins,
        summary="make the cross-correlation of two views' features the identity matrix",
        source="Zbontar et al. 2021, arXiv 2103.03230",
        advice=Advice(
            collapse="lower train.learning_rate, or raise method.lambda_, which holds features "
            "apart",
            chance="train longer, raise train.learning_rate, or lower method.lambda_, so that the "
            "agreement of views counts for more",
        ),
    ),
    "vicreg": MethodRow(
        config=VicregConfig,
        build=Vicreg,
        summary="agree on features that each vary and do not vary together",
        source="Bardes et al. 2021, arXiv 2105.04906",
        advice=Advice(
            collapse="lower train.learning_rate, or raise method.variance_weight and "
            "method.covariance_weight",
            chance="train longer, or raise train.learning_rate or method.invariance_weight",
        ),
    ),
    "vicregl": MethodRow(
        config=VicreglConfig,
        build=Vicregl,
        summary="VICReg on views and on pairs of their regions, by place and by features",
        source="Bardes et al. 2022, arXiv 2210.01571",
        advice=Advice(
            collapse="lower train.learning_rate, or raise method.variance_weight and "
            "method.covariance_weight",
            chance="train longer, raise train.learning_rate or method.invariance_weight, or raise "
            "method.alpha, the weight of whole views",
        ),
        check=check_vicregl,
    ),
    "dino": MethodRow(
        config=DinoConfig,
        build=Dino,
        summary="agree with a slow copy on prototypes, across full views and small crops",
        source="Caron et al. 2021, arXiv 2104.14294",
        advice=Advice(
            collapse="lower train.learning_rate; keep method.teacher_temperature under "
            "method.student_temperature and method.center_momentum under 1",
            chance="for short runs lower method.momentum (0.97), as the teacher is still near its "
            "start, and method.teacher_temperature (0.04), as its opinions are too even to teach; "
            "or train longer",
        ),
        takes_small_crops=True,
    ),
    "swav": MethodRow(
        config=SwavConfig,
        build=Swav,
        summary="predict the balanced cluster assignment of one view from the others",
        source="Caron et al. 2020, arXiv 2006.09882",
        advice=Advice(
            collapse="lower train.learning_rate, or method.epsilon, which makes codes sharper",
            chance="take fewer method.num_prototypes, as few images stand behind each of many, or "
            "set a method.queue_length; or train longer",
        ),
        check=check_swav,
        takes_small_crops=True,
    ),
    "deepcluster": MethodRow(
        config=DeepclusterConfig,
        build=Deepcluster,
        summary="name the k-means cluster that an image fell into in the last epoch",
        source="Caron et al. 2020, arXiv 2006.09882 (DeepCluster-v2)",
        advice=Advice(
            collapse="lower train.learning_rate, or take fewer method.num_prototypes",
            chance="take fewer method.num_prototypes, or train for more epochs, as clusters are "
            "renewed once in method.recluster_every of them",
        ),
        check=check_deepcluster,
        takes_small_crops=True,
        needs_memory=True,
    ),
    "mae": MethodRow(
        config=MaeConfig,
        build=Mae,
        summary="draw the hidden patches of an image from a few visible ones",
        source="He et al. 2021, arXiv 2111.06377",
        advice=Advice(
            figure=None,
            collapse="a view of few patches leaves little to draw from: raise views.size, take a "
            "model.backbone of smaller patches or lower method.mask_ratio, and train longer; "
            "features of mae are judged after fine-tuning more than by a linear probe",
        ),
        check=check_mae,
    ),
}
"""Method name -> row; adding a method is one file and one row here."""
