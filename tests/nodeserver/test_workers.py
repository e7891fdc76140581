"""Background workers: orders, pauses, failures; and the command that gives the orders."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable

import pytest

from nodeserver.protocol.wire import WorkerStatus
from nodeserver.workers import registry
from nodeserver.workers.registry import Interrupted, NoWorker, Outcome, Run, Worker, Workers
from tests.harness import Node, command, eventually


class Work:
    """Work of three steps that can be held up."""

    def __init__(self) -> None:
        self.runs = 0
        self.steps = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.reached = asyncio.Event()
        self.again: float | None = None
        self.error: Exception | None = None

    async def __call__(self, run: Run) -> Outcome:
        self.runs += 1
        run.total = 3
        for _ in range(3):
            self.reached.set()
            await self.gate.wait()
            if self.error:
                raise self.error
            await run.step(1)
            self.steps += 1
        return Outcome(f"run {self.runs}", self.again)


def run(test: Callable[[Work, Worker], Awaitable[None]], interval: float | None = None) -> None:
    async def main() -> None:
        work = Work()
        worker = Worker("w", work, interval=interval)
        async with asyncio.timeout(30), Workers([worker]).running():
            await test(work, worker)

    asyncio.run(main())


async def until(worker: Worker, condition: Callable[[WorkerStatus], bool]) -> WorkerStatus:
    await asyncio.to_thread(eventually, lambda: condition(worker.status()))
    return worker.status()


def test_it_runs_at_the_start_when_woken_and_when_told() -> None:
    async def test(work: Work, worker: Worker) -> None:
        first = await until(worker, lambda status: status.state == "idle" and bool(status.last_ns))
        assert (first.summary, first.done, first.total, first.next_ns) == ("run 1", 3, 3, 0)
        worker.wake()
        await until(worker, lambda status: status.summary == "run 2")
        assert (await worker.run_now()).summary == "run 3"
        worker.wake(3600)
        assert worker.status().next_ns > first.last_ns + 3000 * 10**9
        worker.wake(7200)
        assert worker.status().next_ns < first.last_ns + 4000 * 10**9

    run(test)


def test_an_order_during_a_run_gets_a_run_of_its_own() -> None:
    async def test(work: Work, worker: Worker) -> None:
        work.gate.clear()
        await work.reached.wait()
        assert worker.status().state == "running"
        orders = [asyncio.create_task(worker.run_now()) for _ in range(2)]
        await asyncio.sleep(0)
        work.gate.set()
        assert [status.summary for status in await asyncio.gather(*orders)] == ["run 2", "run 2"]

    run(test)


def test_it_runs_again_after_its_interval_or_earlier_when_there_is_more() -> None:
    async def test(work: Work, worker: Worker) -> None:
        await until(worker, lambda _: work.runs > 3)
        work.again = 3600
        await until(worker, lambda _: work.runs > 6)

    run(test, interval=0.01)

    async def sooner(work: Work, worker: Worker) -> None:
        work.again = 0.01
        await until(worker, lambda _: work.runs > 3)

    run(sooner, interval=3600)


def test_a_pause_ends_a_run_at_its_next_step_until_it_is_resumed() -> None:
    async def test(work: Work, worker: Worker) -> None:
        work.gate.clear()
        await work.reached.wait()
        assert worker.pause().state == "running"
        work.gate.set()
        paused = await until(worker, lambda status: status.state == "paused")
        assert (paused.summary, paused.error, paused.next_ns) == ("interrupted", "", 0)
        assert work.steps == 0
        worker.wake()
        assert (await worker.run_now()).summary == "run 2", "an order outranks a pause"
        assert worker.status().state == "paused"
        assert work.runs == 2
        worker.wake()
        worker.resume()
        await until(worker, lambda status: status.summary == "run 3")

    run(test)


def test_a_failure_is_told_and_tried_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(registry, "RETRY", 0.05)

    async def test(work: Work, worker: Worker) -> None:
        await until(worker, lambda status: bool(status.last_ns))
        work.error = OSError("the disk fails")
        failed = await worker.run_now()
        assert (failed.error, failed.summary) == ("OSError: the disk fails", "run 1")
        work.error = None
        await until(worker, lambda status: not status.error)

    run(test)
    assert "worker w failed" in caplog.text


def test_who_waits_for_a_run_is_told_when_the_server_stops() -> None:
    async def main() -> None:
        work = Work()
        worker = Worker("w", work)
        work.gate.clear()
        async with asyncio.timeout(30), Workers([worker]).running():
            await work.reached.wait()
            order = asyncio.create_task(worker.run_now())
            await asyncio.sleep(0)
            work.gate.set()
        with pytest.raises(Interrupted):
            await order
        assert work.steps == 0

    asyncio.run(main())


def test_a_run_rests_as_long_as_it_works() -> None:
    async def main() -> None:
        one = Run()
        before = time.monotonic()
        while time.monotonic() < before + 0.1:
            """Work."""
        await one.step(7)
        assert time.monotonic() - before >= 0.2
        assert one.done == 7

    asyncio.run(main())


def test_there_is_no_other_worker() -> None:
    with pytest.raises(NoWorker):
        Workers([])["gc"]


def test_the_command_lists_workers_and_gives_orders(module_node: Node) -> None:
    data = ("--data", str(module_node.data))
    listed = command("nodeserver", "workers", *data)
    assert listed.returncode == 0, listed.stderr
    assert {line.partition(":")[0] for line in listed.stdout.splitlines() if not line.startswith(" ")} >= {
        "gc",
        "purge-buckets",
        "retention",
    }
    ran = command("nodeserver", "workers", "run", "gc", *data)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("gc: idle\n")
    assert "deleted 0 chunks" in ran.stdout
    elsewhere = ("--url", module_node.url, "--token-file", str(module_node.token_file))
    assert "gc: paused" in command("nodeserver", "workers", "pause", "gc", *elsewhere).stdout
    shown = json.loads(command("nodeserver", "workers", "--json", *data).stdout)["workers"]
    assert [one["state"] for one in shown if one["name"] == "gc"] == ["paused"]
    assert command("nodeserver", "workers", "resume", "gc", *data).stdout.startswith("gc: ")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run"], 2, "takes the NAME"),
        (["list", "gc"], 2, "takes no NAME"),
        (["dance"], 2, "dance"),
        (["run", "nobody"], 1, "no worker"),
        (["--url", "http://127.0.0.1:1"], 2, "either"),
    ],
)
def test_wrong_orders_are_told_in_one_line(module_node: Node, arguments: list[str], code: int, words: str) -> None:
    result = command("nodeserver", "workers", *arguments, "--data", module_node.data)
    assert result.returncode == code
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_directory_without_a_server_is_told(tmp_path: object) -> None:
    result = command("nodeserver", "workers", "--data", str(tmp_path))
    assert result.returncode == 1
    assert "does a server run there?" in result.stderr
