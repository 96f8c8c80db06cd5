"""The values of a capability's `binds`: read once, at start, from the environment or from files.

A value is a secret: it goes into the templates that name it and nowhere else. A variable that is declared but has no
value (an empty one counts as none) makes what needs it refuse with a clear error; it never becomes an empty credential
or the template's own text.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from toolcrib.capability.findings import CapabilityInvalid, Finding
from toolcrib.capability.locations import places_of
from toolcrib.capability.names import match
from toolcrib.capability.spec import Bind, Mark
from toolcrib.capability.template_text import Variable, parse
from toolcrib.errors import Unavailable

Secret = Callable[[], str]
_MAX_FILE = 1 << 20


class _AsWritten(yaml.SafeLoader):
    """Scalars are the texts that they are: 0123 is no octal number, and a date no date; only null is nothing."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's way to say it
        first: [(tag, pattern) for tag, pattern in known if tag.endswith((":null", ":merge"))]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


@dataclass(frozen=True, slots=True)
class Missing:
    """A declared variable without a value, and where one was looked for."""

    variable: str
    source: str
    at: Mark


class Unresolved(Exception):
    """A template names variables of binds that have no value."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(", ".join(names))
        self.names = names

    def refusal(self) -> Unavailable:
        """What a call that needs them is answered; names only, there are no values."""
        return Unavailable(
            "bind.unresolved",
            f"The capability needs {', '.join(self.names)}, which has no value; set it and restart.",
            variables=self.names,
        )


class Binds:
    """The variables of a document.

    Args:
        binds: as declared.
        environ: where binds without `location` look their values up.
        files: whether `location` may be read; if not, its keys are looked up in `environ` too.
    """

    def __init__(self, binds: tuple[Bind, ...], environ: Mapping[str, str], *, files: bool = True) -> None:
        self._environ = environ
        self._files = files
        self._by_namespace: dict[str, dict[str, str]] = {}
        self._open: set[str] = set()  # namespaces whose undeclared names may come from the environment
        self._declared: set[str] = set()
        self._flat: dict[str, str] = {}
        self.missing: list[Missing] = []
        for bind in binds:
            self._read(bind)

    def declares(self, name: str) -> bool:
        """Whether the name is a variable of a bind, alone (`X`) or qualified (`ns.X`)."""
        if name in self._declared:
            return True
        namespace, dot, _ = name.partition(".")
        return bool(dot) and namespace in self._by_namespace

    def value(self, name: str) -> str | None:
        """The value of a declared variable, None if it has none."""
        if name in self._flat:
            return self._flat[name]
        namespace, _, variable = name.partition(".")
        found = self._by_namespace.get(namespace, {}).get(variable)
        if found is None and namespace in self._open:
            found = self._environ.get(variable) or None
        return found

    def secret(self, text: str) -> Secret:
        """A text of an `authentication` block: only binds are seen, and it is whole or refused."""
        parts = [Variable(text)] if self.declares(text.strip()) else parse(text)
        try:
            value = "".join(self.constant(part.name.strip()) if isinstance(part, Variable) else part for part in parts)
        except Unresolved as unresolved:
            refusal = unresolved
            return lambda: _refuse(refusal)
        return lambda: value

    def constant(self, name: str) -> str:
        """The value of a variable that must have one; raises Unresolved."""
        value = self.value(name)
        if value is None:
            raise Unresolved([name])
        return value

    def fallback(self, name: str) -> str | None:
        """What stands for a variable of a base URI that nobody gives: a bind that means it, else the environment."""
        known = match(name, self._flat)
        if known is not None:
            return self._flat[known]
        return self._environ.get(name) or self._environ.get(name.upper().replace("-", "_")) or None

    def environment(self, name: str) -> str | None:
        """A variable of the environment, for inputs with `in: environment`."""
        return self._environ.get(name)

    def _read(self, bind: Bind) -> None:
        values = self._by_namespace.setdefault(bind.namespace, {})
        source: Mapping[str, Any] = self._environ
        shown = "the environment"
        if bind.location is not None and self._files:
            source, shown = _file(bind), bind.location
        elif bind.location is None:
            self._open.add(bind.namespace)
        for variable, key in bind.keys.items():
            self._declared.update((variable, f"{bind.namespace}.{variable}"))
            found = source.get(key)
            text = "" if found is None else found if isinstance(found, str) else json.dumps(found, default=str)
            if not text:
                self.missing.append(Missing(variable, f"{key} in {shown}", bind.at))
                continue
            values[variable] = text
            self._flat.setdefault(variable, text)


def _refuse(unresolved: Unresolved) -> str:
    raise unresolved.refusal()


def file_of(location: str, folder: str) -> Path | None:
    """The file behind `file:///abs`, `file:///./rel` or `file://./rel`: below `folder`, else the working directory.

    None for another scheme, and for what names no file.
    """
    if not location.startswith("file://"):
        return None
    try:
        places = places_of(location, (folder, "."))
    except ValueError:
        return None
    return next((place for place in places if place.exists()), places[-1])


def _file(bind: Bind) -> Mapping[str, Any]:
    """The map in the file of a bind; empty when there is no such file."""
    path = file_of(bind.location or "", bind.folder)
    if path is None:  # a scheme that only other engines may know: its variables have no value, the rest can run
        return {}
    try:
        if not path.is_file():
            return {}
        if path.stat().st_size > _MAX_FILE:
            raise _broken(bind, "the file is larger than 1 MiB", "keep only the values in it")
        text = path.read_text("utf-8")
        if path.suffix in {".yaml", ".yml"}:
            loaded = yaml.load(text, _AsWritten)  # noqa: S506 - a SafeLoader
        else:
            loaded = json.loads(text, parse_int=str, parse_float=str)
    except (OSError, UnicodeError):
        return {}
    except (yaml.YAMLError, ValueError, RecursionError):  # their messages would quote the secrets
        raise _broken(bind, "the file cannot be parsed", "make it a map of keys and values") from None
    if not isinstance(loaded, dict):
        raise _broken(bind, "the file holds no map", "make it a map of keys and values")
    return loaded


def _broken(bind: Bind, reason: str, mend: str) -> CapabilityInvalid:
    return CapabilityInvalid(
        (
            Finding(
                "bind-source-broken",
                "error",
                f"The bind {bind.namespace} cannot be read: {reason}",
                "the capability is not served",
                mend,
                bind.at,
            ),
        )
    )
