"""The span of time that a report or an invoice is about. It is checked here once; nothing here reads the clock."""

from datetime import datetime

from cost.errors import InvalidReport

_YEARS = range(2000, 2201)


def require_window(since: datetime, until: datetime) -> None:
    """Raises InvalidReport, naming the field, unless both are aware instants of 2000 to 2200 and in order.

    The bounds keep far clear of the first and the last instant that there is: those cannot be told in UTC.
    """
    for field, at in (("since", since), ("until", until)):
        if at.utcoffset() is None:
            raise InvalidReport(f"`{field}` needs an offset, such as Z or +01:00.", param=field)
        if at.year not in _YEARS:
            raise InvalidReport(f"`{field}` must lie in the years 2000 to 2200.", param=field)
    if since >= until:
        raise InvalidReport("`since` must come before `until`.", param="since")
