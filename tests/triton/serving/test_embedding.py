"""Sentence embeddings of the default trunk: those of all-MiniLM-L6-v2, and at no price for who does not ask."""

from __future__ import annotations

import base64
import json
import struct
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from onetrunk.admin import AdminClient
from onetrunk.client import Client
from onetrunk.client.bench.run import settled_counters
from onetrunk.nn.trunk import load_trunk
from onetrunk.repository import BuildRequest, build_repository
from onetrunk.serving import Server

HEADS = Path(__file__).resolve().parents[3] / "heads"
TEXTS = [
    "A gripping, beautifully acted film.",
    "no",
    "Wie spät ist es? 今何時ですか 🙂",
    "play the newest album of nina simone " * 5,
    "a text that is much longer than the server reads, " * 60,
]
WIDTH = 384


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One shipped head on a limb on tap 2, and the embedding at layer 6. Nothing but the tests asks it anything."""
    output = tmp_path_factory.mktemp("embedding") / "repository"
    build_repository(BuildRequest(output=output, heads=HEADS, tasks=["sst2"], embed="last"))
    with Server(output, http_port=0, grpc_port=0, metrics_port=0, probe_interval_s=None) as server:
        yield server


@pytest.fixture(scope="module")
def expected():
    """The vectors of sentence-transformers. *Shape:* (texts, width)."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = sentence_transformers.SentenceTransformer(str(load_trunk().folder), device="cpu", local_files_only=True)
    model.max_seq_length = 128
    # One by one, so that padding cannot be what both do alike.
    return np.array([model.encode(text, normalize_embeddings=True) for text in TEXTS])


def post(server, path, body):
    request = urllib.request.Request(
        f"http://{server.http_url}{path}", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def test_clients_get_sentence_transformers_vectors(server, expected):
    with Client(server.grpc_url) as client:
        together = client.predict(TEXTS, tasks=["embedding"])
        alone = [client.predict([text], tasks=["embedding"])[0] for text in TEXTS]
    for answers in (together, alone):
        found = np.array([answer["embedding"].embedding for answer in answers])
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert [answer.truncated for answer in together] == [False, False, False, False, True]


def test_openai_s_clients_get_the_same_with_a_true_count_of_tokens(server, expected):
    tokenizer = load_trunk().tokenizer()
    tokens = sum(min(len(tokenizer.encode(text).ids), 128) for text in TEXTS)
    for how in ("float", "base64"):
        answer = post(server, "/v1/embeddings", {"model": "embedding", "input": TEXTS, "encoding_format": how})
        vectors = [row["embedding"] for row in answer["data"]]
        if how == "base64":
            vectors = [struct.unpack(f"<{WIDTH}f", base64.b64decode(vector)) for vector in vectors]
        np.testing.assert_allclose(np.array(vectors), expected, atol=1e-5)
        assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    one = post(server, "/v1/embeddings", {"input": TEXTS[0]})
    np.testing.assert_allclose(one["data"][0]["embedding"], expected[0], atol=1e-5)
    np.testing.assert_allclose(post(server, "/embed", {"inputs": TEXTS}), expected, atol=1e-5)


def test_the_deep_trunk_runs_only_for_who_names_it(server):
    def runs():
        with AdminClient(server.grpc_url) as admin:
            return {name: counters.runs for (name, _), counters in settled_counters(admin.statistics).items()}

    deep = {"trunk_02_06", "head_embedding"}
    with Client(server.grpc_url) as client:
        before = runs()
        assert deep <= before.keys()
        assert set(client.predict(TEXTS)[0].predictions) == {"sst2"}
        post(server, "/v1/predict", {"texts": TEXTS})
        after = runs()
        assert all(after[name] == before[name] for name in deep)
        assert after["head_sst2"] > before["head_sst2"]
        client.predict(TEXTS, tasks=["embedding"])
    named = runs()
    assert all(named[name] > after[name] for name in deep)
    assert named["head_sst2"] == after["head_sst2"]
