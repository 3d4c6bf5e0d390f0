"""Sentences with what is read otherwise than it is written: numbers, dates, money, titles, units.

Books spell numbers out and dialogues have few of them, so a voice that learns from those alone
stumbles over "$3.50" and "Dr. Lee, 10:45". What stays in the text is the written form; the audio is
of how it is read.
"""

from __future__ import annotations

import calendar
import random
from collections.abc import Callable, Iterator, Mapping
from string import Formatter

from minmo.training.data.sources import Text

SOURCE = "written_forms"

_MONTHS = tuple(calendar.month_name[1:])
_SHORT_MONTHS = ("Jan.", "Feb.", "Mar.", "Apr.", "Aug.", "Sept.", "Oct.", "Nov.", "Dec.")
_DAYS = tuple(calendar.day_name)
_TITLES = ("Dr.", "Mr.", "Mrs.", "Ms.", "Prof.", "Gov.", "Sen.", "Rev.", "Capt.", "Gen.")
_NAMES = (
    "Adams", "Baker", "Chen", "Diaz", "Evans", "Foster", "Garcia", "Hughes", "Ibrahim", "Jensen",
    "Kim", "Lee", "Moreno", "Nolan", "Okafor", "Patel", "Quinn", "Rossi", "Silva", "Turner",
    "Usman", "Vargas", "Walsh", "Young", "Zimmer",
)  # fmt: skip
_FIRST_NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Iris", "John")
_STREETS = ("Oak", "Maple", "Main", "Park", "Cedar", "Hill", "Lake", "Church", "Mill", "River")
_STREET_KINDS = ("St.", "Ave.", "Rd.", "Blvd.", "Dr.", "Ln.")
_CITIES = ("Austin", "Boston", "Chicago", "Denver", "Portland", "Seattle", "Dallas", "Omaha")
_STATES = ("TX", "MA", "IL", "CO", "OR", "WA", "CA", "NY", "FL", "OH")
_THINGS = (
    "ticket", "book", "lamp", "phone", "bicycle", "table", "jacket", "camera", "guitar", "meal",
)  # fmt: skip
_PLURALS = ("people", "boxes", "pages", "students", "houses", "trees", "letters", "islands", "cars")
_PLACES = ("the station", "the office", "the library", "gate B12", "room 204", "the old bridge")
_LENGTHS = ("km", "m", "cm", "mm", "mi", "ft", "in.", "yd")
_WEIGHTS = ("kg", "g", "mg", "lb", "oz")
_VOLUMES = ("l", "ml", "gal", "fl oz")
_SPEEDS = ("km/h", "mph", "m/s")
_SIZES = ("KB", "MB", "GB", "TB")
_KINGS = ("Henry VIII", "Louis XIV", "Elizabeth II", "George III", "Charles V", "World War II")
_LETTERS = ("the FBI", "NASA", "the UN", "the BBC", "an MRI", "the GDP", "a DVD", "the USA", "IBM")
_SENTENCES = (
    "The {thing} costs {money}.",
    "I paid {money} for the {thing} and {money} for shipping.",
    "Sales rose by {percent} to {large_money} in {year}.",
    "About {percent} of the {count} {plural} were sold.",
    "She was born on {date}.",
    "The meeting on {date} begins at {time}.",
    "Your appointment with {person} is on {day}, {short_date}, at {time}.",
    "The train to {city} leaves at {time} from platform {small}.",
    "Between {year} and {year} the town grew from {count} to {count} {plural}.",
    "In the {decade} there were only {small} {plural} here.",
    "{person} lives at {address}.",
    "Please send it to {address}, {city}, {state} {zip}.",
    "Call {person} at {phone} before {time}.",
    "The road is {length} long and {length} wide.",
    "It weighs {weight}, not {weight}.",
    "Add {volume} of water and {fraction} cup of sugar.",
    "The car went {speed} when the limit was {speed}.",
    "The file has {size}, and {size} are left.",
    "He came in {ordinal} out of {count}.",
    "This is the {ordinal} time since {month} {year}.",
    "Open chapter {small}, page {page}, and read lines {range}.",
    "Take {small} tablets every {small} hours, i.e. {fraction} of the usual dose.",
    "The answer is {decimal}, or about {fraction}.",
    "Pi is about 3.14159, and the result is {decimal}.",
    "Meet me at {place} at {time} on {day}.",
    "The score was {score} after {small} minutes.",
    "{king} is in chapter {small}.",
    "{letters} said so in {year}, vs. {year} in the first report.",
    "It is {temperature} outside, {temperature} less than on {short_date}.",
    "{first_name} turned {small} on {date}.",
    "We need {small} apples, {small} pears, etc., for {count} {plural}.",
    "Flight {flight} to {city} was delayed by {small} minutes.",
    "The population is {million} and grows by {percent} a year.",
    "They raised {large_money} from {count} {plural}.",
    "No. {small} on the list is {person}, Ph.D.",
    "What is {count} divided by {small}?",
    "How far is it from {city} to {city}, {length} or {length}?",
    "Is the {time} bus to {city} still {money}?",
    "Does {person} still live on {street}?",
    "Wasn't {king} before {year}?",
)


