"""The modules that are exported. They add nothing but the form: what comes in, what goes out."""

from __future__ import annotations

from torch import Tensor, nn

from onetrunk.nn.head import Head
from onetrunk.nn.trunk import Trunk
from onetrunk.protocol.names import Segment
from onetrunk.tasks.head_spec import HeadSpec
from onetrunk.tasks.kinds import get_kind


class TokenSegment(nn.Module):
    """Token ids to the state at a tap."""

    def __init__(self, trunk: Trunk, segment: Segment) -> None:
        super().__init__()
        self.trunk, self.segment = trunk, segment

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """*Shape:* (batch_size, tokens) three times, to (batch_size, tokens, width)."""
        state = self.trunk.encoder.embed(input_ids, token_type_ids)
        return self.trunk.run_layers(state, attention_mask, 0, self.segment.stop)


class EmbeddingSegment(nn.Module):
    """Token ids to the state at tap 0."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """*Shape:* (batch_size, tokens) twice, to (batch_size, tokens, width)."""
        return self.trunk.encoder.embed(input_ids, token_type_ids)


class StateSegment(nn.Module):
    """The state at a tap to the state at a deeper one."""

    def __init__(self, trunk: Trunk, segment: Segment) -> None:
        super().__init__()
        self.trunk, self.segment = trunk, segment

    def forward(self, hidden_state: Tensor, attention_mask: Tensor) -> Tensor:
        """*Shape:* (batch_size, tokens, width) and (batch_size, tokens), to (batch_size, tokens, width)."""
        return self.trunk.run_layers(hidden_state, attention_mask, self.segment.start, self.segment.stop)


class ServedHead(nn.Module):
    """A head up to the scores that a user reads."""

    def __init__(self, head: Head, spec: HeadSpec) -> None:
        super().__init__()
        self.head, self.spec, self.kind = head, spec, get_kind(spec.kind)

    def forward(self, hidden_state: Tensor, attention_mask: Tensor) -> Tensor:
        """*Shape:* (batch_size, tokens, width) and (batch_size, tokens), to (batch_size, the kind's dims)."""
        return self.kind.scores(self.head(hidden_state, attention_mask), self.spec, self.head.output)

    def forward_whole(self, hidden_state: Tensor, attention_mask: Tensor) -> Tensor:
        """The same, with the last layer run whole."""
        return self.kind.scores(self.head.forward_whole(hidden_state, attention_mask), self.spec, self.head.output)


class SingleModel(nn.Module):
    """One ordinary model for one task: token ids to scores through an encoder of its own, that nothing is shared with.

    It is what a repository's cost is compared with, and is never served.
    """

    def __init__(self, trunk: Trunk, served: ServedHead, whole: bool) -> None:
        super().__init__()
        self.trunk, self.served, self.whole = trunk, served, whole

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """*Shape:* (batch_size, tokens) three times, to (batch_size, outputs)."""
        state = self.trunk.encoder.embed(input_ids, token_type_ids)
        state = self.trunk.run_layers(state, attention_mask, 0, self.served.spec.tap)
        if self.whole:
            return self.served.forward_whole(state, attention_mask)
        result: Tensor = self.served(state, attention_mask)
        return result
