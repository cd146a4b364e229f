"""Words in the click widget: what it suggests, and what it says about words that training never saw."""

from __future__ import annotations

import re
from functools import cache, lru_cache

from ullsam.data.referring import STRUCTURES, keys, nearest_phrases, phrases


@cache
def suggestions() -> tuple[str, ...]:
    """Phrases of the training vocabulary to choose from: two for each structure, one for each with an attribute."""
    return tuple(phrase for key in keys() for phrase in phrases(key)[: 2 if key in STRUCTURES else 1])


def bare(words: str) -> str:
    """The words without an article before them."""
    return re.sub(r"^(the|an?|all|each|every)\s+", "", words, flags=re.IGNORECASE)


@cache
def _known() -> frozenset[str]:
    return frozenset(phrase.lower() for key in keys() for phrase in phrases(key))


@lru_cache(256)
def unknown(words: str) -> str:
    """One sentence that words are not in the training vocabulary, and which phrases there are most like them; else ''."""
    if not words or bare(words).lower() in _known():
        return ""
    near = ", ".join(nearest_phrases(words))
    return f"\u201c{words}\u201d is not in the training vocabulary; " + (
        f"nearest: {near}." if near else "nothing there is like it."
    )
