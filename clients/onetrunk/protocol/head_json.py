"""The schema of ``head.json``, the description of a trained head in its bundle."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
    model_validator,
)

from onetrunk.protocol.names import LimbId, check_task_name, hidden_name
from onetrunk.protocol.reference import Reference

HEAD_JSON = "head.json"
LIMB_JSON = "limb.json"

# What head.json says becomes memory before any weight is compared with it. So every number has a bound: several times
# what published encoders and data sets have, and far below what a machine cannot hold.
MAX_LAYERS = 128  # The deepest encoders of BERT's form have 48.
MAX_WIDTH = 16_384  # The widest have 4,096.
MAX_TOKENS = 131_072  # The longest read 8,192.
MAX_LABELS = 10_000  # Each one is an output, and stands in the configs that every client reads.
MAX_LABEL_CHARACTERS = 1_000
MAX_NAME_CHARACTERS = 200
MAX_NOTE_CHARACTERS = 10_000
# As many labels as are allowed, with 100 bytes each and as many fitted thresholds, take less than half of it.
MAX_HEAD_JSON_BYTES = 4 * 2**20

Name = Annotated[str, StringConstraints(max_length=MAX_NAME_CHARACTERS)]
Label = Annotated[str, StringConstraints(max_length=MAX_LABEL_CHARACTERS)]
Labels = Annotated[tuple[Label, ...], Field(max_length=MAX_LABELS)]
Tap = Annotated[int, Field(ge=0, le=MAX_LAYERS)]
Layers = Annotated[int, Field(ge=1, le=MAX_LAYERS)]

Limb = Annotated[Name, AfterValidator(lambda identity: str(LimbId.parse(identity)))]
"""The identity of a limb, such as ``pairs-2+1@0123456789ab``."""

Form = Literal["single", "pair"]
"""Whether a task reads one text or a pair of texts."""

Query = Literal["cls", "mean", "learned"]
"""The query of a head's last layer: the state of [CLS], the mean of all states, or a learned vector."""

LongTexts = Literal["cut", "windows"]
"""What is read of a text that is longer than the server's longest: its beginning, or all of it, in windows."""

Overlap = Annotated[float, Field(ge=0, le=0.5)]
"""The share of a window that the next one reads again."""
OVERLAP: Overlap = 0.25


class HeldOutScores(BaseModel):
    """Scores on data by which nothing was chosen.

    Attributes:
        data: The origin of the data.
        rows: The number of rows.
        sha256: The hash of the data.
        scores: Metric -> score.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Annotated[str, StringConstraints(max_length=MAX_NOTE_CHARACTERS)]
    rows: int = Field(ge=1)
    sha256: Name
    scores: dict[Name, FiniteFloat]


class HeadJson(BaseModel):
    """``head.json``: what a head answers, which hidden state it reads, and how it was trained.

    Whether the answer fits its kind is checked where the kinds are known: by ``HeadSpec`` of the builder.

    Attributes:
        schema_version: The version of this schema.
        task: The task, which is also the name of the head's output.
        kind: The kind of task, such as ``classification``.
        form: Whether the task reads one text or a pair.
        labels: The labels in the order of the scores; None if the kind has none.
        range: The lowest and the highest number of a regression; None for other kinds.
        options: The options of the kind, as the task file gives them.
        fitted: What was fitted on the dev data after training, such as thresholds.
        reference: A summary of the answers on the dev data, for drift; None in bundles of older versions.
        tap: The number of layers below the head: the trunk's, and those of its limb.
        layers: The number of the head's own layers; 0 for a kind without weights, such as an embedding.
        query: The query of its last layer, or without layers the state that is its answer.
        trunk: The identity of the trunk that it was trained on.
        limb: The identity of the limb that it stands on; None, and not written, if it stands on the trunk itself.
        width: The width of the trunk's hidden states.
        max_length: The longest text that it was trained on, in tokens.
        long_texts: What is read of a text that is longer than the server's longest. Like the overlap, it is written
            only if it is ``windows``.
        window_overlap: The share of a window that the next one reads again.
        metric: The metric by which the best epoch was chosen.
        scores: Metric -> score on the dev data.
        test: Scores on the test data; None, and not written, if the task has none.
        recipe: The training recipe.
        data: The origin and the hashes of the data.
        story: How the head came about, such as its teacher.
        licence: What is known about the licence of the data.
        created: The date of training, in ISO 8601.
        onetrunk_version: The version of OneTrunk that trained it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    task: Annotated[str, AfterValidator(check_task_name)]
    kind: Name
    form: Form
    labels: Labels | None = None
    range: tuple[FiniteFloat, FiniteFloat] | None = None
    options: dict[str, Any] = {}
    fitted: dict[str, Any] = {}
    reference: Reference | None = None
    tap: Tap
    layers: Layers | Literal[0]
    query: Query = "cls"
    trunk: Name
    limb: Limb | None = None
    width: int = Field(ge=1, le=MAX_WIDTH)
    max_length: int = Field(ge=3, le=MAX_TOKENS)
    long_texts: LongTexts = "cut"
    window_overlap: Overlap = OVERLAP
    metric: Name
    scores: dict[Name, FiniteFloat]
    test: HeldOutScores | None = None
    recipe: dict[str, Any] = {}
    data: dict[str, Any] = {}
    story: dict[str, Any] = {}
    licence: Annotated[str, StringConstraints(max_length=MAX_NOTE_CHARACTERS)] | None = None
    created: Name
    onetrunk_version: Name

    @model_validator(mode="after")
    def _stands_on_limb(self) -> HeadJson:
        if self.limb_id is not None and self.limb_id.stop != self.tap:
            raise ValueError(f"found tap {self.tap}; heads on limb {self.limb} stand on tap {self.limb_id.stop}")
        return self

    @model_validator(mode="after")
    def _test_scores_have_the_metric(self) -> HeadJson:
        if self.test is not None and self.metric not in self.test.scores:
            raise ValueError(f"test.scores has no {self.metric}, the metric by which the epoch was chosen")
        return self

    @property
    def limb_id(self) -> LimbId | None:
        """The limb that the head stands on; None for the trunk itself."""
        return None if self.limb is None else LimbId.parse(self.limb)

    @property
    def state(self) -> str:
        """The tensor of the hidden state that it reads."""
        return hidden_name(self.tap, self.limb_id.label if self.limb_id is not None else "")

    @property
    def trunk_tap(self) -> int:
        """The tap of the trunk that it stands on, itself or by its limb."""
        return self.tap if self.limb_id is None else self.limb_id.start

    @model_serializer(mode="wrap")
    def _without_rarities(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = serialize(self)
        absent = {"long_texts", "window_overlap"} if self.long_texts == "cut" else set()
        absent |= {name for name in ("limb", "test") if getattr(self, name) is None}
        return {name: value for name, value in values.items() if name not in absent}
