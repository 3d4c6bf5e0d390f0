"""Text that people write, as `minmo say` has it said."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from minmo.cli.errors import InputError
from minmo.cli.main import app
from minmo.cli.reach import Reach, Server
from minmo.cli.say import parts_of
from minmo.client import speech
from minmo.client.errors import ClientError
from minmo.client.speech import Speech
from minmo.client.target import Target
from minmo.engine.markdown import paragraphs
from minmo.engine.spoken_form import spoken_form, spoken_sentence, written_sentences

TABLE = [
    # Money.
    ("It costs $12.50.", "It costs twelve dollars fifty cents."),
    ("£5.50 or €3,000", "Five pounds fifty pence or three thousand euros"),
    ("$3 million and $1.2bn", "Three million dollars and one point two billion dollars"),
    ("$0.99", "Ninety nine cents"),
    ("You owe me 50¢.", "You owe me fifty cents."),
    ("¥1000", "One thousand yen"),
    ("-$5", "Minus five dollars"),
    ("$5-10", "Five dollars to ten dollars"),
    ("It is $20/month.", "It is twenty dollars per month."),
    # Numbers.
    ("the 3rd, 21st and 102nd", "the third, twenty first and one hundred second"),
    (
        "1,234,567 people",
        "One million two hundred thirty four thousand five hundred and sixty seven people",
    ),
    ("0.5 and .75", "Zero point five and point seven five"),
    ("pi is 3.14159.", "pi is three point one four one five nine."),
    ("-5 degrees", "Minus five degrees"),
    ("50% of 12.5%", "Fifty percent of twelve point five percent"),
    ("1/2 cup and 2 1/3 cups", "One half cup and two and one third cups"),
    ("3½ of ¾", "Three and a half of three quarters"),
    ("a 2nd-hand car", "a second hand car"),
    ("2bn years", "Two billion years"),
    ("3x faster", "Three times faster"),
    ("10/10 and 24/7", "Ten out of ten and twenty four seven"),
    ("10^3 is 10³", "Ten cubed is ten cubed"),
    ("x**2", "x to the power of two"),
    ("3 * 4 = 12", "Three times four equals twelve"),
    ("5*3*2", "Five times three times two"),
    ("a=b+c", "a equals b plus c"),
    ("a < b > c", "a less than b greater than c"),
    ("it takes ~5 days", "it takes about five days"),
    # From one to another.
    ("pages 12-15", "pages twelve to fifteen"),
    ("5–10 people", "Five to ten people"),
    ("20-30%", "Twenty to thirty percent"),
    ("1914–1918", "Nineteen fourteen to nineteen eighteen"),
    ("we won 3-1 (3:1)", "we won three to one (three to one)"),
    ("the 10-year-old boy", "the ten-year-old boy"),
    # Telephones, versions, identifiers.
    ("call 555-1234", "call five five five, one two three four"),
    ("(415) 555-2671", "Four one five, five five five, two six seven one"),
    ("+1 415 555 2671", "Plus one, four one five, five five five, two six seven one"),
    ("1-800-555-0199", "One, eight zero zero, five five five, zero one nine nine"),
    ("+44 20 7946 0958", "Plus four four, two zero, seven nine four six, zero nine five eight"),
    ("call 911", "call nine one one"),
    ("version 2.0.1", "version two point zero point one"),
    ("v2.0", "version two point zero"),
    ("192.168.0.1", "One nine two dot one six eight dot zero dot one"),
    (
        "ISBN 978-3-16-148410-0",
        "ISBN nine seven eight, three, one six, one four eight four one zero, zero",
    ),
    ("No. 5", "Number five"),
    ("#7", "Number seven"),
    # Times and dates.
    ("at 3:30 pm", "at three thirty PM"),
    ("at 10:05 a.m., or 14:45", "at ten o five AM, or fourteen forty five"),
    ("at 8:00", "at eight o'clock"),
    ("7 p.m. EST", "Seven PM EST"),
    ("9am-5pm", "Nine AM to five PM"),
    ("12/25/2024", "December twenty fifth twenty twenty four"),
    ("12-25-2024", "December twenty fifth twenty twenty four"),
    ("2024-12-25", "December twenty fifth twenty twenty four"),
    ("2024-12-25T10:30:00Z", "December twenty fifth twenty twenty four at ten thirty"),
    ("Dec. 25, 2024", "December twenty fifth, twenty twenty four"),
    ("25 December 2024", "The twenty fifth of December twenty twenty four"),
    ("January 1st, 2001", "January first, two thousand one"),
    ("in 1984 and 1066", "in nineteen eighty four and ten sixty six"),
    ("the 1990s and the '80s", "the nineteen nineties and the eighties"),
    ("after 9/11", "after nine eleven"),
    # Units.
    ("it weighs 5 kg", "it weighs five kilograms"),
    ("1 kg", "One kilogram"),
    ("10 km at 60 mph", "Ten kilometers at sixty miles per hour"),
    ("20°C or 68°F", "Twenty degrees Celsius or sixty eight degrees Fahrenheit"),
    ("100 MB/s", "One hundred megabytes per second"),
    ("100m in 9.58s", "One hundred meters in nine point five eight seconds"),
    ("1 V, 60 W, 4GB", "One volt, sixty watts, four gigabytes"),
    ("5 m²", "Five square meters"),
    ("5'11\"", "Five feet eleven inches"),
    ("3h 20m", "Three hours twenty minutes"),
    # Names.
    ("Henry VIII's wife", "Henry the eighth's wife"),
    ("Louis XIV and World War II", "Louis the fourteenth and World War two"),
    ("Chapter IV", "Chapter four"),
    ("John I know", "John I know"),
    ("Dr. Smith and Prof. Lee", "Doctor Smith and Professor Lee"),
    ("Mrs. Jones vs. Mr. Lee, etc.", "Missus Jones versus Mister Lee, et cetera."),
    ("123 Main St. near Mt. Hood", "One twenty three Main Street near Mount Hood"),
    ("St. John's", "Saint John's"),
    ("Apple Inc. grew", "Apple Incorporated grew"),
    ("the U.S. Army and NASA", "the US Army and NASA"),
    ("e.g. this, i.e. that", "for example this, that is that"),
    ("he/she and/or w/ milk", "he or she and or with milk"),
    # Addresses.
    ("mail john.doe@example.com", "mail john dot doe at example dot com"),
    ("a_b+c-d@mail.example.org", "a underscore b plus c dash d at mail dot example dot org"),
    ("see https://www.example.com/docs?page=2.", "see example dot com."),
    ("example.org", "example dot org"),
    ("#ThrowbackThursday @bob", "Hashtag Throwback Thursday at bob"),
    # Markdown, code, emoji, other alphabets.
    ("**bold** and _it_ and ~~gone~~", "bold and it and gone"),
    ("[click](https://a.com) `code_x`", "click code x"),
    ("![a cat](cat.png)", "a cat"),
    ("<b>bold</b> &amp; done", "bold and done"),
    ("C++ & Python 3.11", "C plus plus and Python three point one one"),
    ("great 👍🏽!", "great!"),
    ("hello 你好", "hello"),
    ("naïve café — “yes”", 'naive cafe, "yes"'),
    ("Nothing to do here.", "Nothing to do here."),
]


@pytest.mark.parametrize(("written", "said"), TABLE)
def test_a_text_is_said_as_people_read_it(written: str, said: str) -> None:
    assert spoken_form(written).text == said


def test_no_sentence_is_longer_than_a_server_takes() -> None:
    digits = "7" * 3000
    said = [spoken_sentence(sentence).text for sentence in written_sentences(digits)]
    assert 1000 < max(map(len, said)) <= 2000
    assert sum(text.lower().count("seven") for text in said) == 3000


def test_a_list_behind_a_number_is_no_product() -> None:
    assert spoken_form("I counted 5\n* 3 apples").text == "I counted five Three apples"


def test_blocks_of_markdown_are_sentences_of_their_own() -> None:
    text = (
        "# Title\n\n- one\n- two\n\n1. First\n2. Second\n\n"
        "| Name | Age |\n|---|---|\n| Bob | 42 |\n\n```python\nprint('hi')\n```\n\n---\n"
    )
    assert [spoken_sentence(sentence).text for sentence in written_sentences(text)] == [
        "Title",
        "one",
        "two",
        "One. First",
        "Two. Second",
        "Name, Age",
        "Bob, forty two",
        "print('hi')",
    ]


def test_a_plain_text_is_one_paragraph_for_each_of_its_own() -> None:
    assert paragraphs("One line.\nAnother.\n\n    Indented.") == [
        "One line.\nAnother.",
        "Indented.",
    ]


def test_what_no_english_word_stands_for_is_reported() -> None:
    assert spoken_form("hello 你好 😀").unsayable == "你好😀"


@pytest.mark.parametrize("text", ["😀🎉", "!!! ... ???", "你好，世界", "---", "| | |\n|---|---|\n"])
def test_a_text_without_a_word_is_refused_with_the_reason(text: str) -> None:
    assert spoken_form(text).text == ""
    with pytest.raises(InputError, match=r"no word that can be said, only .*; give English text"):
        next(parts_of(text))


def test_sentences_end_where_they_do_and_long_ones_are_parted() -> None:
    text = "He moved to the U.S. He lives at 5 Elm St. now. Mr. Lee left."
    assert [sentence.strip() for sentence in written_sentences(text)] == [
        "He moved to the U.S.",
        "He lives at 5 Elm St. now.",
        "Mr. Lee left.",
    ]
    endless = list(written_sentences("and so it goes on " * 200))
    assert len(endless) > 1
    assert max(map(len, endless)) <= 300
    assert "".join(endless).split() == ("and so it goes on " * 200).split()


def test_a_hundred_thousand_characters_are_said_in_parts() -> None:
    text = "It was a quiet day, and nobody came to the house. " * 2000
    began = time.process_time()
    parts = list(parts_of(text))
    # It takes half a second; what grows with the square of the length takes minutes.
    assert time.process_time() - began < 10
    assert " ".join(part.text for part in parts) == text.strip()
    assert max(len(part.text) for part in parts) <= 400
    assert sum(part.written for part in parts) == pytest.approx(len(text), abs=1)


def test_of_a_long_text_the_first_part_is_there_at_once() -> None:
    began = time.process_time()
    first = next(parts_of("There were 1,234,567 of them. " * 3000))
    assert first.text.startswith("There were one million")
    assert time.process_time() - began < 10


def test_parts_tell_what_is_left_out() -> None:
    (part,) = parts_of("Hello 你好. 😀 Bye.")
    assert (part.text, part.unsayable) == ("Hello. Bye.", "你好😀")


def test_as_written_numbers_are_left_to_the_voice() -> None:
    (part,) = parts_of("**In 1984** it was.", as_written=True)
    assert (part.text, part.unsayable) == ("In 1984 it was.", "")


@pytest.fixture
def spoken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that a server is asked to say; it says a sample for each character."""
    said: list[str] = []

    async def say(target: object, text: str, **options: object) -> Speech:
        if "forbidden" in text:
            raise ClientError("that is not said")
        said.append(text)
        return Speech(np.full(len(text), 0.5, np.float32), 24_000, 10.0)

    def run(reach: Reach, work: Callable[[Server], Awaitable[object]]) -> object:
        return asyncio.run(work(Server(Target("nowhere:1"))))  # type: ignore[arg-type]

    monkeypatch.setattr(speech, "say", say)
    monkeypatch.setattr(Reach, "run", run)
    return said


