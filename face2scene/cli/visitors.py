"""For a page that strangers use: limits per visitor, files that are deleted, no work for a visitor who has left."""

import ipaddress
import json
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEPT_SECONDS = 3600  # uploads and results
_MOST_VISITORS = 10_000  # that are remembered

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class VisitorLeft(Exception):
    """The visitor who asked for a restoration has closed the page or cancelled."""


@dataclass(frozen=True)
class Limits:
    """Of one visitor: an IPv4 address, or the 64 leading bits of an IPv6 one. All are ours."""

    waiting: int = 3  # restorations in the queue and in work
    requests: int = 600  # a minute
    megabytes: int = 1000  # of uploads an hour


class VisitorLimits:
    """ASGI middleware that answers 429 to a visitor beyond `Limits`, before anything of the body is read.

    Behind a proxy on this machine, the visitor is the address that the proxy forwards.

    Args:
        queued: addresses of the visitors whose requests are in the queue or in work.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], limits: Limits, queued: Callable[[], list[str]]):
        self.app, self.limits, self.queued = app, limits, queued
        self._seen: dict[str, deque[tuple[float, int]]] = {}  # visitor -> times and bytes of an hour's requests

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        refused = self._refusal(scope) if scope["type"] == "http" and scope["method"] == "POST" else ""
        if not refused:
            await self.app(scope, receive, send)
            return
        headers = [(b"content-type", b"application/json"), (b"retry-after", b"60"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 429, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps({"detail": refused}).encode()})

    def _refusal(self, scope: MutableMapping[str, Any]) -> str:
        who, now = visitor(scope["client"][0] if scope.get("client") else ""), time.monotonic()
        if len(self._seen) > _MOST_VISITORS:
            self._seen = {one: log for one, log in self._seen.items() if log and log[-1][0] > now - 60}
        log = self._seen.setdefault(who, deque(maxlen=60 * self.limits.requests))
        while log and log[0][0] < now - 3600:
            log.popleft()
        if len(log) >= self.limits.requests and log[-self.limits.requests][0] > now - 60:
            return f"More than {self.limits.requests} requests in a minute: wait a moment."
        size = 0
        if scope["path"].endswith("/upload"):
            length = dict(scope["headers"]).get(b"content-length", b"")
            if not length.isdigit():
                return "An upload must say its length."
            size = int(length)
            if sum(one for _, one in log) + size > self.limits.megabytes * 10**6:
                return f"More than {self.limits.megabytes} MB uploaded in an hour: try again later."
        elif "/queue/join" in scope["path"] or "/call/" in scope["path"]:
            waiting = [visitor(one) for one in self.queued()].count(who)
            if waiting >= self.limits.waiting:
                return f"{waiting} of your requests are waiting already: wait until one is done."
        log.append((now, size))
        return ""


def visitor(address: str) -> str:
    """The part of an address that stands for one visitor."""
    with suppress(ValueError):
        if ipaddress.ip_address(address).version == 6:
            return str(ipaddress.ip_network(f"{address}/64", strict=False))
    return address


def remove_old(folder: Path, seconds: float = KEPT_SECONDS) -> None:
    """Delete the files below a folder that were written so many seconds ago, and folders that are empty so long."""
    for path in sorted(folder.rglob("*"), reverse=True):  # a folder's files before it
        with suppress(OSError):  # removed meanwhile, or not empty
            if path.lstat().st_ctime <= time.time() - seconds:
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def keep_clean(folder: Path, closed: threading.Event) -> None:
    """Start a thread that calls `remove_old` every minute until `closed` is set."""

    def work() -> None:
        while not closed.wait(60):
            remove_old(folder)

    threading.Thread(target=work, daemon=True, name="remove old uploads").start()
