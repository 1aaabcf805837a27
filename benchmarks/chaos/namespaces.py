"""Links that can be cut: hosts as network namespaces on one machine, and a proxy where those cannot be made.

The namespaces have no names: they last as long as this process or one inside them, so that nothing is left behind
however this process ends. The switch that joins them is a namespace too; the machine's own network is not touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pymongo
from pymongo.errors import PyMongoError

from autotune.store.mongod import find_binary, free_port
from benchmarks.chaos.processes import ROOT

_NEW_NETWORK = 0x40000000
_HERE = "/proc/thread-self/ns/net"
_SUBNET = "10.213.87"
_PORT = 27017
_WAIT_S = 60.0

Kind = Literal["silent", "carrier"]
"""How a link is cut: packets vanish without a word, or the interface sees that its cable is out."""


class NamespacesUnavailableError(Exception):
    """Network namespaces cannot be made here; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """A host: what runs inside has its own network, with one interface on the switch.

    Attributes:
        name: What it is called.
        address: Its IPv4 address.
        handle: File descriptor of its namespace.
    """

    name: str
    address: str
    handle: int

    def entered(self) -> AbstractContextManager[None]:
        """While inside, the calling thread, the processes and threads that it starts, and its new sockets are here."""
        return _entered(self.handle)


@dataclass(kw_only=True)
class Network:
    """Some hosts on one switch.

    Attributes:
        hosts: Name -> host.
    """

    hosts: dict[str, Host] = field(default_factory=dict)
    _switch: int = -1
    _bridge: int = 0

    @classmethod
    @contextlib.contextmanager
    def of(cls, *names: str, only_reach: dict[str, str] | None = None) -> Iterator[Network]:
        """Make hosts and join them; they are gone at the end.

        Args:
            names: Names of the hosts, at most 12 letters each.
            only_reach: Host -> the one host that it has a route to; it has no loopback interface either. Others reach
                all.

        Raises:
            NamespacesUnavailableError: If this process may not, or the tool for it is missing.
        """
        network = cls()
        with contextlib.ExitStack() as stack:
            network._switch = _new_namespace()
            stack.callback(os.close, network._switch)
            network._make_bridge()
            for number, name in enumerate(names, start=1):
                host = Host(name=name, address=f"{_SUBNET}.{number}", handle=_new_namespace())
                stack.callback(os.close, host.handle)
                network.hosts[name] = host
            for name in names:
                only = (only_reach or {}).get(name)
                network._plug(network.hosts[name], network.hosts[only] if only else None)
            yield network

    def cut(self, name: str, kind: Kind = "silent") -> None:
        """Cut the link of a host, both ways."""
        if kind == "silent":
            self._set_port(name, master=0)
        else:
            self._set_port(name, state="down")

    def mend(self, name: str) -> None:
        """Join a host again."""
        self._set_port(name, master=self._bridge, state="up")

    def _make_bridge(self) -> None:
        with _entered(self._switch), _routes() as routes:
            routes.link("add", ifname="switch", kind="bridge")
            self._bridge = routes.link_lookup(ifname="switch")[0]
            routes.link("set", index=self._bridge, state="up")

    def _plug(self, host: Host, only: Host | None) -> None:
        with _entered(self._switch), _routes() as routes:
            routes.link("add", ifname=f"to-{host.name}", kind="veth", peer={"ifname": "eth0", "net_ns_fd": host.handle})
        self.mend(host.name)
        with host.entered(), _routes() as routes:
            interface = routes.link_lookup(ifname="eth0")[0]
            routes.addr("add", index=interface, address=host.address, prefixlen=24 if only is None else 32)
            routes.link("set", index=interface, state="up")
            if only is None:
                routes.link("set", index=routes.link_lookup(ifname="lo")[0], state="up")
            else:
                routes.route("add", dst=f"{only.address}/32", oif=interface, scope=253)

    def _set_port(self, name: str, **changes: object) -> None:
        with _entered(self._switch), _routes() as routes:
            routes.link("set", index=routes.link_lookup(ifname=f"to-{name}")[0], **changes)


