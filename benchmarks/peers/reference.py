"""What a checkpoint answers when transformers runs it directly: what peers' answers are compared with."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.peers.peer import Peer


class Reference:
    """The checkpoints of a folder, loaded; runs in the project's environment."""

    def __init__(self, models: Path) -> None:
        self._loaded = {
            config.parent.name: (
                AutoTokenizer.from_pretrained(config.parent),
                AutoModelForSequenceClassification.from_pretrained(config.parent).eval(),
            )
            for config in sorted(models.glob("[!.]*/config.json"))
        }

    @torch.inference_mode()
    def ask(self, text: str, pair: str | None = None, peer: Peer | None = None) -> dict[str, list[float]]:
        """Task -> scores: probabilities, or the number of a regression.

        Args:
            text: the row's text.
            pair: its second text, if it has one.
            peer: gets the same tokens as this one makes of the row (see ``Peer.requests``); without it, the tokens
                that a BERT has been trained on.
        """
        infinity = peer is not None and peer.protocol == "infinity"
        untyped_reranks = peer is not None and peer.exported
        answers = {}
        for task, (tokenizer, model) in self._loaded.items():
            regression = model.config.num_labels == 1
            second = (pair or "") if infinity and regression else pair
            # As a batch of one: alone, an empty second text is taken for none.
            row = text if second is None else (text, second)
            tokens = tokenizer([row], truncation=True, return_tensors="pt")
            if infinity and "token_type_ids" in tokens and (untyped_reranks or not regression):
                tokens["token_type_ids"] = torch.zeros_like(tokens["token_type_ids"])
            logits = model(**tokens).logits[0]
            answers[task] = (logits if regression else logits.softmax(-1)).tolist()
        return answers
