"""The page that shows the pictures: one file, which opens from anywhere.

It loads nothing: the pictures are embedded in it. Names of images and classes come from
the data, and are shown as text.
"""

import base64
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import jinja2

_STYLE = """
body { margin: 0 auto; max-width: 90rem; padding: 1rem 2rem 3rem; background: #fff;
  color: #1c1e21; font: 16px/1.5 system-ui, sans-serif; }
h1, h2 { overflow-wrap: anywhere; }
h2 { margin-top: 2.5rem; border-top: 1px solid #dcd9d0; padding-top: 1rem; }
figure { margin: 1rem 0; }
img { display: block; max-width: 100%; height: auto; }
figcaption { color: #5c6470; font-size: .9rem; overflow-wrap: anywhere; }
"""
_TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>What an encoder sees</title>
<link rel="icon" href="data:,">
<style>{{ style|safe }}</style>
</head>
<body>
<h1><bdi>{{ title }}</bdi></h1>
{%- for image in images %}
<section>
<h2><bdi>{{ image.name }}</bdi></h2>
{%- for one in image.figures %}
<figure><img src="{{ one.address }}" alt="{{ one.file }}">
<figcaption><bdi>{{ one.says }}</bdi> {{ one.file }}</figcaption></figure>
{%- endfor %}
</section>
{%- endfor %}
</body>
</html>
"""


class Figure(NamedTuple):
    """A picture, its file name, and its caption."""

    file: str
    png: bytes
    says: str

    @property
    def address(self) -> str:
        """The picture as a data URL."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


class ImageSection(NamedTuple):
    """The pictures of one image, under its name."""

    name: str
    figures: Sequence[Figure]


def render_page(title: str, images: Sequence[ImageSection]) -> str:
    """Returns the HTML of the page."""
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src 'sha256-{digest}'"
    )
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(_TEMPLATE)
    return template.render(title=title, images=images, style=_STYLE, policy=policy)
