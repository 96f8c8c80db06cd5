"""When two names mean the same parameter: exactly; else but for case; else but for case, dashes, underscores and dots.

Published files pair `{customer-id}` with `customer_id` and `{accountsid}` with `AccountSid`. A looser match counts only
when it is the only one.
"""

from collections.abc import Iterable


def normalise(name: str) -> str:
    """The name without what the loosest match ignores."""
    return name.casefold().replace("-", "").replace("_", "").replace(".", "")


def match(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that means `name`, or None when none does or several do."""
    found = list(candidates)
    if name in found:
        return name
    for same in (str.casefold, normalise):
        wanted = same(name)
        hits = {candidate for candidate in found if same(candidate) == wanted}
        if hits:
            return hits.pop() if len(hits) == 1 else None
    return None
