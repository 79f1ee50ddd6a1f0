"""The README's table of settings, made from the code: `python -m tests.support.settings_table` writes it anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic

from services.ingest.settings import IngestSettings
from services.process.settings import PREFIX
from services.store.settings import StoreSettings

README = Path(__file__).parents[2] / "README.md"
_BEGIN = "<!-- settings: made by python -m tests.support.settings_table -->\n"
_END = "<!-- end of settings -->\n"
_READERS = {"ingest": IngestSettings, "store": StoreSettings}


def make_table() -> str:
    """A Markdown table: variable, default, who reads it, what it is."""
    fields: dict[str, tuple[Any, list[str]]] = {}
    for reader, settings in _READERS.items():
        for name, field in settings.model_fields.items():
            fields.setdefault(name, (field, []))[1].append(reader)
    rows = [_row(name, field, readers) for name, (field, readers) in sorted(fields.items())]
    return "".join(("| variable | default | read by | meaning |\n", "|---|---|---|---|\n", *rows))


def _row(name: str, field: Any, readers: list[str]) -> str:
    readable = ", ".join(readers) if len(readers) < len(_READERS) else "both"
    return f"| `{PREFIX}{name.upper()}` | {_default(field)} | {readable} | {field.description} |\n"


def _default(field: Any) -> str:
    if field.default_factory is not None:
        return ""
    value = field.default
    if isinstance(value, pydantic.SecretStr):
        value = value.get_secret_value()
    return f"`{value}`"


def split(readme: str) -> tuple[str, str, str]:
    """The README before, within and after the table."""
    before, rest = readme.split(_BEGIN)
    table, after = rest.split(_END)
    return before + _BEGIN, table, _END + after


def _parts() -> Iterator[str]:
    before, _, after = split(README.read_text())
    yield from (before, make_table(), after)


if __name__ == "__main__":
    README.write_text("".join(_parts()))
