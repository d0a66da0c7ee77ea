"""Images of the page: what is decoded from the files equals what was put there."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from reference.run_folders import (
    make_images,
    make_neighbors,
    make_samples,
    write_judging,
    write_pretrain,
)

from lvmmed.report.pictures import (
    data_uri,
    matched_graphs_of,
    read_graph,
    read_neighbours,
    read_views,
    spread,
)
from lvmmed.report.run import read_runs
from lvmmed.types import InputError


def _pretrained(tmp_path, samples):
    return read_runs([write_pretrain(tmp_path / "a", samples=samples)])[0]


def _decode(uri):
    head, _, body = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(body)))


def test_an_image_survives_as_a_data_uri():
    ramp = np.linspace(0, 255, 24).astype(np.uint8)
    pixels = np.stack([np.tile(ramp, (24, 1))] * 2 + [np.full((24, 24), 128, np.uint8)], axis=2)
    image = _decode(data_uri(pixels))
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - pixels).mean() < 3


def test_grey_images_are_stored_as_grey_and_large_ones_shrunk():
    image = _decode(data_uri(np.full((300, 200, 3), 90, np.uint8), longest_px=96))
    assert (image.mode, image.size) == ("L", (64, 96))


def test_views_keep_their_boxes_and_flips(tmp_path):
    first, second = read_views(_pretrained(tmp_path, make_samples()))
    box = first.box_s  # corners (0.25, 0.125) and (0.75, 0.5)
    assert (box.x, box.y, box.width, box.height) == (0.25, 0.125, 0.5, 0.375)
    assert (first.flipped_s, first.flipped_t) == (True, False)
    assert (second.box_t.width, second.box_t.height) == (1, 1)
    assert len({first.original, first.view_s, first.view_t}) == 3


def test_a_matching_is_told_right_corrected_wrong_and_spoilt(tmp_path):
    samples = make_samples(permutation=[0, 1, 3, 2, 5, 4], first_order=[0, 2, 2, 1, 5, 4])
    graph = read_graph(_pretrained(tmp_path, samples))
    assert graph is not None
    # node 0 right both ways; 1 right, was 2; 2 wrong, was right; 3 wrong twice; 4 and 5 wrong
    kinds = [pair.kind for pair in graph.pairs]
    assert kinds == ["right", "corrected", "spoilt", "wrong", "wrong", "wrong"]
    assert graph.count("right", "corrected") == 2
    assert len(graph.nodes_s) == len(graph.nodes_t) == 6


def test_runs_without_samples_or_graph_show_none(tmp_path):
    run = read_runs([write_pretrain(tmp_path / "none")])[0]
    assert (read_views(run), read_graph(run), read_neighbours(run)) == ((), None, ())
    assert read_graph(_pretrained(tmp_path, make_samples())) is None


def test_neighbours_are_right_when_they_have_the_querys_label(tmp_path):
    arrays = make_neighbors([["cyst", "cyst", "tumour"], ["tumour", "tumour", "tumour"]])
    run = read_runs([write_judging(tmp_path / "a", metrics={}, neighbors=arrays)])[0]
    first, second = read_neighbours(run)
    assert [n.is_right for n in first.neighbours] == [True, False]
    assert [n.is_right for n in second.neighbours] == [True, True]
    assert (first.label, first.neighbours[1].label) == ("cyst", "tumour")
    assert first.neighbours[0].similarity == 0.75


def test_queries_are_spread_over_the_file():
    assert spread(11, 3) == [0, 5, 10]
    assert spread(2, 5) == [0, 1]
    assert spread(0, 5) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"view_s": None}, "lacks the array 'view_s'"),
        ({"box_s": np.zeros((1, 4), np.float32)}, "box_s has 1 entries, originals has 2"),
        ({"view_t": np.zeros((2, 8, 8), np.uint8)}, "view_t is uint8"),
        ({"originals": np.zeros((2, 8, 8, 3))}, "originals is float64"),
        ({"box_t": np.zeros((2, 3), np.float32)}, "box_t has shape"),
    ],
)
def test_samples_that_do_not_fit_are_refused(tmp_path, change, message):
    samples = {**make_samples(), **change}
    samples = {name: array for name, array in samples.items() if array is not None}
    run = _pretrained(tmp_path, samples)
    with pytest.raises(InputError, match=message) as caught:
        read_views(run)
    assert "samples.npz" in str(caught.value)


def test_a_matching_that_leaves_its_graph_is_refused(tmp_path):
    run = _pretrained(tmp_path, make_samples(permutation=[0, 2], first_order=[0, 1]))
    with pytest.raises(InputError, match="permutation points outside its graph"):
        read_graph(run)


def _with_edges(samples, neighbors_s, neighbors_t, suffix=""):
    edges = {"neighbors_s": neighbors_s, "neighbors_t": neighbors_t}
    return {**samples, **{name + suffix: np.array(rows) for name, rows in edges.items()}}


def test_accuracies_count_nodes_with_and_without_edges(tmp_path):
    samples = make_samples(permutation=[0, 1, 3, 2], first_order=[0, 2, 2, 1])
    graph = read_graph(_pretrained(tmp_path, samples))
    # with edges 0 and 1 are right, without them 0 and 2
    assert (graph.accuracy, graph.accuracy_first_order) == (0.5, 0.5)
    assert (graph.edges_s, graph.carried_edges) == (frozenset(), frozenset())


def test_edges_that_the_matching_carries_over_are_told(tmp_path):
    samples = make_samples(permutation=[1, 0, 2], first_order=[0, 1, 2])
    samples = _with_edges(samples, [[1], [2], [-1]], [[1], [0], [1]])
    (graph,) = matched_graphs_of(samples, tmp_path)
    assert graph.edges_s == {(0, 1), (1, 2)}
    assert graph.edges_t == {(0, 1), (1, 0), (2, 1)}
    # 0 -> 1 becomes 1 -> 0, which view t has; 1 -> 2 becomes 0 -> 2, which it has not
    assert graph.carried_edges == {(0, 1)}


def test_further_graphs_are_read_in_order_and_old_files_have_one(tmp_path):
    first = make_samples(permutation=[0, 1, 2], first_order=[0, 1, 2])
    second = make_samples(permutation=[1, 0], first_order=[0, 1])
    graph_names = ("graph_view_s", "graph_view_t", "permutation", "permutation_first_order")
    both = {**first, **{f"{name}_1": second[name] for name in graph_names}}
    assert [len(graph.pairs) for graph in matched_graphs_of(first, tmp_path)] == [3]
    assert [len(graph.pairs) for graph in matched_graphs_of(both, tmp_path)] == [3, 2]
    assert matched_graphs_of(make_samples(), tmp_path) == ()
    del both["graph_view_t_1"]
    with pytest.raises(InputError, match="lacks the array 'graph_view_t_1'"):
        matched_graphs_of(both, tmp_path / "samples.npz")


@pytest.mark.parametrize("rows", [[[1], [2]], [[1], [2], [3]], [[1], [2], [-2]], [1, 2, 0]])
def test_edges_that_leave_their_graph_are_refused(tmp_path, rows):
    samples = make_samples(permutation=[0, 1, 2], first_order=[0, 1, 2])
    with pytest.raises(InputError, match="neighbors_t has shape"):
        matched_graphs_of(_with_edges(samples, [[1], [2], [0]], rows), tmp_path)


def test_neighbours_that_do_not_fit_are_refused(tmp_path):
    arrays = make_neighbors([["cyst", "cyst", "tumour"]]) | {"neighbors": make_images(1)}
    run = read_runs([write_judging(tmp_path / "a", metrics={}, neighbors=arrays)])[0]
    with pytest.raises(InputError, match="neighbors has shape"):
        read_neighbours(run)
