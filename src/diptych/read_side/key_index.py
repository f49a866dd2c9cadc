"""An index in Python: keys by what their rows hold."""

from __future__ import annotations

from collections.abc import Collection, Hashable

from diptych.read_side.read_store import Key

__all__ = ["KeyIndex"]


class KeyIndex:
    """Keys by the value that their rows hold. Finding and changing cost what they find and change."""

    def __init__(self) -> None:
        self._keys: dict[Hashable, dict[Key, None]] = {}
        self._values: dict[Key, Hashable] = {}

    def put(self, key: Key, value: Hashable) -> None:
        """Enter what the row of a key holds from now on."""
        self.remove(key)
        self._values[key] = value
        self._keys.setdefault(value, {})[key] = None

    def remove(self, key: Key) -> None:
        """Forget a key; one that is not there is no error."""
        if key in self._values:
            value = self._values.pop(key)
            of_value = self._keys[value]
            del of_value[key]
            if not of_value:
                del self._keys[value]

    def keys(self, value: Hashable) -> Collection[Key]:
        """Those whose rows hold a value now, as a view: copy it before anything changes."""
        return self._keys.get(value, {}).keys()
