"""Texts that only gateways which share a key can make or read: ids that carry their state, and what they tell another.

AES-256-GCM. The first key of a ring seals; all of them open, so that a key is changed in three steps: put the new one
behind the old, then before it, then take the old one out.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Sequence

__all__ = ["KEY_BYTES", "BadSeal", "KeyRing", "new_key"]

KEY_BYTES = 32
KEY_ID_BYTES = 4
NONCE_BYTES = 12
TAG_BYTES = 16


class BadSeal(ValueError):
    """A text was not sealed with a key of the ring, or for another purpose, or was changed."""


def new_key() -> str:
    """A key as it stands in settings: 32 random bytes, base64."""
    return base64.b64encode(os.urandom(KEY_BYTES)).decode()


def _unpadded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class KeyRing:
    """Keys by which gateways know one another's texts.

    Args:
        keys: of 32 bytes each; the first seals.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys or any(len(key) != KEY_BYTES for key in keys):
            raise ValueError(f"a seal needs keys of {KEY_BYTES} bytes")
        self._keys = {hashlib.sha256(key).digest()[:KEY_ID_BYTES]: key for key in keys}
        self._first = next(iter(self._keys))

    @classmethod
    def read(cls, text: str) -> KeyRing:
        """The ring of a setting: keys in base64, with commas, blanks or lines between them.

        Raises:
            ValueError: says what is wrong, and not the keys.
        """
        keys = []
        for number, part in enumerate(filter(None, re.split(r"[,\s]+", text)), 1):
            try:
                key = base64.b64decode(part.translate(str.maketrans("-_", "+/")) + "=" * (-len(part) % 4))
            except (binascii.Error, ValueError):
                key = b""
            if len(key) != KEY_BYTES:
                raise ValueError(f"key {number} is no {KEY_BYTES} bytes in base64; `openssl rand -base64 32` makes one")
            keys.append(key)
        return cls(keys)

    @property
    def key_id(self) -> bytes:
        """Of the key that seals; 4 bytes."""
        return self._first

    def __contains__(self, key_id: bytes) -> bool:
        return key_id in self._keys

    def seal(self, value: bytes, purpose: str) -> str:
        """A text of letters, digits, `-` and `_` that carries a value.

        Args:
            purpose: what it is for: it is opened for nothing else.
        """
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # 5 MB that not every gateway needs

        nonce = os.urandom(NONCE_BYTES)
        return _unpadded(self._first + nonce + AESGCM(self._keys[self._first]).encrypt(nonce, value, purpose.encode()))

    def open(self, text: str, purpose: str) -> bytes:
        """What a text carries.

        Raises:
            BadSeal: nothing that this ring sealed for this purpose.
        """
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        try:
            data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        except ValueError:
            raise BadSeal("it is not base64") from None
        if len(data) < KEY_ID_BYTES + NONCE_BYTES + TAG_BYTES or _unpadded(data) != text:
            raise BadSeal("it was changed")  # something that decoding would have overlooked, too
        key = self._keys.get(data[:KEY_ID_BYTES])
        if key is None:
            raise BadSeal("its key is not in the ring")
        nonce, rest = data[KEY_ID_BYTES:][:NONCE_BYTES], data[KEY_ID_BYTES + NONCE_BYTES :]
        try:
            return AESGCM(key).decrypt(nonce, rest, purpose.encode())
        except InvalidTag:
            raise BadSeal("it was changed, or is for something else") from None

    def derived(self, key_id: bytes, salt: bytes, purpose: str) -> bytes:
        """A key for one conversation, made of one of the ring; 32 bytes.

        Raises:
            BadSeal: the ring has no such key.
        """
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        key = self._keys.get(key_id)
        if key is None:
            raise BadSeal("its key is not in the ring")
        return HKDF(SHA256(), KEY_BYTES, salt, purpose.encode()).derive(key)
