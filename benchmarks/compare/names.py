"""The names of scenarios and of the systems in them, as the results and the goals refer to them."""

from __future__ import annotations

SCENARIOS = ("base", "small", "shipped", "understanding", "tasks", "subset", "lengths", "hops", "peers")

SEPARATE = "ours, a model a head"
GROUPED = "ours, heads grouped"
INT8_HEADS = "ours, heads grouped, in int8"
INT8 = "ours, heads grouped, all in int8"
BF16 = "ours, heads grouped, all in bf16"
ONE_TRUNK = "ours, grouped, one trunk model"
FUSED = "all in one ONNX file"
TRUNK = "trunk alone"
SINGLE = "one single-task model"
SINGLES = "8 single-task models"
DISTILS = "8 DistilBERT-size models"
