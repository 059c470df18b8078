"""A domain's train questions on their way into sets: what is known of them, how large the sets are, which are drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ift_scale.config import ConstructConfig
from ift_scale.construct import balance, select
from ift_scale.construct.examples import Builder
from ift_scale.construct.items import Item, items
from ift_scale.construct.matching import Matched, Program, Traits, margins_told, quantile_levels
from ift_scale.construct.reorder import common_profile, even_letters
from ift_scale.errors import DataError, Place
from ift_scale.knowledge import Knowledge, sort_by_knowledge
from ift_scale.prompts.texts import TextKey
from ift_scale.records import Example, Question, Score, Text
from ift_scale.treatments import author_of, treatment


@dataclass
class Domain:
    """A domain's train questions, what the model knows of them, and the size of its sets."""

    name: str
    knowledge: Knowledge
    program: Program | None
    size: int
    builder: Builder
    config: ConstructConfig
    scores: Mapping[str, Score]

    def __post_init__(self) -> None:
        self._chosen: dict[tuple[int, int], Matched] = {}
        self._sets: dict[tuple[str, int, int], list[Item]] = {}
        self._attainable: dict[int, int] = {}

    def attainable(self, at_most: int) -> int:
        """The largest number of questions up to `at_most` that a set can have: matched sets cannot have every size."""
        if self.program is None:
            return at_most
        if at_most not in self._attainable:
            self._attainable[at_most] = self.program.largest(at_most)
        return self._attainable[at_most]

    def set_of(self, setting: str, seed: int, size: int) -> list[Item]:
        """The items of a setting's set of `size`, which is attainable."""
        if (setting, seed, size) not in self._sets:
            drawn = select.Drawer(self.name, seed, self.knowledge, self._matched(seed, size)).draw(
                setting, size
            )
            self._sets[setting, seed, size] = items(setting, drawn, self.knowledge, self.config)
        return self._sets[setting, seed, size]

    def unmatched(self, setting: str, seed: int, size: int) -> list[Item]:
        """The same without matching by selection."""
        drawn = select.Drawer(self.name, seed, self.knowledge).draw(setting, size)
        return items(setting, drawn, self.knowledge, self.config)

    def _matched(self, seed: int, size: int) -> dict[str, list[str]]:
        if self.program is None or size == 0:
            return {}
        if (seed, size) not in self._chosen:
            self._chosen[seed, size] = self.program.choose(size, f"matched/{self.name}/{seed}")
        return {"right": self._chosen[seed, size].right, "wrong": self._chosen[seed, size].wrong}

    def letters(self, setting: str, seed: int, size: int) -> dict[str, int]:
        """With matching.letters = reorder, the letter of each target in a setting's set, by question id.

        All sets of the domain and seed that teach equally many options have the same counts of letters. A
        refusal teaches no option, and some settings leave questions out.
        """
        if self.config.matching.letters != "reorder":
            return {}
        taught = {
            name: self._num_choices(self.set_of(name, seed, size))
            for name in self.config.all_settings()
        }
        alike = [found.values() for found in taught.values() if len(found) == len(taught[setting])]
        return even_letters(taught[setting], common_profile(alike), f"letters/{self.name}/{seed}")

    def _num_choices(self, chosen: Sequence[Item]) -> dict[str, int]:
        taught = [item for item in chosen if self.builder.target(item) is not None]
        return {item.question_id: len(self.builder.question(item).choices) for item in taught}

    def examples(
        self, setting: str, chosen: Sequence[Item], letters: Mapping[str, int]
    ) -> list[Example]:
        """`letters`: where to put the targets of these questions; the others stay where they are."""
        return [
            self.builder.example(setting, item, letters.get(item.question_id)) for item in chosen
        ]

    def covariates(
        self, setting: str, chosen: Sequence[Item], examples: Sequence[Example], rule: str
    ) -> balance.Covariates:
        """`rule`: that of the explanations' author, as in construct.matching.author."""
        explained = self.config.response == "letter_text_explanation"
        return balance.Covariates(
            [example.meta.target for example in examples if example.meta.target],
            [
                author_of(setting, bool(item.agrees), rule) if explained else "dataset"
                for item in chosen
            ],
            [self.scores[item.question_id].confidence for item in chosen],
            [sum(len(message.content) for message in example.messages) for example in examples],
        )


