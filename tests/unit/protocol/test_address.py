"""Addresses that gRPC would misread are refused before it sees them."""

import pytest

from onetrunk.admin import AdminClient
from onetrunk.client import AsyncClient, BadInput, Client
from onetrunk.protocol.address import address_fault
from onetrunk.protocol.errors import UserError

WRONG = ["", "localhost", ":8001", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:0", "127.0.0.1:99999", "a b:1", "h:1:2"]


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8001", "localhost:1", "triton.example:65535", "[::1]:8001", "unix:/run/t:1"]
)
def test_host_and_port_are_taken(url):
    assert address_fault(url) is None


@pytest.mark.parametrize("url", ["::1", "::1:8001", "fe80::1", "2001:db8::7:8001", "::ffff:10.0.0.1:8001"])
def test_an_ipv6_address_without_brackets_is_told_of_them(url):
    with pytest.raises(BadInput, match=r"written in brackets, and its port behind them, as in \[::1\]:8001"):
        Client(url)


@pytest.mark.parametrize("url", [*WRONG, "http://127.0.0.1:8001"])
def test_anything_else_is_refused_with_what_is_allowed(url):
    for client in (Client, AsyncClient):
        with pytest.raises(BadInput, match=r"127\.0\.0\.1:8001"):
            client(url)
    with pytest.raises(UserError, match=r"127\.0\.0\.1:8001"):
        AdminClient(url)
