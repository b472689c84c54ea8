"""Secrets from files: what Docker and Kubernetes mount."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from gateway.settings import Settings

SECRETS = {
    "PENSTOCK_DATABASE_URL": "postgresql://penstock:word@db/penstock\n",
    "penstock_key_pepper": "p" * 32,
    "PENSTOCK_MASTER_KEY": "ab" * 32 + "\n",
}


def as_docker(folder: Path) -> Path:
    for name, value in SECRETS.items():
        (folder / name).write_text(value)
    return folder


def as_kubernetes(folder: Path) -> Path:
    """Its files are links to links, so that all of them change at once."""
    (folder / "..2026_11_21").mkdir()
    as_docker(folder / "..2026_11_21")
    (folder / "..data").symlink_to("..2026_11_21")
    for name in SECRETS:
        (folder / name).symlink_to(f"..data/{name}")
    return folder


@pytest.mark.parametrize("mounted", [as_docker, as_kubernetes])
def test_secrets_are_read_from_the_folder_that_is_named(
    mounted: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_SECRETS_DIR", str(mounted(tmp_path)))
    settings = Settings()
    assert settings.store_url == "postgresql+asyncpg://penstock:word@db/penstock"
    assert settings.key_pepper is not None
    assert settings.key_pepper.get_secret_value() == "p" * 32
    assert "word" not in repr(settings)


def test_a_variable_wins_over_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_KEY_PEPPER", "v" * 32)
    settings = Settings(secrets_dir=as_docker(tmp_path))
    assert settings.key_pepper is not None
    assert settings.key_pepper.get_secret_value() == "v" * 32


def test_a_folder_that_is_not_mounted_is_refused_and_no_store_is_made_up(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="is it mounted"):
        Settings(secrets_dir=tmp_path / "missing")
