"""Paths of a suite: whole, of a home, in the folder of data, beside the suite's file."""

from pathlib import Path

import pytest

from lvmmed.recipes.benchmark_places import Places, matches, source_paths, suite_folders
from lvmmed.recipes.benchmark_suite import Suite, SuiteInitialisation
from lvmmed.types import InputError


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Folder of data, folder of the suite's file, a home, the working folder."""
    for name in ("data/brain", "data/both", "file/chest", "file/both", "home/eye", "work"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("data/a1.csv", "data/a2.csv", "file/w.safetensors", "work/here.safetensors"):
        (tmp_path / name).touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.fixture
def places(tree):
    folders = suite_folders(tree / "data", tree / "file" / "suite.yaml")
    return Places(folders=folders, suite="mine", has_data=True)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("brain", "data/brain"),
        ("chest", "file/chest"),
        ("both", "data/both"),  # the folder that the user named wins
        ("~/eye", "home/eye"),
        ("{tree}/file/both", "file/both"),
    ],
)
def test_a_path_is_found_wherever_it_may_lie(places, tree, name, found):
    assert places.find(name.format(tree=tree), field="tasks.t.data") == tree / found


def test_a_file_named_from_its_own_folder_is_looked_for_there(tree, monkeypatch):
    monkeypatch.chdir(tree / "file")
    places = Places(folders=suite_folders(None, Path("s.yaml")), suite="mine", has_data=False)
    assert places.find("chest", field="f") == Path("chest")


def test_globs_are_found_in_the_same_places(places, tree):
    suite_paths = ["a*.csv", f"{tree}/data/a?.csv", "~/e*", "brain"]
    suite = _suite(pretrain_on=suite_paths)
    found = source_paths(suite, places)
    assert found == [
        f"{tree}/data/a*.csv",
        f"{tree}/data/a?.csv",
        f"{tree}/home/e*",
        f"{tree}/data/brain",
    ]
    assert [len(matches(source)) for source in found] == [2, 2, 1, 1]


@pytest.mark.parametrize(
    ("weights", "found"),
    [
        ("random", "random"),
        ("timm:resnet18", "timm:resnet18"),
        ("w.safetensors", "{tree}/file/w.safetensors"),
        ("here.safetensors", "here.safetensors"),  # in the working folder
        ("{tree}/file/w.safetensors", "{tree}/file/w.safetensors"),
    ],
)
def test_weights_are_looked_for_in_the_working_folder_too(places, tree, weights, found):
    start = SuiteInitialisation(name="s", backbone="b", weights=weights.format(tree=tree))
    assert places.find_weights(start) == found.format(tree=tree)


def _suite(**changes):
    values = {
        "name": "mine",
        "summary": "for tests",
        "pretrain_on": ["brain"],
        "methods": [{"name": "simclr", "recipe": "simclr"}],
        "initialisations": [{"name": "s", "backbone": "b"}],
        "tasks": [{"name": "t", "data": "brain", "metrics": ["linear.accuracy"]}],
    }
    return Suite.model_validate({**values, **changes})


def test_what_is_nowhere_is_answered_by_where_it_was_looked_for(places, tree):
    data, file = tree / "data", tree / "file"
    with pytest.raises(InputError) as error:
        places.find("lost", field="tasks.t.data")
    assert str(error.value) == (
        f"tasks.t.data: no lost in {data} nor in {file}; put it there, or write its whole path"
    )
    with pytest.raises(InputError, match=rf"^pretrain_on: no x\*\.csv in {data} nor in {file}; "):
        places.find_source("x*.csv", field="pretrain_on")
    with pytest.raises(InputError, match=r"^f: no /lost/brain; check the path$"):
        places.find("/lost/brain", field="f")
    with pytest.raises(InputError, match=rf"^f: no {tree}/home/lost; check the path$"):
        places.find("~/lost", field="f")
    start = SuiteInitialisation(name="s", backbone="b", weights="lost.pth")
    with pytest.raises(InputError) as error:
        places.find_weights(start)
    assert str(error.value) == (
        f"initialisations.s.weights: no lost.pth in {data} nor in {file} nor in the working "
        "folder; put the file there, write its whole path, or leave the initialisation out"
    )


def test_a_missing_folder_of_data_is_named_where_it_would_help(tree):
    beside = Places(folders=(tree / "file",), suite="mine", has_data=False)
    with pytest.raises(InputError, match="put it there, name the folder of data with --data, or"):
        beside.find("lost", field="f")
    nowhere = Places(folders=(), suite="small", has_data=False)
    with pytest.raises(InputError, match=r"^--data: missing; suite 'small' reads brain \(f\)"):
        nowhere.find("brain", field="f")
    with pytest.raises(InputError, match=r"^--data: got .*lost, which is no folder"):
        suite_folders(tree / "lost", None)
