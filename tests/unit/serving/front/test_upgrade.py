"""Requests that offer another protocol are answered in this one, with their bodies."""

from __future__ import annotations

import http.client
import json
import socket
import time
from urllib.parse import urlsplit

import pytest

from tests.unit.serving.front.conftest import Served

OFFERS = [
    {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAEAAEAAAAIAAAABAAMAAABk"},
    {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13", "sec-websocket-key": "AA=="},
]


@pytest.mark.hostile
@pytest.mark.parametrize("offer", OFFERS, ids=["java", "websocket"])
def test_an_offer_is_ignored_on_every_request_of_a_connection(served: Served, offer: dict[str, str]) -> None:
    connection = http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=60)
    text = "a text\r\n\r\n\r\nUpgrade: h2c"
    for _ in range(3):
        body = json.dumps({"texts": text, "tasks": ["sst2"]})
        connection.request("POST", "/v1/predict", body, {"content-type": "application/json", **offer})
        response = connection.getresponse()
        assert response.status == 200
        assert json.load(response)["answers"][0]["text"] == text
    connection.close()


@pytest.mark.hostile
def test_an_offer_may_come_in_pieces_and_a_body_keeps_its_bytes(served: Served) -> None:
    body = b'{"texts": "a",\r\n"tasks": ["sst2"],\r\nupgrade: h2c}'  # not JSON, so that the message repeats its place
    address = urlsplit(served.url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as client:
        client.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: a\r\n")
        client.sendall(b"Connection: upgrade\r\nContent-Length: %d" % len(body))
        client.sendall(b"\r\nUpgrade: h2c\r\n\r\n")
        client.sendall(body)
        response = http.client.HTTPResponse(client)
        response.begin()
        assert response.status == 422
        assert "key must be a string at line 3 column 1" in json.load(response)["error"]


@pytest.mark.hostile
@pytest.mark.parametrize("cut", range(0, 24, 3))
def test_the_name_of_the_offer_may_come_in_pieces(served: Served, cut: int) -> None:
    body = b'{"texts": "a", "tasks": ["sst2"]}'
    address, offer = urlsplit(served.url), b"\r\nUpgrade: h2c\r\n\r\n"
    head = b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nContent-Length: %d" % len(body)
    with socket.create_connection((address.hostname, address.port), timeout=60) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in (head + offer[:cut], offer[cut:] + body):
            client.sendall(piece)
            time.sleep(0.05)
        response = http.client.HTTPResponse(client)
        response.begin()
        assert response.status == 200
