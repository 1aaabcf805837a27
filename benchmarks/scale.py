"""A thousand workers on one mongod: what claims, reports and coordination cost.

    python benchmarks/scale.py [--workers 1000] [--seconds 120] [--idle 500]

``busy``: simulated workers (asyncio) in two processes. Each makes the calls of a real one through the same store code,
in a pool of threads: it claims a trial, trains it for 60 s, reports once a second (sent in batches, as far apart as
those of real workers where so many live), renews its lease, asks whether it still holds where no report says so, counts
the live workers now and then, finishes, and claims the next one; while there is none it looks again as seldom as real
ones do where so many live. A real coordinator process proposes (random search). The first trials are of random length,
so that the ends are spread. One of ten workers is cut off in the middle of its first trial, so that its lease runs out
and the trial goes back. ``idle``: real agents with one free slot each, and no campaign that runs.

Measured over the seconds after the first minute: latencies as the callers see them, and processor time of mongod and
coordinator.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import common
import numpy as np

from workers.crowd import COUNT_S
from workers.lookout import MOST_LOOKS
from workers.reports import MOST_REPORTS, apart_s

ROOT = Path(__file__).resolve().parent.parent
NAME = "scale"
TRIAL_S = 60.0
WARM_S = 70.0
SETTLE_S = 75.0  # those that came first counted few others, and look often, for a minute
LEASE = {"duration_s": 30.0, "renewal_s": 10.0}
CHECK_S = 2.0
PROCESSES = 2
THREADS = 48
TICKS = os.sysconf("SC_CLK_TCK")


class Notes:
    """Latencies per kind of call, since when they count."""

    def __init__(self) -> None:
        self.since_s = float("inf")
        self.seconds: dict[str, list[float]] = {}

    def add(self, kind: str, seconds: float) -> None:
        """Note a call that has just ended."""
        if time.monotonic() >= self.since_s:
            self.seconds.setdefault(kind, []).append(seconds)


class Worker:
    """One simulated worker with one slot."""

    def __init__(self, name: str, store: Any, pool: ThreadPoolExecutor, notes: Notes, seed: int, workers: int) -> None:
        self.name = name
        self.store = store
        self.pool = pool
        self.notes = notes
        self.random = random.Random(seed)
        self.first = True
        self.pause_s, self.most_s = 0.05, max(1.0, workers / MOST_LOOKS)
        self.apart_s = workers / MOST_REPORTS
        self.counts_s = time.monotonic() + self.random.uniform(0.0, 1.5) * COUNT_S
        self.cut_off = seed % 10 == 0
        self.over = False

    async def call(self, kind: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Make a blocking call of the store in the pool; its latency is without the wait for a thread."""

        def timed() -> Any:
            started_s = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.notes.add(kind, time.perf_counter() - started_s)

        return await asyncio.get_running_loop().run_in_executor(self.pool, timed)

    async def run(self) -> None:
        """Work until `over`."""
        from autotune.store.base import WorkerRecord

        record = WorkerRecord(id=self.name, host="h", pid=1, slots=1, devices=("cpu",), versions={"autotune": "0"})
        await self.call("register", self.store.workers.register, record)
        while not self.over:
            trial = await self.claim()
            if trial is None:
                await self.wait()
                continue
            self.pause_s = 0.05
            seconds = self.random.uniform(1.0, TRIAL_S) if self.first else TRIAL_S
            if self.first and self.cut_off:
                await asyncio.sleep(seconds / 2 + LEASE["duration_s"] + 10.0)  # no sign of life: the lease runs out
                self.first = False
                continue
            self.first = False
            await self.train(trial, seconds)

    async def claim(self) -> Any:
        """Read the campaigns that run and claim, as an agent does."""
        from autotune.trial import CampaignState

        await self.call("campaigns", self.store.campaigns.find, [CampaignState.RUNNING])
        return await self.call(
            "claim", self.store.trials.claim, [NAME], owner=self.name, token=secrets.token_hex(16),
            duration_s=LEASE["duration_s"], host="h", device="cpu", threads=1, versions={"autotune": "0"},
        )  # fmt: skip

    async def wait(self) -> None:
        """Wait before the next look for work, as `workers.lookout` does where many workers live."""
        await asyncio.sleep(self.random.uniform(0.5, 1.5) * self.pause_s)
        self.pause_s = min(self.most_s, 2 * self.pause_s)

    async def train(self, trial: Any, seconds: float) -> None:
        """Report each second, in batches; keep the lease; finish."""
        from autotune.errors import LeaseLostError
        from autotune.trial import Report, Result
        from workers.lease import LATE_S

        lease, began_s = trial.lease, time.monotonic()
        step, ends_s = 0, began_s + seconds
        renews_s, checks_s, sends_s = began_s + LEASE["renewal_s"], began_s + CHECK_S, began_s
        pending: list[Report] = []
        while (now_s := time.monotonic()) < ends_s and not self.over:
            if now_s >= began_s + step + 1:
                step += 1
                pending.append(Report(step=step, metrics={"loss": 1.0 / step}, attempt=lease.attempt))
            if pending and now_s >= sends_s:
                batch, pending = pending, []
                await self.call("report", self.store.reports.add, lease, batch)
                done_s = time.monotonic()
                sends_s = done_s + apart_s(done_s - began_s, done_s - now_s, self.apart_s)
                checks_s = max(checks_s, sends_s + LATE_S)
            if now_s >= renews_s:
                renews_s, checks_s = now_s + LEASE["renewal_s"], max(checks_s, now_s + CHECK_S)
                await self.call("renew", self.store.trials.renew, [lease])
                await self.call("seen", self.store.workers.seen, self.name)
            elif now_s >= self.counts_s:
                self.counts_s = now_s + self.random.uniform(0.5, 1.5) * COUNT_S
                await self.call("count", self.store.workers.count_live)
            elif now_s >= checks_s:
                checks_s = now_s + CHECK_S
                await self.call("check", self.store.trials.held, [lease.token])
            next_s = max(sends_s, began_s + step + 1) if not pending else sends_s
            await asyncio.sleep(max(0.0, min(next_s, renews_s, checks_s, ends_s) - time.monotonic()))
        if self.over:
            return
        result = Result(score=self.random.random(), metrics={"loss": {"value": 1.0}}, facts={})
        try:
            await self.call("report", self.store.reports.add, lease, pending)
            await self.call("finish", self.store.trials.finish, lease, result, {"run_s": seconds, "total_s": seconds})
        except LeaseLostError:
            self.notes.add("lost", 0.0)


