"""Call a tool of the MCP server on port 9401: `python examples/call.py list-telescopes state=open`.

Values are JSON where they can be read as that, else texts. The tool's answer is printed. The environment's
`DESK_TOKEN` holds the bearer token, `DESK_URL` another address.
"""

import json
import os
import sys
import urllib.error
import urllib.request

URL = os.environ.get("DESK_URL", "http://127.0.0.1:9401/mcp")


def value_of(text: str) -> object:
    """A value from the command line."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def call(url: str, name: str, arguments: dict[str, object], token: str = "") -> str:
    """The text of a tool's answer; `failed:` when the tool says so, `refused:` when the server does."""
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": arguments}}
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(url, json.dumps(message).encode(), headers)
    try:
        with urllib.request.urlopen(request) as response:
            answer = json.load(response)
    except urllib.error.HTTPError as error:
        return f"refused: {error.code} {error.reason}"
    except urllib.error.URLError as error:
        sys.exit(f"nobody answers at {url} ({error.reason}): serve a step first")
    result = answer.get("result")
    if result is None:
        return f"refused: {answer['error']['message']}"
    text = "\n".join(item["text"] for item in result["content"]) or "done"
    return f"failed: {text}" if result.get("isError") else text


if __name__ == "__main__":
    given = dict(pair.split("=", 1) for pair in sys.argv[2:])
    arguments = {name: value_of(text) for name, text in given.items()}
    print(call(URL, sys.argv[1], arguments, os.environ.get("DESK_TOKEN", "")))
