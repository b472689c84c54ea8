"""Turns a request and its hints into a plan, and a plan into a reply or a stream, through targets that are healthy."""

from router.catalogue import Catalogue, Provider
from router.errors import (
    ModelNotFound,
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
from router.metrics import HealthMetrics
from router.plans import Router
from router.rules import prompt_bytes, prompt_tokens
from router.upstreams import UpstreamCall, Upstreams, UpstreamSettings
from router.wire import KINDS

__all__ = [
    "KINDS",
    "Catalogue",
    "Health",
    "HealthMetrics",
    "ModelNotFound",
    "Provider",
    "Reading",
    "RetryBudget",
    "Router",
    "TargetsResting",
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
    "prompt_bytes",
    "prompt_tokens",
]
