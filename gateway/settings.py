"""What a process needs to start, read once. The only reader of the environment.

What operators change while we run (prices, policies, budgets, keys) is data in the database, not a setting.
"""

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

Seconds = Annotated[float, Field(gt=0, le=3600)]


class Settings(BaseSettings):
    """Read from `PENSTOCK_*` variables first, then files of secrets, then `penstock.yaml` in the working folder.

    What none of them names has the default below.
    """

    model_config = SettingsConfigDict(env_prefix="PENSTOCK_", frozen=True, extra="forbid", yaml_file="penstock.yaml")

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8080
    data_dir: Path = Path("penstock-data")
    secrets_dir: Path | None = None
    """A folder with a file for each secret, named as its variable, as Docker and Kubernetes mount them."""
    database_url: SecretStr | None = None
    """`postgresql+asyncpg://...`; without it, SQLite in the data folder."""
    redis_url: SecretStr | None = None
    """`redis://...` or `rediss://...`; several processes share limits and news of changes there. None: one process."""
    key_pepper: SecretStr | None = None
    """At least 32 characters; without it, made once and kept in the data folder (SQLite only)."""
    master_key: SecretStr | None = None
    """32 bytes as 64 hex digits, seals provider credentials; without it, as `key_pepper`."""
    demo: bool | None = None
    """Whether the first start on an empty store declares the demo company and its keys; unset: on SQLite only."""

    metrics_token: SecretStr | None = None
    """What `/metrics` asks for as a bearer token; without it the page is open to whoever reaches the port."""

    translator_url: str | None = None
    """Where a translator that is deployed beside listens, `http://...`; without it, one is started when needed."""
    translator_token: SecretStr | None = None
    """What the translator at `translator_url` asks for."""
    translator_python: Path = Path(".venv-translator/bin/python")
    """The interpreter that runs the translator started here, from an environment of its own."""

    otlp_endpoint: str | None = None
    """Where traces of turns go by OTLP over HTTP, `https://collector:4318`; without it none are made. Needs the extra
    `telemetry`."""
    otlp_headers: SecretStr | None = None
    """What the collector asks for, as `name=value,name=value`."""
    trace_sample_ratio: Annotated[float, Field(ge=0, le=1)] = 0.01
    """The share of turns that is traced where the caller does not say; its `traceparent` does."""

    body_bytes_max: Annotated[int, Field(ge=1024)] = 16 * 1024 * 1024
    body_seconds: Seconds = 30
    slow_reader_seconds: Seconds = 60
    """How long a caller may take none of its answer before its connection is dropped and its turn settled."""
    connections_max: Annotated[int, Field(ge=1)] = 10_000
    idle_connection_seconds: Annotated[int, Field(ge=1)] = 75
    drain_seconds: Seconds = 30
    """How long open turns may take to end after SIGTERM before they are cut with a terminal event."""
    busy_round_seconds: Seconds = 0.01
    """What a round of the event loop may take; where rounds take longer again and again, turns are refused with 503."""
    store_seconds: Seconds = 1.5
    """How long a turn waits for the store before it is answered 503."""
    changes_poll_seconds: Seconds = 0.5
    budget_exhausted_status: Annotated[int, Field()] = 402
    """402, or 429 with `insufficient_quota` as OpenAI answers; never retried by the SDKs in either case."""

    @model_validator(mode="after")
    def _check(self) -> "Settings":
        if self.secrets_dir is not None and not self.secrets_dir.is_dir():
            raise ValueError("secrets_dir (PENSTOCK_SECRETS_DIR) must be a folder: is it mounted?")
        if self.redis_url is not None and not self.redis_url.get_secret_value().startswith(("redis://", "rediss://")):
            raise ValueError("redis_url (PENSTOCK_REDIS_URL) must begin with redis:// or rediss://")
        if (self.translator_url is None) is not (self.translator_token is None):
            raise ValueError("translator_url and translator_token (PENSTOCK_TRANSLATOR_TOKEN) go together")
        if self.translator_url is not None and not self.translator_url.startswith(("http://", "https://")):
            raise ValueError("translator_url (PENSTOCK_TRANSLATOR_URL) must begin with http:// or https://")
        if self.otlp_endpoint is not None and not re.fullmatch(r"https?://[^@\s?#]+", self.otlp_endpoint):
            raise ValueError(
                "otlp_endpoint (PENSTOCK_OTLP_ENDPOINT) must begin with http:// or https:// and hold no password"
            )
        if not all(name and equals for name, equals, _ in self._otlp_headers()):
            raise ValueError("otlp_headers (PENSTOCK_OTLP_HEADERS) must be name=value,name=value in printable ASCII")
        if self.budget_exhausted_status not in {402, 429}:
            raise ValueError("budget_exhausted_status (PENSTOCK_BUDGET_EXHAUSTED_STATUS) must be 402 or 429")
        if not self.store_url.startswith(("sqlite+aiosqlite:", "postgresql+asyncpg:")):
            raise ValueError(
                "database_url (PENSTOCK_DATABASE_URL) must begin with postgresql:// or sqlite+aiosqlite://"
            )
        if self.key_pepper is not None and len(self.key_pepper.get_secret_value()) < 32:  # noqa: PLR2004 - said in the message
            raise ValueError("key_pepper (PENSTOCK_KEY_PEPPER) must have at least 32 characters")
        if self.database_url is not None and not self.embedded and (self.key_pepper is None or self.master_key is None):
            raise ValueError(
                "with PostgreSQL, set key_pepper and master_key (PENSTOCK_KEY_PEPPER, PENSTOCK_MASTER_KEY): "
                "every process needs the same ones, so none is made up"
            )
        return self

    @property
    def otlp_header_fields(self) -> dict[str, str]:
        """The collector's headers by name; secrets, so they are never printed."""
        return {name.strip(): value.strip() for name, _, value in self._otlp_headers()}

    def _otlp_headers(self) -> list[tuple[str, str, str]]:
        given = "" if self.otlp_headers is None else self.otlp_headers.get_secret_value()
        usable = given if given.isascii() and given.isprintable() else "="
        return [each.partition("=") for each in usable.split(",") if each.strip()]

    @property
    def embedded(self) -> bool:
        """Whether one process owns everything, in one folder."""
        return self.database_url is None or self.database_url.get_secret_value().startswith("sqlite")

    @property
    def store_url(self) -> str:
        """The database's URL; holds a password, so it is never printed."""
        if self.database_url is not None:
            return re.sub(r"^postgres(ql)?://", "postgresql+asyncpg://", self.database_url.get_secret_value())
        return f"sqlite+aiosqlite:///{self.data_dir.absolute()}/penstock.db"

    @property
    def store_file(self) -> Path:
        """Where SQLite keeps the store."""
        return Path(self.store_url.removeprefix("sqlite+aiosqlite:///"))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments win over the environment, the environment over secrets in files, those over penstock.yaml."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, _SecretFiles(settings_cls), YamlConfigSettingsSource(settings_cls)


class _SecretFiles(SecretsSettingsSource):
    """The files in the folder that an argument or PENSTOCK_SECRETS_DIR names."""

    def __call__(self) -> dict[str, Any]:
        """What the files say; nothing where there is no such folder, which the settings then refuse."""
        folder = self.current_state.get("secrets_dir")
        if folder is None or not Path(folder).is_dir():
            return {}
        self.secrets_dir = folder
        return super().__call__()
