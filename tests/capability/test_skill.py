"""The catalogue of skills over real HTTP: lists, files, downloads, and what stays out of reach."""

import asyncio
import contextlib
import io
import os
import socket
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.mcp_client.servers.launch import serving
from toolcrib.capability.expose import skill as skill_module
from toolcrib.capability.expose.skill import skill_app
from toolcrib.capability.spec import Mark, Skill, SkillServer, SkillTool

AT = Mark("naftiko.yaml", 1, 1)
SIBLINGS: Any = {"fleet": "mcp", "api": "rest"}


def derived(name: str = "list-ships", **fields: Any) -> SkillTool:
    return SkillTool(name, AT, **{"description": "Lists.", "source_namespace": "fleet", "action": "list", **fields})


def catalogue(*skills: Skill) -> SkillServer:
    return SkillServer("skills", AT, skills=skills)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a skill, a secret beside it, and ways that lead there."""
    root = tmp_path / "ops"
    (root / "scripts").mkdir(parents=True)
    (root / "SKILL.md").write_text("# Ops\nü", "utf-8")
    (root / "scripts" / "run.py").write_text("print(1)")
    (root / "data.bin").write_bytes(os.urandom(700_000))
    (root / ".env").write_text("SECRET=1")
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text("SECRET=1")
    (tmp_path / "secret.txt").write_text("SECRET=1")
    (tmp_path / "ops-other").mkdir()
    (tmp_path / "ops-other" / "x.txt").write_text("SECRET=1")
    (root / "leak.txt").symlink_to(tmp_path / "secret.txt")
    (root / "leak").symlink_to(tmp_path)
    (root / "sibling").symlink_to(tmp_path / "ops-other")
    (root / "inside.md").symlink_to(root / "SKILL.md")
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "pipe")
    return root


@contextlib.asynccontextmanager
async def served(*skills: Skill, folders: tuple[str, ...] = ()) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        serving(skill_app(catalogue(*skills), SIBLINGS, folders)) as url,
        httpx.AsyncClient(base_url=url) as http,
    ):
        yield http


def ops(folder: Path, **fields: Any) -> Skill:
    return Skill("ops", AT, **{"description": "Runs things.", "location": folder.as_uri(), **fields})


async def test_the_catalogue_lists_skills_and_a_skill_says_how_its_tools_are_called(folder: Path):
    tools = (
        derived(),
        derived("get", source_namespace="api", action="GET /x"),
        SkillTool("read", AT, "Read.", instruction="SKILL.md"),
    )
    metadata = {
        "license": "MIT",
        "allowed-tools": "Bash",
        "argumentHint": "[x]",
        "user-invocable": False,
        "compatibility": None,
    }
    async with served(ops(folder, tools=tools, metadata=metadata), Skill("bare", AT, "None.")) as http:
        assert (await http.get("/skills")).json() == {
            "count": 2,
            "skills": [
                {
                    "name": "ops",
                    "description": "Runs things.",
                    "license": "MIT",
                    "tools": ["list-ships", "get", "read"],
                },
                {"name": "bare", "description": "None.", "tools": []},
            ],
        }
        assert (await http.get("/skills/ops")).json() == {
            "name": "ops",
            "description": "Runs things.",
            "license": "MIT",
            "allowed-tools": "Bash",
            "argument-hint": "[x]",
            "user-invocable": False,
            "tools": [
                {
                    "name": "list-ships",
                    "description": "Lists.",
                    "type": "derived",
                    "invocationRef": {"targetNamespace": "fleet", "action": "list", "mode": "mcp"},
                },
                {
                    "name": "get",
                    "description": "Lists.",
                    "type": "derived",
                    "invocationRef": {"targetNamespace": "api", "action": "GET /x", "mode": "rest"},
                },
                {"name": "read", "description": "Read.", "type": "instruction", "instruction": "SKILL.md"},
            ],
        }


async def test_contents_are_sorted_and_leave_out_what_is_hidden_or_leads_out(folder: Path):
    async with served(ops(folder)) as http:
        listed = (await http.get("/skills/ops/contents")).json()
        assert listed["name"] == "ops"
        assert [(file["path"], file["type"]) for file in listed["files"]] == [
            ("SKILL.md", "text/markdown"),
            ("data.bin", "application/octet-stream"),
            ("inside.md", "text/markdown"),
            ("scripts/run.py", "text/x-python"),
        ]
        assert listed["files"][0]["size"] == 8


async def test_a_file_comes_whole_with_its_type_and_head_without_its_body(folder: Path):
    async with served(ops(folder)) as http:
        text = await http.get("/skills/ops/contents/SKILL.md")
        assert (text.text, text.headers["content-type"]) == ("# Ops\nü", "text/markdown; charset=utf-8")
        assert text.headers["x-content-type-options"] == "nosniff"
        assert (await http.get("/skills/ops/contents/data.bin")).content == (folder / "data.bin").read_bytes()
        assert (await http.get("/skills/ops/contents/scripts/run.py")).text == "print(1)"
        head = await http.head("/skills/ops/contents/data.bin")
        assert (head.status_code, head.headers["content-length"], head.content) == (200, "700000", b"")
        for path in ["/skills", "/skills/ops", "/skills/ops/contents", "/skills/ops/download"]:
            assert (await http.head(path)).status_code == 200
        (folder / "empty.txt").touch()
        assert (await http.get("/skills/ops/contents/empty.txt")).content == b""


async def test_a_download_is_a_zip_of_what_is_listed(folder: Path):
    (folder / "old.txt").write_text("old")
    os.utime(folder / "old.txt", (0, 0))
    async with served(ops(folder)) as http:
        answer = await http.get("/skills/ops/download")
        assert answer.headers["content-type"] == "application/zip"
        assert answer.headers["content-disposition"] == 'attachment; filename="ops.zip"'
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            assert archive.testzip() is None
            assert archive.namelist() == ["SKILL.md", "data.bin", "inside.md", "old.txt", "scripts/run.py"]
            assert archive.read("data.bin") == (folder / "data.bin").read_bytes()


async def test_more_than_one_download_may_hold_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(skill_module, "_ZIP_LIMIT", 1000)
    monkeypatch.setattr(skill_module, "_FILES", 3)
    async with served(ops(folder)) as http:
        assert (await http.get("/skills/ops/download")).status_code == 413
        assert (await http.get("/skills/ops/contents")).status_code == 413


def raw_get(url: str, target: str) -> tuple[int, bytes]:
    """A request whose path nobody tidies up."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        data = b"".join(iter(lambda: sock.recv(65536), b""))
    return int(data.split()[1]), data.partition(b"\r\n\r\n")[2]


