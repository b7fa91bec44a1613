"""Objects as Label Studio and Doccano export them, as plain rows: the texts of a task, and what was marked in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onetrunk.protocol.errors import UserError, counted
from onetrunk.tasks.formats.tables import column_key
from onetrunk.tasks.records import Reading

_SHOWN = 8


class Exports:
    """Turns the objects of a file into rows, and keeps what only all of them together tell.

    Label Studio's objects have the texts in ``data`` and what was marked in ``annotations``, by the name of each
    control. Those of Doccano are rows already, and any other object is one, too.

    Args:
        reading: The column of the label, for a text in which nothing was marked.
    """

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._marked = self._first_of_several = 0
        self._controls: dict[str, None] = {}
        self._has_label = False

    def row(self, values: dict[str, Any]) -> dict[str, object]:
        """Return the row of an object."""
        data, annotations = values.get("data"), values.get("annotations", values.get("completions"))
        if not isinstance(data, dict) or not isinstance(annotations, list):
            return {name: _choices(value) for name, value in values.items()}
        found: dict[str, object] = dict(data)
        by_person = {
            _person(annotation, number): _results(annotation["result"])
            for number, annotation in enumerate(annotations)
            if isinstance(annotation, dict) and not annotation.get("was_cancelled") and "result" in annotation
        }
        people = list(by_person.values())
        if not people:
            return found
        self._marked += 1
        for name in {name: None for one in people for name in one}:
            self._controls[name] = None
            said = _said_by(people, name)
            if said is not None or name in people[0]:
                found[name] = said
        label = self._reading.label
        if label is not None:
            alike = (one for one in found if column_key(one) == column_key(label) and one not in self._reading.text)
            name = label if label in found else next(alike, label)
            self._has_label |= name in found
            said = found.setdefault(name, [])
            if said == people[0].get(name, []):
                # Choices and numbers of several people would all be in it.
                self._first_of_several += any(one.get(name) not in (None, [], said) for one in people[1:])
        return found

    def finish(self, path: Path) -> None:
        """Note what became of the annotations of several people, once all objects are read.

        Args:
            path: The file, for messages.

        Raises:
            UserError: In no text of train data was anything marked with the control that the task names, but with
                others.
        """
        if self._controls and self._reading.label is not None and not self._has_label:
            shown = ", ".join(list(self._controls)[:_SHOWN])
            found = f"no text has anything from a control {self._reading.label!r:.40}; there are: {shown!s:.200}"
            # Few dev or test data may have none of it; that there is such a control, the train data show.
            if self._reading.split == "train":
                raise UserError(f"{path}: {found}: label_field in the task file names the control")
            self._reading.notes.append(found)
        if self._first_of_several:
            self._reading.notes.append(
                f"of {counted(self._marked, 'text', 'texts')}, several people marked {self._first_of_several:,}: what "
                "the first one marked is read"
            )


def _person(annotation: dict[str, Any], number: int) -> tuple[str, object]:
    """Return who made an annotation, whose last one counts; where nobody is named, each is of another person."""
    person = annotation.get("completed_by")
    person = person.get("id") if isinstance(person, dict) else person
    return ("person", person) if isinstance(person, (int, str)) else ("annotation", number)


def _said_by(people: list[dict[str, Any]], name: str) -> object:
    """Return what was marked with a control; of choices and numbers by several people, the list of what each said."""
    given = [one[name] for one in people if name in one]
    if len(people) == 1:
        return given[0]
    if all(isinstance(one, list) and not _is_marked(one) for one in given):
        return [one.get(name, []) for one in people]  # whoever chose nothing has said so, too
    if all(isinstance(one, (int, float)) for one in given):
        return given
    return people[0].get(name)


def _is_marked(said: object) -> bool:
    """Return whether something is a list of spans."""
    return isinstance(said, list) and any(isinstance(one, dict) for one in said)


def _results(results: Any) -> dict[str, Any]:
    """Return what one person marked, by the name of the control: spans and choices as lists."""
    found: dict[str, Any] = {}
    for result in results if isinstance(results, list) else ():
        value, name = (result.get("value"), result.get("from_name")) if isinstance(result, dict) else (None, None)
        if not isinstance(value, dict) or not isinstance(name, str):
            continue
        if "start" in value:
            found.setdefault(name, []).append(value)
        elif "choices" in value:
            found[name] = _choices(value)
        else:
            found[name] = next((value[key] for key in ("rating", "number", "text") if key in value), None)
    return found


def _choices(value: Any) -> object:
    """Return the list of choices of ``{"choices": [...]}``, also of a single one; any other value as it is."""
    choices = value.get("choices") if isinstance(value, dict) else None
    return choices if isinstance(choices, list) else value
