"""Whether an answer is right: does it contain one of the answers that are known to be right?

The rule. Both sides are normalised (`minmo.evaluation.normalise`: case, punctuation, accents,
numbers) and lose their articles (a, an, the). The answer is right if the words of one right answer
stand in it, one after the other and whole. Of a right answer with something in parentheses, what
stands before and what stands within count as well, "Ricky Nelson (Rocky Nelson)" as either name;
within them only a name counts, which starts with a capital letter: "Titanic (film)" is not
answered by "film". A right answer of articles alone ("A") must be the whole answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from minmo.evaluation.normalise import normalise

_ARTICLES = frozenset({"a", "an", "the"})
_PARENTHESES = re.compile(r"\(([^()]*)\)")
_LEADING_ARTICLE = re.compile(r"^(?:a|an|the)\s+", re.IGNORECASE)


def aliases(answer: str) -> list[str]:
    """The ways to give a right answer, the whole of it first."""
    ways = [answer.strip()]
    if within := _PARENTHESES.findall(answer):
        ways.append(_PARENTHESES.sub(" ", answer).strip())
        named = (_LEADING_ARTICLE.sub("", name.strip()) for name in within)
        ways += [name for name in named if name[:1].isupper()]
    return [way for way in ways if way]


def is_right(answer: str, right: Iterable[str]) -> bool:
    """Whether `answer` contains any of the right answers; see the module."""
    said = normalise(answer).split()
    without = _without_articles(said)
    for alias in (way for known in right for way in aliases(known)):
        wanted = normalise(alias).split()
        short = _without_articles(wanted)
        if not wanted:
            continue
        if said == wanted if not short else _stands_in(short, without):
            return True
    return False


def _without_articles(words: list[str]) -> list[str]:
    return [word for word in words if word not in _ARTICLES]


def _stands_in(wanted: list[str], words: list[str]) -> bool:
    return f" {' '.join(wanted)} " in f" {' '.join(words)} "
