"""Turns a request and its hints into a plan, and a plan into a reply or a stream, through targets that are healthy."""

from router.anthropic import dropped
from router.catalogue import Catalogue, Provider
from router.errors import (
    ModelNotFound,
    ModelRetired,
    OperationNotOffered,
    TargetsResting,
    UpstreamBroken,
    UpstreamBusy,
    UpstreamError,
    UpstreamFailed,
    UpstreamOverlong,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from router.health import Health, Reading, RetryBudget
from router.lifecycle import Lifecycle
from router.load import Lookout, Pages, ServerReading
from router.metrics import HealthMetrics, ServerMetrics, TranslatorMetrics
from router.plans import Router
from router.rules import prompt_bytes, prompt_tokens
from router.upstreams import Address, Translator, UpstreamCall, Upstreams, UpstreamSettings
from router.wire import KINDS

__all__ = [
    "KINDS",
    "Address",
    "Catalogue",
    "Health",
    "HealthMetrics",
    "Lifecycle",
    "Lookout",
    "ModelNotFound",
    "ModelRetired",
    "OperationNotOffered",
    "Pages",
    "Provider",
    "Reading",
    "RetryBudget",
    "Router",
    "ServerMetrics",
    "ServerReading",
    "TargetsResting",
    "Translator",
    "TranslatorMetrics",
    "UpstreamBroken",
    "UpstreamBusy",
    "UpstreamCall",
    "UpstreamError",
    "UpstreamFailed",
    "UpstreamOverlong",
    "UpstreamRefused",
    "UpstreamSettings",
    "UpstreamTimeout",
    "UpstreamUnreachable",
    "Upstreams",
    "dropped",
    "prompt_bytes",
    "prompt_tokens",
]
