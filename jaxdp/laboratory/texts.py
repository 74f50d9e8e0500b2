"""The words of a page in a file of their own: named parts, with places in braces for what records say."""

import importlib.resources
import re
from collections.abc import Callable
from typing import Any


def parts(package: str, file: str) -> Callable[..., str]:
    """Reads a file of a package in which `<!-- name -->`, on a line of its own, begins each part.

    Returns:
      `(name, **values) -> text` of a part, values put in, without line breaks at its end.
    """
    content = (importlib.resources.files(package) / file).read_text(encoding="utf-8")
    _, *found = re.split(r"^<!-- (\w+) -->\n", content, flags=re.M)
    texts = dict(zip(found[::2], found[1::2], strict=True))

    def part(name: str, /, **values: Any) -> str:
        return texts[name].format(**values).rstrip("\n")

    return part
