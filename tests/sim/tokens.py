"""The simulator's own tokenizer: four UTF-8 bytes are a token, a started one counts. It knows no language.

It never finds more tokens than bytes, which is what lets a gateway bound a prompt by its bytes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle, islice

TOKEN_BYTES = 4
IMAGE_TOKENS = 258
AUDIO_TOKENS = 32
_WORDS = ("the ", "sea ", "was ", "low ", "and ", "one ", "gate", " let", " it ", "by. ")


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens that went in, by what they stand for."""

    text: int = 0
    image: int = 0
    audio: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.text + self.image + self.audio


def prompt_of(texts: Iterable[str], *, images: int = 0, recordings: int = 0) -> Prompt:
    """A prompt of so many texts, images and recordings; one image costs what any other does."""
    return Prompt(sum(map(count, texts)), images * IMAGE_TOKENS, recordings * AUDIO_TOKENS)


def count(text: str) -> int:
    """Tokens of a prompt's text."""
    return -(-len(text.encode(errors="surrogatepass")) // TOKEN_BYTES)


def words(tokens: int) -> list[str]:
    """Exactly so many tokens of text, the same ones every time."""
    return list(islice(cycle(_WORDS), tokens))


def cut(text: str) -> list[str]:
    """The tokens of an answer, whole characters of at most four bytes together; joined they are the text."""
    pieces: list[str] = []
    room = 0
    for letter in text:
        size = len(letter.encode(errors="surrogatepass"))
        if size > room:
            pieces.append("")
            room = TOKEN_BYTES
        pieces[-1] += letter
        room -= size
    return pieces
