"""The ledger's tables, the same on SQLite and PostgreSQL."""

from datetime import datetime

from sqlalchemy import BigInteger, Boolean, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from kernel.db import Base, UtcDateTime


class EntryRow(Base):
    """A line of the ledger; rows are only ever added. What its columns mean: cost.entries.Entry."""

    __tablename__ = "entries"
    __table_args__ = (
        Index("ix_entries_held_at", "held_at"),
        Index("ix_entries_provider_request_id", "provider_request_id"),
    )

    turn_id: Mapped[str] = mapped_column(String, primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    step: Mapped[int] = mapped_column(Integer, primary_key=True)
    kind: Mapped[str] = mapped_column(String)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    held_at: Mapped[datetime] = mapped_column(UtcDateTime)
    amount_nano_usd: Mapped[int] = mapped_column(BigInteger)
    estimated: Mapped[bool] = mapped_column(Boolean)
    target: Mapped[str] = mapped_column(String)
    provider: Mapped[str] = mapped_column(String)
    upstream_model: Mapped[str] = mapped_column(String)
    price_id: Mapped[str | None] = mapped_column(String)
    department: Mapped[str | None] = mapped_column(String)
    app: Mapped[str | None] = mapped_column(String)
    key_id: Mapped[str] = mapped_column(String)
    user: Mapped[str | None] = mapped_column(String)
    use_case: Mapped[str | None] = mapped_column(String)
    data_class: Mapped[str] = mapped_column(String)
    process: Mapped[str] = mapped_column(String)
    budgets: Mapped[str] = mapped_column(Text)
    tokens: Mapped[str] = mapped_column(Text)
    input_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)
    cost: Mapped[str] = mapped_column(Text)
    rates: Mapped[str | None] = mapped_column(Text)
    provider_request_id: Mapped[str | None] = mapped_column(String)
    reason: Mapped[str | None] = mapped_column(String)


class OpenHoldRow(Base):
    """A hold without a closing: the sweeper's index, and the token that lets exactly one closing take effect.

    periods: those whose `held` it is part of; one that is opened meanwhile is added, so its closing knows them all.
    """

    __tablename__ = "open_holds"

    turn_id: Mapped[str] = mapped_column(String, primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    process: Mapped[str] = mapped_column(String)
    held_at: Mapped[datetime] = mapped_column(UtcDateTime)
    amount_nano_usd: Mapped[int] = mapped_column(BigInteger)
    periods: Mapped[str] = mapped_column(Text)


class BudgetPeriodRow(Base):
    """What a budget has posted and held in one of its periods; the row to lock before a hold is decided.

    budget_id: the budget's key, `name@since`, so that one that is declared anew begins a row of its own.
    opened_at: what was closed before it is part of `posted` without naming this period. is_counted: it is by now.
    """

    __tablename__ = "budget_periods"

    budget_id: Mapped[str] = mapped_column(String, primary_key=True)
    period: Mapped[str] = mapped_column(String, primary_key=True)
    posted_nano_usd: Mapped[int] = mapped_column(BigInteger)
    held_nano_usd: Mapped[int] = mapped_column(BigInteger)
    opened_at: Mapped[datetime] = mapped_column(UtcDateTime)
    is_counted: Mapped[bool] = mapped_column(Boolean)


class ProcessRow(Base):
    """A process's lease: while it is renewed, its open holds are its own."""

    __tablename__ = "processes"

    id: Mapped[str] = mapped_column(String, primary_key=True)
    kind: Mapped[str] = mapped_column(String)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    heartbeat_at: Mapped[datetime] = mapped_column(UtcDateTime)
