"""Adoption of fine-tuned classifiers: models of `transformers` in, heads on one trunk out, and a report on both."""

from __future__ import annotations
