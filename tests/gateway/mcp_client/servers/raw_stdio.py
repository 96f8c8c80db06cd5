"""A hand-written MCP server on standard input and output, old era by default, that misbehaves on request.

Options: `init=` ok, hang, die, modern, babble; `version=`; `list=` ok, pages, loop, odd, hang, none;
`stubborn` ignores the end of its input and SIGTERM. The tools are named after what they do.
"""

import base64
import json
import os
import signal
import subprocess
import sys
import time

OPTIONS = dict(word.partition("=")[::2] for word in sys.argv[1:])
CANCELLED: list[object] = []
REPLIES: list[object] = []


def write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def send(message: dict[str, object]) -> None:
    write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")


def read() -> dict[str, object] | None:
    line = sys.stdin.buffer.readline()
    return json.loads(line) if line else None


def text(value: object) -> dict[str, object]:
    return {"content": [{"type": "text", "text": json.dumps(value)}], "isError": False}


def initialize(rid: object, params: dict) -> None:
    match OPTIONS.get("init", "ok"):
        case "hang":
            return
        case "die":
            sys.stderr.write("\x1b[31mcannot find the token " + os.environ.get("SECRET", "") + "\x1b[0m\n")
            sys.exit(3)
        case "modern":
            error = {"code": -32022, "message": "no handshake here", "data": {"supported": ["2026-07-28"]}}
            send({"id": rid, "error": error})
            return
        case "babble":
            for number in range(20):
                write(b"starting up, step %d\n" % number)
    version = OPTIONS.get("version", "2025-06-18")
    capabilities = {} if OPTIONS.get("list") == "none" else {"tools": {"listChanged": True}}
    info = {"name": "raw", "version": "7", "asked": params["protocolVersion"]}
    send({"id": rid, "result": {"protocolVersion": version, "capabilities": capabilities, "serverInfo": info}})


def tools_list(rid: object, params: dict) -> None:
    tool = {"name": "echo", "inputSchema": {"type": "object"}, "x-unknown": [1, {"deep": True}]}
    match OPTIONS.get("list", "ok"):
        case "hang":
            return
        case "none":
            send({"id": rid, "error": {"code": -32601, "message": "Method not found"}})
        case "loop":
            cursor = "b" if params.get("cursor") == "a" else "a"
            send({"id": rid, "result": {"tools": [], "nextCursor": cursor}})
        case "odd":
            odd = [tool, {"inputSchema": {}}, {"name": "bare"}, tool, "text", {"name": "last", "inputSchema": {}}]
            send({"id": rid, "result": {"tools": odd}})
        case "pages":
            page = int(params.get("cursor", "0"))
            more = {"nextCursor": str(page + 1)} if page < 3 else {}
            send({"id": rid, "result": {"tools": [{**tool, "name": f"echo{page}"}], **more}})
        case _:
            send({"id": rid, "result": {"tools": [tool]}})


def call(rid: object, params: dict) -> None:  # noqa: C901
    arguments = params.get("arguments", {})
    match params["name"]:
        case "echo":
            send({"id": rid, "result": text(arguments)})
        case "meta":
            send({"id": rid, "result": text(params.get("_meta"))})
        case "hang":
            pass
        case "die":
            sys.stderr.write("the disk is full\n")
            sys.exit(4)
        case "last_words":
            write(json.dumps({"id": rid, "result": text("bye")}).encode())
            sys.exit(0)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "close_stdout":
            os.close(1)
            time.sleep(60)
        case "big":
            size = arguments["size"]
            if arguments.get("id_last"):
                write(b'{"result":{"x":"%b"},"jsonrpc":"2.0","id":%d}\n' % (b"x" * size, rid))
            elif arguments.get("no_id"):
                write(b'{"x":"%b"}\n' % (b"x" * size))
            else:
                send({"id": rid, "result": {"x": "x" * size}})
        case "endless":
            while True:
                write(b"x" * 65536)
        case "babble":
            for number in range(arguments["lines"]):
                write(b"just saying \xff %d\n\n" % number)
            send({"id": rid, "result": text("ok")})
        case "wrong_id":
            send({"id": 987654, "result": text("for nobody")})
        case "raw":
            write(base64.b64decode(arguments["base64"]).replace(b"@ID@", str(rid).encode()) + b"\n")
        case "ask":
            send({"id": "q1", "method": arguments["method"], "params": {}})
            while True:
                answer = read()
                if answer and answer.get("id") == "q1":
                    break
            send({"id": rid, "result": text(answer)})
        case "progress":
            token = params["_meta"]["progressToken"]
            for step in range(3):
                progress = {"progressToken": token, "progress": step, "note": "kept"}
                send({"method": "notifications/progress", "params": progress})
            send({"id": rid, "result": text("done")})
        case "change":
            for _ in range(5):
                send({"method": "notifications/tools/list_changed"})
            send({"id": rid, "result": text("changed")})
        case "cancelled":
            send({"id": rid, "result": text(CANCELLED)})
        case "env":
            send({"id": rid, "result": text(dict(os.environ))})
        case "pids":
            trap = "signal.signal(15, signal.SIG_IGN);" if "stubborn" in OPTIONS else ""
            child = [sys.executable, "-c", f"import signal, time; {trap} print('up', flush=True); time.sleep(600)"]
            started = subprocess.Popen(child, stdout=subprocess.PIPE)
            started.stdout.readline()
            send({"id": rid, "result": text([os.getpid(), started.pid])})
        case "pid":
            send({"id": rid, "result": text(os.getpid())})
        case name:
            send({"id": rid, "error": {"code": -32602, "message": f"Unknown tool: {name}", "data": {"hint": 1}}})


def discover(rid: object) -> None:
    if OPTIONS.get("init") == "modern":
        info = {"io.modelcontextprotocol/serverInfo": {"name": "raw modern", "version": "8"}}
        send({"id": rid, "result": {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}, "_meta": info}})


def main() -> None:
    if "stubborn" in OPTIONS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while (message := read()) is not None:
        rid, params = message.get("id"), message.get("params", {})
        match message.get("method"):
            case "initialize":
                initialize(rid, params)
            case "tools/list":
                tools_list(rid, params)
            case "tools/call":
                call(rid, params)
            case "ping":
                send({"id": rid, "result": {}})
            case "server/discover":
                discover(rid)  # an old server knows nothing of it and stays silent
            case "notifications/cancelled":
                CANCELLED.append(params["requestId"])
    while "stubborn" in OPTIONS:
        time.sleep(60)


main()
