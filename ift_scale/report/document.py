"""A self-contained page: sections in, HTML with the style inside out."""

from collections.abc import Sequence
from importlib import resources

from jinja2 import Environment
from markupsafe import Markup

HEADING = "What instruction fine-tuning did to the model's knowledge"


def document(
    title: str, heading: str, subtitle: str, sections: Sequence[tuple[str, str, Markup]]
) -> str:
    """`sections`: (id, title, body) of each."""
    resource = resources.files("ift_scale.report")
    template = Environment(autoescape=True, trim_blocks=True).from_string(
        (resource / "page.html.j2").read_text(encoding="utf-8")
    )
    style = Markup((resource / "page.css").read_text(encoding="utf-8"))
    parts = [{"id": id, "title": name, "body": body} for id, name, body in sections]
    return template.render(
        title=title, heading=heading, subtitle=subtitle, sections=parts, style=style
    )
