"""Rank 0's side of the ranks' store (`store`), which admits only who proves the launch's secret.

Separate, because other processes need not import asyncio.
"""

import asyncio
import errno
import hmac
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from ift_scale.ranks.store import (
    HANDSHAKE_SECONDS,
    LENGTH,
    MAC,
    NONCE,
    NotTrusted,
    Sealer,
    length_of,
    proof_of,
    sealers,
)

_MOST_WAITING = 512
"""Number of connections that may be within their handshake at once. One more closes the oldest:
ranks take milliseconds, so strangers who send nothing cannot keep them out."""
_MOST_REPORTED = 5
_BACKLOG = 4096  # all ranks may connect at once


class StoreServer:
    """The values, and a thread that serves them until the process ends.

    `host`, `port`: address to listen on. Raises OSError if the port is in use.
    """

    def __init__(self, host: str, port: int, secret: bytes):
        self._secret = secret
        self._values: dict[str, str] = {}
        self._waiting: dict[asyncio.StreamWriter, None] = {}
        self._num_refused = 0
        self._socket = _listen(host, port)
        self.host: str = self._socket.getsockname()[0]
        """The address at which rank 0 itself can connect."""
        self._operations: dict[str, Callable[..., Any]] = {
            "set": self._values.__setitem__,
            "get": self._values.get,
            "check": lambda keys: all(key in self._values for key in keys),
            "add": self._add,
            "compare_set": self._compare_set,
            "delete": lambda key: self._values.pop(key, None) is not None,
            "num_keys": lambda: len(self._values),
        }
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()

    def _add(self, key: str, amount: int) -> int:
        total = int(self._values.get(key, "0")) + amount
        self._values[key] = str(total)
        return total

    def _compare_set(self, key: str, expected: str, desired: str) -> str:
        """Sets a value if it is still `expected` (empty if missing), as torch's stores do."""
        if self._values.get(key, "") == expected:
            self._values[key] = desired
        return self._values.get(key, expected)

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._client, sock=self._socket, backlog=_BACKLOG)
        await server.serve_forever()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            requests, answers = await self._admit(reader, writer)
            while True:
                length = length_of(await reader.readexactly(LENGTH.size))
                mac = await reader.readexactly(MAC)
                name, *values = requests.open(mac, await reader.readexactly(length))
                writer.write(answers.seal(self._operations[name](*values)))
                await writer.drain()
        except NotTrusted as error:
            self._report(writer, error)
        except (OSError, EOFError):
            pass  # the rank has ended
        finally:
            writer.close()

    async def _admit(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[Sealer, Sealer]:
        """Returns the sealers of a client that knows the secret; raises NotTrusted otherwise."""
        own = os.urandom(NONCE)
        if len(self._waiting) >= _MOST_WAITING:
            oldest = next(iter(self._waiting))
            self._waiting.pop(oldest)
            oldest.transport.abort()
        self._waiting[writer] = None
        try:
            writer.write(own)
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                theirs = await reader.readexactly(NONCE)
                proof = await reader.readexactly(MAC)
        except (TimeoutError, EOFError):
            raise NotTrusted("no proof of the launch's secret") from None
        finally:
            self._waiting.pop(writer, None)
        if not hmac.compare_digest(proof, proof_of(self._secret, "client", own, theirs)):
            raise NotTrusted("a wrong proof of the launch's secret")
        writer.write(proof_of(self._secret, "server", own, theirs))
        return sealers(self._secret, own, theirs)

    def _report(self, writer: asyncio.StreamWriter, error: Exception) -> None:
        """Reports a refused connection by its address only: its bytes may be anything."""
        self._num_refused += 1
        if self._num_refused <= _MOST_REPORTED:
            host = (writer.get_extra_info("peername") or ("an unknown address",))[0]
            print(f"the ranks' store refused {host}: {error}", file=sys.stderr, flush=True)


def _listen(host: str, port: int) -> socket.socket:
    """Listens at `host`, or on all interfaces if that address is not one of this machine's.

    A cluster may give rank 0 a translated address, which only exists outside.
    """
    family, *_, address = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM)[0]
    try:
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        return socket.create_server(("", port), backlog=_BACKLOG)
