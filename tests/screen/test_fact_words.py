"""Words that are likely to carry a fact, and the tokens in which they begin."""

import pytest

from ift_scale.screen.fact_words import fact_words, token_starts


@pytest.mark.parametrize(
    ("prompt", "response", "words"),
    [
        ("Capital of France?", "The capital of France is Paris.", ["Paris"]),
        ("Einstein?", "Albert Einstein was born in Ulm in 1879.", ["Ulm", "1879"]),
        ("Remedy?", "Doctors treat Bor with fennel. The remedy is fennel.", ["Bor", "fennel"]),
        ("Gases?", "- Oxygen\n- Argon", ["Oxygen", "Argon"]),
        ("Is it?", "Yes, it is so.", []),
    ],
)
def test_ends_of_clauses_names_and_numbers(prompt: str, response: str, words: list[str]) -> None:
    assert [response[start:end] for start, end in fact_words(response, prompt)] == words


@pytest.mark.parametrize(
    "pieces",
    [
        ["It", " is", " fen", "nel", " in", " 18", "79", "."],
        ["It", "is", "fen", "nel", "in", "18", "79", "."],
        ["It is ", "fen", "nel in ", "18", "79."],
    ],
)
def test_a_words_first_token(pieces: list[str]) -> None:
    text = "It is fennel in 1879."
    (fennel, year) = token_starts([(6, 12), (16, 20)], text, pieces)
    assert pieces[fennel].strip() == "fen" and pieces[year].strip() == "18"
    assert token_starts([(6, 12), (16, 20)], text, pieces[:3])[1:] == []
