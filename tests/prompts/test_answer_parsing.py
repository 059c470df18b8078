"""Reading generated answers: options by letter and by text, refusals, exact match and F1."""

import pytest

from ift_scale.prompts import answer_parsing

METALS = ["iron", "copper", "copper oxide", "a dog"]


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("B", 1),
        (" B.", 1),
        ("(B)", 1),
        ("[B] copper", 1),
        ("B) copper", 1),
        ("B: copper", 1),
        ("B. copper", 1),
        ("B copper", 1),
        ("**B**", 1),
        ('"B"', 1),
        ("b", 1),
        ("b)", 1),
        ("B.\nCopper conducts best; A. iron does not.", 1),
        ("The answer is B", 1),
        ("The correct answer is (B).", 1),
        ("the correct option is: B. copper", 1),
        ("Answer: B", 1),
        ("Option B", 1),
        ("So, the answer is C.", 2),
        ("I think that the answer is B, since it conducts.", 1),
        ("The answer is A because it rusts.", 0),
        ("I believe the answer is A because it rusts.", 0),
        ("The answer is a dog.", 3),
        ("copper", 1),
        ("Copper.", 1),
        ("It is the copper, of course", 1),
        ("copper oxide", 2),
        ("It must be copper oxide.", 2),
        ("A", 0),
        ("A. iron", 0),
        ("A iron", 0),
        ("A dog", 3),
        ("a dog", 3),
        ("D. a dog", 3),
        # None, or more than one
        ("", None),
        ("E", None),
        ("I do not know.", None),
        ("A or B", None),
        ("A and B", None),
        ("B, C", None),
        ("(A) or (B)", None),
        ("iron or copper", None),
        ("A strange thing", None),
        ("The answer is A, no, the answer is B", None),
        ("Bananas", None),
        ("C'est la vie", None),
        ("copperplate", None),
    ],
)
def test_the_option_that_an_answer_names(response: str, expected: int | None) -> None:
    assert answer_parsing.named_option(response, METALS) == expected


def test_options_that_differ_in_signs_or_are_letters() -> None:
    assert answer_parsing.named_option("-1", ["1", "-1", "2"]) == 1
    assert answer_parsing.named_option("B", ["B", "A"]) == 1  # the letter goes before the text
    assert answer_parsing.named_option("铜", ["铁", "铜"]) == 1
    assert answer_parsing.named_option("答案是铜。", ["铁", "铜"]) == 1
    assert answer_parsing.named_option("same", ["same", "Same."]) == 0
    assert answer_parsing.named_option("it is the same", ["same", "Same."]) is None


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("I do not know.", True),
        ("i don't know", True),
        ("Sorry, I am not sure about that.", True),
        ("Das weiss ich nicht!", True),
        ("B. copper", False),
        ("We do know: copper.", False),
        ("", False),
    ],
)
def test_refusals(response: str, expected: bool) -> None:
    assert answer_parsing.is_refusal(response, "Das weiss ich nicht.") == expected
    assert answer_parsing.refuses(response, METALS, "Das weiss ich nicht.") == expected


def test_an_option_that_says_so_is_no_refusal() -> None:
    choices = ["Yes", "I have no idea", "No"]
    assert not answer_parsing.refuses("B. I have no idea", choices, "I do not know.")
    assert answer_parsing.refuses("A. Yes, but I do not know.", choices, "I do not know.")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat's, hat!", "cats hat"),
        ("an Apple a day", "apple day"),
        ("U.S.", "us"),
        ("Theatre", "theatre"),
        (" ", ""),
    ],
)
def test_normalisation_is_squads_unless_it_merges_answers(text: str, expected: str) -> None:
    assert answer_parsing.normalise(text) == expected


def test_exact_match_and_f1_take_the_best_alias() -> None:
    aliases = ["New York City", "NYC"]
    assert answer_parsing.exact_match("the nyc.", aliases) and not answer_parsing.exact_match(
        "New York", aliases
    )
    assert answer_parsing.f1("New York", aliases) == pytest.approx(2 * 1 * (2 / 3) / (1 + 2 / 3))
    assert answer_parsing.f1("nyc", aliases) == 1 and answer_parsing.f1("Boston", aliases) == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("the", "A"),
        ("", ""),
        ("", "the"),
        ("!!!", "?"),
        ("...", "the"),
        ("\u3002", "\uff1f"),
        ("1.5", "15"),
        ("-5", "5"),
        ("1/2", "12"),
        ("1,5", "15"),
        ("10:30", "1030"),
        ("1990-95", "199095"),
        ("C#", "C++"),
        ("B-", "B+"),
        ("C", "C++"),
        ("\u5317\u4eac", "\u4e1c\u4eac"),
    ],
)
def test_different_answers_are_never_equal(one: str, other: str) -> None:
    """Also if normalisation leaves nothing of both, or they differ in punctuation only."""
    for first, second in ((one, other), (other, one)):
        assert (
            not answer_parsing.exact_match(first, [second])
            and answer_parsing.f1(first, [second]) < 1
        )
    if not set(answer_parsing.tokens(one)) & set(answer_parsing.tokens(other)):
        assert answer_parsing.f1(one, [other]) == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A", "a."),
        ("The the Beatles", "Beatles"),
        ("!!!", "!!!"),
        ("3,000", "3000"),
        ("1,234,567", "1234567"),
        ("\u22125", "-5"),
        (".5", "0.5"),
        ("10%", "10"),
        ("5.", "5"),
        ("U.S.", "US"),
        ("1990\u201395", "1990-95"),
        ("\u201cParis\u201d", "Paris"),
        ("\u5317\u4eac\u3002", "\u5317\u4eac"),
        ("\uff30\uff41\uff52\uff49\uff53\u3000\uff11\uff19", "paris 19"),
        ("Cafe\u0301", "caf\u00e9"),
    ],
)
def test_the_same_answer_written_otherwise_is_equal(one: str, other: str) -> None:
    for first, second in ((one, other), (other, one)):
        assert (
            answer_parsing.exact_match(first, [second]) and answer_parsing.f1(first, [second]) == 1
        )


def test_f1_counts_words_and_in_chinese_and_japanese_characters() -> None:
    assert answer_parsing.f1("vitamin A", ["vitamin"]) == pytest.approx(2 / 3)
    assert answer_parsing.f1("\u4e2d\u56fd\u5317\u4eac", ["\u5317\u4eac"]) == pytest.approx(2 / 3)
    assert answer_parsing.tokens("\u6771\u4eac tower") == ["\u6771", "\u4eac", "tower"]


@pytest.mark.parametrize(
    ("response", "option"),
    [
        ("zinc", 1),
        ("A. zinc", 1),  # the letter is of no option that was shown
        ("(C) The zinc.", 1),
        ("It is made of zinc oxide", 2),
        ("A.", None),
        ("C", None),
        ("tin or zinc", None),
        ("", None),
    ],
)
def test_an_answer_to_a_question_without_options_counts_by_its_words(
    response: str, option: int | None
) -> None:
    assert answer_parsing.option_in_words(response, ["tin", "zinc", "zinc oxide"]) == option
