"""The settings of scripting, as a capability file or `PUT /scripting` writes them.

`timeout` is milliseconds, as in the published format. Languages that this engine does not run are still words of the
format: they may be named here, and a step that uses one is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from toolcrib.capability.scripts.limits import ScriptLimits
from toolcrib.capability.scripts.source import folder_candidates

LANGUAGES: Final = ("javascript", "python", "groovy")
_ALIASES: Final = {"js": "javascript"}


class SettingInvalid(ValueError):
    """A setting that cannot be used; `field` is its name."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field


def language_of(name: str) -> str:
    """The language that `name` means; an unknown name stays as it is."""
    lower = name.strip().lower()
    return _ALIASES.get(lower, lower)


@dataclass(frozen=True, slots=True)
class ScriptingSettings:
    """What holds for every script step. An empty `allowed_languages` allows all."""

    enabled: bool = True
    default_language: str | None = None
    default_location: str | None = None
    allowed_languages: tuple[str, ...] = ()
    limits: ScriptLimits = field(default_factory=ScriptLimits)

    def changed_by(self, given: Mapping[str, Any]) -> "ScriptingSettings":
        """These settings with those `given`; other keys are left alone, as the format's own engine does.

        Raises:
            SettingInvalid: the first setting that cannot be used; nothing is changed.
        """
        changes: dict[str, Any] = {}
        limits: dict[str, Any] = {}
        if given.get("enabled") is not None:
            if not isinstance(given["enabled"], bool):
                raise SettingInvalid("enabled", "must be true or false")
            changes["enabled"] = given["enabled"]
        if "timeout" in given:
            limits["timeout_s"] = _positive(given["timeout"], "timeout") / 1000
        if "statementLimit" in given:
            limits["statements"] = _positive(given["statementLimit"], "statementLimit")
        if "defaultLocation" in given:
            changes["default_location"] = _location(given["defaultLocation"])
        if "defaultLanguage" in given:
            changes["default_language"] = _language(given["defaultLanguage"], "defaultLanguage")
        if "allowedLanguages" in given:
            changes["allowed_languages"] = _languages(given["allowedLanguages"])
        return replace(self, **changes, limits=replace(self.limits, **limits))

    def as_written(self) -> dict[str, Any]:
        """The settings in the format's words; what is not set is left out."""
        written: dict[str, Any] = {
            "enabled": self.enabled,
            "defaultLocation": self.default_location,
            "defaultLanguage": self.default_language,
            "timeout": round(self.limits.timeout_s * 1000),
            "statementLimit": self.limits.statements,
            "allowedLanguages": list(self.allowed_languages) or None,
        }
        return {key: value for key, value in written.items() if value is not None}


def _positive(value: Any, name: str) -> int:
    """A whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingInvalid(name, "must be an integer greater than or equal to 1")
    return value


def _location(value: Any) -> str | None:
    """A file URI, or None to have no default."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise SettingInvalid("defaultLocation", "must be an absolute file:/// URI")
    try:
        folder_candidates(value, ())
    except ValueError:
        raise SettingInvalid("defaultLocation", "must be an absolute file:/// URI") from None
    return value


def _language(value: Any, name: str) -> str | None:
    """A language of the format, or None to have no default."""
    if value is None:
        return None
    language = language_of(value) if isinstance(value, str) else value
    if language not in LANGUAGES:
        raise SettingInvalid(name, f"unsupported language {value!r}; supported: {', '.join(LANGUAGES)}")
    return str(language)


def _languages(value: Any) -> tuple[str, ...]:
    """A list of languages; none means all."""
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise SettingInvalid("allowedLanguages", "must be an array")
    return tuple(language for each in value if (language := _language(each, "allowedLanguages")) is not None)
