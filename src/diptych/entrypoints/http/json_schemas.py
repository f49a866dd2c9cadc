"""JSON Schemas of messages and answers, made to say exactly what is taken and what is given.

One class may be described twice: as what is sent, where a decimal may be a number too, and as what is answered.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import msgspec

__all__ = ["Json", "Schemas", "parameter_schemas", "with_some_fields"]

Json = dict[str, Any]

_REFERENCE = "#/components/schemas/{name}"
_ONE_SCHEMA = frozenset(("items", "additionalProperties", "propertyNames"))
_MANY_SCHEMAS = frozenset(("anyOf", "prefixItems"))
_NO_NUL = r"^[^\u0000]*$"
_BASE64 = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
_DURATION = r"^-?P(?!$)([0-9]{1,9}D)?(T(?=[0-9])([0-9]{1,9}H)?([0-9]{1,9}M)?([0-9]{1,9}(\.[0-9]{1,6})?S)?)?$"
_DECIMAL = r"^-?[0-9]{1,18}(\.[0-9]{1,9})?$"


class Schemas:
    """The schemas of some messages and answers, without two of one name.

    Attributes:
        inputs: of the messages, in their order.
        outputs: of the answers, in their order.
        components: what they refer to, by name.
    """

    def __init__(self, messages: Iterable[type], answers: Iterable[Any]) -> None:
        inputs, sent = _made(messages)
        self.outputs, given = _made(answers)
        sent = {name: _rewritten(schema, _as_input) for name, schema in sent.items()}
        names = {name: f"{name}-Input" for name in _different(sent, given)}

        def rename(schema: Json) -> Json:
            return _renamed(schema, names)

        self.inputs = [_rewritten(schema, rename) for schema in inputs]
        renamed = {names.get(name, name): _rewritten(schema, rename) for name, schema in sent.items()}
        self.components = {**renamed, **given}


def parameter_schemas(message: type) -> dict[str, Json]:
    """The schemas of a message's fields as texts in a query string: scalars, and lists of them, without references."""
    _, components = _made([message])

    def inline(schema: Json) -> Json:
        return {**components[_target(schema)], **_without(schema, "$ref")} if "$ref" in schema else schema

    whole = next(schema for schema in components.values() if "properties" in schema)
    properties = cast("Mapping[str, Json]", whole["properties"])
    return {
        name: _without_null(_rewritten(_rewritten(schema, inline), _as_input)) for name, schema in properties.items()
    }


def with_some_fields(answer: Json, components: Mapping[str, Json], *, paged: bool) -> Json:
    """The schema of an answer of which fields were chosen: of each row some, none of them required."""
    if "$ref" in answer:
        return with_some_fields(components[_target(answer)], components, paged=paged)
    if "anyOf" in answer:
        return {"anyOf": [with_some_fields(each, components, paged=paged) for each in answer["anyOf"]]}
    if "items" in answer:
        return {"type": "array", "items": with_some_fields(answer["items"], components, paged=False)}
    if "properties" not in answer:
        return answer
    if paged:
        rows = with_some_fields(answer["properties"]["items"], components, paged=False)
        return {**_without(answer, "title"), "properties": {**answer["properties"], "items": rows}}
    return {"type": "object", "properties": answer["properties"], "additionalProperties": False, "minProperties": 1}


def _made(types: Iterable[Any]) -> tuple[list[Json], dict[str, Json]]:
    found, components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
    settled = {name: _rewritten(schema, _settled) for name, schema in components.items()}
    return [_rewritten(schema, _settled) for schema in found], settled


def _rewritten(schema: Json, change: Callable[[Json], Json]) -> Json:
    """A schema with everything in it changed, the innermost first."""
    read: Json = {}
    for name, part in schema.items():
        if name == "properties":
            read[name] = {field: _rewritten(held, change) for field, held in cast("Json", part).items()}
        elif name in _MANY_SCHEMAS:
            read[name] = [_rewritten(held, change) for held in cast("list[Json]", part)]
        elif name in _ONE_SCHEMA and isinstance(part, dict):
            read[name] = _rewritten(cast("Json", part), change)
        else:
            read[name] = part
    return change(read)


def _settled(schema: Json) -> Json:
    """Plain descriptions, and durations as they are: signed, without years and months, which have no fixed length."""
    read = schema
    if "description" in read:
        read = {**read, "description": inspect.cleandoc(read["description"])}
    if read.get("format") == "duration":
        read = {**_without(read, "format"), "pattern": _DURATION}
    return read


def _as_input(schema: Json) -> Json:
    """What is taken: no unknown fields, no NUL in texts, decimals as text or as numbers, base64 as such."""
    if "properties" in schema:
        return {**schema, "additionalProperties": False}
    if schema.get("type") != "string":
        return schema
    if schema.get("format") == "decimal":
        text = {"type": "string", "format": "decimal", "pattern": _DECIMAL}
        return {**_without(_without(schema, "type"), "format"), "anyOf": [text, {"type": "number"}]}
    if schema.get("contentEncoding") == "base64":
        return {**schema, "pattern": _BASE64}
    return schema if "format" in schema or "pattern" in schema else {**schema, "pattern": _NO_NUL}


def _without_null(schema: Json) -> Json:
    """None is said by silence in a query string."""
    kept = _without(schema, "default") if schema.get("default", ...) is None else dict(schema)
    alternatives: list[Json] = [part for part in kept.pop("anyOf", []) if part.get("type") != "null"]
    if len(alternatives) == 1:
        return {**alternatives[0], **kept}
    return {**kept, "anyOf": alternatives} if alternatives else kept


# ── references ───────────────────────────────────────────────────────────────


def _different(sent: Mapping[str, Json], given: Mapping[str, Json]) -> set[str]:
    """The names that stand for one schema in what is sent and for another in what is given."""
    found = {name for name in sent if name in given and sent[name] != given[name]}
    while True:  # what refers to a different schema is another one too; a round that finds none is the last
        more = {name for name in sent if name in given and not found.isdisjoint(_targets(sent[name]))}
        if more <= found:
            return found
        found |= more


def _targets(schema: Json) -> set[str]:
    found: set[str] = set()

    def note(part: Json) -> Json:
        if "$ref" in part:
            found.add(_target(part))
        return part

    _rewritten(schema, note)
    return found


def _renamed(schema: Json, names: Mapping[str, str]) -> Json:
    if "$ref" in schema:
        name = _target(schema)
        return {**schema, "$ref": _REFERENCE.format(name=names.get(name, name))}
    if "discriminator" in schema:
        mapping: dict[str, str] = schema["discriminator"].get("mapping", {})
        renamed = {tag: _renamed({"$ref": target}, names)["$ref"] for tag, target in mapping.items()}
        return {**schema, "discriminator": {**schema["discriminator"], "mapping": renamed}}
    return schema


def _target(schema: Json) -> str:
    return str(schema["$ref"]).rpartition("/")[2]


def _without(schema: Json, name: str) -> Json:
    return {kept: part for kept, part in schema.items() if kept != name}
