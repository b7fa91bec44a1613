"""Clients of a real Triton, whatever tasks it serves.

The fixture ``served`` is a running server: ``grpc_url``, ``http_url`` and the folder ``repository``.
"""

from __future__ import annotations

import pytest

from onetrunk.admin import AdminClient
from onetrunk.client import Client
from onetrunk.client.bench.samples import read_texts

LINES = read_texts(None)


@pytest.fixture(scope="session")
def client(served):
    with Client(served.grpc_url) as client:
        yield client


@pytest.fixture(scope="session")
def raw(served):
    """Requests that the client would not send."""
    with AdminClient(served.grpc_url) as server:
        yield server


@pytest.fixture(scope="session", params=["single", "pair"])
def form(request, client):
    """One form, the names of its tasks, and rows of that form as arguments of `Client.predict`."""
    tasks = [task.name for task in client.tasks().values() if task.form == request.param]
    if not tasks:
        pytest.skip(f"no task of form {request.param} is served")
    rows = [line for line in LINES if (line.pair is not None) == (request.param == "pair")]
    return tasks, [line.text for line in rows], [line.pair for line in rows]


@pytest.fixture(scope="session")
def any_task(client):
    """A task, and what it needs beside a text."""
    task = next(iter(client.tasks().values()))
    return task.name, "another text" if task.form == "pair" else None


@pytest.fixture(scope="session")
def equal():
    """Asserts that answers agree on these tasks."""

    def equal(answers, others, tasks, *, tolerance=1e-5):
        assert len(answers) == len(others)
        for answer, other in zip(answers, others, strict=True):
            assert answer.truncated == other.truncated
            for task in tasks:
                assert answer[task].scores == pytest.approx(other[task].scores, abs=tolerance)
                assert answer[task].score == pytest.approx(other[task].score, abs=10 * tolerance)

    return equal
