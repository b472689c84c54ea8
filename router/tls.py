"""TLS as providers declare it: whom to trust and what to show. It connects nothing.

Host names are always checked, and nothing older than TLS 1.2 is spoken.
"""

import asyncio
import re
import secrets
import ssl
from dataclasses import dataclass
from tempfile import NamedTemporaryFile

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

_CONTEXTS_MAX = 64
_KEY = re.compile(r"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.+?-----END \1-----", re.DOTALL)


@dataclass(frozen=True, slots=True, repr=False)  # no repr: one of them is a secret
class Terms:
    """What a TLS connection rests on; connections with other terms are other connections.

    ca_certificates: PEM of those to trust; None means the system's. client_certificate: PEM of a chain and its key.
    """

    ca_certificates: str | None
    client_certificate: str | None


class Contexts:
    """A context for each terms, built once and in a thread: reading the system's certificates takes tens of ms."""

    def __init__(self) -> None:
        self._built: dict[Terms, asyncio.Future[ssl.SSLContext]] = {}

    async def of(self, terms: Terms) -> ssl.SSLContext:
        """The context. Raises OSError or ValueError where a certificate or its key cannot be used."""
        building = self._built.get(terms)
        if building is None:
            while len(self._built) >= _CONTEXTS_MAX:
                del self._built[next(iter(self._built))]
            building = self._built[terms] = asyncio.get_running_loop().run_in_executor(None, _build, terms)
        return await asyncio.shield(building)  # others wait for it, too


def is_refusal(error: BaseException | None) -> bool:
    """Whether a connection ended because the server did not accept our certificate, or that there was none.

    Since TLS 1.3 a server says so after the client's part of the handshake, when a request may have left already;
    it hands on nothing of it.
    """
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    told = str(getattr(error, "reason", None))  # which those that Python itself makes do not have
    return "_ALERT_" in told and ("CERTIFICATE" in told or told.endswith(("UNKNOWN_CA", "ACCESS_DENIED")))


def require_certificates(pem: str) -> str:
    """The text itself. Raises ValueError unless it is PEM that holds certificates and no key."""
    if "PRIVATE KEY" in pem:
        raise ValueError("must hold certificates only; seal the key and name it as client_certificate")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem)
    except (ssl.SSLError, TypeError, ValueError) as error:  # the others for what is not ASCII, and for nothing
        raise ValueError("must be certificates in PEM") from error
    return pem


def _build(terms: Terms) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=terms.ca_certificates)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if terms.client_certificate is not None:
        _show(context, terms.client_certificate)
    return context


def _show(context: ssl.SSLContext, pem: str) -> None:
    """Load the chain and its key. Only files can be loaded: for the moment it is in one, the key is encrypted anew."""
    found = _KEY.search(pem)
    if found is None:
        raise ValueError("no private key in PEM")
    phrase = secrets.token_bytes(32).hex().encode()
    try:
        key = load_pem_private_key(found[0].encode(), password=None)
    except (TypeError, UnsupportedAlgorithm) as error:  # the former where the key needs a password
        raise ValueError("the private key cannot be read") from error
    sealed = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(phrase))
    with NamedTemporaryFile() as file:
        file.write(sealed + _KEY.sub("", pem).encode())
        file.flush()
        context.load_cert_chain(file.name, password=phrase)
