"""Training paths: the ways to compute a micro-batch, from the fastest to the model's own.

- `pruned`: examples packed into one row without padding, with our attention; the last layer
  computes the supervised rows only.
- `packed`: the same with every layer of the model unchanged.
- `padded`: examples of similar length as a batch, padded on the right. The model's own attention
  and masks.
- `single`: one example per forward pass, whole, with the model's own code. This is the reference.

`ift_scale.train.proof` decides which ones are exact for a model. Head and loss are computed on the
supervised rows only, except by a model's own head in the path `single`.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ift_scale.config.train import TrainConfig

PathName = Literal["pruned", "packed", "padded", "single"]
PATHS: tuple[PathName, ...] = ("pruned", "packed", "padded", "single")
Recomputed = Literal["selective", "full"]
Layout = Literal["packed", "padded", "single"]
"""How examples are laid into a forward pass: in one row, in a padded batch, or one at a time."""


class Head(BaseModel):
    """A head whose logits are W h + b, or softcap * tanh((W h + b) / softcap).

    h is the last hidden state of the model's decoder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    softcap: float | None = None

    def logits(self, product: Any) -> Any:
        """Returns the logits for the tensor W h + b."""
        return product if not self.softcap else (product / self.softcap).tanh() * self.softcap


class TrainingPath(BaseModel):
    """A path with everything that the ranks need to take it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: PathName
    head: Head | None = Head()
    """None: the model's own forward computes the logits, because more than a soft cap follows, such
    as a scale. In the path `single`, of all rows; else of the supervised ones."""
    attention: str | None = None
    """The model's own attention implementation (`sdpa` or `eager`); None for packed paths."""
    terms: frozenset[str] = frozenset()
    """Additions to plain attention, which not every kernel computes: `softcap`, `sinks`,
    `dropout`, and values that are not as wide as queries (`attention.VALUE_WIDTH`)."""
    recomputes: frozenset[Recomputed] = frozenset({"selective", "full"})
    """Kinds of activation checkpointing that the model supports."""
    evaluates: bool = True
    """True if evaluation mode gives the same logits and leaves the weights as they are."""

    @property
    def is_packed(self) -> bool:
        return self.name in ("pruned", "packed")

    def within(self, config: TrainConfig) -> "TrainingPath":
        """Returns this path, or the fastest one below it that the settings allow.

        The load-balancing loss needs every token's router outputs in every layer.
        """
        if self.name == "pruned" and (config.router_aux_loss or not config.prune_last_layer):
            return self.model_copy(update={"name": "packed"})
        return self

    def shares_prefix(self, config: TrainConfig) -> bool:
        """True if a common prefix is computed once.

        Dropout draws other numbers for each example, and the load-balancing loss counts each
        example alone.
        """
        allowed = config.share_prefix and not config.router_aux_loss
        return allowed and self.is_packed and "dropout" not in self.terms

    @property
    def layout(self) -> Layout:
        return "packed" if self.is_packed else "padded" if self.name == "padded" else "single"


PRUNED = TrainingPath(name="pruned")
