"""The program of a JavaScript interpreter's process: one request in, one answer out, until its input ends.

Run by path with an empty environment; it imports nothing of ours. It gives up files, cores and memory before the first
script, so that even a broken interpreter finds nothing to reach. A frame is four bytes of length and that many bytes; a
request is two frames and is acknowledged by the byte S, so that the other side knows whether a script was begun.
"""

import importlib
import json
import re
import resource
import struct
import sys
import time
from typing import Any

MAX_ERROR = 4000  # characters
_STACK_BYTES = 1024 * 1024  # the main thread has eight times as much
# JSON.stringify gives undefined for a function; a text that is no JSON tells it from a result that was never assigned.
_RESULT = "typeof result === 'undefined' ? '' : (JSON.stringify(result) ?? '!')"
# What JSON.stringify writes for half a surrogate pair, which is no Unicode text; a pair is never written so.
_HALF_PAIR = re.compile(r"\\\\|\\ud[89a-f][0-9a-f]{2}")
_PRINT = """(() => {
  let left = %d
  const take = (...values) => {
    for (const value of values) left -= String(value).length + 1
    if (left < 0) throw new RangeError('the script printed more than %d bytes')
  }
  globalThis.print = take
  globalThis.console = { log: take, info: take, warn: take, error: take, debug: take }
})()"""


def confine(memory_bytes: int) -> None:
    """Give up what the interpreter never needs; a limit that the system does not know is left out."""
    for name, limit in (
        ("RLIMIT_CORE", 0),
        ("RLIMIT_FSIZE", 0),
        ("RLIMIT_NPROC", 0),
        ("RLIMIT_NOFILE", 3),  # standard input, output and error: nothing can be opened any more
        ("RLIMIT_AS", memory_bytes),
    ):
        kind = getattr(resource, name, None)
        if kind is not None:
            try:
                resource.setrlimit(kind, (limit, limit))
            except (OSError, ValueError):  # macOS refuses some
                continue


def read(size: int) -> bytes:
    """Exactly so many bytes of the input; ends the process when there are no more."""
    data = sys.stdin.buffer.read(size)
    if len(data) < size:
        raise SystemExit(0)
    return data


def frame() -> bytes:
    """The next frame of the input."""
    return read(struct.unpack(">I", read(4))[0])


def answer(kind: bytes, text: str = "") -> None:
    """Send one answer: R result, A nothing assigned, E error, O too long, C parsed."""
    data = kind + text.encode("utf-8", "replace")
    sys.stdout.buffer.write(struct.pack(">I", len(data)) + data)
    sys.stdout.buffer.flush()


def allow_more_time(busy_s: float) -> None:
    """Let the process use `busy_s` more seconds of processor time, then two more, and then be ended by the system."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime + busy_s) + 3
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def error_text(js: Any, error: Exception, memory_bytes: int) -> str:
    """What went wrong; with the memory used up the interpreter throws a bare null."""
    text = str(error)
    if text.startswith("null\n") and js.memory()["malloc_size"] > memory_bytes * 3 // 4:
        return "InternalError: out of memory"
    return text[:MAX_ERROR]


def serve(quickjs: Any, request: dict[str, Any], context_json: str) -> None:
    """Answer one request, in a new runtime."""
    js = quickjs.Context()
    js.set_memory_limit(request["memory"])
    js.set_max_stack_size(_STACK_BYTES)
    js.set_time_limit(request["busy_s"])
    allow_more_time(request["busy_s"])
    if request["check"]:
        # The whole text is parsed before its first statement, and the first statement leaves.
        try:
            js.eval("throw 0;" + request["sources"][0])
        except quickjs.JSException as error:
            answer(b"C") if str(error).startswith("0\n") else answer(b"E", str(error)[:MAX_ERROR])
        return
    try:
        run(js, request, context_json)
    except MemoryError:
        answer(b"E", "InternalError: out of memory")
    except Exception as error:  # noqa: BLE001  whatever the binding raises is the script's failure
        answer(b"E", error_text(js, error, request["memory"]))


def run(js: Any, request: dict[str, Any], context_json: str) -> None:
    """Evaluate the sources and answer with `result`."""
    end = time.process_time() + request["busy_s"]
    js.eval(_PRINT % (request["output"], request["output"]))
    js.set("context", js.parse_json(context_json))
    lines = 0
    for source in request["sources"]:
        # Sources follow one another in one numbering of lines: errors name a line, never a file.
        js.eval("\n" * lines + source + "\n;void 0")
        lines += source.count("\n") + 1
    while js.execute_pending_job():
        if time.process_time() > end:  # the interpreter counts anew for each job
            raise TimeoutError("InternalError: interrupted")
    text = js.eval(_RESULT)
    if r"\ud" in text:
        text = _HALF_PAIR.sub(lambda match: match[0] if match[0] == r"\\" else "\ufffd", text)
    if text == "":
        answer(b"A")
    elif len(text) > request["output"] or len(text.encode("utf-8", "replace")) > request["output"]:
        answer(b"O")
    else:
        answer(b"R", text)


def main() -> None:
    """Serve requests; arguments are the folder of the interpreter's module and the bytes of address space."""
    sys.path.append(sys.argv[1])
    quickjs = importlib.import_module("_quickjs")
    confine(int(sys.argv[2]))
    while True:
        request, context_json = json.loads(frame()), frame().decode()
        sys.stdout.buffer.write(b"S")
        sys.stdout.buffer.flush()
        serve(quickjs, request, context_json)


if __name__ == "__main__":
    main()
