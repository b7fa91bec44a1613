"""With an age, a front ends connections, so that clients look for servers again; without one, it leaves them open."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from onetrunk.client import Client
from onetrunk.serving.front.settings import Limits


@pytest.mark.parametrize(("age_s", "ends"), [(0.3, True), (0.0, False)])
def test_a_connection_ends_at_its_age_and_no_request_with_it(
    make_served: Callable[..., Any], age_s: float, ends: bool
) -> None:
    served = make_served(limits=Limits(max_connection_age_s=age_s))
    over = threading.Event()

    def see(state: grpc.ChannelConnectivity) -> None:
        if state is grpc.ChannelConnectivity.IDLE and ready.is_set():
            over.set()
        if state is grpc.ChannelConnectivity.READY:
            ready.set()

    ready = threading.Event()
    with grpc.insecure_channel(served.grpc_url) as channel, Client(served.grpc_url, retries=0) as client:
        channel.subscribe(see, try_to_connect=True)
        assert ready.wait(60)
        for _ in range(30):
            client.predict("text", tasks=["sst2"])
            if over.wait(0.05):
                break
        assert over.wait(10 if ends else 0.1) is ends
