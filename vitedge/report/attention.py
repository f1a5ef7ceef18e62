"""Where the model looks, before and after compression: attention of [CLS] over the patches. The only torch
here."""

from __future__ import annotations

from typing import Any

from vitedge.bundle import Bundle
from vitedge.report.collect import Facts
from vitedge.reporter import Reporter


def compare_attention(bundle: Bundle, facts: Facts, reporter: Reporter) -> dict[str, Any] | None:
    """None until the maps are drawn."""
    return None
