"""Who asks, for which department, with which rights. Identity is proven elsewhere; this is its result."""

from enum import IntEnum, StrEnum

from msgspec import Struct, structs


class DataClass(IntEnum):
    """How sensitive content is. Detectors and hints may raise it; nobody lowers it."""

    PUBLIC = 0
    INTERNAL = 1
    CONFIDENTIAL = 2
    RESTRICTED = 3

    @property
    def label(self) -> str:
        """The word used on the wire and in declarative files."""
        return _LABELS[self]

    @classmethod
    def parse(cls, word: str) -> "DataClass":
        """The class named by `word`. Raises KeyError for anything but the four labels."""
        return cls[word.upper()] if word == word.lower() else cls[""]


_LABELS = tuple(each.name.lower() for each in DataClass)


class Role(StrEnum):
    """What a person or an operator's key may do in the control plane."""

    PLATFORM_ADMIN = "platform_admin"
    PROMPT_OWNER = "prompt_owner"
    MEMBER = "member"


class Caller(Struct, frozen=True):
    """An authenticated key with everything the five beats need to know about it.

    `app` is None for a person's or an operator's key: such a caller administers, it does not chat.
    `use_cases` are those registered for the app; `use_case` is the one this turn is for, once admitted.
    """

    key_id: str
    name: str
    department: str | None = None
    app: str | None = None
    user: str | None = None
    roles: frozenset[Role] = frozenset()
    data_class: DataClass = DataClass.INTERNAL
    use_cases: tuple[str, ...] = ()
    use_case: str | None = None

    def raised(self, data_class: DataClass) -> "Caller":
        """The caller with the higher of its own and the given data class."""
        return structs.replace(self, data_class=data_class) if data_class > self.data_class else self

    def acting_for(self, use_case: str) -> "Caller":
        """The caller in a turn for this use case."""
        return self if use_case == self.use_case else structs.replace(self, use_case=use_case)
