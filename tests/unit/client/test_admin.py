"""The admin client: Triton's errors become those of the one tree, and strange answers do not pass for good ones."""

from __future__ import annotations

import pytest
from tritonclient.utils import InferenceServerException

from onetrunk.admin import AdminClient
from onetrunk.protocol.admin_key import AdminKey
from onetrunk.protocol.errors import NotReady, ServerError, UserError


@pytest.fixture
def failing(monkeypatch):
    """An admin client whose every load fails with the error that a test gives."""

    def make(message, status="StatusCode.INTERNAL", key=None):
        client = AdminClient("localhost:1", key)

        def load_model(*arguments, **options):
            raise InferenceServerException(message, status=status)

        monkeypatch.setattr(client._client, "load_model", load_model)
        return client

    return make


@pytest.mark.parametrize(
    ("message", "status", "error"),
    [
        ("failed to connect to all addresses", "StatusCode.UNAVAILABLE", NotReady),
        ("Deadline Exceeded", "StatusCode.DEADLINE_EXCEEDED", NotReady),
        ("This protocol is restricted, expecting header 'x'", "StatusCode.UNAVAILABLE", UserError),
        ("failed to load 'head_rte', no such file", "StatusCode.INTERNAL", ServerError),
        ("first line\n  second line", None, ServerError),
    ],
)
def test_every_error_names_the_server_in_one_line(failing, message, status, error):
    with failing(message, status) as client, pytest.raises(error, match=r"^localhost:1: ") as raised:
        client.load("head_rte")
    assert type(raised.value) is error
    assert "\n" not in str(raised.value)


@pytest.mark.hostile
@pytest.mark.parametrize(
    "entry", [{"state": "READY", "name": "a"}, {"state": "READY", "name": "a", "version": "x"}, "READY"]
)
def test_an_index_that_is_none_is_a_server_error(monkeypatch, entry):
    with AdminClient("localhost:1") as client:
        monkeypatch.setattr(client._client, "get_model_repository_index", lambda **_: {"models": [entry]})
        with pytest.raises(ServerError, match="cannot be read"):
            client.is_loaded("a", 1)


def test_a_server_error_has_the_status(failing):
    with failing("wrong", "StatusCode.INVALID_ARGUMENT") as client, pytest.raises(ServerError) as raised:
        client.load("head_rte")
    assert raised.value.status == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        (
            None,
            "no key was given: give --admin-key-file FILE, or set ONETRUNK_ADMIN_KEY, with the key that it was started "
            "with",
        ),
        ("k", "the key that was given is not its key: give the one that it was started with"),
        (AdminKey("k", "my.key"), "the key in my.key is not its key: give the one that it was started with"),
    ],
)
def test_a_locked_server_names_where_the_key_comes_from(failing, key, fault):
    client = failing("This protocol is restricted, expecting header", key=key)
    with client, pytest.raises(UserError) as caught:
        client.load("head_rte")
    assert str(caught.value) == f"localhost:1: the server keeps its model-control endpoints locked, and {fault}"


@pytest.mark.parametrize(("key", "headers"), [("k", {"triton-grpc-protocol-onetrunk-admin-key": "k"}), (None, {})])
def test_the_key_is_sent_in_triton_s_header_and_only_if_there_is_one(monkeypatch, key, headers):
    sent = []
    with AdminClient("localhost:1", key) as client:
        monkeypatch.setattr(client._client, "load_model", lambda *_, headers, **options: sent.append(headers or {}))
        client.load("head_rte")
    assert sent == [headers]


def test_no_server_at_all():
    with AdminClient("127.0.0.1:1") as client, pytest.raises(NotReady, match=r"127\.0\.0\.1:1"):
        client.loaded_versions()
    with pytest.raises(UserError, match="http://host:8000"):
        AdminClient("http://host:8000")


def test_what_is_loading_is_waited_for(monkeypatch):
    states = iter(["LOADING", "UNLOADING", "READY"])
    with AdminClient("localhost:1") as client:
        monkeypatch.setattr(
            client._client,
            "get_model_repository_index",
            lambda **options: {"models": [{"name": "head_rte", "version": "2", "state": next(states)}]},
        )
        assert client.loaded_versions() == {"head_rte": {2}}
