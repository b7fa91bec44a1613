"""What commands leave out of transformers: the compiler is not imported, and layers answer as ever."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
if sys.argv[1] == "lean":
    from onetrunk.nn.lean_imports import import_lean
    import_lean()
import torch
from onetrunk.nn.families.bert import BertEncoder
if sys.argv[1] == "lean":
    left_out = {"sympy", "torch._dynamo", "torch.distributed.tensor", "scipy.optimize"}
    assert not left_out & set(sys.modules), "something imports them again"
torch.manual_seed(0)
encoder = BertEncoder.from_config(
    {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
)
state = encoder.embed(torch.arange(4)[None], torch.zeros(1, 4, dtype=torch.long))
context = encoder.shared.prepare(torch.tensor([[1, 1, 1, 0]]), state)
for layer in encoder.layers:
    state = encoder.run_layer(layer.eval(), state, context)
print(state.detach().numpy().tobytes().hex())
import torch._dynamo
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item() == 2, "the real one works afterwards"
"""


def run(how: str) -> str:
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_encoder_is_imported_without_the_compiler_and_is_the_same() -> None:
    lean = run("lean")
    assert len(lean) > 8 * 4 * 4
    assert lean == run("whole")
