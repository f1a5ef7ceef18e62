"""The generated pages: every command's options out of the options' classes, and the changelog.

python docs/generate.py      writes docs/reference/options.md and docs/reference/changelog.md
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from vitedge import config
from vitedge.cli import COMMANDS, EXAMPLES
from vitedge.options import OptionField, fields_of

HERE = Path(__file__).resolve().parent
HEAD = """# Commands and options

Made from the code: a flag of the command line, a keyword of the Python API and a key of a TOML file (`--config FILE`)
are one field. The TOML section stands above each table; a key is the flag's name with `_`, unless it is given. Options
marked * are shown by `--help-all` only.
"""
# Commands whose options are few and are no section of the configuration.
_PLAIN = {
    "compare": "Files of `bench --json`, or run folders; `--fail` exits with 1 where something became worse.",
    "toolchain": "`install`, `list`, `remove`: vendors' compilers in environments of their own.",
    "doctor": "`--json` for machines.",
    "demo": "`--dir`, `--minutes`, `--seed`, `--json`.",
}


def kind(annotation: Any) -> str:
    """A type in words."""
    text = inspect.formatannotation(annotation).replace("typing.", "")
    found = getattr(annotation, "__args__", None)
    if "Literal" in text and found:
        names = [arg for arg in found if isinstance(arg, str)]
        inner = [value for arg in found for value in getattr(arg, "__args__", ())]
        return " ".join(f"`{name}`" for name in (*names, *inner) if isinstance(name, str))
    for name, word in (("tuple", "list"), ("bool", "switch"), ("float", "number"), ("int", "integer"), ("str", "text")):
        if name in text.lower():
            return word
    return "text"


def default(value: Any) -> str:
    if value is None or value == () or value == "":
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{','.join(map(str, value)) if isinstance(value, tuple) else value}`"


def row(field: OptionField) -> str:
    mark = " *" if field.expert else ""
    flag = f"`{field.flag}`" if field.keyword else "(file only)"
    same = field.keyword and f"--{field.name.replace('_', '-')}" == field.flag
    flag += "" if same else f", key `{field.name}`"
    text = field.description.replace("|", "\\|")
    return f"| {flag}{mark} | {kind(field.annotation)} | {default(field.default)} | {text} |"


def table(section: str, options: Any) -> list[str]:
    """The fields of a section as a table, with what the class says of itself."""
    doc = inspect.cleandoc(options.__doc__ or "").split("\n\n")[0].replace("\n", " ")
    fields = fields_of(options)
    if not fields:
        return []
    head = ["| flag | type | default | |", "| --- | --- | --- | --- |"]
    return [f"**`[{section}]`** {doc}", "", *head, *map(row, fields), ""]


def options_page() -> str:
    lines = [HEAD]
    for command, help_text in COMMANDS.items():
        lines += [f"## vitedge {command}", "", help_text, ""]
        lines += ["```bash", *EXAMPLES.get(command, ()), "```", ""]
        if command in _PLAIN:
            lines += [_PLAIN[command], ""]
            continue
        try:
            sections = config.sections_of(command)
        except KeyError:
            lines += [f"`vitedge {command} --help` lists its options.", ""]
            continue
        for section, options in sections.items():
            lines += table(section, options)
    return "\n".join(lines)


def main() -> None:
    folder = HERE / "reference"
    (folder / "options.md").write_text(options_page(), encoding="utf-8")
    changes = (HERE.parent / "CHANGELOG.md").read_text(encoding="utf-8")
    (folder / "changelog.md").write_text(changes, encoding="utf-8")


if __name__ == "__main__":
    main()
