import hashlib
import stat

import pytest

from lvmmed.data.salt import load_salt, salt_fingerprint, salt_path, salted_key
from lvmmed.types import InputError


@pytest.fixture(autouse=True)
def _own_config(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("LVMMED_SALT", raising=False)


def test_a_key_is_the_hash_of_salt_kind_and_identity():
    expected = hashlib.sha256(b"s\0patient\0MRN-1").hexdigest()
    assert salted_key("MRN-1", salt="s", kind="patient") == expected
    assert salted_key(" MRN-1 ", salt="s", kind="patient") == expected
    assert salted_key("MRN-1", salt="t", kind="patient") != expected
    assert salted_key("MRN-1", salt="s", kind="study") != expected


@pytest.mark.parametrize("nobody", [None, "", "  ", "Anonymous", "0", "unknown"])
def test_names_of_nobody_have_no_key(nobody):
    assert salted_key(nobody, salt="s", kind="patient") is None


def test_the_environment_gives_the_salt_first(monkeypatch):
    monkeypatch.setenv("LVMMED_SALT", "mine")
    assert load_salt() == "mine"
    assert not salt_path().exists()


def test_a_private_file_keeps_the_salt_for_the_next_time():
    first = load_salt()
    assert len(first) == 64
    assert load_salt() == first
    assert stat.S_IMODE(salt_path().stat().st_mode) == 0o600
    assert [p.name for p in salt_path().parent.iterdir()] == ["salt"]


def test_an_empty_salt_file_is_refused():
    salt_path().parent.mkdir(parents=True)
    salt_path().write_text("\n")
    with pytest.raises(InputError, match="salt file is empty; delete it or set LVMMED_SALT"):
        load_salt()


def test_a_place_that_cannot_be_written_is_named_with_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set LVMMED_SALT to a secret text"):
        load_salt()


def test_fingerprints_tell_salts_apart_without_holding_them():
    assert salt_fingerprint("a") == salt_fingerprint("a") != salt_fingerprint("b")
    assert len(salt_fingerprint("a")) == 16
