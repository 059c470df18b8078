"""The ranks' store for torch.distributed, whose own stores serve strangers.

Separate from `store`, because it imports torch.
"""

from datetime import timedelta

from torch.distributed import Store  # type: ignore[attr-defined]

from ift_scale.ranks.store import Connection


class TorchStore(Store):  # type: ignore[misc]
    """What gloo and NCCL need of a store, through a connection of its own."""

    def __init__(self, connection: Connection):
        super().__init__()
        self._connection = connection

    def clone(self) -> "TorchStore":
        return TorchStore(self._connection.another())

    def set(self, key: str, value: str | bytes) -> None:
        self._connection.set(key, value)

    def get(self, key: str) -> bytes:
        return self._connection.get(key)

    def add(self, key: str, amount: int) -> int:
        return self._connection.add(key, amount)

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes) -> bytes:
        return self._connection.compare_set(key, expected, desired)

    def check(self, keys: list[str]) -> bool:
        return self._connection.check(keys)

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        self._connection.wait(keys, timeout.total_seconds() if timeout else None)

    def delete_key(self, key: str) -> bool:
        return self._connection.delete(key)

    def num_keys(self) -> int:
        return self._connection.num_keys()

    def has_extended_api(self) -> bool:
        return False
