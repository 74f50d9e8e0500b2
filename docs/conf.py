"""The documentation: pages of this folder, and copies of what lies elsewhere in the repository.

`make docs` builds it without a network: notebooks are shown as they are stored, and nothing is fetched by the
pages. Every warning is an error.
"""

import ast
import builtins
import inspect
import pathlib
import re
import shutil
import textwrap

builtins.GENERATING_DOCUMENTATION = True  # jaxtyping then prints annotations as they are written

from sphinx.util.nodes import make_refnode  # noqa: E402

import jaxdp  # noqa: E402

HERE = pathlib.Path(__file__).parent
# Sphinx reads below its own folder alone; these are copied there for each build, and git ignores them.
MIRRORED = {
    "notebooks": ["notebooks/*.ipynb"],
    "benchmarks": ["benchmarks/README.md", "benchmarks/STUDY.md", "benchmarks/records/*.json"],
    "benchmarks/experiments": ["benchmarks/experiments/*.svg"],
}


def mirror() -> None:
    """Copies what has changed, so that Sphinx reads again what it must and no more."""
    root = HERE.parent
    for patterns in MIRRORED.values():
        for pattern in patterns:
            for source in sorted(root.glob(pattern)):
                copy = HERE / source.relative_to(root)
                if not copy.exists() or copy.read_bytes() != source.read_bytes():
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, copy)


mirror()

project, author, version = "jaxdp", "The jaxdp authors", jaxdp.__version__
project_copyright = "The jaxdp authors, Apache-2.0"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
html_theme, html_title = "furo", f"jaxdp {version}"
html_static_path = ["_static"]
html_css_files = ["jaxdp.css"]
html_show_sourcelink, html_copy_source = False, False
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
highlight_language = "text"
copybutton_selector = "div:not(.highlight-text) > div.highlight pre"  # not of what is printed
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True

# Docstrings are Google style, with names in single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # they stand in the signatures
napoleon_numpy_docstring, napoleon_use_rtype, napoleon_attr_annotations = False, False, False
napoleon_custom_sections = [("Attributes", "params_style")]
maximum_signature_line_length = 70
toc_object_entries_show_parents = "hide"

nitpicky = True


def _fields(node: ast.ClassDef) -> str:
    """What a dataclass or a named tuple is made from."""
    fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
    names = [ast.unparse(field).replace(" = ", "=") for field in fields]
    keywords = any("kw_only=True" in ast.unparse(decorator) for decorator in node.decorator_list)
    return f"({', '.join(['*'] * bool(keywords and names) + names)})"


def signature_as_written(app, object_type, name, thing, options, signature, returns):
    """The signature of a function, method or class as its author wrote it: aliases by their names."""
    if object_type not in ("function", "method", "class"):
        return None
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(thing)))).body
    if isinstance(node, ast.ClassDef):
        return _fields(node), None
    if object_type == "method" and node.args.args:
        del node.args.args[0]  # self
    return f"({ast.unparse(node.args)})", ast.unparse(node.returns) if node.returns else None


def skip_fields(app, kind, name, thing, skip, options):
    """Leaves out what says nothing: fields of named tuples, which Attributes describes."""
    return True if type(thing).__name__ == "_tuplegetter" else None


_properties: dict[str, list[str]] = {}


def keep_property(app, kind, name, thing, options, lines):
    """Remembers a property's text, in which napoleon would take what precedes a colon for a type."""
    if kind == "property":
        _properties[name] = list(lines)


def plain_stars(app, kind, name, thing, options, lines):
    """A star before a name, as in [B, *input_shape], begins no emphasis; after napoleon's own."""
    lines[:] = [
        line if line.lstrip().startswith((">>>", "...")) else re.sub(r"(?<![\w*\\`])\*(?=\w)", r"\*", line)
        for line in _properties.pop(name, lines)
    ]


def link_types(app, env, node, text):
    """A type in a signature links to the class of that name; types of other packages, and aliases, are text."""
    if (node.get("refdomain"), node.get("reftype")) != ("py", "class"):
        return None
    domain, wanted = env.domains["py"], node["reftarget"].split(".")[-1]
    alike = [name for name, *_ in domain.get_objects() if name.split(".")[-1] == wanted]
    if len(alike) != 1:
        return text
    entry = domain.objects[alike[0]]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, text)


def setup(app):
    app.connect("missing-reference", link_types)
    app.connect("autodoc-process-signature", signature_as_written)
    app.connect("autodoc-process-docstring", keep_property, priority=100)
    app.connect("autodoc-process-docstring", plain_stars, priority=900)
    app.connect("autodoc-skip-member", skip_fields)
