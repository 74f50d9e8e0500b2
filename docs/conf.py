"""The documentation: pages of this folder, and copies of what lies elsewhere in the repository.

`make docs` builds it without a network: notebooks are shown as they are stored, and nothing is fetched by the
pages. Every warning is an error.
"""

import ast
import builtins
import inspect
import pathlib
import shutil
import textwrap

builtins.GENERATING_DOCUMENTATION = True  # jaxtyping then prints annotations as they are written

import jaxdp  # noqa: E402

HERE = pathlib.Path(__file__).parent
# Sphinx reads below its own folder alone; these are copied there for each build, and git ignores them.
MIRRORED = {
    "notebooks": ["notebooks/*.ipynb"],
    "benchmarks": ["benchmarks/README.md", "benchmarks/STUDY.md", "benchmarks/records/tuning_accuracy.json"],
    "benchmarks/experiments": ["benchmarks/experiments/*/*.svg"],
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
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True

# Docstrings are Google style, with names in single backticks.
default_role = "code"
autodoc_member_order = "bysource"
napoleon_numpy_docstring, napoleon_use_ivar, napoleon_use_rtype = False, True, False
maximum_signature_line_length = 70
toc_object_entries_show_parents = "hide"

nitpicky = True
# Types of other packages, and aliases of annotations that have no page of their own.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!jaxdp\b)([a-z_]+\.)*(Any|Array|ArrayLike|Callable|Iterator|Mapping|Sequence|Literal)"),
    (r"py:.*", r"(Float|Int|Bool|Int32|UInt32|Shaped|PyTree|Float64)(\[.*)?"),
    (r"py:.*", r"(jax|jnp|np|numpy|optax|pathlib|collections|typing|datetime)\..*"),
]


def _arguments(object_type: str, thing) -> str | None:
    """The signature as its author wrote it: aliases by their names, no modules before types."""
    try:
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(thing))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    if isinstance(node, ast.FunctionDef):
        if object_type == "method" and node.args.args and node.args.args[0].arg in ("self", "cls"):
            del node.args.args[0]
        return f"({ast.unparse(node.args)})"
    if not isinstance(node, ast.ClassDef):
        return None
    fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
    if not fields:
        return ""
    named = any("kw_only=True" in ast.unparse(decorator) for decorator in node.decorator_list)
    return f"({'*, ' * named}{', '.join(ast.unparse(field).replace(' = ', '=') for field in fields)})"


def signature_as_written(app, object_type, name, thing, options, signature, returns):
    written = _arguments(object_type, inspect.unwrap(thing))
    if written is None or object_type not in ("function", "method", "class"):
        return None
    source = inspect.unwrap(thing)
    if object_type == "class":
        return written, None
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(source))).body
    return written, ast.unparse(node.returns) if node.returns else None


def skip_fields(app, kind, name, thing, skip, options):
    """Leaves out what says nothing: fields of named tuples, which Attributes describes."""
    return True if type(thing).__name__ == "_tuplegetter" else None


def setup(app):
    app.connect("autodoc-process-signature", signature_as_written)
    app.connect("autodoc-skip-member", skip_fields)
