"""The catalogue of skills: what they are for, which tools belong to them, and their files. Nothing is executed.

Files are read below the folder of a skill alone: segments are plain names, links that lead out are as good as absent,
hidden files stay hidden. Reading happens in threads, in pieces, so that a large file takes neither the loop nor memory.
"""

import asyncio
import mimetypes
import os
import re
import stat
import time
import zipfile
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, Literal, cast

from starlette.types import ASGIApp, Receive, Scope, Send

from toolcrib.capability.expose.problem import header_of, method_not_allowed, problem, refuse, respond_json
from toolcrib.capability.locations import contained, is_plain_segment, places_of
from toolcrib.capability.spec import Skill, SkillServer, SkillTool
from toolcrib.errors import AppError, Invalid, NotFound

_METHODS: Final = ("GET", "HEAD")
_CHUNK: Final = 256 * 1024
_FILES: Final = 10_000  # of one skill
_ZIP_LIMIT: Final = 256 * 2**20  # bytes of files in one download
_TYPES: Final = mimetypes.MimeTypes()
for _suffix, _media in (
    *((".md", "text/markdown"), (".markdown", "text/markdown"), (".yaml", "application/yaml")),
    *((".yml", "application/yaml"), (".toml", "application/toml"), (".ts", "text/x-typescript")),
):
    _TYPES.add_type(_media, _suffix)
_TEXT_TYPES: Final = frozenset({"application/json", "application/yaml", "application/toml", "application/xml"})