def simulate(uri: str, index: int, count: int, seconds: float, answers: Any) -> None:
    """Run `count` workers in this process; send their latencies."""
    from autotune.store.mongo import open_store

    notes = Notes()

    async def main() -> None:
        pool = ThreadPoolExecutor(THREADS)
        seeds = [index * 100_003 + i for i in range(count)]
        workers = [Worker(f"w{s}", store, pool, notes, s, count * PROCESSES) for s in seeds]
        notes.since_s = time.monotonic() + WARM_S
        tasks = [asyncio.create_task(worker.run()) for worker in workers]
        await asyncio.sleep(WARM_S + seconds)
        notes.since_s = float("inf")
        for worker in workers:
            worker.over = True
        done, left = await asyncio.wait(tasks, timeout=30.0)
        answers.put((index, notes.seconds, [repr(t.exception()) for t in done if t.exception()], len(left)))
        answers.close()
        answers.join_thread()
        os._exit(0)

    with open_store(uri) as store:
        asyncio.run(main())


def cpu_s(pid: int) -> float:
    """Return the processor seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def mongod_pid(store: Any) -> int:
    """Return the process id of the server."""
    return int(store.connection.client.admin.command("serverStatus")["pid"])


def create(store: Any, trials: int) -> None:
    """Write the campaign."""
    from autotune.campaign import parse_campaign
    from autotune.local.resolve import resolve

    content = {
        "name": NAME,
        "objective": "objectives:sine",
        "metric": {"name": "loss", "mode": "min"},
        "space": {f"x{i}": {"float": [-2, 2]} for i in range(6)},
        "search": {"algorithm": "random", "seed": 0},
        "budget": {"max_trials": trials},
        "lease": LEASE,
    }
    store.campaigns.create(resolve(parse_campaign(content)))


def busy(uri: str, workers: int, seconds: float) -> dict[str, Any]:
    """Measure workers that train."""
    from autotune.store.mongo import open_store

    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with open_store(uri) as store:
        create(store, 1_000_000)
        command = [sys.executable, "-m", "autotune.cli.main", "coordinator", NAME]
        coordinator = subprocess.Popen(
            command, env={**os.environ, "AUTOTUNE_STORE": uri}, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        share = workers // PROCESSES
        pools = [context.Process(target=simulate, args=(uri, i, share, seconds, answers)) for i in range(PROCESSES)]
        for process in pools:
            process.start()
        server = mongod_pid(store)
        time.sleep(WARM_S + 3.0)
        of_all = [[server], [coordinator.pid], [p.pid for p in pools if p.pid]]
        before = [time.monotonic(), *(sum(map(cpu_s, pids)) for pids in of_all)]
        ended = store.trials.counts(NAME).get("finished", 0)
        time.sleep(seconds - 10.0)
        after = [time.monotonic(), *(sum(map(cpu_s, pids)) for pids in of_all)]
        ended = store.trials.counts(NAME).get("finished", 0) - ended
        found = [answers.get(timeout=120) for _ in pools]
        coordinator.terminate()
        coordinator.wait(30)
        trials = store.trials.find(NAME)
    span_s = after[0] - before[0]
    latencies: dict[str, list[float]] = {}
    for _, some, errors, left in found:
        if errors or left:
            raise SystemExit(f"workers failed: {errors[:3]}, {left} did not end")
        for kind, values in some.items():
            latencies.setdefault(kind, []).extend(values)
    lost = len(latencies.pop("lost", []))
    twice = [
        t.number
        for t in trials
        if [a.cause for a in t.attempts if a.ended_at].count(None) > 1
        or len({a.token for a in t.attempts}) < len(t.attempts)
    ]
    given_back = [a for t in trials for a in t.attempts if a.cause == "lost" and a.ended_at and a.started_at]
    requeue_s = [
        (a.ended_at - a.started_at).total_seconds() - LEASE["duration_s"]
        for a in given_back
        if a.ended_at and a.started_at
    ]
    return {
        "workers": share * PROCESSES,
        "seconds": round(span_s, 1),
        "trials finished per s": round(ended / span_s, 2),
        "claimed twice": len(twice),
        "numbers are dense": [t.number for t in trials] == list(range(len(trials))),
        "leases lost by live workers": lost,
        "given back": len(given_back),
        "requeue after the lease ran out, s": common.spread(requeue_s) if requeue_s else None,
        "latency_ms": {
            kind: {
                "calls per s": round(len(values) / seconds, 1),
                "p50": round(1000 * float(np.quantile(values, 0.5)), 2),
                "p99": round(1000 * float(np.quantile(values, 0.99)), 2),
                "max": round(1000 * max(values), 1),
            }
            for kind, values in sorted(latencies.items())
        },
        "cores": {
            "mongod": round((after[1] - before[1]) / span_s, 3),
            "coordinator": round((after[2] - before[2]) / span_s, 3),
            "simulated workers": round((after[3] - before[3]) / span_s, 3),
        },
    }


def agents(uri: str, count: int, ready: Any, over: Any) -> None:
    """Run real agents that find nothing to do."""
    import logging

    from autotune.store.mongo import open_store
    from workers.agent import Agent
    from workers.devices import Slot

    logging.disable(logging.CRITICAL)
    stop = threading.Event()
    with open_store(uri) as store, tempfile.TemporaryDirectory() as folder:
        slot = Slot(index=0, device="cpu", visible="", threads=1)
        made = [Agent(store, [slot], folder=Path(folder) / str(i)) for i in range(count)]
        threads = [threading.Thread(target=agent.run, args=(stop,), daemon=True) for agent in made]
        for thread in threads:
            thread.start()
            time.sleep(0.02)
        ready.set()
        over.wait()
        os._exit(0)


def idle(uri: str, workers: int, seconds: float) -> dict[str, Any]:
    """Measure agents that wait."""
    from autotune.store.mongo import open_store

    context = multiprocessing.get_context("spawn")
    over = context.Event()
    flags = [context.Event() for _ in range(PROCESSES)]
    pools = [context.Process(target=agents, args=(uri, workers // PROCESSES, flag, over)) for flag in flags]
    with open_store(uri) as store:
        server = mongod_pid(store)
        time.sleep(5.0)
        alone = time.monotonic(), cpu_s(server)
        time.sleep(10.0)
        alone_cores = (cpu_s(server) - alone[1]) / (time.monotonic() - alone[0])
        for process in pools:
            process.start()
        for flag, process in zip(flags, pools, strict=True):
            while not flag.wait(1.0):
                if not process.is_alive():
                    raise SystemExit("the agents did not start")
        time.sleep(SETTLE_S)
        before = time.monotonic(), cpu_s(server), sum(map(cpu_s, (p.pid for p in pools if p.pid)))
        time.sleep(seconds)
        after = time.monotonic(), cpu_s(server), sum(map(cpu_s, (p.pid for p in pools if p.pid)))
        live = len(store.workers.live())
        over.set()
        for process in pools:
            process.join()
    span_s = after[0] - before[0]
    return {
        "agents": workers // PROCESSES * PROCESSES,
        "live": live,
        "cores": {
            "mongod without agents": round(alone_cores, 3),
            "mongod": round((after[1] - before[1]) / span_s, 3),
            "all agents": round((after[2] - before[2]) / span_s, 3),
        },
    }


@click.command()
@click.option("--workers", default=1000, show_default=True)
@click.option("--seconds", default=120.0, show_default=True)
@click.option("--idle", "idlers", default=500, show_default=True)
@click.option("--save/--no-save", default=True, show_default=True)
def main(workers: int, seconds: float, idlers: int, save: bool) -> None:
    """Measure, print, write results/scale.json."""
    from autotune.store import embedded

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server ends too
    figures: dict[str, Any] = {}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    for name, measure, count, span_s in (("idle", idle, idlers, 30.0), ("busy", busy, workers, seconds)):
        if not count:
            continue
        with tempfile.TemporaryDirectory() as home:
            os.environ["AUTOTUNE_HOME"] = home
            try:
                figures[name] = measure(embedded.start(), count, span_s)
            finally:
                embedded.stop()
        print(json.dumps({name: figures[name]}, indent=1), flush=True)
    if save:
        command = f"python benchmarks/scale.py --workers {workers} --seconds {seconds:g} --idle {idlers}"
        print(common.write("scale", command, figures, common.versions("autotune", "pymongo")))


if __name__ == "__main__":
    main()