def sentences(count: int, seed: int) -> Iterator[Text]:
    """Sentences, none of them twice.

    Args:
        count: how many.
        seed: of what is drawn.
    """
    drawn = random.Random(f"{seed} {SOURCE}")
    seen: set[str] = set()
    while len(seen) < count:
        text = _filled(drawn.choice(_SENTENCES), drawn)
        if text not in seen:
            seen.add(text)
            yield Text(text, "sentence", SOURCE)


def _filled(sentence: str, drawn: random.Random) -> str:
    parts = []
    for plain, slot, _, _ in Formatter().parse(sentence):
        parts += [plain, _SLOTS[slot](drawn) if slot else ""]
    # An abbreviation ends a sentence with its own full stop.
    text = "".join(parts).replace("..", ".")
    return text[:1].upper() + text[1:]


def _one_of(*choices: str) -> Callable[[random.Random], str]:
    return lambda drawn: drawn.choice(choices)


def _number(low: int, high: int) -> Callable[[random.Random], str]:
    return lambda drawn: f"{drawn.randint(low, high)}"


def _quantity(units: tuple[str, ...]) -> Callable[[random.Random], str]:
    return lambda drawn: f"{drawn.choice((_plain, _decimal))(drawn)} {drawn.choice(units)}"


def _plain(drawn: random.Random) -> str:
    return f"{drawn.randint(1, 10 ** drawn.randint(1, 3))}"


def _decimal(drawn: random.Random) -> str:
    return f"{drawn.randint(0, 99)}.{drawn.randint(0, 9)}{drawn.choice(('', '5', '7'))}"


def _count(drawn: random.Random) -> str:
    number = drawn.randint(2, 10 ** drawn.randint(1, 6))
    return f"{number:,}" if drawn.random() < 0.7 else f"{number}"


def _money(drawn: random.Random) -> str:
    whole = drawn.randint(1, 10 ** drawn.randint(1, 4))
    return f"${whole:,}" if drawn.random() < 0.4 else f"${whole:,}.{drawn.randint(1, 99):02d}"


def _large_money(drawn: random.Random) -> str:
    amount = drawn.choice((_plain, _decimal))(drawn)
    return f"${amount} {drawn.choice(('million', 'billion'))}"


def _date(drawn: random.Random) -> str:
    month, day, year = drawn.randint(1, 12), drawn.randint(1, 28), drawn.randint(1700, 2050)
    written = (
        f"{_MONTHS[month - 1]} {day}, {year}",
        f"{day} {_MONTHS[month - 1]} {year}",
        f"{_MONTHS[month - 1]} {_ordinal_of(day)}",
        f"{month}/{day}/{year}",
        f"{year}-{month:02d}-{day:02d}",
    )
    return drawn.choice(written)


