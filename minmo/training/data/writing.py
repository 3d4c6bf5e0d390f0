"""Texts that the LLM writes itself, from prompts that are drawn by seed.

They are in the words that it knows, on everyday subjects that trivia and old books leave out. A
small model writes much that is of no use: what is too long, unfinished, a list, or said before is
left out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, Final

from minmo.training.data.assistant import Assistant
from minmo.training.data.cleaning import clean, words_of
from minmo.training.data.decoding import BATCH, Sampler, write_all
from minmo.training.data.lines import Kind

_MAX_TOKENS = 40
_TEMPERATURE, _TOP_P = 0.8, 0.95
_FEWEST_WORDS: Final[dict[Kind, int]] = {"question": 4, "turn": 3, "sentence": 4}
# A round of prompts; what it yields decides how many follow.
_ROUND = 512
# When a round has brought next to nothing, the prompts are used up.
_LEAST_YIELD = 0.01

_SUBJECTS: Final = (
    "animals", "art", "astronomy", "babies", "baking", "banks", "bicycles", "birds", "books",
    "breakfast", "bridges", "buses", "camping", "cars", "cats", "children", "chemistry", "cities",
    "clothes", "coffee", "colours", "computers", "cooking", "cricket", "dancing", "deserts",
    "dinner", "doctors", "dogs", "dreams", "elections", "email", "energy", "exercise", "families",
    "farms", "films", "fish", "flowers", "football", "forests", "friends", "fruit", "furniture",
    "games", "gardens", "geography", "grammar", "hair", "health", "history", "holidays", "horses",
    "hospitals", "hotels", "houses", "insects", "inventions", "islands", "jobs", "kitchens",
    "lakes", "languages", "laws", "libraries", "lunch", "machines", "maps", "mathematics",
    "medicine", "money", "mountains", "museums", "music", "names", "neighbours", "newspapers",
    "numbers", "oceans", "offices", "painting", "parties", "phones", "photographs", "physics",
    "planets", "plants", "poems", "politics", "rain", "recipes", "rivers", "roads", "robots",
    "schools", "science", "shoes", "shops", "singing", "sleep", "snow", "space", "sports",
    "stories", "summer", "swimming", "teachers", "teeth", "television", "tennis", "theatre", "time",
    "tools", "towns", "toys", "trains", "travel", "trees", "universities", "vegetables", "water",
    "weather", "weddings", "winter", "words", "work", "writing",
)  # fmt: skip

_SYSTEM: Final = "You write short texts. Reply with one sentence and nothing else."
_PROMPTS: Final[dict[Kind, tuple[str, ...]]] = {
    "question": (
        "Write one short question that somebody asks a voice assistant about {subject}.",
        "Ask me one simple question about {subject}.",
        "Write a question about {subject} and {other}.",
        "What would a curious child ask about {subject}? Reply with the question.",
    ),
    "sentence": (
        "Write one short sentence about {subject}.",
        "Write one sentence from a story about {subject} and {other}.",
        "Tell me one fact about {subject}.",
        "Write one sentence in which somebody remembers something about {subject}.",
    ),
    "turn": (
        "Write what a customer says on the phone about {subject}, in one sentence.",
        "Write one thing that a person tells a friend about {subject}.",
        "Write one request to a voice assistant that has to do with {subject}.",
        "Write one sentence in which somebody asks a friend for help with {subject}.",
    ),
}
# A start that the LLM goes on from: without one, most of what it writes begins alike.
_STARTS: Final[dict[Kind, tuple[str, ...]]] = {
    "question": (
        "What", "Why", "How", "When", "Where", "Who", "Which", "Can", "Do", "Does", "Is", "Are",
        "Could", "Should", "How many", "How much", "What is the", "How do I", "Did", "Was",
    ),
    "sentence": (
        "The", "A", "My", "In", "When", "She", "He", "They", "There", "It", "Every", "Most",
        "After", "If", "One", "Some", "We", "People", "Yesterday", "On",
    ),
    "turn": (
        "I", "Can you", "Please", "Could you", "My", "Let's", "I'd like", "Is there", "Hi,",
        "Well,", "Do you", "Remind me", "Tell me", "We", "That", "No,", "Yes,", "Thanks,",
        "I think", "Sorry,",
    ),
}  # fmt: skip


def write_texts(
    assistant: Assistant,
    kind: Kind,
    count: int,
    seed: int,
    told: Callable[[int, int], None],
    batch: int = BATCH,
) -> Iterator[dict[str, Any]]:
    """Yields lines as `minmo data texts` reads them, until there are `count`, or no more come.

    Args:
        assistant: that writes.
        kind: what it writes.
        count: how many.
        seed: of prompts and tokens.
        told: hears how many there are, and how many tokens that took.
        batch: sequences at once.
    """
    seen: set[str] = set()
    tokens = 0
    opening = assistant.opening(_SYSTEM)
    round_ = 0
    while len(seen) < count:
        drawn = random.Random(f"{seed} {kind} {round_}")
        starts, prompts = [], []
        for _ in range(_ROUND):
            subject, other = drawn.sample(_SUBJECTS, 2)
            asked = drawn.choice(_PROMPTS[kind]).format(subject=subject, other=other)
            starts.append(drawn.choice(_STARTS[kind]))
            prompts.append([*assistant.question(asked), *assistant.chat.text(starts[-1])])
        sampler = Sampler(drawn.getrandbits(31), _TEMPERATURE, _TOP_P)
        before = len(seen)
        for written in write_all(
            assistant.llm, opening, prompts, assistant.stop, _MAX_TOKENS, sampler, batch
        ):
            tokens += len(written.tokens) + written.ended
            text = _usable(kind, starts[written.number] + _text(assistant, written.tokens))
            if text is None or words_of(text) in seen:
                continue
            seen.add(words_of(text))
            told(len(seen), tokens)
            yield _line(kind, text)
            if len(seen) >= count:
                return
        if len(seen) - before < _LEAST_YIELD * _ROUND:
            return
        round_ += 1


def _text(assistant: Assistant, tokens: list[int]) -> str:
    return b"".join(map(assistant.chat.token_bytes, tokens)).decode("utf-8", "replace")


def _usable(kind: Kind, written: str) -> str | None:
    """The first sentence of what was written, if it is whole and worth saying."""
    line = written.strip().split("\n")[0]
    ends = [place for place in (line.find(sign) for sign in ".?!") if place >= 0]
    if not ends:
        return None
    text = clean(line[: min(ends) + 1])
    if text is None or (kind != "turn" and text.endswith("?") != (kind == "question")):
        return None
    return text if len(text.split()) >= _FEWEST_WORDS[kind] else None


def _line(kind: Kind, text: str) -> dict[str, Any]:
    match kind:
        case "question":
            return {"question": text}
        case "turn":
            return {"turns": [{"speaker": "user", "text": text}]}
        case _:
            return {"text": text}
