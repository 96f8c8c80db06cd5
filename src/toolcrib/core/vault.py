"""Secrets at rest: API keys as hashes, everything that must be read again sealed with AES-256-GCM.

A sealed value is `version(1) | key id(8) | nonce(12) | ciphertext and tag`; its context (the row it belongs to) is
authenticated with it, so a value copied to another row does not open. Opening tries the key whose id it names, so a key
can be rotated while values sealed with the old one still stand.
"""

import base64
import binascii
import hashlib
import secrets
import string
import zlib
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_PREFIX = "tck_"
_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
_RANDOM_LENGTH = 32  # 190 bits
_CHECK_LENGTH = 6
_VERSION = b"\x01"


class SealBroken(Exception):
    """A sealed value cannot be opened: unknown key, wrong context, or damaged."""


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, rest = divmod(number, 62)
        digits.append(_BASE62[rest])
    return "".join(reversed(digits))


@dataclass(frozen=True, slots=True)
class NewApiKey:
    """An API key at the only moment its text exists."""

    text: str
    hash: bytes
    hint: str


def new_api_key() -> NewApiKey:
    """A random key `tck_<32 characters><6 of checksum>`; the checksum lets secret scanners avoid false alarms."""
    body = "".join(secrets.choice(_BASE62) for _ in range(_RANDOM_LENGTH))
    text = KEY_PREFIX + body + _base62(zlib.crc32(body.encode()), _CHECK_LENGTH)
    return NewApiKey(text, hashlib.sha256(text.encode()).digest(), f"{KEY_PREFIX}{body[:4]}...{text[-4:]}")


def api_key_hash(text: str) -> bytes | None:
    """The hash under which a key is stored, or None when the text cannot be a key.

    A plain SHA-256 is enough: the key is 190 random bits, so there is nothing to guess.
    """
    if len(text) != len(KEY_PREFIX) + _RANDOM_LENGTH + _CHECK_LENGTH or not text.startswith(KEY_PREFIX):
        return None
    body, check = text[len(KEY_PREFIX) : -_CHECK_LENGTH], text[-_CHECK_LENGTH:]
    if not text.isascii() or _base62(zlib.crc32(body.encode()), _CHECK_LENGTH) != check:
        return None
    return hashlib.sha256(text.encode()).digest()


def new_vault_key() -> str:
    """A random 256-bit key as text, for TOOLCRIB_VAULT_KEY."""
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


def _parse_key(text: str) -> bytes:
    try:
        key = base64.urlsafe_b64decode(text.strip().encode())
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != 32:
        raise ValueError("a vault key is 32 bytes in URL-safe base64 (44 characters)")
    return key


class Vault:
    """Seals and opens with the current key, opens with the old ones."""

    def __init__(self, current: str, old: tuple[str, ...] = ()) -> None:
        keys = [_parse_key(text) for text in (current, *old)]
        self._ciphers = {hashlib.sha256(key).digest()[:8]: AESGCM(key) for key in keys}
        self._current = hashlib.sha256(keys[0]).digest()[:8]

    @property
    def key_id(self) -> str:
        """Names the current key without telling it."""
        return self._current.hex()

    def knows(self, key_id: str) -> bool:
        """Whether values sealed with that key can be opened here."""
        return bytes.fromhex(key_id) in self._ciphers

    def seal(self, plain: bytes, context: str) -> bytes:
        """Encrypt for one row; `context` names the row and must be given again to open."""
        nonce = secrets.token_bytes(12)
        sealed = self._ciphers[self._current].encrypt(nonce, plain, context.encode())
        return _VERSION + self._current + nonce + sealed

    def open(self, sealed: bytes, context: str) -> bytes:
        """Decrypt.

        Raises:
            SealBroken: the key is not known here, the context is another, or the bytes are damaged.
        """
        cipher = self._ciphers.get(sealed[1:9])
        if sealed[:1] != _VERSION or cipher is None:
            raise SealBroken("sealed with a vault key that this process does not have")
        try:
            return cipher.decrypt(sealed[9:21], sealed[21:], context.encode())
        except (InvalidTag, ValueError):  # ValueError: cut short
            raise SealBroken("the sealed value is damaged or belongs to another row") from None

    def is_current(self, sealed: bytes) -> bool:
        """Whether a value is sealed with the current key, so that rotation can leave it alone."""
        return sealed[1:9] == self._current
