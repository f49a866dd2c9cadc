"""Which words of a text were searched for: in Python, by the words of every store, so that what is found is marked.

A query handler has the rows that `Reader.search` found, best first; this tells it what to show of them.
"""

from __future__ import annotations

import html
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from diptych.errors import ConfigurationError
from diptych.read_side.row_filters import words_of

__all__ = ["Passage", "as_html", "excerpt", "highlighted"]

EXCERPT_CHARACTERS_MIN = 20
"""Characters that an excerpt has room for at least."""


class Passage(NamedTuple):
    """A piece of a text. All pieces, one behind the other, are the text.

    Attributes:
        text: the piece, as it was written.
        found: whether it is a word that was searched for.
    """

    text: str
    found: bool


def highlighted(text: str, searched: str) -> tuple[Passage, ...]:
    """The text in pieces: the words that begin with a searched one, and what is between them.

    Words are those of `Reader.search`: runs of letters and digits, without case and accents. A word is marked as a
    whole, accents included, also where only its beginning was searched for.

    Args:
        text: of a `Searchable` field, or any other.
        searched: what `Reader.search` was given. Without a word in it, nothing is found.
    """
    wanted = _shortest(words_of(searched))
    spans: list[tuple[int, int]] = []
    for word, start, end in _words(text) if wanted else ():
        place = bisect_right(wanted, word)  # the last that is not behind it: others that begin it would begin that one
        if place and word.startswith(wanted[place - 1]):
            shared = spans and start < spans[-1][1]  # one character may end a word and begin the next: "¼0" is 1 and 40
            spans.append((spans.pop()[0] if shared else start, end))
    passages, done = list[Passage](), 0
    for start, end in spans:
        passages += [Passage(text[done:start], found=False), Passage(text[start:end], found=True)]
        done = end
    passages.append(Passage(text[done:], found=False))
    return tuple(passage for passage in passages if passage.text)


def excerpt(text: str, searched: str, *, characters: int = 160) -> tuple[Passage, ...]:
    """As `highlighted`, of a part of the text that begins shortly before the first word that was found.

    It begins and ends between words where it can. Where text was left out, it has an ellipsis.

    Args:
        text: of a `Searchable` field, or any other.
        searched: what `Reader.search` was given. Without a word of it in the text, the excerpt is its beginning.
        characters: of the text that are shown at most, without the ellipses.

    Raises:
        ConfigurationError: there is room for fewer than `EXCERPT_CHARACTERS_MIN` characters.
    """
    if characters < EXCERPT_CHARACTERS_MIN:
        raise ConfigurationError(f"an excerpt has at least {EXCERPT_CHARACTERS_MIN=} characters, not {characters}")
    passages = highlighted(text, searched)
    before = len(passages[0].text) if len(passages) > 1 and not passages[0].found else 0
    start = _between_words(text, max(0, min(before - characters // 4, len(text) - characters)), before)
    end = min(len(text), start + characters)
    if end < len(text):
        end = _last_end(text, start, end)
    cut = _cut(passages, start, end)
    left = [Passage("…", found=False)] if start > 0 else []
    right = [Passage("…", found=False)] if end < len(text) else []
    return (*left, *cut, *right)


def as_html(passages: Sequence[Passage]) -> str:
    """The passages as HTML: escaped, and what was found as `<mark>`."""
    texts = ((html.escape(passage.text), passage.found) for passage in passages)
    return "".join(f"<mark>{text}</mark>" if found else text for text, found in texts)


def _shortest(words: Iterable[str]) -> list[str]:
    """The words that no other one begins, in order: these alone say which words are found, however many were given."""
    found: list[str] = []
    for word in sorted(words):
        if not (found and word.startswith(found[-1])):
            found.append(word)
    return found


def _words(text: str) -> Iterator[tuple[str, int, int]]:
    """Each word as it is searched for, and where it begins and ends in the text."""
    word, start, end = list[str](), 0, 0
    for place, character in enumerate(text):
        for part in unicodedata.normalize("NFKD", character):
            if unicodedata.combining(part):
                end = place + 1 if word else end  # it belongs to the letter before it
                continue
            for letter in part.casefold():
                if letter.isalnum():
                    start, end = start if word else place, place + 1
                    word.append(letter)
                elif word:
                    yield "".join(word), start, end
                    word.clear()
    if word:
        yield "".join(word), start, end


def _between_words(text: str, earliest: int, latest: int) -> int:
    """The first place behind a space, from one place to another; the first one where there is none."""
    if earliest == 0:
        return 0
    space = text.find(" ", earliest - 1, latest)
    return earliest if space < 0 else space + 1


def _last_end(text: str, start: int, end: int) -> int:
    """The last place before a space, in the second half; the end where there is none."""
    space = text.rfind(" ", (start + end) // 2, end + 1)
    return end if space < 0 else space


def _cut(passages: Sequence[Passage], start: int, end: int) -> Iterator[Passage]:
    """What lies from one place to another."""
    place = 0
    for passage in passages:
        shown = passage.text[max(0, start - place) : max(0, end - place)]
        place += len(passage.text)
        if shown:
            yield Passage(shown, passage.found)
