"""JSON Schema for the arguments of tools: validators that fetch nothing, and complaints that give nothing away."""

from typing import Any

import jsonschema_rs

from toolcrib.core.log import hide_secrets

_MAX_REASON = 500  # characters


def compile_schema(schema: dict[str, Any]) -> jsonschema_rs.Validator:
    """A validator for arguments; references outside the schema are refused, never fetched.

    Raises:
        ValueError: it is not a JSON Schema.
    """
    return jsonschema_rs.validator_for(schema, retriever=_no_fetch, pattern_options=jsonschema_rs.RegexOptions())


def first_complaint(validator: jsonschema_rs.Validator, values: Any) -> tuple[str, str] | None:
    """Where in the values something does not fit (`.city`, `[0]`, or nothing) and what the schema says of it."""
    if validator.is_valid(values):
        return None
    error = next(iter(validator.iter_errors(values)))
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.instance_path)
    reason = hide_secrets(error.message)
    return path, reason if len(reason) <= _MAX_REASON else reason[:_MAX_REASON] + "..."


def _no_fetch(uri: str) -> Any:
    raise ValueError(f"the schema refers to {uri}, which is not part of it")