def traits_of(
    builder: Builder, knowledge: Knowledge, scores: Mapping[str, Score], config: ConstructConfig
) -> tuple[dict[str, Traits], dict[str, Traits]]:
    """What selection makes equal, of the known right and the known wrong questions, by id."""
    matching, settings = config.matching, config.all_settings()
    harmonious = [
        (Item(id, author=author_of("harmonious", True, matching.author)),) * 2
        for id in knowledge.right
    ]
    wrong = []
    for id in knowledge.wrong:
        gold = Item(id, author=author_of("incompatible", False, matching.author))
        own = Item(id, "predicted", author=author_of("self_aligning", True, matching.author))
        # Where one of the two is in no set, nobody has worded it.
        taught = [treatment(s).target == "predicted" or s.startswith("mixture-") for s in settings]
        wrong.append((gold, own if any(taught) else gold))
    forms = [*harmonious, *wrong]
    levels: list[list[tuple[int, int]]] = [[] for _ in forms]
    if matching.letters == "selection":
        for found, (first, second) in zip(levels, forms, strict=True):
            as_first, as_second = builder.target(first), builder.target(second)
            assert as_first is not None and as_second is not None
            found.append((as_first, as_second))
    if matching.confidence == "selection":
        confidences = [scores[first.question_id].confidence for first, _ in forms]
        level = quantile_levels(confidences, matching.bins)
        for found, confidence in zip(levels, confidences, strict=True):
            found.append((level(confidence),) * 2)
    if matching.length == "selection":
        lengths = [(builder.length(first), builder.length(second)) for first, second in forms]
        level = quantile_levels([length for pair in lengths for length in pair], matching.bins)
        for found, pair in zip(levels, lengths, strict=True):
            found.append((level(pair[0]), level(pair[1])))
    traits = {
        first.question_id: Traits(tuple(found))
        for (first, _), found in zip(forms, levels, strict=True)
    }
    return {id: traits[id] for id in knowledge.right}, {id: traits[id] for id in knowledge.wrong}


def load(
    name: str,
    config: ConstructConfig,
    pool: Sequence[Question],
    by_score: Mapping[str, Score],
    texts: Mapping[TextKey, Text],
    num_failed: int = 0,
) -> Domain:
    """DataError where the sets cannot have the size that is asked for, or cannot be matched.

    `num_failed`: questions of the domain that are not in `pool` because their text fails its checks.
    """
    questions = {question.id: question for question in pool if question.domain == name}
    scores = [by_score[id] for id in questions]
    knowledge = sort_by_knowledge(scores, config.confidence_threshold)
    builder = Builder(config, questions, by_score, texts)
    size = select.set_size(name, knowledge, config.all_settings(), config.size, num_failed)
    program = None
    if config.matching.by_selection:
        right, wrong = traits_of(builder, knowledge, by_score, config)
        program = Program(right, wrong)
        largest = program.largest(size)
        if largest == 0 or (config.size is not None and config.size > largest):
            names = [
                name
                for name in ("letters", "confidence", "length")
                if getattr(config.matching, name) == "selection"
            ]
            problem = (
                f"sets matched by {', '.join(names)} can have {largest} of its questions each ({select.told(knowledge)}), and "
                f"{config.size or 'at least 1'} is asked for. {margins_told(list(right.values()), list(wrong.values()), names)}"
            )
            remedy = "Set construct.size to what can be had, lower construct.matching.bins, or match letters by reorder"
            raise DataError(Place(f"domain '{name}'"), problem, remedy)
        size = largest
    return Domain(name, knowledge, program, size, builder, config, by_score)
