"""The store in which the ranks of a launch exchange values, closed to everyone without its secret.

torch's TCPStore listens on all interfaces and serves whoever connects. Here, a connection begins
with a mutual proof of the launch's secret: HMAC-SHA256 over one fresh nonce of each side. Every
later message has a MAC over its number, so that it cannot be altered, inserted or repeated.
Messages are JSON. They are not encrypted.

    server -> client   nonce_s
    client -> server   nonce_c, HMAC(secret, "client", nonce_s, nonce_c)
    server -> client   HMAC(secret, "server", nonce_s, nonce_c)
    then, both ways    length (4 bytes), MAC, JSON text
"""

import hmac
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Sequence
from typing import Any

NONCE = MAC = 32
LENGTH = struct.Struct("!I")
_NUMBER = struct.Struct("!Q")
_MOST_BYTES = 1 << 28
"""Limit of one message. The longest are training jobs with thousands of arms."""
HANDSHAKE_SECONDS = 10.0
_MIN_PAUSE, _MAX_PAUSE = 0.002, 0.25


class StoreError(RuntimeError):
    """The store cannot be reached any more, or a key did not appear in time."""


class NotTrusted(ConnectionError):
    """The other side does not know the launch's secret."""


def proof_of(secret: bytes, role: str, *nonces: bytes) -> bytes:
    return hmac.digest(secret, role.encode() + b"".join(nonces), "sha256")


class Sealer:
    """Makes the messages of one direction, and checks them on the other side."""

    def __init__(self, key: bytes):
        self._key, self._number = key, 0

    def _mac(self, body: bytes) -> bytes:
        self._number += 1
        return hmac.digest(self._key, _NUMBER.pack(self._number) + body, "sha256")

    def seal(self, message: Any) -> bytes:
        body = json.dumps(message).encode()
        return LENGTH.pack(len(body)) + self._mac(body) + body

    def open(self, mac: bytes, body: bytes) -> Any:
        if not hmac.compare_digest(mac, self._mac(body)):
            raise NotTrusted("a message was altered on its way")
        return json.loads(body)


def sealers(secret: bytes, *nonces: bytes) -> tuple[Sealer, Sealer]:
    """Returns the sealers of the client's and of the server's messages."""
    up, down = (
        proof_of(secret, f"messages of the {side}", *nonces) for side in ("client", "server")
    )
    return Sealer(up), Sealer(down)


def length_of(head: bytes) -> int:
    (length,) = LENGTH.unpack(head)
    if length > _MOST_BYTES:
        raise NotTrusted(f"a message of {length} bytes")
    return int(length)


class Connection:
    """A rank's connection to the store. Its methods may be called from several threads.

    Raises OSError if nothing answers at the address, and NotTrusted (an OSError too) if what
    answers does not know the secret. After that, methods raise StoreError if rank 0 is gone.
    `timeout`: seconds for which `get` and `wait` wait for a key.
    """

    def __init__(self, host: str, port: int, secret: bytes, timeout: float):
        self._address, self._secret, self.timeout = (host, port), secret, timeout
        self._lock = threading.Lock()
        self._socket = socket.create_connection(self._address, timeout=HANDSHAKE_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        try:
            self._requests, self._answers = self._introduce()
        except OSError:
            self._socket.close()
            raise
        self._socket.settimeout(None)  # the heartbeat detects a silent node

    def _introduce(self) -> tuple[Sealer, Sealer]:
        theirs, own = self._receive(NONCE), os.urandom(NONCE)
        self._socket.sendall(own + proof_of(self._secret, "client", theirs, own))
        if not hmac.compare_digest(
            self._receive(MAC), proof_of(self._secret, "server", theirs, own)
        ):
            raise NotTrusted("what answers there is not the store of this launch")
        return sealers(self._secret, theirs, own)

    def another(self) -> "Connection":
        """Opens a second connection, for a thread that must not wait for others."""
        return Connection(*self._address, self._secret, self.timeout)

    def _receive(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            part = self._socket.recv(min(size - len(parts), 1 << 20))
            if not part:
                raise NotTrusted("the connection was closed")
            parts += part
        return bytes(parts)

    def _ask(self, *request: Any) -> Any:
        try:
            with self._lock:
                self._socket.sendall(self._requests.seal(request))
                length = length_of(self._receive(LENGTH.size))
                mac = self._receive(MAC)
                return self._answers.open(mac, self._receive(length))
        except OSError as error:
            raise StoreError(f"the connection to rank 0 is lost ({error})") from None

    def set(self, key: str, value: str | bytes) -> None:
        self._ask("set", key, _as_text(value))

    def get(self, key: str) -> bytes:
        """Returns the value of a key, after waiting for it."""
        self.wait([key])
        return _as_bytes(self._ask("get", key))

    def check(self, keys: Sequence[str]) -> bool:
        """True if all keys exist."""
        return bool(self._ask("check", list(keys)))

    def wait(self, keys: Sequence[str], seconds: float | None = None) -> None:
        """Returns when all keys exist. Raises StoreError after `seconds` (default: `timeout`)."""
        deadline = time.monotonic() + (self.timeout if seconds is None else seconds)
        pause = _MIN_PAUSE
        while not self.check(keys):
            if time.monotonic() > deadline:
                raise StoreError(f"{', '.join(keys)}: no rank has set this in time")
            time.sleep(pause)
            pause = min(_MAX_PAUSE, 1.3 * pause)

    def add(self, key: str, amount: int) -> int:
        """Adds to a counter, which begins at 0, and returns its value."""
        return int(self._ask("add", key, amount))

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes) -> bytes:
        """Sets a value if it is still `expected`, and returns what it is then."""
        return _as_bytes(self._ask("compare_set", key, _as_text(expected), _as_text(desired)))

    def delete(self, key: str) -> bool:
        return bool(self._ask("delete", key))

    def num_keys(self) -> int:
        return int(self._ask("num_keys"))


def _as_text(value: str | bytes) -> str:
    """Returns bytes as text with one character per byte, which JSON can contain."""
    return (value.encode() if isinstance(value, str) else bytes(value)).decode("latin-1")


def _as_bytes(text: str) -> bytes:
    return text.encode("latin-1")
