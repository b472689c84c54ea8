"""The text that digests are made from."""

from types import MappingProxyType

import pytest

from governance.store import canonical_json, from_json


def test_equal_values_give_equal_text_whatever_their_order_and_mapping():
    plain = {"b": [1, {"d": None, "c": "ü\n"}], "a": True}
    other = MappingProxyType({"a": True, "b": [1, MappingProxyType({"c": "ü\n", "d": None})]})
    assert canonical_json(plain) == canonical_json(other) == '{"a":true,"b":[1,{"c":"ü\\n","d":null}]}'
    assert from_json(canonical_json(other)) == plain


def test_what_is_not_json_is_refused():
    with pytest.raises(TypeError, match="object is not a JSON value"):
        canonical_json({"a": object()})
