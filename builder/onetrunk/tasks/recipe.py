"""How a head is trained: the ``[recipe]`` table of a task file, overridden by the command line."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from onetrunk.protocol.head_json import Query


class Recipe(BaseModel):
    """The plain recipe: AdamW, a linear warm-up and decay, the epoch that is best on the dev data.

    Attributes:
        tap: the tap that the head stands on; None is the middle of the trunk.
        layers: the head's own layers; the last of them is folded.
        query: what the folded layer is computed for: the state of [CLS], the mean of a text's states, or their mean
            weighted by a learned vector.
        epochs: passes over the train data.
        learning_rate: its peak, at the end of the warm-up.
        batch_size: texts a step.
        weight_decay: on weight matrices; biases and LayerNorm are spared.
        warmup: share of all steps in which the learning rate rises.
        clip: greatest norm of a step's gradient.
        dropout: share of the values that dropout leaves out, in all places; None is the trunk's own configuration.
        mixed_precision: run the model's layers in bf16 while training. Worth it on a GPU; on most CPUs it is slower.
        seed: of the output's first weights, the order of the texts and the dropout.
        max_length: longest text in tokens; longer ones are cut, the longer one of a pair first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tap: int | None = Field(default=None, ge=0)
    layers: int = Field(default=1, ge=1)
    query: Query = "cls"
    epochs: int = Field(default=10, ge=1)
    learning_rate: float = Field(default=3e-4, gt=0, allow_inf_nan=False)
    batch_size: int = Field(default=32, ge=1)
    weight_decay: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    warmup: float = Field(default=0.1, ge=0, le=1)
    clip: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    dropout: float | None = Field(default=None, ge=0, lt=1)
    mixed_precision: bool = False
    seed: int = Field(default=0, ge=0, lt=2**32)
    max_length: int = Field(default=128, ge=3)

    @property
    def resolved_tap(self) -> int:
        """The tap, where one has been given or chosen."""
        if self.tap is None:
            raise ValueError("the recipe has no tap yet")
        return self.tap
