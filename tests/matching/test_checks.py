import pytest
import torch

from lvmmed.matching.checks import check_shapes, check_values
from lvmmed.matching.graph import Problem
from lvmmed.types import InputError

GOOD = {
    "vertex_affinity": torch.zeros(2, 3, 3),
    "edge_affinity": torch.zeros(2, 6, 6),
    "neighbors_s": torch.tensor([[1, 2], [0, 2], [0, 1]]).expand(2, 3, 2),
    "neighbors_t": torch.tensor([[1, 2], [0, 2], [0, 1]]).expand(2, 3, 2),
    "mask": torch.ones(2, 3, dtype=torch.bool),
}


def test_a_good_problem_passes():
    check_shapes(**GOOD)
    check_values(Problem(**GOOD))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "vertex_affinity",
            torch.zeros(3, 3),
            r"vertex_affinity: shape \(3, 3\), need \[B, N, N\]",
        ),
        ("vertex_affinity", torch.zeros(2, 3, 4), "vertex_affinity: shape"),
        ("vertex_affinity", torch.zeros(2, 0, 0), "vertex_affinity: .* N at least 1"),
        ("vertex_affinity", torch.zeros(2, 3, 3).long(), "vertex_affinity: dtype torch.int64"),
        ("edge_affinity", torch.zeros(2, 6, 5), r"edge_affinity: shape .* need \[2, 6, 6\]"),
        ("edge_affinity", torch.zeros(2, 6, 6).int(), "edge_affinity: dtype torch.int32"),
        ("neighbors_s", torch.zeros(2, 4, 2).long(), r"neighbors_s: shape .* need \[2, 3, k\]"),
        ("neighbors_s", torch.zeros(2, 3, 2), "neighbors_s: dtype torch.float32"),
        ("neighbors_t", torch.zeros(2, 3, 1).long(), r"neighbors_t: shape .* need \[2, 3, 2\]"),
        ("mask", torch.ones(2, 4, dtype=torch.bool), r"mask: shape .* need \[2, 3\]"),
        ("mask", torch.ones(2, 3), "mask: dtype torch.float32"),
    ],
)
def test_each_wrong_shape_or_type_is_named(name, value, message):
    with pytest.raises(InputError, match=message):
        check_shapes(**{**GOOD, name: value})


def test_what_stands_at_padding_is_not_looked_at():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    vertex, edge = GOOD["vertex_affinity"].clone(), GOOD["edge_affinity"].clone()
    vertex[0, 2] = torch.nan
    edge[0, 4:] = torch.nan
    check_values(
        Problem(**{**GOOD, "vertex_affinity": vertex, "edge_affinity": edge, "mask": mask})
    )
    with pytest.raises(InputError, match=r"vertex_affinity: nan at \[0, 2, 0\]"):
        check_values(Problem(**{**GOOD, "vertex_affinity": vertex}))
