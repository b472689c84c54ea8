"""A seal opens with its key, in its place, unaltered, and in no other way."""

import pytest

from governance import SealBroken, Vault

SEALED = Vault(b"m" * 32).seal(b"secret", "credentials/a")


def test_seal_opens_in_its_place_and_never_looks_the_same():
    vault = Vault(b"m" * 32)
    assert vault.open(SEALED, "credentials/a") == b"secret"
    assert vault.seal(b"secret", "credentials/a") != SEALED
    assert b"secret" not in SEALED


def test_no_flipped_bit_no_other_place_no_other_key_and_no_piece_opens_it():
    vault = Vault(b"m" * 32)
    for at in range(len(SEALED)):
        with pytest.raises(SealBroken):
            vault.open(SEALED[:at] + bytes([SEALED[at] ^ 1]) + SEALED[at + 1 :], "credentials/a")
        with pytest.raises(SealBroken):
            vault.open(SEALED[:at], "credentials/a")
    with pytest.raises(SealBroken, match="altered or moved"):
        vault.open(SEALED, "credentials/b")
    with pytest.raises(SealBroken, match="another master key"):
        Vault(b"n" * 32).open(SEALED, "credentials/a")


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_master_key_of_another_length_is_refused(length):
    with pytest.raises(ValueError, match="32 are needed"):
        Vault(b"m" * length)
