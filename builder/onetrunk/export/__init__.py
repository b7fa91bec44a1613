"""From torch to ONNX: segments of the trunk and heads, and the proof that the files answer as the modules do."""
