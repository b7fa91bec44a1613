"""A small hand-made repository that keeps docs/contracts.md."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import json_format, text_format
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from tritonclient.grpc import model_config_pb2

WIDTH = 8
MAX_LENGTH = 32
BUCKETS = [8, 16, 32]
MAX_TEXT_BYTES = 1 << 20
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghij", *(f"##{c}" for c in "abcdefghij"), ".", "!", "good", "bad"]
TASKS: dict[str, dict[str, Any]] = {
    "mood": {"kind": "classification", "form": "single", "labels": ["negative", "positive"], "range": None},
    "topic": {"kind": "classification", "form": "single", "labels": ["art", "law", "sport"], "range": None},
    "match": {"kind": "regression", "form": "pair", "labels": None, "range": [0, 5]},
}
TOKENIZER_MODEL = Path(__file__).parents[2] / "builder/onetrunk/repository/tokenizer/model.py"


def write_tokenizer() -> str:
    """A WordPiece tokenizer of BERT's form with the words above."""
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    return tokenizer.to_str()


def save_onnx(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[Any]]],
    outputs: dict[str, tuple[int, list[Any]]],
    weights: dict[str, np.ndarray],
) -> None:
    """Writes an ONNX model at IR 8 / opset 17, the contract's."""
    graph = helper.make_graph(
        nodes,
        path.parent.parent.name,
        [helper.make_tensor_value_info(name, *shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, *shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def save_trunk(path: Path) -> None:
    """A trunk of no attention: the word's vector plus the type's vector."""
    random = np.random.default_rng(0)
    ids = (TensorProto.INT64, ["batch", "tokens"])
    save_onnx(
        path,
        [
            helper.make_node("Gather", ["words", "input_ids"], ["word"]),
            helper.make_node("Gather", ["kinds", "token_type_ids"], ["kind"]),
            helper.make_node("Add", ["word", "kind"], ["sum"]),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["mask_column"]),
            helper.make_node("Mul", ["sum", "mask_column"], ["hidden_01"]),
        ],
        {"input_ids": ids, "attention_mask": ids, "token_type_ids": ids},
        {"hidden_01": (TensorProto.FLOAT, ["batch", "tokens", WIDTH])},
        {
            "words": random.normal(size=(len(WORDS), WIDTH)).astype(np.float32),
            "kinds": random.normal(size=(2, WIDTH)).astype(np.float32),
            "last": np.array([-1]),
        },
    )


def save_head(path: Path, task: str, outputs: int) -> None:
    """A head that adds up the states of the words and maps the sum to the task's scores."""
    random = np.random.default_rng(len(task))
    save_onnx(
        path,
        [
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["mask_column"]),
            helper.make_node("Mul", ["hidden_state", "mask_column"], ["seen"]),
            helper.make_node("ReduceSum", ["seen", "tokens_axis"], ["sum"], keepdims=0),
            helper.make_node("MatMul", ["sum", "weight"], ["scores"]),
            helper.make_node("Softmax" if outputs > 1 else "Sigmoid", ["scores"], [task]),
        ],
        {
            "hidden_state": (TensorProto.FLOAT, ["batch", "tokens", WIDTH]),
            "attention_mask": (TensorProto.INT64, ["batch", "tokens"]),
        },
        {task: (TensorProto.FLOAT, ["batch", outputs])},
        {
            # Small, so that scores stay away from 0 and 1, where every error would vanish.
            "weight": (0.05 * random.normal(size=(WIDTH, outputs))).astype(np.float32),
            "last": np.array([-1]),
            "tokens_axis": np.array([1]),
        },
    )


def tensor(name: str, kind: str, *dims: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "data_type": f"TYPE_{kind}", "dims": list(dims), **more}


def write_config(repository: Path, name: str, config: dict[str, Any]) -> None:
    """Writes config.pbtxt through Triton's own protobuf."""
    message = json_format.ParseDict({"name": name, "max_batch_size": 32, **config}, model_config_pb2.ModelConfig())
    (repository / name / "1").mkdir(parents=True, exist_ok=True)
    (repository / name / "config.pbtxt").write_text(text_format.MessageToString(message))


def parameters(**values: object) -> dict[str, Any]:
    return {key: {"string_value": str(value)} for key, value in values.items()}


ONE_CPU = {"instance_group": [{"count": 1, "kind": "KIND_CPU"}], "dynamic_batching": {}}
ONNX_MODEL = {**ONE_CPU, "backend": "onnxruntime"}
ONE_THREAD = {"intra_op_thread_count": 1, "inter_op_thread_count": 1}


def ensemble(repository: Path, name: str, inputs: list[dict[str, Any]], truncated: bool) -> None:
    """Writes `multitask` or `multitask_tokens`: tokenizer, trunk, heads."""
    padded = ("padded_input_ids", "padded_attention_mask", "padded_token_type_ids")
    steps = [
        {
            "model_name": "tokenizer",
            "input_map": {entry["name"]: entry["name"] for entry in inputs},
            "output_map": {key: key for key in (*padded, *(["truncated"] if truncated else []))},
        },
        {
            "model_name": "trunk_00_01",
            "input_map": {key.removeprefix("padded_"): key for key in padded},
            "output_map": {"hidden_01": "hidden_01"},
        },
    ]
    outputs = [tensor("truncated", "BOOL", 1)] if truncated else []
    described = {}
    for task, about in TASKS.items():
        steps.append(
            {
                "model_name": f"head_{task}",
                "input_map": {"hidden_state": "hidden_01", "attention_mask": "padded_attention_mask"},
                "output_map": {task: task},
            }
        )
        outputs.append(tensor(task, "FP32", len(about["labels"] or [0])))
        described[task] = {**about, "metric": "accuracy", "tap": 1, "layers": 1, "version": 1}
    onetrunk = {"schema": 1, "trunk": "tiny", "max_length": MAX_LENGTH, "buckets": BUCKETS, "tasks": described}
    for step in steps:
        step["model_version"] = "1"
    write_config(
        repository,
        name,
        {
            "platform": "ensemble",
            "input": inputs,
            "output": outputs,
            "ensemble_scheduling": {"step": steps},
            "parameters": parameters(onetrunk=json.dumps(onetrunk)),
        },
    )
    (repository / name / "1" / ".keep").touch()


def write_repository(repository: Path) -> Path:
    """Writes the whole repository: tokenizer, one segment, three heads, both ensembles."""
    ids = [tensor(name, "INT64", -1) for name in ("input_ids", "attention_mask", "token_type_ids")]
    optional_ids = [{**entry, "optional": True} for entry in ids]
    text = tensor("text", "STRING", 1)
    text_pair = tensor("text_pair", "STRING", 1, optional=True)
    write_config(
        repository,
        "tokenizer",
        {
            **ONE_CPU,
            "backend": "python",
            "input": [{**text, "optional": True}, text_pair, *optional_ids],
            "output": [{**entry, "name": f"padded_{entry['name']}"} for entry in ids]
            + [tensor("truncated", "BOOL", 1)],
            "parameters": parameters(
                max_length=MAX_LENGTH,
                buckets=",".join(map(str, BUCKETS)),
                vocab_size=len(WORDS),
                max_text_bytes=MAX_TEXT_BYTES,
                pad_token_id=0,
            ),
        },
    )
    shutil.copy(TOKENIZER_MODEL, repository / "tokenizer/1/model.py")
    (repository / "tokenizer/1/tokenizer.json").write_text(write_tokenizer())
    write_config(
        repository,
        "trunk_00_01",
        {
            **ONNX_MODEL,
            "input": ids,
            "output": [tensor("hidden_01", "FP32", -1, WIDTH)],
            "parameters": parameters(**ONE_THREAD),
        },
    )
    save_trunk(repository / "trunk_00_01/1/model.onnx")
    for task, about in TASKS.items():
        outputs = len(about["labels"] or [0])
        write_config(
            repository,
            f"head_{task}",
            {
                **ONNX_MODEL,
                "input": [tensor("hidden_state", "FP32", -1, WIDTH), tensor("attention_mask", "INT64", -1)],
                "output": [tensor(task, "FP32", outputs)],
                "parameters": parameters(**ONE_THREAD),
            },
        )
        save_head(repository / f"head_{task}/1/model.onnx", task, outputs)
    ensemble(repository, "multitask", [text, text_pair], truncated=True)
    ensemble(repository, "multitask_tokens", [ids[0], *optional_ids[1:]], truncated=False)
    return repository


@pytest.fixture(scope="session")
def tokenizer_json() -> str:
    """The repository's tokenizer: WordPiece of BERT's form over `WORDS`."""
    return write_tokenizer()


@pytest.fixture(scope="session")
def words() -> list[str]:
    """The tokenizer's vocabulary; a word's place is its id."""
    return WORDS


@pytest.fixture(scope="session")
def make_repository() -> Callable[[Path], Path]:
    """Writes a repository to the path given."""
    return write_repository


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A fresh repository that a test may break."""
    return write_repository(tmp_path / "model_repository")
