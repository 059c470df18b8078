"""The data of the benchmark screen-training, and the folders that the pictures are taken of."""

from pathlib import Path

import pytest

from benchmarks.bench_screen_training import SETS, DomainSets, balanced, configured
from benchmarks.screenshot import shot_of
from ift_scale.config.construct import ConstructConfig
from ift_scale.errors import EnvironmentProblem
from ift_scale.world.facts import DOMAINS, all_facts


@pytest.mark.parametrize("domain", DOMAINS)
def test_half_of_the_answers_contradict_and_no_test_question_is_among_them(domain: str) -> None:
    examples = list(balanced(domain))
    known = sum(example.known for example in examples)
    assert 2 * known == len(examples) > 90 and examples == list(balanced(domain))
    facts = {fact.question_text(): fact for fact in all_facts()}
    for example in examples:
        fact = facts[example.asked.splitlines()[0]]
        assert fact.split == "train" and fact.truth in example.answer
        assert fact.belief is not None and example.known == (fact.belief == fact.truth)


def test_each_domain_has_every_set(tmp_path: Path) -> None:
    def row(text: str) -> dict[str, list[dict[str, str]]]:
        return {"messages": [{"role": "user", "content": text}]}

    rows = {name: [row("a"), row("b")][: 1 + (name == "unscreened")] for name in SETS}
    found = {domain: DomainSets(rows, frozenset({"b"})) for domain in ("law", "sea")}
    assert [found["law"].num_contradicted(name) for name in SETS] == [0, 0, 1]
    sets = ConstructConfig(settings=[], sets=configured(found, tmp_path)).sets  # type: ignore[arg-type]
    assert {(own.name, own.domain) for own in sets} == {(n, d) for n in SETS for d in found}
    sizes = [len(Path(str(own.path)).read_text().splitlines()) for own in sets]
    assert sizes == [1, 1, 1, 1, 2, 2]


def test_the_folder_decides_which_page_is_taken(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=r"has no report/index.html or index.html"):
        shot_of(tmp_path)
    (tmp_path / "index.html").touch()
    assert shot_of(tmp_path).name == "screen"
    (tmp_path / "report").mkdir()
    (tmp_path / "report/index.html").touch()
    assert shot_of(tmp_path).name == "report"
