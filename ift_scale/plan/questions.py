"""What a plan reads from the questions: group sizes, and the length of sample prompts."""

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ift_scale.config import Config
from ift_scale.probe.free import FreeAsker
from ift_scale.probe.selection import is_probed
from ift_scale.prompts.templates import Demonstrations, few_shot_prompt
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.prompts.views import views_of
from ift_scale.records import Question
from ift_scale.scoring.cloze import Cloze, FewShotTexts
from ift_scale.scoring.question_file import GroupKey

_SAMPLED_PROMPTS = 64


@dataclass
class PlannedQuestions:
    """Counts of one pass over the questions: the size of each group, the dev questions, and
    samples of the choice questions and the free ones that are probed."""

    groups: Counter[GroupKey] = field(default_factory=Counter)
    dev: list[Question] = field(default_factory=list)
    sample: list[Question] = field(default_factory=list)
    free: list[Question] = field(default_factory=list)

    @classmethod
    def of(cls, config: Config, questions: Iterable[Question]) -> "PlannedQuestions":
        tally = cls()
        rng = random.Random(0)
        asked = Counter[str]()
        for question in questions:
            key = GroupKey.of(question)
            tally.groups[key] += 1
            if question.split == "dev":
                tally.dev.append(question)
            elif is_probed(config.probe, key):
                sample = tally.sample if question.kind == "choice" else tally.free
                # Reservoir sampling: each question is kept with equal probability.
                asked[question.kind] += 1
                if len(sample) < _SAMPLED_PROMPTS:
                    sample.append(question)
                elif (index := rng.randrange(asked[question.kind])) < _SAMPLED_PROMPTS:
                    sample[index] = question
        return tally

    def count(self, chosen: Callable[[GroupKey], bool]) -> int:
        """Returns the number of questions in the groups for which `chosen` is true."""
        return sum(count for group, count in self.groups.items() if chosen(group))


@dataclass(frozen=True)
class Prompts:
    """Means over the sample, 0 if no choice question is probed.

    `tokens`: of a prompt. `own`: of a prompt without its few-shot prefix, which is computed once
    per domain. `views`: prompts per question. `cloze`: tokens per question of the options' texts,
    with their prompts. `free`: tokens of a free question's prompts.
    """

    tokens: float
    own: float
    views: float
    cloze: float = 0
    free: float = 0


def prompts_of(config: Config, tally: PlannedQuestions, tokenizer: PromptTokenizer) -> Prompts:
    """Returns the mean length and number of the probe's prompts."""
    demonstrations = Demonstrations(
        tally.dev, config.probe.num_shots, config.probe.demonstration_seed
    )
    asked = FreeAsker(tokenizer, demonstrations, config.probe).write(tally.free)
    free = asked.tokens / max(1, len(tally.free))
    if not tally.sample:
        return Prompts(0, 0, 0, free=free)
    whole = tokenizer.encode([few_shot_prompt(q, demonstrations.of(q)) for q in tally.sample])
    own = tokenizer.encode([few_shot_prompt(q, []) for q in tally.sample])
    views, score = views_of(config.probe.reliability), config.probe.reliability.cloze
    count = len(tally.sample)
    cloze = (
        Cloze(FewShotTexts(tokenizer, demonstrations), score).write(tally.sample) if score else None
    )
    return Prompts(
        sum(map(len, whole)) / count,
        sum(map(len, own)) / count,
        sum(len(views(question)) for question in tally.sample) / count,
        cloze.tokens / count if cloze else 0,
        free,
    )
