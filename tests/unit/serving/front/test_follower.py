"""Each Triton that appears behind a front is compared with the files, soon and once more, and then left alone."""

import asyncio
import time
from types import SimpleNamespace

from onetrunk.protocol.errors import NotReady, UserError
from onetrunk.serving.front import follower as module
from onetrunk.serving.front.follower import Follower


def run_until(gateway, act, reached, after_s=(0.0, 0.0)):
    """Run a follower until something is reached."""

    async def run():
        task = asyncio.create_task(Follower(gateway, act, after_s).run())
        until = time.monotonic() + 60
        while not reached():
            assert time.monotonic() < until
            await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(run())


def gateway_of(address="a", arrivals=1):
    return SimpleNamespace(arrivals=arrivals, triton=SimpleNamespace(address=address))


def test_each_triton_is_looked_at_twice(monkeypatch, caplog):
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.01)
    gateway, seen = gateway_of(), []

    def act(address):
        seen.append(address)
        return ["multitask"] if len(seen) == 1 else []

    run_until(gateway, act, lambda: len(seen) == 2)
    assert "loaded multitask, as the files say" in caplog.text

    def another(address):
        gateway.triton.address, gateway.arrivals = "b", 2
        return act(address)

    seen.clear()
    run_until(gateway, another, lambda: len(seen) == 3)
    assert seen == ["a", "b", "b"], "one that appears begins anew"


def test_a_triton_that_has_not_come_is_not_looked_at(monkeypatch):
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.01)
    gateway, seen, rounds = gateway_of(arrivals=0), [], iter(range(10))
    run_until(gateway, seen.append, lambda: next(rounds, None) is None)
    assert seen == []


def test_what_goes_wrong_ends_nothing(monkeypatch, caplog):
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.01)
    faults = [NotReady("a: no answer"), UserError("file x is not as it was written"), RuntimeError("a bug")]
    left = list(faults)

    def act(address):
        if left:
            raise left.pop(0)
        return []

    run_until(gateway_of(), act, lambda: not left, after_s=(0.0,) * 4)
    assert "no answer" not in caplog.text
    assert "Triton does not serve what the files say: file x is not as it was written" in caplog.text
    assert "a bug" in caplog.text
