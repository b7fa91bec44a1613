"""The measured costs of one trunk on one machine, on disk as JSON."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from onetrunk.distill.rates import Cost, Rates, Standing
from onetrunk.distill.spread import Spread
from onetrunk.files import atomic_write_text
from onetrunk.protocol.errors import UserError


class BucketCosts(BaseModel):
    """What was measured at one padded length and batch size: milliseconds a batch, each of one ONNX Runtime session.

    Attributes:
        tokens: padded length.
        batch_size: texts in a batch.
        trunk_ms: tap -> token ids up to that tap. It, and all else but the layer, includes calling the session.
        layer_ms: one whole layer of a head: heads of two layers less heads of one, pair by pair.
        folded_ms: a head of one folded layer, with its output.
        step_ms: a model that does nothing. A server's step costs more, so this is its lower bound.
        single_ms: a single-task model of the usual kind: whole encoder, last layer whole, output.
        folded_single_ms: the same with its last layer folded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    trunk_ms: tuple[Spread, ...] = Field(min_length=2)
    layer_ms: Spread
    folded_ms: Spread
    step_ms: Spread
    single_ms: Spread
    folded_single_ms: Spread

    def rates(self, step_ms: float | None = None) -> Rates:
        """The same for one text, the steps taken out of the parts.

        Args:
            step_ms: what a step costs a batch in the server that is planned for, where that was measured. None: what
                was measured here, in ONNX Runtime alone.
        """
        here = self.step_ms.median
        step = here if step_ms is None else step_ms

        def net(spread: Spread) -> float:
            return max(spread.median - here, 0.0) / self.batch_size

        return Rates(
            trunk_ms=tuple(net(spread) for spread in self.trunk_ms),
            # On a noisy machine a difference may come out below nought; no layer gives time back.
            layer_ms=max(self.layer_ms.median, 0.0) / self.batch_size,
            folded_ms=net(self.folded_ms),
            step_ms=step / self.batch_size,
            single_ms=net(self.single_ms) + step / self.batch_size,
            folded_single_ms=net(self.folded_single_ms) + step / self.batch_size,
        )


class CostTable(BaseModel):
    """All that was measured for a trunk.

    Attributes:
        trunk: the trunk's identity.
        machine: the processor.
        versions: of the software that a time depends on.
        threads: ONNX Runtime's threads for each session.
        repeats: rounds that every figure was measured in.
        buckets: padded lengths and batch sizes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trunk: str
    machine: str
    versions: dict[str, str]
    threads: int = Field(ge=1)
    repeats: int = Field(ge=1)
    buckets: tuple[BucketCosts, ...] = Field(min_length=1)

    def rates(self, *, tokens: int | None = None, batch_size: int | None = None, step_ms: float | None = None) -> Rates:
        """Milliseconds for one text, mean over the buckets of this length and this batch size, each counted alike.

        Args:
            tokens: padded length; None: all.
            batch_size: texts in a batch; None: all.
            step_ms: as in BucketCosts.rates.

        Raises:
            UserError: no such bucket was measured.
        """
        chosen = [
            bucket.rates(step_ms)
            for bucket in self.buckets
            if tokens in (None, bucket.tokens) and batch_size in (None, bucket.batch_size)
        ]
        if not chosen:
            known = ", ".join(f"{bucket.tokens} x {bucket.batch_size}" for bucket in self.buckets)
            raise UserError(
                f"tokens {tokens or 'any'}, batch size {batch_size or 'any'}: not in the cost table; it has {known}"
            )
        return _mean(chosen)

    def cost(self, heads: Collection[Standing]) -> Cost:
        """What these heads cost together for one text, mean over all buckets. Raises UserError as Rates.cost does."""
        return self.rates().cost(heads)

    @property
    def single_model_ms(self) -> float:
        """A single-task model of the usual kind, for one text, mean over all buckets."""
        return self.rates().single_ms

    def write(self, path: Path) -> None:
        """Writes JSON, whole or not at all. Raises UserError where that fails."""
        atomic_write_text(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> CostTable:
        """Reads what ``write`` wrote.

        Raises:
            UserError: the file is missing or is not a cost table.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise UserError(f"{path}: no such cost table; measure the costs first") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise UserError(f"{path}: {where}: {first['msg']}; delete it and measure again") from error


def _mean(rates: list[Rates]) -> Rates:
    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    return Rates(
        trunk_ms=tuple(mean(list(column)) for column in zip(*(rate.trunk_ms for rate in rates), strict=True)),
        layer_ms=mean([rate.layer_ms for rate in rates]),
        folded_ms=mean([rate.folded_ms for rate in rates]),
        step_ms=mean([rate.step_ms for rate in rates]),
        single_ms=mean([rate.single_ms for rate in rates]),
        folded_single_ms=mean([rate.folded_single_ms for rate in rates]),
    )