def skill_app(server: SkillServer, siblings: Mapping[str, Literal["rest", "mcp"]], folders: Sequence[str]) -> ASGIApp:
    """The face of a catalogue.

    Args:
        server: what it lists.
        siblings: the mode of the other servers of the file, by namespace.
        folders: where relative locations are looked up, the first that exists.

    Raises:
        ValueError: a tool that cannot be listed; the message names it.
    """
    catalogue: dict[str, _Listed] = {}
    for skill in server.skills:
        for tool in skill.tools:
            _check(skill, tool, siblings)
        places = () if skill.location is None else _places(skill, folders)
        detail = _detail(skill, siblings)
        catalogue.setdefault(skill.name, _Listed(skill.name, detail, places))
    skills = list(catalogue.values())
    overview = {"count": len(skills), "skills": [listed.summary() for listed in skills]}

    async def serve(scope: Scope, _receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        accept = header_of(scope, b"accept")
        try:
            answer = _route(scope["path"], catalogue, overview)
            if scope["method"] not in _METHODS:
                await method_not_allowed(send, _METHODS, accept=accept)
                return
            await answer(scope, send)
        except _Unsendable as error:
            await problem(send, 413, "Content Too Large", str(error), accept=accept)
        except AppError as error:
            await refuse(send, error, accept=accept)

    return serve


@dataclass(frozen=True, slots=True)
class _Listed:
    """A skill as it is served; `places` are the folders it may lie in."""

    name: str
    detail: Mapping[str, Any]
    places: tuple[Path, ...]

    def summary(self) -> dict[str, Any]:
        short = {key: self.detail[key] for key in ("name", "description", "license") if key in self.detail}
        return {**short, "tools": [tool["name"] for tool in self.detail["tools"]]}

    def folder(self) -> Path:
        """Where its files are; blocks."""
        if not self.places:
            raise NotFound("skill.location_missing", f"the skill {self.name} has no location")
        for place in self.places:
            if place.is_dir():
                return place.resolve()
        raise NotFound("skill.folder_missing", f"the folder of the skill {self.name} does not exist")


class _Unsendable(Exception):
    """More than one answer may hold."""


_Answer = Callable[[Scope, Send], Awaitable[None]]


def _route(path: str, catalogue: Mapping[str, _Listed], overview: Mapping[str, Any]) -> _Answer:
    parts = path.split("/")
    if parts[-1] == "" and len(parts) > 2:
        parts.pop()
    if parts[:2] != ["", "skills"]:
        raise NotFound("resource.unknown", "there is no such resource; start at /skills")
    if len(parts) == 2:
        return _document(overview)
    listed = catalogue.get(parts[2])
    if listed is None:
        raise NotFound("skill.unknown", f"there is no skill {parts[2]!r}")
    match parts[3:]:
        case []:
            return _document(listed.detail)
        case ["contents"]:
            return _contents(listed)
        case ["contents", *segments]:
            return _file(listed, segments)
        case ["download"]:
            return _download(listed)
        case _:
            raise NotFound("resource.unknown", "a skill has contents and a download")


def _document(document: Mapping[str, Any]) -> _Answer:
    async def answer(_scope: Scope, send: Send) -> None:
        await respond_json(send, document)

    return answer


def _contents(listed: _Listed) -> _Answer:
    def files() -> list[dict[str, Any]]:
        return [
            {"path": name, "size": size, "type": _media_type(name)} for name, _, size in _regular_files(listed.folder())
        ]

    async def answer(_scope: Scope, send: Send) -> None:
        await respond_json(send, {"name": listed.name, "files": await asyncio.to_thread(files)})

    return answer


def _file(listed: _Listed, segments: Sequence[str]) -> _Answer:
    for segment in segments:
        if not is_plain_segment(segment):
            raise Invalid("path.unsafe", "a path consists of names of letters, digits, '.', '_' and '-'")
    media = _media_type(segments[-1])
    if media.startswith("text/") or media in _TEXT_TYPES:
        media += "; charset=utf-8"

    async def answer(scope: Scope, send: Send) -> None:
        source, status = await asyncio.to_thread(_open_below, listed, segments)
        with closing(source):
            size = status.st_size
            head = {
                "content-type": media,
                "content-length": str(size),
                "last-modified": formatdate(status.st_mtime, usegmt=True),
                "x-content-type-options": "nosniff",
            }
            await _start(send, head)
            if scope["method"] == "HEAD":
                size = 0
            while size and (chunk := await asyncio.to_thread(source.read, min(_CHUNK, size))):
                size -= len(chunk)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            if size:
                raise OSError(f"{segments[-1]} became shorter while it was sent")  # breaks the answer off
        await send({"type": "http.response.body", "body": b""})

    return answer


def _download(listed: _Listed) -> _Answer:
    async def answer(scope: Scope, send: Send) -> None:
        files = await asyncio.to_thread(lambda: list(_regular_files(listed.folder())))
        if sum(size for _, _, size in files) > _ZIP_LIMIT:
            raise _Unsendable(f"the files of the skill are more than {_ZIP_LIMIT // 2**20} MB")
        name = re.sub(r"[^A-Za-z0-9._-]", "_", listed.name)
        disposition = f'attachment; filename="{name}.zip"'
        await _start(send, {"content-type": "application/zip", "content-disposition": disposition})
        if scope["method"] == "GET":
            pieces = _zipped(
                files
            )  # closes itself with its last reference: a thread may be in it when we are cancelled
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return answer


async def _start(send: Send, head: Mapping[str, str]) -> None:
    headers = [(name.encode(), value.encode("latin-1")) for name, value in head.items()]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


class _Sink:
    """What a zip is written to: keeps it until it is taken. It cannot seek, so sizes follow each file."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.size = 0

    def write(self, data: bytes) -> int:
        self._pieces.append(bytes(data))
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def take(self) -> bytes:
        data = b"".join(self._pieces)
        self._pieces.clear()
        self.size = 0
        return data


def _zipped(files: Sequence[tuple[str, Path, int]]) -> Iterator[bytes]:
    """The files as a zip, in pieces; blocks."""
    sink = _Sink()
    with zipfile.ZipFile(cast("IO[bytes]", sink), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path, size in files:
            try:
                source, status = _open_regular(path)
            except NotFound:  # gone since it was listed
                continue
            with closing(source):
                date = max(time.gmtime(status.st_mtime)[:6], (1980, 1, 1, 0, 0, 0))  # a zip knows no earlier time
                entry = zipfile.ZipInfo(name, date)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = stat.S_IMODE(status.st_mode) << 16
                with archive.open(entry, "w") as target:
                    left = size
                    while left and (chunk := source.read(min(_CHUNK, left))):
                        left -= len(chunk)
                        target.write(chunk)
                        if sink.size:
                            yield sink.take()
    yield sink.take()


def _regular_files(root: Path) -> Iterator[tuple[str, Path, int]]:
    """Relative name, real path and size of each file below a folder, sorted by name; blocks."""
    found: list[tuple[str, Path, int]] = []
    for parent, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(parent, name)
            if name.startswith(".") or (real := contained(root, path)) is None:
                continue
            status = real.stat()
            if stat.S_ISREG(status.st_mode):
                found.append((path.relative_to(root).as_posix(), real, status.st_size))
        if len(found) > _FILES:
            raise _Unsendable(f"the skill has more than {_FILES} files")
    return iter(sorted(found))


def _open_below(listed: _Listed, segments: Sequence[str]) -> tuple[BinaryIO, os.stat_result]:
    """Open a file of a skill; blocks."""
    root = listed.folder()
    hidden = any(segment.startswith(".") for segment in segments)
    real = None if hidden else contained(root, root.joinpath(*segments))
    if real is None:
        raise NotFound("file.unknown", f"the skill {listed.name} has no such file")
    return _open_regular(real)


def _open_regular(real: Path) -> tuple[BinaryIO, os.stat_result]:
    """Open a file that is one; neither a link put there since, nor a pipe that would block."""
    try:
        descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        raise NotFound("file.unknown", "there is no such file") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise NotFound("file.unknown", "there is no such file")
    return os.fdopen(descriptor, "rb"), status


def _check(skill: Skill, tool: SkillTool, siblings: Mapping[str, str]) -> None:
    where = f"skill {skill.name!r}, tool {tool.name!r}"
    derived = tool.source_namespace is not None or tool.action is not None
    if derived == (tool.instruction is not None):
        raise ValueError(f"{where}: needs either from or instruction" + (", not both" if derived else ""))
    if derived and (not tool.source_namespace or not tool.action):
        raise ValueError(f"{where}: from needs sourceNamespace and action")
    if derived and tool.source_namespace not in siblings:
        raise ValueError(f"{where}: no rest or mcp server of this file has the namespace {tool.source_namespace!r}")
    if not derived and skill.location is None:
        raise ValueError(f"{where}: an instruction needs a location of the skill")


def _detail(skill: Skill, siblings: Mapping[str, str]) -> dict[str, Any]:
    """A skill as `GET /skills/{name}` shows it."""
    detail: dict[str, Any] = {"name": skill.name, "description": skill.description}
    for key, value in skill.metadata.items():
        if value is not None and key not in {"name", "description", "location", "tools"}:
            detail[_hyphenated(key)] = value
    tools: list[dict[str, Any]] = []
    for tool in skill.tools:
        entry: dict[str, Any] = {"name": tool.name, "description": tool.description}
        if tool.source_namespace is not None:
            target = {"targetNamespace": tool.source_namespace, "action": tool.action}
            entry |= {"type": "derived", "invocationRef": {**target, "mode": siblings[tool.source_namespace]}}
        else:
            entry |= {"type": "instruction", "instruction": tool.instruction}
        tools.append(entry)
    return {**detail, "tools": tools}


def _hyphenated(key: str) -> str:
    return re.sub(r"(?<=[a-z])[A-Z]", lambda match: "-" + match[0].lower(), key).replace("_", "-")


def _places(skill: Skill, folders: Sequence[str]) -> tuple[Path, ...]:
    """The folders that a location may mean: an absolute one, or one below each of `folders`."""
    location = skill.location or ""
    if "://" in location and not location.startswith("file://"):
        raise ValueError(f"skill {skill.name!r}: location {location!r} is not a file:/// URI")
    try:
        return places_of(location, folders)
    except ValueError:
        raise ValueError(f"skill {skill.name!r}: location {location!r} is no folder") from None


def _media_type(name: str) -> str:
    return _TYPES.guess_type(name)[0] or "application/octet-stream"
