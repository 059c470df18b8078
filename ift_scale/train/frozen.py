"""What `train.freeze` excludes from training, found without weights, for preparing and planning."""

from pathlib import Path

from ift_scale.config.train import TrainConfig
from ift_scale.estimate.shape import ModelShape
from ift_scale.models.config_file import has_own_class, read_config_file


def with_frozen(
    shape: ModelShape | None, config: Path, train: TrainConfig, trust_remote_code: bool = False
) -> tuple[ModelShape | None, str | None]:
    """Returns the shape of a config.json's model without what is frozen, and a line about that.

    Raises ConfigError for patterns that match nothing or everything.
    """
    if not train.freeze:
        return shape, None
    from ift_scale.models import config_class  # imports torch
    from ift_scale.train.model import freeze

    fields = dict(read_config_file(config))
    own = trust_remote_code and has_own_class(fields)
    model = config_class.build(fields, config, own)
    line = str(freeze.resolve(model, train.freeze))
    return (None if shape is None else freeze.frozen_shape(shape, model, train.freeze)), line
