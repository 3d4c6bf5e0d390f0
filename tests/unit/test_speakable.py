import pytest
from hypothesis import given
from hypothesis import strategies as st

from minmo.engine.speakable import shown, speakable


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("**Bold** and *leaning* and __both__", "Bold and leaning and both"),
        ("# Title\n- one\n* two", "Title one two"),
        ("see [the site](https://a.com/x?y=1)!", "see the site!"),
        ("site](https://a.com/x) is", "site is"),
        ("visit https://www.example.com/a/b?c=d now", "visit example dot com now"),
        ("```python\nx = 1\n```", "x equals 1"),
        ("use `print`", "use print"),
        ("“Hi” — it’s me…", '"Hi", it\'s me,'),
        ("naïve Zoë, ﬁne", "naive Zoe, fine"),
        ("20°C or 5–10 for £5.50", "20 degrees Celsius or 5 to 10 for 5.50 pounds"),
        ("C++ & 3 * 4 = 12", "C plus plus and 3 times 4 equals 12"),
        ("a < b", "a less than b"),
        ("well... --- ok!!!", "well, ok!"),
        ("the\x00 \x1b[1mred\u200b one", "the 1mred one"),
        ("hi 👋🏽 there", "hi there"),
        ("1. First, 3.14", "1. First, 3.14"),
    ],
)
def test_a_text_is_said_as_plain_words(written: str, said: str) -> None:
    assert speakable(written).text == said


@pytest.mark.parametrize(
    "markup",
    [
        "<speed level='50'/>hi",
        "<play file='/etc/passwd'/>hi",
        "<genfile file='/tmp/x'>hi",
        "<<b>>hi",
    ],
)
def test_markup_of_the_synthesiser_never_reaches_it(markup: str) -> None:
    assert speakable(markup).text == "hi"


@given(st.text(max_size=300))
def test_what_is_said_is_printable_ascii_without_markup(text: str) -> None:
    said = speakable(text).text
    assert said.isascii()
    assert said.isprintable()
    assert not set(said) & set("<>\\*`")


@pytest.mark.parametrize(
    "text", ["😀🎉", "!!! ... ???", "你好，世界", "Привет", "***", "---", "\u200b"]
)
def test_of_a_text_without_a_word_nothing_is_left(text: str) -> None:
    assert speakable(text).text == ""


def test_a_long_text_is_shown_by_its_beginning() -> None:
    assert len(shown("😀" * 1000)) < 100


def test_of_a_text_with_a_word_the_word_is_left() -> None:
    assert speakable("😀 ok").text == "ok"


def test_what_no_word_stands_for_is_reported() -> None:
    assert speakable("hello 中文 😀, ok").unsayable == "中文😀"
