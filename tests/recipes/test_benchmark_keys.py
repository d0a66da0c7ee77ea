"""Keys of sets of images: what changes them, and what does not."""

import shutil

import pytest

from lvmmed.recipes.benchmark_keys import folder_key


def _write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def tree(tmp_path):
    """A list beside its images, one whose images lie in the folder above, and a plain folder."""
    root = tmp_path / "data"
    files = {
        "mixture/index.csv": "path,pack\na.png,brain\nb.png,\n",
        "brain/a.png": "1",  # beside the folder of the list
        "mixture/b.png": "22",
        "masks/splits.csv": "file,mask,split\nx.png,x_1.png; ../parts/x_2.png,train\n",
        "masks/x.png": "333",
        "masks/x_1.png": "4",
        "parts/x_2.png": "55",
        "folder/class/c.png": "666",
        "folder/notes.csv": "any,thing\n1,2\n",
        "other.png": "7",
    }
    _write(root, files)
    return root


def _key(path, **keywords):
    folder_key.cache_clear()
    return folder_key(path, **keywords)


@pytest.mark.parametrize(
    ("source", "file"),
    [
        ("mixture/index.csv", "brain/a.png"),
        ("mixture/index.csv", "mixture/b.png"),
        ("mixture", "brain/a.png"),
        ("masks/splits.csv", "masks/x.png"),
        ("masks/splits.csv", "masks/x_1.png"),
        ("masks/splits.csv", "parts/x_2.png"),
        ("masks", "parts/x_2.png"),
        ("folder", "folder/class/c.png"),
    ],
)
def test_another_size_of_one_image_changes_the_key(tree, source, file):
    before = _key(tree / source)
    assert _key(tree / source) == before
    (tree / "other.png").write_text("another size, of no file of the set")
    assert _key(tree / source) == before
    (tree / file).write_text("another size")
    assert _key(tree / source) != before
    (tree / file).unlink()
    assert _key(tree / source) != before


@pytest.mark.parametrize("source", ["mixture/index.csv", "masks/splits.csv", "masks", "folder"])
def test_where_a_set_lies_does_not_matter(tree, tmp_path, source, monkeypatch):
    before = _key(tree / source)
    shutil.copytree(tree, tmp_path / "moved")
    assert _key(tmp_path / "moved" / source) == before
    monkeypatch.chdir(tree)
    assert _key((tree / source).relative_to(tree)) == before


def test_labels_count_though_their_size_is_the_same(tree):
    listed = tree / "masks" / "splits.csv"
    before = _key(listed)
    listed.write_text(listed.read_text().replace("train", "valid"))
    assert _key(listed) != before


@pytest.mark.parametrize(
    ("source", "file"),
    [
        ("masks/splits.csv", "masks/x_1.png"),
        ("masks", "masks/x_1.png"),
        ("masks", "parts/x_2.png"),
        ("pairs", "pairs/masks/p.png"),
        ("splits", "splits/test/masks/q.png"),
    ],
)
def test_masks_redrawn_at_the_same_size_change_the_key(tree, source, file):
    _write(tree, {"pairs/images/p.png": "8", "pairs/masks/p.png": "9"})
    _write(tree, {"splits/test/images/q.png": "8", "splits/test/masks/q.png": "9"})
    before, as_images = _key(tree / source), _key(tree / source, with_masks=False)
    path = tree / file
    path.write_text("!" * len(path.read_text()))
    assert _key(tree / source) != before
    assert _key(tree / source, with_masks=False) == as_images


@pytest.mark.parametrize("link", ["set/test", "set/test/class"])
def test_files_behind_linked_folders_count(tree, link):
    (tree / link).parent.mkdir(parents=True)
    (tree / link).symlink_to(tree / "folder", target_is_directory=True)
    before = _key(tree / "set")
    _write(tree, {"folder/class/d.png": "new"})
    assert _key(tree / "set") != before


def test_a_link_to_a_folder_above_ends_and_hidden_files_do_not_count(tree):
    before = _key(tree / "folder")
    _write(tree, {"folder/class/.thumbs": "x", "folder/.cache/c.png": "y"})
    assert _key(tree / "folder") == before
    (tree / "folder" / "class" / "up").symlink_to(tree / "folder", target_is_directory=True)
    assert _key(tree / "folder") != before


def test_a_list_that_cannot_be_read_is_left_to_those_who_read_it(tree):
    (tree / "mixture" / "index.csv").write_bytes(b"path\n\xff\xfe")
    assert _key(tree / "mixture" / "index.csv") != _key(tree / "mixture")
