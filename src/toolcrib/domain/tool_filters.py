"""Filters over the tools of an upstream: which to offer, which need approval.

Regular expressions run on RE2, so no pattern of a user's can take more than linear time.
"""

import functools
from typing import Any, Literal

import msgspec
import re2  # type: ignore[import-untyped]

from toolcrib.errors import Invalid

Attribute = Literal["name", "title", "description"]
_MAX_FILTERS = 200
_MAX_PATTERN = 1000


class Matcher(msgspec.Struct, frozen=True, omit_defaults=True):
    """A test of one attribute; when several texts are given, all must hold. Case counts only if asked for."""

    attribute: Attribute = "name"
    exact: str | None = None
    contains: str | None = None
    starts_with: str | None = None
    ends_with: str | None = None
    regex: str | None = None
    case_sensitive: bool = False

    def matches(self, text: str) -> bool:
        """Whether every given test holds for `text`."""

        def fold(value: str) -> str:
            return value if self.case_sensitive else value.casefold()

        text_folded = fold(text)
        return (
            (self.exact is None or fold(self.exact) == text_folded)
            and (self.contains is None or fold(self.contains) in text_folded)
            and (self.starts_with is None or text_folded.startswith(fold(self.starts_with)))
            and (self.ends_with is None or text_folded.endswith(fold(self.ends_with)))
            and (
                self.regex is None or _compile(self.regex, case_sensitive=self.case_sensitive).search(text) is not None
            )
        )


class ToolFilter(msgspec.Struct, frozen=True, omit_defaults=True):
    """Matchers joined by AND or OR; one level. Without matchers it says nothing (see `says`)."""

    operator: Literal["and", "or"] = "and"
    filters: tuple[Matcher, ...] = ()

    def matches(self, *, name: str, title: str, description: str) -> bool:
        """Whether a tool passes."""
        texts = {"name": name, "title": title, "description": description}
        results = (m.matches(texts[m.attribute]) for m in self.filters)
        return all(results) if self.operator == "and" else any(results)


class Approvals(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which synced tools need a person's approval: all, or those a filter picks."""

    always: bool = False
    only: ToolFilter | None = None


@functools.lru_cache(maxsize=512)
def _compile(pattern: str, *, case_sensitive: bool) -> Any:
    options = re2.Options()
    options.case_sensitive = case_sensitive
    options.log_errors = False
    options.max_mem = 1 << 20
    return re2.compile(pattern, options)


def _reason(error: Exception) -> str:
    reason = error.args[0] if error.args else error
    return reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)


def check_filter(tool_filter: ToolFilter | None, field: str) -> None:
    """Raise Invalid, naming the place below `field`, when a filter cannot work."""
    if tool_filter is None:
        return
    if len(tool_filter.filters) > _MAX_FILTERS:
        raise Invalid("filter.too_many", f"At most {_MAX_FILTERS} filters.", field=f"{field}.filters")
    for i, matcher in enumerate(tool_filter.filters):
        at = f"{field}.filters[{i}].matcher"
        tests = (matcher.exact, matcher.contains, matcher.starts_with, matcher.ends_with, matcher.regex)
        if all(test is None for test in tests):
            raise Invalid("filter.empty", "Give one of exact, contains, startsWith, endsWith, regex.", field=at)
        if matcher.regex is not None:
            try:
                if len(matcher.regex) > _MAX_PATTERN:
                    raise Invalid("filter.regex_long", f"At most {_MAX_PATTERN} characters.", field=f"{at}.regex")
                _compile(matcher.regex, case_sensitive=matcher.case_sensitive)
            except re2.error as error:
                raise Invalid(
                    "filter.regex_invalid", f"Not a regular expression: {_reason(error)}.", field=f"{at}.regex"
                ) from None


def says(tool_filter: ToolFilter | None) -> ToolFilter | None:
    """The filter if it has matchers; an empty one neither includes nor excludes."""
    return tool_filter if tool_filter is not None and tool_filter.filters else None


def offered(include: ToolFilter | None, exclude: ToolFilter | None, *, name: str, title: str, description: str) -> bool:
    """Whether a tool is offered: it passes `include` (if that says anything) and not `exclude`."""
    include, exclude = says(include), says(exclude)
    if include is not None and not include.matches(name=name, title=title, description=description):
        return False
    return exclude is None or not exclude.matches(name=name, title=title, description=description)


def needs_approval(approvals: Approvals | None, *, name: str, title: str, description: str) -> bool:
    """Whether a synced tool needs approval."""
    if approvals is None:
        return False
    only = says(approvals.only)
    return approvals.always or (only is not None and only.matches(name=name, title=title, description=description))
