"""Salted hashes in place of identities, and where the salt lives."""

import hashlib
import os
import secrets
from pathlib import Path

from lvmmed.types import InputError

SALT_VARIABLE = "LVMMED_SALT"
_NOT_AN_ID = frozenset(
    {"", "0", "anon", "anonymous", "anonymized", "anonymised", "none", "unknown", "n/a", "na"}
)


def salted_key(identity: object, *, salt: str, kind: str) -> str | None:
    """Hash an identity so that it can be compared, but not read, by who lacks the salt.

    Args:
        identity: patient ID, study or series UID, or a list's group; texts that name nobody
            ("", "anonymous", ...) have no key.
        salt: secret text, the same for all stores that are to be compared.
        kind: what is hashed ("patient", "study", ...); equal texts of two kinds differ.

    Returns:
        64 hexadecimal digits of SHA-256, or None.
    """
    text = "" if identity is None else str(identity).strip()
    if text.lower() in _NOT_AN_ID:
        return None
    return hashlib.sha256(f"{salt}\0{kind}\0{text}".encode()).hexdigest()


def salt_fingerprint(salt: str) -> str:
    """Tell two salts apart without giving either away (slow hash, so guessing is dear)."""
    digest = hashlib.pbkdf2_hmac("sha256", salt.encode(), b"lvmmed salt fingerprint", 100_000)
    return digest.hex()[:16]


def salt_path() -> Path:
    """Private file the salt is kept in when the environment gives none."""
    config = os.environ.get("XDG_CONFIG_HOME")
    return (Path(config) if config else Path.home() / ".config") / "lvmmed" / "salt"


def load_salt() -> str:
    """Take the salt from LVMMED_SALT or the private file; make the file (0600) at first use.

    Returns:
        The salt, never empty.

    Raises:
        InputError: the file can't be read, is empty, or can't be written.
    """
    given = os.environ.get(SALT_VARIABLE)
    if given:
        return given
    path = salt_path()
    try:
        return _read_or_create(path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot keep the salt of patient keys there ({error.strerror}); "
            f"set {SALT_VARIABLE} to a secret text"
        ) from error


def _read_or_create(path: Path) -> str:
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_name(f".salt.{os.getpid()}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")
        try:
            os.link(draft, path)  # fails where another process was first
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    salt = path.read_text(encoding="utf-8").strip()
    if not salt:
        raise InputError(f"{path}: the salt file is empty; delete it or set {SALT_VARIABLE}")
    return salt
