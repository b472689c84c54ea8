"""The simulator's own tokenizer: four UTF-8 bytes are a token, a started one counts. It knows no language.

It never finds more tokens than bytes, which is what lets a gateway bound a prompt by its bytes.
"""

from itertools import cycle, islice

TOKEN_BYTES = 4
_WORDS = ("the ", "sea ", "was ", "low ", "and ", "one ", "gate", " let", " it ", "by. ")


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
