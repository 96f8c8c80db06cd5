"""The two systems of an observatory that the examples put tools in front of: `python examples/upstream.py`.

`/open` and `/v1` are the archive (JSON; `/v1` wants a bearer token and the header Archive-Version), `/vault` is the old
plate vault (XML; wants the header X-Plate-Key). It keeps everything in memory and prints every request it gets.
"""

import json
import re
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import quoteattr

PORT = 9400
TOKEN = "sky-archive-demo"  # shared/secrets.example.yaml has the same values
PLATE_KEY = "plate-vault-demo"

TELESCOPES: list[dict[str, Any]] = [
    {
        "telescope_id": "T-090",
        "display_name": "Ludmila",
        "mirror_cm": 90,
        "dome_state": "open",
        "site": {"code": "EAST", "altitude_m": 1240},
        "crew": ["P-1", "P-3"],
    },
    {
        "telescope_id": "T-160",
        "display_name": "Old Reflector",
        "mirror_cm": 160,
        "dome_state": "closed",
        "site": {"code": "EAST", "altitude_m": 1240},
        "crew": ["P-2"],
    },
    {
        "telescope_id": "T-040",
        "display_name": "Sparrow",
        "mirror_cm": 40,
        "dome_state": "open",
        "site": {"code": "HILL", "altitude_m": 610},
        "crew": [],
    },
]
OBSERVERS = [
    {"person_id": "P-1", "full_name": "Inge Halvorsen", "duty": "pointing", "phone": "101"},
    {"person_id": "P-2", "full_name": "Tomas Reyes", "duty": "spectra", "phone": "102"},
    {"person_id": "P-3", "full_name": "Aiko Mori", "duty": "guiding", "phone": "103"},
]
FILTERS = [
    {"filter_id": "F-HA", "band": "H-alpha", "width_nm": 3, "fragile": True},
    {"filter_id": "F-V", "band": "visual", "width_nm": 88, "fragile": False},
]
PLATES = [
    {"number": "1204", "year": "1931", "object": "M31", "observer": "E. Sand"},
    {"number": "1377", "year": "1938", "object": "M51", "observer": "E. Sand"},
    {"number": "2050", "year": "1954", "object": "M31 & companions", "observer": "K. Ohm"},
]


def first_session() -> dict[str, dict[str, Any]]:
    """The sessions of a fresh start."""
    session = {
        "session_id": "S-1",
        "telescope_id": "T-090",
        "target": "M31",
        "begins": "2026-10-02T20:00Z",
        "ends": "2026-10-03T02:00Z",
        "observer_ids": ["P-3", "P-2"],
        "filter_ids": ["F-HA"],
        "state": "planned",
    }
    return {"S-1": session}


class Observatory(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    sessions = first_session()

    def do_GET(self) -> None:
        """Every method is answered in one place."""
        path = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(path.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        segments = [unquote(segment) for segment in path.path.split("/") if segment]
        status, answer = self.answer(segments, query, body)
        if isinstance(answer, str):
            media, data = "application/xml", answer.encode()
        else:
            media, data = "application/json", json.dumps(answer).encode()
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Type", media)
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if status != 204:
            self.wfile.write(data)

    do_POST = do_PATCH = do_DELETE = do_GET

    def answer(self, path: list[str], query: dict[str, str], body: bytes) -> tuple[int, Any]:
        """Status, and a JSON value or XML text."""
        match self.command, path:
            case "GET", ["open", "telescopes"]:
                return 200, [{"id": t["telescope_id"], "name": t["display_name"]} for t in TELESCOPES]
            case "GET", ["vault", "plates"]:
                if self.headers.get("X-Plate-Key") != PLATE_KEY:
                    return 401, "<error>the vault is locked</error>"
                return 200, plates(query.get("decade", ""))
            case _, ["v1", *rest]:
                if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    return 401, {"reason": "the archive wants a token"}
                if self.headers.get("Archive-Version") != "2":
                    return 400, {"reason": "the archive speaks version 2 only"}
                return self.archive(rest, query, body)
        return 404, {"reason": "there is no such place"}

    def archive(self, path: list[str], query: dict[str, str], body: bytes) -> tuple[int, Any]:
        """What is below /v1."""
        match self.command, path:
            case "GET", ["telescopes"]:
                return 200, [t for t in TELESCOPES if query.get("state", t["dome_state"]) == t["dome_state"]]
            case "GET", ["telescopes", telescope_id]:
                found = next((t for t in TELESCOPES if t["telescope_id"] == telescope_id), None)
                return (200, found) if found else (404, {"reason": f"there is no telescope {telescope_id}"})
            case "GET", ["observers"]:
                return 200, OBSERVERS
            case "GET", ["filters"]:
                return 200, FILTERS
            case "POST", ["sessions"]:
                return self.plan(body)
            case _, ["sessions", session_id] if session_id in self.sessions:
                return self.session(session_id, body)
        return 404, {"reason": "the archive has no such thing"}

    def plan(self, body: bytes) -> tuple[int, Any]:
        """Make a session."""
        try:
            wanted = json.loads(body)
        except ValueError:
            return 400, {"reason": "a session is a JSON object"}
        if not any(t["telescope_id"] == wanted.get("telescope_id") for t in TELESCOPES):
            return 422, {"reason": "a session needs a telescope"}
        session = {"session_id": f"S-{len(self.sessions) + 1}", **wanted, "state": "planned"}
        self.sessions[session["session_id"]] = session
        return 201, session

    def session(self, session_id: str, body: bytes) -> tuple[int, Any]:
        """Show, change or cancel a session."""
        match self.command:
            case "GET":
                return 200, self.sessions[session_id]
            case "PATCH":
                self.sessions[session_id] |= json.loads(body)
                return 200, self.sessions[session_id]
            case "DELETE":
                del self.sessions[session_id]
                return 204, None
        return 405, {"reason": "that cannot be done with a session"}


def plates(decade: str) -> str:
    """The plates of a decade such as 1930s, or all, as the vault writes them."""
    wanted = [plate for plate in PLATES if plate["year"][:3] == decade[:3] or not re.fullmatch(r"\d{4}s", decade)]
    rows = "".join("<plate " + " ".join(f"{k}={quoteattr(v)}" for k, v in plate.items()) + "/>" for plate in wanted)
    return f'<?xml version="1.0"?><catalogue vault="north">{rows}</catalogue>'


if __name__ == "__main__":
    print(f"The observatory answers on http://127.0.0.1:{PORT}", flush=True)
    with suppress(KeyboardInterrupt):
        ThreadingHTTPServer(("127.0.0.1", PORT), Observatory).serve_forever()