def test_a_long_text_becomes_one_file(spoken: list[str], tmp_path: Path) -> None:
    out = tmp_path / "long.wav"
    text = "There was nobody at home. " * 40 + "Bye 你好."
    done = CliRunner().invoke(app, ["say", text, "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0
    assert len(spoken) == 3
    assert " ".join(spoken) == "There was nobody at home. " * 40 + "Bye."
    assert soundfile.info(out).frames == sum(map(len, spoken))
    assert "left out, as no English word stands for it: 你好" in done.output


def test_of_a_text_that_fails_no_file_is_left(spoken: list[str], tmp_path: Path) -> None:
    out = tmp_path / "kept.wav"
    out.write_bytes(b"older")
    text = "There was nobody at home. " * 40 + "It is forbidden."
    with pytest.raises(ClientError):
        CliRunner().invoke(app, ["say", text, "--out", str(out)], catch_exceptions=False)
    assert len(spoken) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["kept.wav"]
    assert out.read_bytes() == b"older"


@settings(max_examples=30, deadline=None)
@given(
    st.text(alphabet=st.sampled_from("aB1203.,:/-$%€°'\"#@*_[](|<= \n½²XIVstkmé你😀"), max_size=40)
)
def test_whatever_is_written_words_are_said(text: str) -> None:
    said = spoken_form(text).text
    assert said.isascii()
    assert said.isprintable()
    assert not re.search(r"[0-9*`<>]", said)
