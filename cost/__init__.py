"""No hard budget is ever exceeded, no call is ever without a row, the books equal the provider's invoice."""

from cost.book import Book
from cost.budgets import Budget, Period
from cost.entries import Entry, TurnEntries
from cost.errors import (
    BudgetExhausted,
    BudgetHeld,
    Forbidden,
    InvalidInvoice,
    InvalidReport,
    ModelUnpriced,
    NoTarget,
    Overloaded,
)
from cost.invoices import InvoiceLine, read_csv, read_jsonl
from cost.ledger import Attempt, Ledger, Turn
from cost.metrics import BudgetMetrics, LedgerMetrics
from cost.price_import import Found, LeftOut, Wanted, read_prices
from cost.prices import Cost, Price
from cost.reconcile import ReconcileReport, Reconciliation
from cost.settings import LedgerSettings
from cost.spend import BudgetState, Spend
from cost.store import SpendRow
from cost.wire import KINDS, BudgetBody, PriceBody

__all__ = [
    "KINDS",
    "Attempt",
    "Book",
    "Budget",
    "BudgetBody",
    "BudgetExhausted",
    "BudgetHeld",
    "BudgetMetrics",
    "BudgetState",
    "Cost",
    "Entry",
    "Forbidden",
    "Found",
    "InvalidInvoice",
    "InvalidReport",
    "InvoiceLine",
    "Ledger",
    "LedgerMetrics",
    "LedgerSettings",
    "LeftOut",
    "ModelUnpriced",
    "NoTarget",
    "Overloaded",
    "Period",
    "Price",
    "PriceBody",
    "ReconcileReport",
    "Reconciliation",
    "Spend",
    "SpendRow",
    "Turn",
    "TurnEntries",
    "Wanted",
    "read_csv",
    "read_jsonl",
    "read_prices",
]
