"""What is wrong with a request in JSON, in one line: what was found, what is allowed, what to do.

The line depends on the kind of the fault and the names of fields alone, so that it is the same in every protocol.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, from_json

from onetrunk.protocol.errors import counted, did_you_mean
from onetrunk.serving.front.admission import RefusedError

Path = tuple[str | int, ...]

# What is more is not told one by one: pydantic checks objects to the end, and each fault takes time and memory.
_MOST_FAULTS = 1000
# A larger body is not read once more for its faults, of which the first is told in pydantic's words.
_MOST_REREAD_BYTES = 1 << 20
# Characters of what was found, and names of fields, that are repeated.
_SHOWN, _SHOWN_NAMES = 40, 5
# The fields that hold names of tasks and not texts.
_NAMES = ("tasks", "model")
_KEY = "[key]"


class RequestBody(BaseModel):
    """The body of a request, whose values are taken as they are: `"1"` is no number.

    `such_as` is a body that fits, in JSON, for messages. `meant` has names of fields in other protocols, and the field
    that each stands for.
    """

    model_config = ConfigDict(strict=True)

    such_as: ClassVar[str]
    meant: ClassVar[Mapping[str, str]] = {}


@dataclass(frozen=True)
class RequestFault:
    """What is wrong with a request.

    Attributes:
        place: The names of fields and the numbers of entries that lead to it.
        message: What was found, what is allowed, and what to do.
        kind: pydantic's name of the kind of fault, or a name of our own.
    """

    place: Path
    message: str
    kind: str


class FaultyRequestError(RefusedError):
    """A request with faults, the first of which is the message."""

    def __init__(self, faults: list[RequestFault]) -> None:
        super().__init__(422, faults[0].message)
        self.faults = faults


def faults_of(error: ValidationError, model: type[RequestBody], body: bytes) -> list[RequestFault]:
    """Return what is wrong with a request: one fault for each of its values, however many forms the value may have.

    Args:
        error: What pydantic says of it.
        model: What it was checked against.
        body: The request.
    """
    if not body or body.isspace():
        return [RequestFault((), f"the body is empty; send JSON such as {model.such_as}", "json_invalid")]
    if (count := error.error_count()) > _MOST_FAULTS:
        message = f"{count:,} of its values do not fit; /docs on this server has the form of each request"
        return [RequestFault((), message, "too_many")]
    details = error.errors(include_url=False, include_input=False)
    if details[0]["type"] == "json_invalid":
        message = f"the body is not JSON: {details[0]['ctx']['error']}; send JSON such as {model.such_as}"
        return [RequestFault((), message, "json_invalid")]
    if len(body) > _MOST_REREAD_BYTES:
        place = _written(details[0]["loc"]) or "the body"
        return [RequestFault(details[0]["loc"], f"{place}: {details[0]['msg']}", details[0]["type"])]
    # It is read once more, since in pydantic's places the names of forms look like those of fields.
    content = from_json(body)
    values: dict[Path, list[_Found]] = {}
    for one in details:
        value, found = _find(one, content)
        values.setdefault(value, []).append(found)
    told = [_told(forms, model) for forms in values.values()]
    # A field that nobody knows is most often another one's name, which is then missing.
    return sorted(told, key=lambda fault: fault.kind != "extra_forbidden")


@dataclass(frozen=True)
class _Found:
    """A fault as pydantic tells it.

    Attributes:
        path: The names of fields and the numbers of entries that lead to it.
        value: What is there. Of a field that is missing, what it is missing in.
        details: What pydantic says of it.
        is_key: Whether the name of a field is at fault, and not its value.
    """

    path: Path
    value: Any
    details: ErrorDetails
    is_key: bool = False

    @property
    def kind(self) -> str:
        return self.details["type"]

    @property
    def limits(self) -> Mapping[str, Any]:
        return self.details.get("ctx", {})

    @property
    def noun(self) -> str:
        """What a text at this place is."""
        fields = [part for part in self.path if isinstance(part, str)]
        return "name" if fields and fields[-1] in _NAMES else "text"

    @property
    def depth(self) -> tuple[int, list[int], bool]:
        """How far the value matches the form that it was compared with."""
        is_of_that_type = _wanted(self) is None
        return len(self.path), [part for part in self.path if isinstance(part, int)], is_of_that_type


def _find(details: ErrorDetails, content: Any) -> tuple[Path, _Found]:
    """Return the place of the value that has one form or several, and the fault in one of these forms."""
    place = details["loc"]
    missing = place[-1:] if details["type"] == "missing" else ()
    path: Path = ()
    of_value, value = None, content
    for part in place[: len(place) - len(missing)]:
        is_entry = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if is_entry or (isinstance(value, dict) and part in value):
            path, value = (*path, part), value[part]
        elif of_value is None:
            of_value = path
    is_key = place[-1:] == (_KEY,) != path[-1:]
    path = (*path, *missing)
    found = _Found(path, path[-1] if is_key else value, details, is_key)
    return path if of_value is None else of_value, found


def _told(forms: list[_Found], model: type[RequestBody]) -> RequestFault:
    """Return the fault of a value that fits none of some forms, by the form that it matches furthest."""
    # If a name is wrong, it does not matter what of its value is.
    forms = [form for form in forms if form.is_key] or forms
    best = max(forms, key=lambda form: form.depth)
    if _wanted(best) is None:
        return RequestFault(best.path, _sentence(best, model), best.kind)
    wanted = _listed(dict.fromkeys(want for form in forms if form.path == best.path and (want := _wanted(form))))
    found = _described(best.value, shown=best.is_key or best.kind == "literal_error")
    such_as = "" if best.path else f" such as {model.such_as}"
    return RequestFault(best.path, f"{_place(best)}: found {found}; give {wanted}{such_as}", best.kind)


def _wanted(found: _Found) -> str | None:
    """Return what would be of the right type, if that is at fault."""
    match found.kind:
        case "string_type":
            return f"a {found.noun}"
        case "list_type":
            return f"a list of {found.noun}s"
        case "dict_type" | "model_type":
            return "an object"
        case "bool_type":
            return "true or false"
        case "int_type":
            return "a whole number"
        case "greater_than_equal":
            return f"{found.limits['ge']} or more"
        case "string_too_short":
            return f"at least {counted(found.limits['min_length'], 'character', 'characters')}"
        case "literal_error":
            return str(found.limits["expected"])
    return None


def _sentence(found: _Found, model: type[RequestBody]) -> str:
    """Return what is wrong with a value of the right type."""
    place = _place(found)
    match found.kind:
        case "missing" | "union_tag_not_found":
            *above, name = found.path if found.kind == "missing" else (*found.path, found.limits["discriminator"][1:-1])
            inside = f"{_written(above)}: " if above else ""
            there = _names(found.value)
            return f"{inside}{name} is missing: found {there}; send JSON such as {model.such_as}"
        case "extra_forbidden":  # which only the outermost object does
            name, known = str(found.path[-1]), list(model.model_fields)
            hint = f" (did you mean {model.meant[name]}?)" if name in model.meant else did_you_mean(name, known)
            return f"{place}: no such field{hint}; allowed are {', '.join(known)}"
        case "too_short" | "too_long":
            return f"{place}: {_size(found, model)}"
        case "union_tag_invalid":
            name, wanted = found.limits["discriminator"][1:-1], found.limits["expected_tags"]
            tag = found.value.get(name) if isinstance(found.value, Mapping) else None
            return f"{place}.{name}: found {_described(tag, shown=True)}; give one of {wanted}"
    return f"{place}: {found.details['msg'].removeprefix('Value error, ')}"


def _size(found: _Found, model: type[RequestBody]) -> str:
    """Return what is wrong with the size of a list or an object."""
    if not isinstance(found.value, list | Mapping):  # the name is there twice, and only the last of its values was kept
        return found.details["msg"]
    is_list = isinstance(found.value, list)
    what, nouns = ("list", (found.noun, f"{found.noun}s")) if is_list else ("object", ("entry", "entries"))
    has = f"has {counted(len(found.value), *nouns)}" if found.value else "is empty"
    if found.kind == "too_long":
        most = found.limits["max_length"]
        return f"the {what} {has}; " + (f"give at most {counted(most, *nouns)}" if most else "leave it out")
    field = model.model_fields.get(str(found.path[0])) if len(found.path) == 1 else None
    or_not = " or leave it out" if field is not None and not field.is_required() else ""
    return f"the {what} {has}; give at least {counted(found.limits['min_length'], *nouns)}{or_not}"


def _place(found: _Found) -> str:
    path = found.path[:-1] if found.is_key else found.path
    return _written(path) if path else "the body"


def _written(path: Iterable[str | int]) -> str:
    """Return a path as it is written in messages, such as ``texts, row 0``."""
    written = ""
    before: str | int | None = None
    for at, part in enumerate(path):
        if isinstance(part, int):
            written += f", {'row' if at == 1 and before not in _NAMES else 'entry'} {part}"
        else:
            name = shortened(part) if part else "''"
            written += f"{'' if before is None else ', ' if isinstance(before, int) else '.'}{name}"
        before = part
    return written


def _described(value: Any, *, shown: bool) -> str:
    """Return what was found. Texts are repeated only where they are no users' texts."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return f"the number {shortened(str(value))}"
    if isinstance(value, str):
        return f"the text {shortened(value)!r}" if shown else "a text" if value else "an empty text"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return "an object" if value else "an empty object"


def _names(values: Any) -> str:
    """Return the names of an object's fields."""
    if not isinstance(values, Mapping) or not values:  # no object: the name is there twice (`_size`)
        return _described(values, shown=False)
    names = [shortened(name) for _, name in zip(range(_SHOWN_NAMES), values, strict=False)]
    return ", ".join(names) + (f" and {len(values) - len(names):,} more" if len(values) > len(names) else "")


def shortened(text: str) -> str:
    """Return the beginning of a name that others gave, as it can be written in a line."""
    begin = text[:_SHOWN] if text[:_SHOWN].isprintable() else repr(text[:_SHOWN])[1:-1]
    return begin if len(text) <= _SHOWN and len(begin) <= 2 * _SHOWN else f"{begin[: 2 * _SHOWN]}..."


def _listed(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last
