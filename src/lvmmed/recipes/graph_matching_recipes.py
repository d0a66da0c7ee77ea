"""The recipes of LVM-Med: as it learns, and as it is printed."""

from lvmmed.recipes.recipe import Recipe
from lvmmed.ssl.lvm_med_config import PAPER_LITERAL


def lvm_med() -> Recipe:
    """LVM-Med as it learns: the default.

    Second-order graph matching with centred projections, a residual around message passing, edge
    terms scaled by 1/k, a margin against the true match, small noise, four ways of cutting a batch
    into graphs, and the whole batch matched beside them (fields of `method`, each with its reason).
    ResNet-50 from scratch at 224 px, 512 images a step, 100 passes over the store, AdamW with 10 %
    warm-up and a cosine. Meant for one GPU with 80 GB: the 1024 views of a step keep 45 GB for the
    backward pass in bf16 (counted, not measured); with 40 GB take train.batch_size=256. On a
    processor take model.backbone=resnet18, views.size=64 and train.batch_size=128 (about a step a
    second on two cores).
    """
    return Recipe(
        name="lvm-med",
        summary="second-order graph matching, with the changes that make it learn (default)",
        values={
            "model": {"backbone": "resnet50"},
            "method": {"name": "lvm-med"},
            "train": {
                "batch_size": 512,
                "epochs": 100,
                "optimizer": "adamw",
                "learning_rate": 1e-3,
                "weight_decay": 1e-4,
                "schedule": "cosine",
                "warmup_frac": 0.1,
            },
        },
    )


def lvm_med_regions() -> Recipe:
    """LVM-Med with regions matched over the batch, in place of the local affinity.

    As `lvm-med`, but what is where in an image is learnt by matching regions of one view with those
    of the other over all images of the batch (`method.region_weight`), and no longer by the local
    affinity between two nodes. In the trials of docs/results.md it finds the slice of a volume from
    another view more often; in short runs the score of probes does not tell the two apart, after
    1000 steps it is 1.2 points ahead. Each step solves eight assignments more on the processor
    (`method.region_pairs`), which a GPU waits for.
    """
    recipe = lvm_med()
    return Recipe(
        name="lvm-med-regions",
        summary="lvm-med with regions matched over the batch in place of the local affinity",
        values={
            **recipe.values,
            "method": {"name": "lvm-med", "alpha": 1.0, "region_weight": 1.0},
        },
    )


def paper_literal() -> Recipe:
    """LVM-Med as printed, for study and comparison; not tuned, matching stays near chance.

    Noise of scale 1, lambda 80, edges of weight 1, plain graph convolutions, no centring; Adam
    at 2e-3 without weight decay or warm-up, halved four times; 3200 images a step, 100 passes.
    Where the paper is silent: halved at 20, 40, 60 and 80 % of the steps, crop scale as for all
    methods here, jitter as in the authors' released scripts.

    Differs from the paper in: starts from random weights, as nothing is downloaded unasked (the
    paper's start is --set model.weights=timm:resnet50); the local affinity is the mean of both
    branches and directions, as appendix A has it, where equation 3 adds them up; a short last
    graph is matched too.
    """
    return Recipe(
        name="paper-literal",
        summary="LVM-Med as the paper prints it, for comparison; matching stays near chance",
        values={
            "views": {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2},
            "model": {"backbone": "resnet50"},
            "method": {"name": "lvm-med", **PAPER_LITERAL},
            "train": {
                "batch_size": 3200,
                "epochs": 100,
                "optimizer": "adam",
                "learning_rate": 2e-3,
                "weight_decay": 0.0,
                "schedule": "halving",
                "warmup_frac": 0.0,
            },
        },
    )
