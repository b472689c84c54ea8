"""What schemathesis is told beside the document, in its own environment: names that there are, so that turns happen."""

import schemathesis

_NAMES = ("sandbox", "sandbox-priced", "fast", "auto")
_MODEL_CHARACTERS_MAX = 256


class _Answered:
    """The ids of turns that were answered, for whoever asks what happened to one."""

    def __init__(self) -> None:
        self.ids: list[str] = []


_answered = _Answered()


@schemathesis.hook
def map_body(_context, body):
    """A model's name that may be one becomes one that is, and tools get names, without which no provider takes them.

    54.0 becomes 54: a schema does not tell them apart.
    """
    body = _plain(body)
    if not isinstance(body, dict):
        return body
    name, tools = body.get("model"), body.get("tools")
    if isinstance(name, str) and 0 < len(name) <= _MODEL_CHARACTERS_MAX:
        body = {**body, "model": _NAMES[len(name) % len(_NAMES)]}
    if isinstance(tools, list):
        body = {**body, "tools": [{"name": "f", **each} if isinstance(each, dict) else each for each in tools]}
    return body


@schemathesis.hook
def after_call(_context, case, response):
    """Remember who can be asked for."""
    if case.path.startswith("/v1/") and case.method == "POST" and response.status_code == 200:
        _answered.ids.append(response.headers["x-request-id"][0])


@schemathesis.hook
def map_path_parameters(_context, path_parameters):
    """Every other request that is asked for is one that there was."""
    wanted = (path_parameters or {}).get("id")
    if isinstance(wanted, str) and len(wanted) % 2 and _answered.ids:
        path_parameters["id"] = _answered.ids[len(wanted) % len(_answered.ids)]
    return path_parameters


def _plain(value):
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value