UNREACHABLE = [
    ("../secret.txt", 400),
    ("..%2fsecret.txt", 400),
    ("%2e%2e/secret.txt", 400),
    ("scripts/../../secret.txt", 400),
    ("./SKILL.md", 400),
    ("a%00b", 400),
    ("a%5cb", 400),
    ("a%20b", 400),
    ("scripts//run.py", 400),
    ("/etc/passwd", 400),
    ("leak.txt", 404),
    ("leak/secret.txt", 404),
    ("sibling/x.txt", 404),
    ("loop", 404),
    ("pipe", 404),
    ("scripts", 404),
    (".env", 404),
    (".git/config", 404),
    ("nope.md", 404),
    ("a" * 300, 404),
]


async def test_no_path_leads_out_of_the_folder(folder: Path):
    async with serving(skill_app(catalogue(ops(folder)), SIBLINGS, ())) as url:
        for path, status in UNREACHABLE:
            got, body = await asyncio.to_thread(raw_get, url, f"/skills/ops/contents/{path}")
            assert got == status, (path, body)
            assert b"SECRET" not in body


async def test_what_is_not_there_is_404_and_what_cannot_be_done_405(folder: Path):
    gone = Skill("gone", AT, "x", location=(folder / "nope").as_uri())
    async with served(ops(folder), Skill("bare", AT, "x"), gone) as http:
        for path in [
            "/",
            "/skill",
            "/skills/none",
            "/skills/bare/contents",
            "/skills/bare/download",
            "/skills/gone/contents",
            "/skills/ops/x",
            "/skills/none/contents/../x",
        ]:
            answer = await http.get(path)
            assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json"), path
        refused = await http.post("/skills/ops")
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
        assert (await http.delete("/skills/none")).status_code == 404
        assert (await http.get("/skills/")).status_code == 200


async def test_a_relative_location_is_looked_up_in_each_folder(folder: Path, tmp_path: Path):
    for location in ["file:///./ops", "file://./ops", "./ops", "ops"]:
        async with served(
            Skill("ops", AT, "x", location=location), folders=(str(tmp_path / "none"), str(tmp_path))
        ) as http:
            assert (await http.get("/skills/ops/contents/scripts/run.py")).text == "print(1)"


@pytest.mark.parametrize(
    ("tool", "location", "message"),
    [
        (SkillTool("t1", AT), None, "'t1': needs either from or instruction"),
        (derived("t2", instruction="a.md"), "file:///x", "'t2': needs either from or instruction, not both"),
        (derived("t3", source_namespace="elsewhere"), None, "'t3': no rest or mcp server .*'elsewhere'"),
        (derived("t4", action=None), None, "'t4': from needs sourceNamespace and action"),
        (SkillTool("t5", AT, instruction="a.md"), None, "'t5': an instruction needs a location"),
        (derived("t6"), "https://x/y", "not a file:/// URI"),
    ],
)
def test_a_tool_that_cannot_be_listed_keeps_the_face_from_being_built(
    tool: SkillTool, location: str | None, message: str
):
    with pytest.raises(ValueError, match=message):
        skill_app(catalogue(Skill("ops", AT, "x", location=location, tools=(tool,))), SIBLINGS, ())
