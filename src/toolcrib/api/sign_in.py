"""From a request's headers to an `Actor`: API keys as `Authorization: Bearer` or `X-API-Key`.

Look-ups are cached for half a minute; a revocation is news on the bus and takes effect at once in every process. While
the bus is down every request asks the database.
"""

import time
from datetime import UTC, datetime

from toolcrib.core.auth import Actor
from toolcrib.core.bus import RESYNC
from toolcrib.core.db import Database
from toolcrib.core.vault import api_key_hash
from toolcrib.domain.access import KEY_NEWS, find_key_actor
from toolcrib.errors import Unauthenticated

_FRESH_S = 30.0
_MAX_CACHED = 10_000


class SignIn:
    """Turns credentials into actors."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._cache: dict[str, tuple[Actor, float]] = {}
        self._texts: dict[str, str] = {}  # hash in hex -> the text it came from, to drop a revoked key
        self._news = 0  # pieces of news so far: what was looked up before the latest one is not kept
        database.bus.subscribe(KEY_NEWS, self._revoked)

    async def actor(self, authorization: str | None, x_api_key: str | None) -> Actor:
        """The actor behind a request.

        Raises:
            Unauthenticated: no key, or one that is unknown, revoked or expired.
        """
        text = x_api_key
        if authorization:
            scheme, _, rest = authorization.partition(" ")
            if scheme.lower() != "bearer":
                raise Unauthenticated("auth.scheme", "Sign in with `Authorization: Bearer <API key>` or `X-API-Key`.")
            text = rest.strip()
        if not text:
            raise Unauthenticated("auth.missing", "An API key is needed: `Authorization: Bearer <key>` or `X-API-Key`.")
        cached = self._cache.get(text)
        if cached is not None and cached[1] > time.monotonic() and self._database.bus.connected:
            return cached[0]
        return await self._look_up(text)

    async def _look_up(self, text: str) -> Actor:
        key_hash, news = api_key_hash(text), self._news
        found = None
        if key_hash is not None:
            async with self._database.tx() as tx:
                found = await find_key_actor(tx, key_hash=key_hash)
        if key_hash is None or found is None:
            self._cache.pop(text, None)
            raise Unauthenticated("auth.unknown", "The API key is unknown, revoked or expired.")
        actor, expires_at = found
        if news != self._news:  # this key may be the one that was revoked meanwhile
            return actor
        fresh_s = _FRESH_S
        if expires_at is not None:
            fresh_s = min(fresh_s, (expires_at - datetime.now(UTC)).total_seconds())
        if len(self._cache) >= _MAX_CACHED:
            self._cache.clear()
            self._texts.clear()
        self._cache[text] = (actor, time.monotonic() + fresh_s)
        self._texts[key_hash.hex()] = text
        return actor

    def _revoked(self, hash_hex: str) -> None:
        self._news += 1
        if hash_hex == RESYNC:
            self._cache.clear()
            self._texts.clear()
        elif text := self._texts.pop(hash_hex, None):
            self._cache.pop(text, None)
