"""Upstream bodies to JSON trees: what `outputRawFormat` and `outputSchema` of a consumed operation mean.

`open_format` decides everything that can be decided from the file: the name, the schema file, the selector. `decode`
is bounded in depth, time and memory whatever the body holds, and its tree always passes `orjson.dumps`. It blocks:
bodies above `BLOCKING_BYTES` are for `decode_aside`. Each family is a module of its own, loaded only by who uses it.
"""

import asyncio
import importlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from toolcrib.capability.formats import json_format
from toolcrib.errors import Unavailable, Upstream

__all__ = ["BINARY", "BLOCKING_BYTES", "JSON", "TEXT", "Format", "open_format"]

BLOCKING_BYTES: Final = 64 * 1024  # decoding more than this may take tens of milliseconds, or a child process
_WAIT_S: Final = 60.0  # for a thread, and for decoding itself
# Not the threads that everybody shares, names are looked up in those: a few hostile answers would stop all calls.
_THREADS: Final = ThreadPoolExecutor(max(2, os.cpu_count() or 2), "decode")
_MODULES: Final = {
    "xml": "xml_format",
    "yaml": "yaml_format",
    "csv": "delimited_format",
    "tsv": "delimited_format",
    "psv": "delimited_format",
    "html": "html_format",
    "markdown": "markdown_format",
    "avro": "avro_format",
    "protobuf": "protobuf_format",
    "binary": "binary_format",
    "text": "text_format",
}


@dataclass(frozen=True, slots=True)
class Format:
    """How the bodies of one consumed operation are read; immutable and safe to share between threads.

    `name` is lower case. `is_json` says that the body already is JSON text and may be relayed as it came.
    """

    name: str
    is_json: bool
    _decoder: Callable[[bytes, str | None], Any]

    def decode(self, body: bytes, charset: str | None = None) -> Any:
        """The JSON tree of a body: dict, list, str, int, float, bool or None, at most 200 levels deep.

        `charset` is that of the Content-Type, used by text formats; None means that of the body's own marks, or UTF-8.
        Raises Upstream (`upstream.undecodable`) when the body is not of this format or exceeds the limits.
        """
        try:
            return self._decoder(body, charset)
        except ValueError as e:
            message = f"The upstream answer is not usable {self.name}: {e}."
            raise Upstream("upstream.undecodable", message, format=self.name) from e

    async def decode_aside(self, body: bytes, charset: str | None = None) -> Any:
        """As `decode`, beside the event loop. Raises Unavailable (`format.busy`) as well, after a minute."""
        try:
            async with asyncio.timeout(_WAIT_S):
                return await asyncio.get_running_loop().run_in_executor(_THREADS, self.decode, body, charset)
        except TimeoutError:
            message = "Too many large answers are being read; try again later."
            raise Unavailable("format.busy", message, retry_after_s=5) from None


JSON: Final = Format("json", True, json_format.decode)
TEXT: Final = "text"
BINARY: Final = "binary"  # the name of the format whose bodies are relayed as bytes; its tree is their base64 text


def open_format(name: str | None, schema: str | None, folders: tuple[str, ...]) -> Format:
    """The format that a consumed operation declares; a `name` of None is json, and case does not matter.

    `schema` is the `outputSchema`: a schema file for avro and protobuf, looked up in `folders` in order and never
    outside them; a CSS selector for html; the start of a heading for markdown; ignored by the others.
    Raises ValueError, with a message for the author of the file, for an unknown name or an unusable schema.
    """
    wanted = "json" if name is None else name.strip().lower()
    if wanted == "json":
        return JSON
    module = _MODULES.get(wanted)
    if module is None:
        raise ValueError(f"outputRawFormat {name!r} is unknown: use one of json, {', '.join(_MODULES)}")
    family = importlib.import_module(f"{__name__}.{module}")
    return Format(wanted, False, family.open_decoder(wanted, schema, folders))
