"""TLS as it is declared: what may be said, what is built of it, and that it is built once."""

import asyncio
import ssl

import pytest

from kernel import InvalidDeclaration
from router import Catalogue
from router.tls import Contexts, Terms, is_refusal
from tests.fakes.certificates import authority
from tests.fakes.routing import document

OURS = authority()
CLIENT = OURS.signs("penstock.test")


def declared(**provider: object):
    known = Catalogue.of(
        [document("provider", "p", **{"dialect": "openai", "base_url": "https://x.test/v1", **provider})]
    )
    return known.provider("p")


class TestADeclaration:
    def test_may_name_certificates_and_a_proxy(self):
        provider = declared(
            ca_certificates=OURS.certificate_pem, client_certificate="mutual", proxy="http://proxy.test:3128/"
        )
        assert provider.ca_certificates == OURS.certificate_pem
        assert (provider.client_certificate, provider.proxy) == ("mutual", "http://proxy.test:3128")

    def test_may_leave_them_out(self):
        provider = declared()
        assert (provider.ca_certificates, provider.client_certificate, provider.proxy) == (None, None, None)

    @pytest.mark.parametrize(
        ("provider", "says"),
        [
            ({"ca_certificates": ""}, "certificates in PEM"),
            ({"ca_certificates": "sk-secret"}, "certificates in PEM"),
            ({"ca_certificates": "\u00e9"}, "certificates in PEM"),
            ({"ca_certificates": OURS.pem}, "seal the key"),
            ({"ca_certificates": OURS.certificate_pem, "base_url": "http://x.test"}, "https"),
            ({"client_certificate": "mutual", "base_url": "http://x.test"}, "https"),
            ({"client_certificate": "mutual", "dialect": "sandbox", "base_url": None}, "https"),
            ({"proxy": "https://proxy.test:443"}, "http://host:port"),
            ({"proxy": "http://proxy.test"}, "http://host:port"),
            ({"proxy": "http://proxy.test:80/path"}, "http://host:port"),
            ({"proxy": "socks5://proxy.test:1080"}, "http or https"),
            ({"proxy": "http://user:password@proxy.test:80"}, "user or password"),
        ],
    )
    def test_of_anything_else_is_refused_with_the_cure(self, provider, says):
        with pytest.raises(InvalidDeclaration, match=says):
            declared(**provider)


class TestContexts:
    async def test_are_built_once_for_the_same_terms_however_many_ask(self):
        contexts = Contexts()
        given = await asyncio.gather(*(contexts.of(Terms(OURS.certificate_pem, CLIENT.pem)) for _ in range(20)))
        assert len(set(given)) == 1

    async def test_differ_where_the_terms_do(self):
        contexts = Contexts()
        terms = [Terms(None, None), Terms(OURS.certificate_pem, None), Terms(OURS.certificate_pem, CLIENT.pem)]
        assert len({await contexts.of(each) for each in terms}) == 3

    async def test_check_names_and_speak_nothing_old(self):
        context = await Contexts().of(Terms(None, None))
        assert context.check_hostname
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2

    async def test_trust_the_declared_authorities_and_no_others(self):
        context = await Contexts().of(Terms(OURS.certificate_pem, None))
        assert [each["serialNumber"] for each in context.get_ca_certs()] == [f"{OURS.certificate.serial_number:040X}"]

    async def test_of_old_terms_are_let_go(self):
        contexts = Contexts()
        terms = [Terms(OURS.certificate_pem + "\n" * number, None) for number in range(100)]
        first = await contexts.of(terms[0])
        for each in terms:
            await contexts.of(each)
        assert await contexts.of(terms[0]) is not first

    async def test_leave_no_key_in_a_file(self, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        await Contexts().of(Terms(None, CLIENT.pem))
        assert not list(tmp_path.iterdir())

    def test_terms_do_not_show_a_key(self):
        assert "PRIVATE" not in repr(Terms(None, CLIENT.pem))


@pytest.mark.parametrize(
    ("reason", "is_one"),
    [
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", True),
        ("SSLV3_ALERT_BAD_CERTIFICATE", True),
        ("TLSV1_ALERT_UNKNOWN_CA", True),
        ("TLSV1_ALERT_ACCESS_DENIED", True),
        ("CERTIFICATE_VERIFY_FAILED", False),
        ("SSLV3_ALERT_BAD_RECORD_MAC", False),
        ("TLSV1_ALERT_INTERNAL_ERROR", False),
        (None, False),
    ],
)
def test_only_an_alert_about_our_certificate_is_a_refusal(reason, is_one):
    error = ssl.SSLError(1, "x")
    error.reason = reason
    assert is_refusal(error) == is_one
    wrapped = OSError("wrapped")
    wrapped.__cause__ = error
    assert is_refusal(wrapped) == is_one


def test_nothing_and_anything_else_is_no_refusal():
    assert not is_refusal(None)
    assert not is_refusal(ConnectionResetError())
