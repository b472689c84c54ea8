"""The tables of governance. Documents, changes and audit are append-only; nothing here knows what the rows mean."""

from datetime import datetime

from sqlalchemy import BigInteger, Index, Integer, LargeBinary, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from kernel.db import Base, UtcDateTime

_NAME = String(128)


class DocumentRow(Base):
    """A version of a declared thing; no body means that it was withdrawn with this version.

    since: the version with which this uninterrupted declaration of the same identity began.
    """

    __tablename__ = "documents"

    kind: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(_NAME, primary_key=True)
    version: Mapped[int] = mapped_column(Integer, primary_key=True)
    body: Mapped[str | None] = mapped_column(Text)
    author: Mapped[str] = mapped_column(Text)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    since: Mapped[int] = mapped_column(Integer)


class ChangeRow(Base):
    """The feed that other processes follow."""

    __tablename__ = "changes"

    version: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(String(64))
    ref: Mapped[str | None] = mapped_column(_NAME)
    at: Mapped[datetime] = mapped_column(UtcDateTime)


class ChangeCounterRow(Base):
    """The one row that every administrative change locks first, so that versions follow the order of commits."""

    __tablename__ = "change_counter"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    version: Mapped[int] = mapped_column(BigInteger)


class KeyRow(Base):
    """An issued key, known by its digest only. roles are separated by commas."""

    __tablename__ = "keys"
    __table_args__ = (UniqueConstraint("digest", name="uq_keys_digest"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary(32))
    name: Mapped[str] = mapped_column(_NAME)
    app: Mapped[str | None] = mapped_column(_NAME)
    user: Mapped[str | None] = mapped_column("user_name", _NAME)
    roles: Mapped[str] = mapped_column(Text)
    requests_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    tokens_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    concurrent: Mapped[int | None] = mapped_column(BigInteger)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    created_by: Mapped[str] = mapped_column(Text)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_by: Mapped[str | None] = mapped_column(Text)


class CredentialRow(Base):
    """A provider's secret, sealed; its name is part of the seal."""

    __tablename__ = "credentials"

    name: Mapped[str] = mapped_column(_NAME, primary_key=True)
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    author: Mapped[str] = mapped_column(Text)
    at: Mapped[datetime] = mapped_column(UtcDateTime)


class AuditRow(Base):
    """A link of a writer's chain."""

    __tablename__ = "audit"
    __table_args__ = (Index("ix_audit_turn_id", "turn_id"), Index("ix_audit_at", "at"))

    writer: Mapped[str] = mapped_column(_NAME, primary_key=True)
    sequence: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    event: Mapped[str] = mapped_column(String(64))
    turn_id: Mapped[str | None] = mapped_column(String(64))
    app: Mapped[str | None] = mapped_column(_NAME)
    department: Mapped[str | None] = mapped_column(_NAME)
    body: Mapped[str] = mapped_column(Text)
    previous: Mapped[str] = mapped_column(String(64))
    digest: Mapped[str] = mapped_column(String(64))
