"""The sets of one domain: what the model knows of its train questions, set size, draw, matching."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ift_scale.config.construct import ConstructConfig
from ift_scale.construct import balance, select
from ift_scale.construct.balanced_choice import Matched, Program, describe_margins
from ift_scale.construct.even_letters import common_profile, even_letters
from ift_scale.construct.examples import Builder
from ift_scale.construct.items import Item, items
from ift_scale.construct.matching import traits_of
from ift_scale.errors import DataError, Place
from ift_scale.knowledge import Knowledge, sort_by_knowledge
from ift_scale.prompts.texts import TextKey
from ift_scale.records import Example, Question, Score, Text
from ift_scale.treatments import author_of


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
        """Returns the largest feasible set size up to `at_most`.

        Matched sets cannot have every size.
        """
        if self.program is None:
            return at_most
        if at_most not in self._attainable:
            self._attainable[at_most] = self.program.largest(at_most)
        return self._attainable[at_most]

    def set_of(self, setting: str, seed: int, size: int) -> list[Item]:
        """Returns the items of a setting's set; `size` must be attainable."""
        if (setting, seed, size) not in self._sets:
            drawn = select.Drawer(self.name, seed, self.knowledge, self._matched(seed, size)).draw(
                setting, size
            )
            self._sets[setting, seed, size] = items(setting, drawn, self.knowledge, self.config)
        return self._sets[setting, seed, size]

    def unmatched(self, setting: str, seed: int, size: int) -> list[Item]:
        """Returns the set that would be drawn without matching by selection."""
        drawn = select.Drawer(self.name, seed, self.knowledge).draw(setting, size)
        return items(setting, drawn, self.knowledge, self.config)

    def _matched(self, seed: int, size: int) -> dict[str, list[str]]:
        if self.program is None or size == 0:
            return {}
        if (seed, size) not in self._chosen:
            self._chosen[seed, size] = self.program.choose(size, f"matched/{self.name}/{seed}")
        return {"right": self._chosen[seed, size].right, "wrong": self._chosen[seed, size].wrong}

    def letters(self, setting: str, seed: int, size: int) -> dict[str, int]:
        """Returns the letter (from 0) of each target in a setting's set, by question id.

        Empty unless matching.letters is "reorder". All sets of the domain and seed that teach the
        same number of options get the same letter counts. Sets may teach fewer options than they
        have questions: a refusal teaches none, and some settings leave questions out.
        """
        if self.config.matching.letters != "reorder":
            return {}
        taught = {
            name: self._num_choices(self.set_of(name, seed, size))
            for name in self.config.all_settings()
        }
        alike = [
            counts.values() for counts in taught.values() if len(counts) == len(taught[setting])
        ]
        return even_letters(taught[setting], common_profile(alike), f"letters/{self.name}/{seed}")

    def _num_choices(self, chosen: Sequence[Item]) -> dict[str, int]:
        taught = [item for item in chosen if self.builder.target(item) is not None]
        return {item.question_id: len(self.builder.question(item).choices) for item in taught}

    def examples(
        self, setting: str, chosen: Sequence[Item], letters: Mapping[str, int]
    ) -> list[Example]:
        """`letters` gives new positions for some questions' targets; others keep their order."""
        return [
            self.builder.example(setting, item, letters.get(item.question_id)) for item in chosen
        ]

    def covariates(
        self, setting: str, chosen: Sequence[Item], examples: Sequence[Example], rule: str
    ) -> balance.Covariates:
        """`rule` is the author rule of construct.matching.author to label explanations with."""
        explained = self.config.response == "letter_text_explanation"
        return balance.Covariates(
            [example.meta.target for example in examples if example.meta.target],
            [
                author_of(setting, bool(item.agrees), rule) if explained else "dataset"
                for item in chosen
            ],
            # The base model is not asked invented questions.
            [self.scores[i.question_id].confidence for i in chosen if i.target != "random"],
            [sum(len(message.content) for message in example.messages) for example in examples],
        )


def load(
    name: str,
    config: ConstructConfig,
    pool: Sequence[Question],
    by_score: Mapping[str, Score],
    texts: Mapping[TextKey, Text],
    num_failed: int = 0,
    limit: int | None = None,
    invented: Mapping[str, Question] | None = None,
) -> Domain:
    """Sorts a domain's questions by knowledge and finds the size of its sets.

    `num_failed` counts the domain's questions that are not in `pool` because their text fails its
    checks, `limit` is the maximum size. `invented`: counterparts of the questions, for format_only
    (`invented.invent`). Raises DataError if the requested size is not available or
    the sets cannot be matched.
    """
    questions = {question.id: question for question in pool if question.domain == name}
    scores = [by_score[id] for id in questions]
    knowledge = sort_by_knowledge(scores, config.confidence_threshold)
    builder = Builder(config, questions, by_score, texts, invented or {})
    by_letters = any(s.kind == "choice" and s.cloze_logprobs is None for s in scores)
    size = select.set_size(
        name, knowledge, config.all_settings(), config.size, num_failed, by_letters
    )
    size = size if limit is None else min(size, limit)
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
            sizes = select.describe_buckets(knowledge)
            margins = describe_margins(list(right.values()), list(wrong.values()), names)
            problem = (
                f"construct.size requires {config.size or 'at least 1'} question(s) per set, but "
                f"sets matched by {', '.join(names)} can have at most {largest} ({sizes}). "
                f"{margins}"
            )
            remedy = (
                "Lower construct.size or construct.matching.bins, or set "
                "construct.matching.letters to reorder"
            )
            raise DataError(Place(f"domain '{name}'"), problem, remedy)
        size = largest
    return Domain(name, knowledge, program, size, builder, config, by_score)
