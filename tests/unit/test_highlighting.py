"""What was searched for is marked in a text, by the words of every store."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.errors import ConfigurationError
from diptych.read_side.highlighting import EXCERPT_CHARACTERS_MIN, as_html, excerpt, highlighted
from diptych.read_side.row_filters import words_of

PIECES = st.sampled_from(
    ["tea", "Tee", "café", "cafe\u0301", "½", "ß", "Straße", " ", "-", "…", "\u0301", "ﬁx", "x8", "İ"]
)
TEXTS = st.one_of(st.lists(PIECES, max_size=12).map("".join), st.text(max_size=30))


def found(text: str, searched: str) -> list[str]:
    return [passage.text for passage in highlighted(text, searched) if passage.found]


@pytest.mark.parametrize(
    ("text", "searched", "marked"),
    [
        ("Warm Café au lait", "cafe warm", ["Warm", "Café"]),
        ("cafe\u0301teria", "CAF", ["cafe\u0301teria"]),
        ("decaf", "caf", []),
        ("Straße 8", "strass", ["Straße"]),
        ("ﬁxed ﬁgs", "fi", ["ﬁxed", "ﬁgs"]),
        ("½ litre", "2", ["½"]),
        ("salt AND pepper", "salt* -pepper", ["salt", "pepper"]),
        ("anything", "", []),
        ("anything", '"*', []),
        ("", "tea", []),
    ],
)
def test_words_that_begin_with_a_searched_one_are_marked(text: str, searched: str, marked: list[str]) -> None:
    """Without case and accents, as a whole, and as they were written."""
    assert found(text, searched) == marked


@given(TEXTS, TEXTS)
def test_the_pieces_are_the_text_and_what_is_marked_is_what_is_found(text: str, searched: str) -> None:
    """A store that finds a row by its words marks some for each; what no store finds by, is not marked."""
    passages = highlighted(text, searched)
    assert "".join(passage.text for passage in passages) == text
    assert all(passage.text for passage in passages)
    wanted = words_of(searched)
    begun = [word for word in wanted if any(each.startswith(word) for each in words_of(text))]
    marked = words_of(" ".join(passage.text for passage in passages if passage.found))
    assert bool(marked) == bool(begun)
    assert all(any(each.startswith(word) for each in marked) for word in begun)


@given(st.lists(st.text("aábß", max_size=5), max_size=9), st.lists(st.text("aábß", max_size=4), max_size=9))
def test_a_word_is_marked_where_any_searched_one_begins_it(words: list[str], searched: list[str]) -> None:
    """Also where one of them begins another, or lies between the word and what begins it."""
    wanted = tuple(words_of(" ".join(searched)))
    expected = [word for word in words if word and "".join(words_of(word)).startswith(wanted or ("-",))]
    assert found(" ".join(words), " ".join(searched)) == expected


def test_however_much_is_searched_for_it_is_found() -> None:
    """A megabyte of words, and of a word: each word of the text is compared with one of them, and taken apart once."""
    beginnings = " ".join(f"w{number:06}" for number in range(125_000))
    assert found("tea w000007ab w " * 20_000, beginnings) == ["w000007ab"] * 20_000
    assert found("a" * 1_000_000, "a " * 500_000) == ["a" * 1_000_000]


@given(TEXTS.map(lambda text: text * 9), TEXTS, st.integers(EXCERPT_CHARACTERS_MIN, 60))
def test_an_excerpt_is_a_part_of_the_text_with_what_was_found_first(text: str, searched: str, characters: int) -> None:
    """As long as was asked for at most, but for the ellipses; the whole text where there is room for it."""
    whole, shown = highlighted(text, searched), excerpt(text, searched, characters=characters)
    part = "".join(passage.text for passage in shown)
    assert len(part) <= characters + 2
    assert part.removeprefix("…").removesuffix("…") in text
    if len(text) <= characters:
        assert shown == whole
    first = next((passage.text for passage in whole if passage.found), None)
    if first is not None and len(first) <= EXCERPT_CHARACTERS_MIN // 2:
        assert next(passage.text for passage in shown if passage.found) == first


def test_an_excerpt_begins_and_ends_between_words() -> None:
    """Shortly before what was found."""
    text = "one two three four five six seven eight nine ten eleven twelve thirteen"
    assert excerpt(text, "seven", characters=30) == (
        ("…", False), ("six ", False), ("seven", True), (" eight nine ten", False), ("…", False),
    )  # fmt: skip
    assert excerpt(text, "nothing", characters=20) == (("one two three four", False), ("…", False))
    assert excerpt(text, "thirteen", characters=20)[-1] == ("thirteen", True)
    with pytest.raises(ConfigurationError, match="EXCERPT_CHARACTERS_MIN"):
        excerpt(text, "one", characters=EXCERPT_CHARACTERS_MIN - 1)


def test_html_is_escaped() -> None:
    """Whatever the text holds, only what was found is an element."""
    assert (
        as_html(highlighted("<b>Tea</b> & tears", "te"))
        == "&lt;b&gt;<mark>Tea</mark>&lt;/b&gt; &amp; <mark>tears</mark>"
    )
