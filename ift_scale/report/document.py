"""A self-contained page: sections in, HTML with the style inside out."""

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment
from markupsafe import Markup


def document(title: str, heading: str, subtitle: str, sections: Sequence[Mapping[str, Any]]) -> str:
    """`sections`: each with `id`, `title` and `body` (Markup)."""
    resource = resources.files("ift_scale.report")
    template = Environment(autoescape=True, trim_blocks=True).from_string((resource / "page.html.j2").read_text(encoding="utf-8"))
    style = Markup((resource / "page.css").read_text(encoding="utf-8"))
    return template.render(title=title, heading=heading, subtitle=subtitle, sections=sections, style=style)
