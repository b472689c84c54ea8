"""Promises who is who, who may what, why not, who approved, and the trail that proves it."""

from governance.audit import AuditReader, AuditTrail, AuditVerdict, StoredRecord
from governance.bulletin import Bulletin
from governance.counters import Counters
from governance.declarations import Declaration, parse, render
from governance.detectors import Detector
from governance.directory import App, Department, Directory, UseCase, User
from governance.errors import (
    ApprovalRequired,
    Denied,
    Forbidden,
    InvalidKey,
    ModelNotAllowed,
    NotFound,
    PolicyDenied,
    RateLimited,
    SealBroken,
    TooLarge,
    UseCaseRequired,
)
from governance.guard import Findings, Guard
from governance.keys import CreatedKey, Keys, NewKey
from governance.limits import Limits, Permit
from governance.memory import MemoryCounters
from governance.metrics import LimitMetrics, TrailMetrics
from governance.policy import Condition, Policy, Rules, Ruling, Verdict
from governance.redis import SharedCounters, find_fault
from governance.register import Change, Register
from governance.store import Allowance, ChangeNote, Key
from governance.vault import Credentials, Vault
from governance.wire import KINDS

__all__ = [
    "KINDS",
    "Allowance",
    "App",
    "ApprovalRequired",
    "AuditReader",
    "AuditTrail",
    "AuditVerdict",
    "Bulletin",
    "Change",
    "ChangeNote",
    "Condition",
    "Counters",
    "CreatedKey",
    "Credentials",
    "Declaration",
    "Denied",
    "Department",
    "Detector",
    "Directory",
    "Findings",
    "Forbidden",
    "Guard",
    "InvalidKey",
    "Key",
    "Keys",
    "LimitMetrics",
    "Limits",
    "MemoryCounters",
    "ModelNotAllowed",
    "NewKey",
    "NotFound",
    "Permit",
    "Policy",
    "PolicyDenied",
    "RateLimited",
    "Register",
    "Rules",
    "Ruling",
    "SealBroken",
    "SharedCounters",
    "StoredRecord",
    "TooLarge",
    "TrailMetrics",
    "UseCase",
    "UseCaseRequired",
    "User",
    "Vault",
    "Verdict",
    "find_fault",
    "parse",
    "render",
]
