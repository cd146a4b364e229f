"""Suggestions for the box of words, and what is said about words that training never saw."""

import pytest

from ullsam.data.referring import keys, phrases
from ullsam.widgets.words import bare, suggestions, unknown


def test_every_structure_is_suggested_by_phrases_that_training_knows():
    found, trained = suggestions(), {key: phrases(key) for key in keys()}
    assert len(set(found)) == len(found) and {"nucleus", "nuclei", "mitochondria", "dark cell"} <= set(found)
    for key, known in trained.items():
        assert 1 <= len(set(found) & set(known)) <= 2, key
    assert not any(unknown(phrase) for phrase in found)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("nuclei", ""),
        ("The Nuclei", ""),
        ("nuclear DNA", ""),
        ("", ""),
        ("mitochondira", "“mitochondira” is not in the training vocabulary; nearest: mitochondria, mitochondrion"),
        ("pronucleus", "“pronucleus” is not in the training vocabulary; nearest: "),
        ("karyon", "“karyon” is not in the training vocabulary; "),  # held out, so training never saw it
        ("\u7d30\u80de\u6838", "“\u7d30\u80de\u6838” is not in the training vocabulary; nothing there is like it."),
        ("=1+1", "“=1+1” is not in the training vocabulary; nothing there is like it."),
    ],
)
def test_unknown_words_get_a_hint(words, said):
    assert unknown(words).startswith(said) and bool(unknown(words)) == bool(said)
    assert "\n" not in unknown(words)


def test_an_article_counts_for_nothing():
    assert [bare(x) for x in ("the nucleus", "An axon", "theory", "every cell")] == ["nucleus", "axon", "theory", "cell"]
