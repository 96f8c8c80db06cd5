"""Secrets: sealed values open only whole, in their row and with their key; API keys carry their own checksum."""

import base64
import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolcrib.core.vault import KEY_PREFIX, SealBroken, Vault, api_key_hash, new_api_key, new_vault_key

VAULT = Vault(new_vault_key())


@given(st.binary(max_size=200), st.text(max_size=40))
def test_what_was_sealed_opens_again_in_its_context_alone(plain: bytes, context: str) -> None:
    sealed = VAULT.seal(plain, context)
    assert VAULT.open(sealed, context) == plain
    with pytest.raises(SealBroken):
        VAULT.open(sealed, context + "x")


@given(st.binary(min_size=1, max_size=60), st.integers(min_value=0), st.integers(1, 255))
def test_a_damaged_value_never_opens(plain: bytes, place: int, change: int) -> None:
    sealed = bytearray(VAULT.seal(plain, "row"))
    sealed[place % len(sealed)] ^= change
    with pytest.raises(SealBroken):
        VAULT.open(bytes(sealed), "row")


@given(st.binary(max_size=60))
def test_noise_never_opens(noise: bytes) -> None:
    with pytest.raises(SealBroken):
        VAULT.open(noise, "row")
    with pytest.raises(SealBroken):
        VAULT.open(VAULT.seal(b"x", "row")[: min(len(noise), 37)], "row")


def test_the_same_value_is_never_sealed_the_same_way() -> None:
    sealed = {VAULT.seal(b"same", "row") for _ in range(1000)}
    assert len(sealed) == 1000
    assert len({value[9:21] for value in sealed}) == 1000  # nonces


def test_a_sealed_value_shows_nothing_of_what_is_inside() -> None:
    assert b"plain-text" not in VAULT.seal(b"plain-text" * 20, "row")


def test_an_old_key_still_opens_and_no_longer_seals() -> None:
    old, new = new_vault_key(), new_vault_key()
    before, after = Vault(old), Vault(new, (old,))
    sealed = before.seal(b"x", "row")
    assert after.open(sealed, "row") == b"x"
    assert not after.is_current(sealed)
    assert after.is_current(after.seal(b"x", "row"))
    assert after.knows(before.key_id)
    assert not before.knows(after.key_id)
    with pytest.raises(SealBroken, match="does not have"):
        before.open(after.seal(b"x", "row"), "row")
    with pytest.raises(SealBroken, match="does not have"):
        Vault(new).open(sealed, "row")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "short",
        "ü" * 44,
        base64.urlsafe_b64encode(b"x" * 31).decode(),
        "!" * 44,
        base64.urlsafe_b64encode(b"x" * 33).decode(),
    ],
)
def test_a_vault_key_of_another_length_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Vault(text)
    with pytest.raises(ValueError, match="32 bytes"):
        Vault(new_vault_key(), (text,))


def test_a_key_id_does_not_tell_the_key() -> None:
    key = new_vault_key()
    assert Vault(key).key_id not in key
    assert len(Vault(key).key_id) == 16


# ---- API keys --------------------------------------------------------------------------------------------------------


def test_a_new_key_has_a_hash_and_a_hint_that_do_not_tell_it() -> None:
    keys = [new_api_key() for _ in range(200)]
    assert len({key.text for key in keys}) == 200
    for key in keys:
        assert api_key_hash(key.text) == key.hash
        assert key.hint.startswith(KEY_PREFIX + key.text[4:8])
        assert key.hint.endswith(key.text[-4:])
        assert len(key.hint) < 20 < len(key.text)


def test_a_key_with_one_wrong_character_is_no_key() -> None:
    text = new_api_key().text
    for place in range(len(KEY_PREFIX), len(text)):
        for other in "aZ0":
            changed = text[:place] + other + text[place + 1 :]
            assert (api_key_hash(changed) is None) == (changed != text)


@given(st.text(max_size=60))
def test_a_text_that_is_no_key_is_told_apart_without_asking_anybody(text: str) -> None:
    assert api_key_hash(text) is None
    assert api_key_hash(KEY_PREFIX + text) is None


def test_texts_of_the_right_length_are_refused_too() -> None:
    for text in ("ü" * 38, "\ud800" * 38, " " * 38, secrets.token_hex(19)):
        assert len(text) == 38
        assert api_key_hash(KEY_PREFIX + text) is None
