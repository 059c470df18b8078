"""What a plan reads from the questions: group sizes, and the length of sample prompts."""

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ift_scale.config import Config
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
    """Counts of one pass over the questions: the size of each group, the dev questions, and a
    sample of those that are probed."""

    groups: Counter[GroupKey] = field(default_factory=Counter)
    dev: list[Question] = field(default_factory=list)
    sample: list[Question] = field(default_factory=list)

    @classmethod
    def of(cls, config: Config, questions: Iterable[Question]) -> "PlannedQuestions":
        tally = cls()
        rng = random.Random(0)
        asked = 0
        for question in questions:
            key = GroupKey.of(question)
            tally.groups[key] += 1
            if question.split == "dev":
                tally.dev.append(question)
            elif is_probed(config.probe, key) and question.kind == "choice":
                asked += 1  # reservoir sampling: each question is kept with equal probability
                if len(tally.sample) < _SAMPLED_PROMPTS:
                    tally.sample.append(question)
                elif (index := rng.randrange(asked)) < _SAMPLED_PROMPTS:
                    tally.sample[index] = question
        return tally

    def count(self, chosen: Callable[[GroupKey], bool]) -> int:
        """Returns the number of questions in the groups for which `chosen` is true."""
        return sum(count for group, count in self.groups.items() if chosen(group))


@dataclass(frozen=True)
class Prompts:
    """Means over the sample, 0 if no choice question is probed.

    `tokens`: of a prompt. `own`: of a prompt without its few-shot prefix, which is computed once
    per domain. `views`: prompts per question. `cloze`: tokens per question of the options' texts,
    with their prompts.
    """

    tokens: float
    own: float
    views: float
    cloze: float = 0


def prompts_of(config: Config, tally: PlannedQuestions, tokenizer: PromptTokenizer) -> Prompts:
    """Returns the mean length and number of the probe's prompts."""
    if not tally.sample:
        return Prompts(0, 0, 0)
    demonstrations = Demonstrations(
        tally.dev, config.probe.num_shots, config.probe.demonstration_seed
    )
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
    )
