"""When a worker's slots should look for work again: what it hears of the store, and how seldom it asks."""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import TYPE_CHECKING

from autotune.errors import StoreError
from workers.crowd import Crowd
from workers.lease import LeaseKeeper
from workers.stopping import StopRequest

if TYPE_CHECKING:
    from autotune.store.mongo import MongoStore

_log = logging.getLogger(__name__)

_CHECK_S = 2.0
_LINGER_S = 1.0
_ROUND_S = 60.0  # then it counts again how many workers live
_BACKOFF_S = 1.0
_MOST_STREAMS = 16
_POLL_OFTEN_S, _POLL_SELDOM_S = 0.05, 1.0
MOST_LOOKS = 50
"""So often a second all slots of all workers look for work at the most, once they have waited for long."""
_IDLE_S = 2.0
_QUIET_S = 20.0


class Lookout:
    """Wakes the slots of a worker whenever there may be work; while they all work, only checks their leases.

    A change stream looks at all that is written into the store, for each worker anew, and every worker writes that it
    lives: what streams cost grows with the square of the number of workers. So a worker listens only while a slot waits
    and at most 16 workers live; of more workers each asks now and then. Each of its slots that waits looks for work
    then, so it asks the less often the more slots it has: all slots of all workers, if they are alike, look at most 50
    times a second.

    Args:
        store: An open store.
        worker: Id of the worker.
        crowd: The workers that share the store.
        leases: What is checked whenever something was heard.
        stop: Ends it.

    Attributes:
        hears: Whether a change stream is open, so that nothing has to be asked for.
    """

    def __init__(self, store: MongoStore, worker: str, crowd: Crowd, leases: LeaseKeeper, stop: StopRequest) -> None:
        self.hears = False
        self._asks = False
        self._store, self._worker, self._crowd = store, worker, crowd
        self._leases, self._stop = leases, stop
        self._work = threading.Condition()
        self._calls = 0
        self._campaign_calls = 0
        self._waiting = 0
        self._pause_s = _POLL_OFTEN_S
        self._most_s = _POLL_SELDOM_S

    def calls(self) -> int:
        """Return how often the slots were called so far; to be read before looking for work."""
        with self._work:
            return self._calls

    def campaign_calls(self) -> int:
        """Return how often they were called because a campaign may have changed."""
        with self._work:
            return self._campaign_calls

    def call(self, *, campaigns: bool = True) -> None:
        """Call the slots that wait to look again.

        Args:
            campaigns: Whether a campaign may have changed too.
        """
        with self._work:
            self._calls += 1
            self._campaign_calls += campaigns
            self._work.notify_all()

    def wait(self, calls: int, *, blocked: bool) -> None:
        """Wait for a call after so many, or for the time when a slot looks by itself.

        Args:
            calls: What `calls` was before the slot looked in vain.
            blocked: Whether what it waits for is not in the store, so that nothing is heard of it.
        """
        called = (self.hears or self._asks) and not blocked
        quiet_s = max(_QUIET_S, 4.0 * self._most_s) if self._asks else _QUIET_S
        timeout_s = random.uniform(0.5, 1.0) * quiet_s if called else _IDLE_S
        with self._work:
            self._waiting += 1
            self._work.notify_all()
            self._work.wait_for(lambda: self._calls != calls or self._stop.is_set(), timeout_s)
            self._waiting -= 1

    def run(self) -> None:
        """Look out until the end; in a thread of its own."""
        while not self._stop.is_set():
            try:
                if not self._waits(_CHECK_S):
                    self._leases.check()
                    self._pause_s = _POLL_OFTEN_S
                    self._crowd.refresh()
                    continue
                if self._crowd.count() > _MOST_STREAMS:
                    self._ask(max(_POLL_SELDOM_S, self._crowd.apart_s(MOST_LOOKS)))
                else:
                    self._listen()
                continue
            except StoreError as error:
                _log.warning("%s", error, extra={"action": "store-away"})
            except Exception:  # noqa: BLE001 - the slots also look by themselves, but seldom
                _log.exception("unexpected", extra={"action": "watch-error"})
            finally:
                self.hears = self._asks = False
            self.call()
            self._stop.wait(_BACKOFF_S)

    def _listen(self) -> None:
        """Call the slots when something changes, until none has waited for a while or the round is over."""
        with self._store.watch_work(self._worker) as watch:
            self.hears = True
            self.call()
            began_s = waited_s = time.monotonic()
            while not self._over(began_s) and time.monotonic() - waited_s < _LINGER_S:
                if self._waits(0.0):
                    waited_s = time.monotonic()
                if watch.wait(0.5, patient=self._waiting == self._crowd.slots):
                    self._leases.check(heard=True)
                    self.call(campaigns=watch.changed in (None, "campaigns"))

    def _ask(self, most_s: float) -> None:
        """Call the slots now and then while one waits, less and less often, `most_s` seconds apart at the most."""
        self._asks, self._most_s = True, most_s
        began_s = waited_s = time.monotonic()
        while not self._over(began_s) and time.monotonic() - waited_s < _LINGER_S + most_s:
            self._stop.wait(random.uniform(0.5, 1.5) * self._pause_s)
            if self._waits(0.0):
                waited_s = time.monotonic()
            self._leases.check()
            self.call()
            self._pause_s = min(most_s, 2 * self._pause_s)

    def _over(self, began_s: float) -> bool:
        """Return whether a round that began then is over."""
        return self._stop.is_set() or time.monotonic() - began_s >= _ROUND_S

    def _waits(self, timeout_s: float) -> bool:
        """Return whether a slot waits for work, now or within so many seconds."""
        with self._work:
            return self._work.wait_for(lambda: self._waiting > 0 or self._stop.is_set(), timeout_s)
