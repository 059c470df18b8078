"""The ZeRO stage that a model allows."""

from ift_scale.config.train import TrainConfig
from ift_scale.config.train_checks import train_problems
from ift_scale.errors import ConfigError

NEEDS_ZERO_3 = "ZeRO-3, because the model's experts are a list of modules"


def with_zero_stage(train: TrainConfig, lists_experts: bool) -> TrainConfig:
    """Returns the settings with a ZeRO stage that adds up the gradients of experts in lists.

    ZeRO-1 and 2 add up the ranks' gradients in the order in which a backward pass computes them.
    If experts are modules of a list, that order depends on the rank's tokens. ZeRO-3 takes all
    experts of a layer together (a leaf module), stage 0 all gradients after the pass. Raises
    ConfigError for ZeRO-1 and 2 on several ranks, and for settings that exclude ZeRO-3.
    """
    if train.num_ranks == 1 or train.zero_stage in (0, 3) or not lists_experts:
        return train
    if train.zero_stage != "auto":
        problem = (
            f"train.zero_stage: the model's experts are a list of modules, whose gradients ZeRO-"
            f"{train.zero_stage} adds up wrongly on several ranks"
        )
        raise ConfigError("settings", [f"{problem}; set it to auto, 3 or 0"])
    chosen = train.model_copy(update={"zero_stage": 3})
    if problems := train_problems(chosen):
        why = "the model's experts are a list of modules, which needs ZeRO-3 on several ranks"
        raise ConfigError("settings", [f"{problem} ({why})" for problem in problems])
    return chosen
