"""Objects as Label Studio and Doccano export them, as plain rows: the texts of a task, and what was marked in them."""

from __future__ import annotations

from typing import Any

from onetrunk.tasks.records import Reading


def unpacked(values: dict[str, Any], reading: Reading) -> dict[str, object]:
    """Return the row of an export's object; any other object is returned as it is.

    Label Studio's objects have the texts in ``data`` and what was marked in ``annotations``, by the name of each
    control. Those of Doccano are rows already.

    Args:
        values: The object.
        reading: The column of the label, for a text in which nothing was marked.
    """
    data, annotations = values.get("data"), values.get("annotations", values.get("completions"))
    if not isinstance(data, dict) or not isinstance(annotations, list):
        return {name: _choices(value) for name, value in values.items()}
    found: dict[str, object] = dict(data)
    # Of several people's annotations the first counts, as in Label Studio's own flat exports.
    for annotation in annotations:
        if isinstance(annotation, dict) and not annotation.get("was_cancelled") and "result" in annotation:
            found |= _results(annotation["result"])
            if reading.label is not None:
                found.setdefault(reading.label, [])
            break
    return found


def _results(results: Any) -> dict[str, object]:
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