class Proxy:
    """Forwards connections from a port on loopback to another one; cut, it holds back every byte and closes nothing.

    That is what a cut network does to TCP: what was sent meanwhile arrives when the link is mended.

    Args:
        target: Port on loopback to forward to.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._flows = threading.Event()
        self._flows.set()
        self._closed = False
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._start(self._accept)

    def cut(self) -> None:
        """Forward nothing from now on."""
        self._flows.clear()

    def mend(self) -> None:
        """Forward what was held back, and all that follows."""
        self._flows.set()

    def close(self) -> None:
        """End all connections and threads."""
        self._closed = True
        self._flows.set()
        for one in (self._server, *self._sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for one in (self._server, *self._sockets):
            one.close()

    def _start(self, target: object, *arguments: socket.socket) -> None:
        thread = threading.Thread(target=target, args=arguments, name="proxy", daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            self._sockets.append(near)
            self._flows.wait()
            try:
                far = socket.create_connection(("127.0.0.1", self._target), 5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            self._sockets.append(far)
            self._start(self._pump, near, far)
            self._start(self._pump, far, near)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait()
                sink.sendall(data)
        self._flows.wait()
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def _new_namespace() -> int:
    """Return a file descriptor of a new network namespace."""
    with _back_again() as libc:
        if libc.unshare(_NEW_NETWORK):
            raise NamespacesUnavailableError(f"no network namespaces here: {os.strerror(ctypes.get_errno())}")
        return os.open(_HERE, os.O_RDONLY)


@contextlib.contextmanager
def _entered(handle: int) -> Iterator[None]:
    with _back_again() as libc:
        if libc.setns(handle, _NEW_NETWORK):
            raise NamespacesUnavailableError(f"cannot enter a network namespace: {os.strerror(ctypes.get_errno())}")
        yield


@contextlib.contextmanager
def _back_again() -> Iterator[ctypes.CDLL]:
    """While inside, the thread may go to another network namespace; at the end it is in that of before."""
    libc = _libc()
    before = os.open(_HERE, os.O_RDONLY)
    try:
        yield libc
    finally:
        astray = libc.setns(before, _NEW_NETWORK)
        os.close(before)
        if astray:
            raise OSError(ctypes.get_errno(), "cannot go back to the network namespace of before")


def _libc() -> ctypes.CDLL:
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.unshare, libc.setns  # noqa: B018 - asks whether they are there
    except (OSError, AttributeError):
        raise NamespacesUnavailableError("this system has no network namespaces") from None
    return libc


@contextlib.contextmanager
def _routes() -> Iterator[object]:
    """Give the interfaces and routes of the namespace that the thread is in."""
    try:
        from pyroute2 import IPRoute, NetlinkError
    except ImportError:
        raise NamespacesUnavailableError("pyroute2 is not installed") from None
    try:
        with IPRoute() as routes:
            yield routes
    except NetlinkError as error:
        raise NamespacesUnavailableError(f"cannot set up the network: {error}") from None


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = _WAIT_S) -> Any:
    """Return the first true value of `condition`.

    Raises:
        TimeoutError: If there is none within `timeout_s` seconds.
    """
    end_s = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > end_s:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.02)
    return value


def die_with_parent() -> None:
    """Let the kernel kill this process when the thread that started it is gone; for ``preexec_fn``."""
    _LIBC.prctl(1, signal.SIGKILL)


_LIBC = ctypes.CDLL(None)


@contextlib.contextmanager
def process(command: list[str], folder: Path, log: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program with its output in ``folder/log``; at the end it is asked to stop, then killed."""
    variables = {
        **os.environ,
        "AUTOTUNE_HOME": str(folder / "home"),
        "AUTOTUNE_INSECURE": "1",
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(folder),
        **environment,
    }
    with open(folder / log, "ab") as output:
        started = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=variables, cwd=ROOT,
            preexec_fn=die_with_parent,
        )  # fmt: skip
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(20)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


