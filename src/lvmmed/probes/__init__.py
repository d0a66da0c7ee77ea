"""Probes of a frozen encoder: what can be read off its features by simple means.

Everything that is chosen (k, the strength of regularisation) is chosen on the validation split;
the probe that is tested is the one fitted on the training split alone, never on training and
validation together, so that numbers of different probes stay comparable.
"""

from lvmmed.probes.classification import (
    KNN_CHOICES,
    PROBES,
    REGULARISATION_CHOICES,
    Fitted,
    cosine_similarity,
    few_shot_subset,
    fit_knn,
    knn_probabilities,
    linear_probe,
    nearest,
)
from lvmmed.probes.encoding import encoded_batches, extract_features, refuse_broken
from lvmmed.probes.segmentation import (
    MAX_POSITIONS,
    DrawnPositions,
    MapProbe,
    cell_shares,
    draw_positions,
    fit_map_probes,
    predict_masks,
)

__all__ = [
    "KNN_CHOICES",
    "MAX_POSITIONS",
    "PROBES",
    "REGULARISATION_CHOICES",
    "DrawnPositions",
    "Fitted",
    "MapProbe",
    "cell_shares",
    "cosine_similarity",
    "draw_positions",
    "encoded_batches",
    "extract_features",
    "few_shot_subset",
    "fit_knn",
    "fit_map_probes",
    "knn_probabilities",
    "linear_probe",
    "nearest",
    "predict_masks",
    "refuse_broken",
]
