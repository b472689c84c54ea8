"""Turns a request and its hints into a plan, and a plan into a reply or a stream, through targets that are healthy."""

from router.catalogue import Catalogue, Provider
from router.errors import (
    ModelNotFound,
    UpstreamBroken,
    UpstreamBusy,
    UpstreamError,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from router.upstreams import UpstreamCall, Upstreams, UpstreamSettings
from router.wire import KINDS

__all__ = [
    "KINDS",
    "Catalogue",
    "ModelNotFound",
    "Provider",
    "UpstreamBroken",
    "UpstreamBusy",
    "UpstreamCall",
    "UpstreamError",
    "UpstreamFailed",
    "UpstreamRefused",
    "UpstreamSettings",
    "UpstreamTimeout",
    "UpstreamUnreachable",
    "Upstreams",
]