@contextlib.contextmanager
def replica_set(folder: Path, address: str, port: int, member: str) -> Iterator[None]:
    """Run a mongod on `address`, known to its clients as `member` (``host:port``)."""
    (folder / "data").mkdir(parents=True)
    command = [
        str(find_binary()), "--dbpath", str(folder / "data"), "--bind_ip", address, "--port", str(port),
        "--replSet", "chaos", "--oplogSize", "64", "--wiredTigerCacheSizeGB", "0.25", "--nounixsocket",
        "--setParameter", "diagnosticDataCollectionEnabled=false",
    ]  # fmt: skip
    with process(command, folder, "mongod.log") as server:
        client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(
            address, port, directConnection=True, serverSelectionTimeoutMS=500
        )

        def asks(command: Any) -> Callable[[], Any]:
            def ask() -> Any:
                if server.poll() is not None:
                    raise RuntimeError(f"mongod ended with code {server.returncode}; see {folder / 'mongod.log'}")
                with contextlib.suppress(PyMongoError):
                    return client.admin.command(command)
                return None

            return ask

        try:
            wait_until(asks("ping"), "an answer of mongod")
            members = [{"_id": 0, "host": member}]
            client.admin.command("replSetInitiate", {"_id": "chaos", "members": members})
            hello = asks("hello")
            wait_until(lambda: (hello() or {}).get("isWritablePrimary"), "a primary")
        finally:
            client.close()
        yield


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a case happens: the store with the coordinator near it, and a worker far away behind a link.

    Attributes:
        name: ``namespaces`` or ``proxy``.
        near_uri: URI of the store near it, with ``{}`` for the database.
        far_uri: The same behind the link.
        near: Entered to start things near the store.
        far: Entered to start things behind the link.
        cut: Cuts the link.
        mend: Mends it.
        only_door: ``host:port`` that is all the far side may connect to; None where that cannot be seen.
    """

    name: str
    near_uri: str
    far_uri: str
    near: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    far: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    cut: Callable[[], None]
    mend: Callable[[], None]
    only_door: str | None = None


@contextlib.contextmanager
def namespaces_site(folder: Path, kind: Kind = "silent") -> Iterator[Site]:
    """Three hosts; the worker's has a route to the store's and to nothing else.

    Raises:
        NamespacesUnavailableError: If there are no network namespaces here.
    """
    with Network.of("store", "desk", "worker", only_reach={"worker": "store"}) as network:
        address = network.hosts["store"].address
        with network.hosts["store"].entered():
            server = contextlib.ExitStack()
            server.enter_context(replica_set(folder, address, _PORT, f"{address}:{_PORT}"))
        with server:
            uri = f"mongodb://{address}:{_PORT}/{{}}?replicaSet=chaos"
            yield Site(
                name="namespaces", near_uri=uri, far_uri=uri, near=network.hosts["desk"].entered,
                far=network.hosts["worker"].entered, cut=lambda: network.cut("worker", kind),
                mend=lambda: network.mend("worker"), only_door=f"{address}:{_PORT}",
            )  # fmt: skip


@contextlib.contextmanager
def proxy_site(folder: Path) -> Iterator[Site]:
    """All on loopback; the worker knows the store by the address of a proxy."""
    port = free_port(0)
    with contextlib.closing(Proxy(port)) as proxy, replica_set(folder, "127.0.0.1", port, f"127.0.0.1:{proxy.port}"):
        yield Site(
            name="proxy", near_uri=f"mongodb://127.0.0.1:{port}/{{}}?directConnection=true",
            far_uri=f"mongodb://127.0.0.1:{proxy.port}/{{}}?replicaSet=chaos", cut=proxy.cut, mend=proxy.mend,
        )  # fmt: skip