def _short_date(drawn: random.Random) -> str:
    return f"{drawn.choice((*_SHORT_MONTHS, *_MONTHS))} {drawn.randint(1, 28)}"


def _time(drawn: random.Random) -> str:
    hour, minute = drawn.randint(1, 12), drawn.choice((0, 5, 10, 15, 20, 30, 40, 45, 50, 59))
    half = drawn.choice(("a.m.", "p.m.", "AM", "PM"))
    written = (f"{hour}:{minute:02d} {half}", f"{hour}:{minute:02d}", f"{hour} {half}")
    return drawn.choice(written)


def _ordinal_of(number: int) -> str:
    ending = "th" if number % 100 in {11, 12, 13} else {1: "st", 2: "nd", 3: "rd"}.get(number % 10)
    return f"{number}{ending or 'th'}"


def _ordinal(drawn: random.Random) -> str:
    return _ordinal_of(drawn.randint(1, 10 ** drawn.randint(1, 3)))


def _range(drawn: random.Random) -> str:
    first = drawn.randint(1, 90)
    return f"{first}-{first + drawn.randint(1, 60)}"


def _fraction(drawn: random.Random) -> str:
    below = drawn.choice((2, 3, 4, 5, 8))
    return f"{drawn.randint(1, below - 1)}/{below}"


def _person(drawn: random.Random) -> str:
    first = f"{drawn.choice(_FIRST_NAMES)} " if drawn.random() < 0.4 else ""
    return f"{drawn.choice(_TITLES)} {first}{drawn.choice(_NAMES)}"


def _street(drawn: random.Random) -> str:
    named = drawn.choice((drawn.choice(_STREETS), _ordinal_of(drawn.randint(1, 120))))
    return f"{named} {drawn.choice(_STREET_KINDS)}"


_SLOTS: Mapping[str, Callable[[random.Random], str]] = {
    "address": lambda drawn: f"{drawn.randint(1, 9999)} {_street(drawn)}",
    "city": _one_of(*_CITIES),
    "count": _count,
    "date": _date,
    "day": _one_of(*_DAYS),
    "decade": lambda drawn: f"{drawn.randint(170, 202)}0s",
    "decimal": _decimal,
    "first_name": _one_of(*_FIRST_NAMES),
    "flight": lambda drawn: f"{drawn.choice(('AA', 'UA', 'BA', 'DL'))} {drawn.randint(10, 2999)}",
    "fraction": _fraction,
    "king": _one_of(*_KINGS),
    "large_money": _large_money,
    "length": _quantity(_LENGTHS),
    "letters": _one_of(*_LETTERS),
    "million": lambda drawn: f"{_decimal(drawn)} million",
    "money": _money,
    "month": _one_of(*_MONTHS),
    "ordinal": _ordinal,
    "page": _number(1, 999),
    "percent": lambda drawn: f"{drawn.choice((_decimal, _number(1, 100)))(drawn)}%",
    "person": _person,
    "phone": lambda drawn: f"{drawn.randint(200, 989)}-555-{drawn.randint(100, 199):04d}",
    "place": _one_of(*_PLACES),
    "plural": _one_of(*_PLURALS),
    "range": _range,
    "score": lambda drawn: f"{drawn.randint(0, 120)}-{drawn.randint(0, 120)}",
    "short_date": _short_date,
    "size": _quantity(_SIZES),
    "small": _number(2, 60),
    "speed": _quantity(_SPEEDS),
    "state": _one_of(*_STATES),
    "street": _street,
    "temperature": lambda drawn: f"{drawn.randint(-20, 110)} degrees",
    "thing": _one_of(*_THINGS),
    "time": _time,
    "volume": _quantity(_VOLUMES),
    "weight": _quantity(_WEIGHTS),
    "year": _number(1100, 2050),
    "zip": _number(10000, 99999),
}
