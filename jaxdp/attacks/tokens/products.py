"""The matrix products of a model with its parameters: what goes in, and the gradient of the matrix.

Of a product X W the gradient of W is X^T delta: every column of it is a combination of the rows of X, whatever
the loss.  Which arrays are such matrices is read off the trace of the loss, never off names: a parameter may be
cast, transposed, reshaped, sliced or scanned over on its way to the product, and its gradient is put into the
same form.  A parameter used in any other way, or in two products (an embedding that is the output too), has a
gradient that is a sum, of which this does not hold.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from jaxdp.attacks.leaks import precise
from jaxdp.gradients import jaxprs

_REARRANGED = ("transpose", "reshape", "squeeze", "slice", "copy", "expand_dims")
_CALLS = {
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}


class Product(NamedTuple):
    """One product of a model with a matrix of its parameters.

    Attributes:
      matrix: which one: its place among the leaves of the parameters, then the slices taken of it.
      source: which X, the same number for products of the same one.
      inputs: X, [rows, n].
      gradient: of the matrix, [n, m].
    """

    matrix: tuple
    source: int
    inputs: Array
    gradient: Array


class Layer(NamedTuple):
    """Products that share their input X, with row t of X for token t.

    Attributes:
      products: their places in `products`.
      rows: T, of X.
      width: n, of X.
    """

    products: tuple[int, ...]
    rows: int
    width: int


class Layers(NamedTuple):
    """The layers of a model as an attack on its tokens meets them; static.

    Attributes:
      local: those whose row t depends on token t alone, as of the first layer's query, key and value.
      causal: those whose row t depends on the tokens 0 .. t.
      output: the product with one column a token of the vocabulary, or None; its matrix may be used elsewhere.
      length: L, tokens of an example; those from T on are only predicted.
    """

    local: tuple[Layer, ...]
    causal: tuple[Layer, ...]
    output: int | None
    length: int

    @property
    def rows(self) -> int:
        """T, the tokens of an example that go into the model."""
        return self.local[0].rows


class _Parameter(NamedTuple):
    """A value that is a parameter rearranged, and its gradient rearranged alike."""

    value: Array
    gradient: Array
    name: tuple


class _Tracing:
    """The rule for `jaxprs.evaluate` that takes parameters with their gradients to the products."""

    def __init__(self):
        self.found: list[Product] = []
        self.sources: list[Array] = []
        self.used: dict[tuple, int] = {}

    def __call__(self, equation, inputs):
        if not any(isinstance(x, _Parameter) for x in inputs):
            return None
        name = equation.primitive.name
        if name in _CALLS:
            body = equation.params[_CALLS[name]]
            return jaxprs.evaluate(body.jaxpr, body.consts, inputs, self, keep_remat=False)
        if name == "scan":
            return self._unrolled(equation, inputs)
        if name in jaxprs.CALLS:
            return None
        if name == "convert_element_type":
            (given,) = inputs
            return [given._replace(value=jaxprs.bind(equation, [given.value])[0])]
        if name in _REARRANGED:
            return [self._rearranged(equation, inputs[0])]
        if name == "dot_general":
            self._product(equation, *inputs)
        for given in inputs:
            if isinstance(given, _Parameter):
                self.used[given.name] = self.used.get(given.name, 0) + 1
        return jaxprs.bind(equation, [_value(x) for x in inputs])

    def _rearranged(self, equation, given):
        value, gradient = (jaxprs.bind(equation, [x])[0] for x in (given.value, given.gradient))
        name = given.name
        if equation.primitive.name == "slice":
            name = (*name, str(equation.params["start_indices"]))
        return _Parameter(value, gradient, name)

    def _product(self, equation, left, right):
        (left_sum, right_sum), batch = equation.params["dimension_numbers"]
        if any(batch) or isinstance(left, _Parameter) == isinstance(right, _Parameter):
            return
        x, w, x_sum, w_sum = left, right, left_sum, right_sum
        if isinstance(left, _Parameter):
            x, w, x_sum, w_sum = right, left, right_sum, left_sum
        ends = tuple(range(-len(x_sum), 0))
        columns = jnp.moveaxis(x, x_sum, ends)
        size = int(np.prod([x.shape[i] for i in x_sum]))
        rows = jnp.moveaxis(w.gradient, w_sum, tuple(range(len(w_sum))))
        source = next((i for i, known in enumerate(self.sources) if known is x), len(self.sources))
        self.sources += [x] * (source == len(self.sources))
        self.found.append(Product(w.name, source, columns.reshape(-1, size), rows.reshape(size, -1)))

    def _unrolled(self, equation, inputs):
        consts, carried = jaxprs.scan_inputs(equation)
        p, body = equation.params, equation.params["jaxpr"]
        fixed, state, scanned = inputs[:consts], inputs[consts : consts + carried], inputs[consts + carried :]
        state, outputs = [_value(x) for x in state], []
        places = range(p["length"])
        for i in reversed(places) if p["reverse"] else places:
            given = [*fixed, *state, *(_at(x, i) for x in scanned)]
            results = jaxprs.evaluate(body.jaxpr, body.consts, given, self, keep_remat=False)
            results = [_value(x) for x in results]
            state, each = results[:carried], results[carried:]
            outputs.append(each)
        if p["reverse"]:
            outputs.reverse()
        return [*state, *(jnp.stack(column) for column in zip(*outputs, strict=True))]


def _value(x):
    return x.value if isinstance(x, _Parameter) else x


def _at(x, i):
    return _Parameter(x.value[i], x.gradient[i], (*x.name, i)) if isinstance(x, _Parameter) else x[i]


def _traced(loss_fn, params, gradient, tokens) -> _Tracing:
    """Evaluates the loss on one example, its parameters carried with their gradients."""
    closed, tracing = jax.make_jaxpr(loss_fn)(params, tokens), _Tracing()
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(gradient), strict=True)
    given = [_Parameter(jnp.asarray(p), jnp.asarray(g), (i,)) for i, (p, g) in enumerate(pairs)]
    jaxprs.evaluate(closed.jaxpr, closed.consts, [*given, tokens], tracing, keep_remat=False)
    return tracing


def products(loss_fn, params: PyTree, gradient: PyTree, tokens: Array) -> list[Product]:
    """The products that the loss of one example makes with its parameters, in their order.

    Args:
      loss_fn: `(params, tokens [L]) -> scalar`.
      params: of the model, a pytree of any framework.
      gradient: a pytree like `params`.
      tokens: one example.
    """
    return _traced(loss_fn, params, gradient, tokens).found


def inputs_of(loss_fn, layers: tuple[Layer, ...], params: PyTree, tokens: Array) -> list[Array]:
    """The inputs [T, n] of layers, for one example."""
    found = products(loss_fn, params, params, tokens)
    return [found[layer.products[0]].inputs.astype(jnp.float32) for layer in layers]


@functools.lru_cache(maxsize=32)
def matrices_program(loss_fn, layers: tuple[tuple[int, ...], ...], length: int):
    """A compiled `(params, gradient) -> matrices`: of each tuple of products [n, sum of m], side by side."""

    def matrices(params, gradient):
        found = products(loss_fn, params, gradient, jnp.zeros(length, jnp.int32))
        return [jnp.concatenate([found[i].gradient for i in layer], axis=1) for layer in layers]

    return jax.jit(matrices)


@functools.lru_cache(maxsize=32)
def _looking(loss_fn, form, shapes, length):
    """A compiled `(params, tokens [K, L]) -> inputs` of all products, and what its tracing fills in of each."""
    del form, shapes, length  # what the trace depends on
    facts: list[tuple] = []

    def look(params, tokens):
        tracing = _traced(loss_fn, params, params, tokens)
        facts[:] = [
            (p.source, *p.inputs.shape, p.gradient.shape[1], _alone(p.matrix, tracing.used))
            for p in tracing.found
        ]
        return [p.inputs for p in tracing.found]

    return jax.jit(precise(jax.vmap(look, (None, 0)))), facts


def find(loss_fn, params: PyTree, length: int, vocabulary: int) -> Layers:
    """Finds the products whose inputs tell tokens, by what changes when a token does.

    Args:
      loss_fn: `(params, tokens [L]) -> scalar` for one example.
      params: of the model.
      length: L.
      vocabulary: V, number of tokens.

    Raises:
      ValueError: no product takes each token by itself, or none depends on those before it alone.
    """
    rng = np.random.default_rng(0)
    first = rng.integers(0, vocabulary, length)
    changed = np.where(
        np.eye(length, dtype=bool), (first + 1 + rng.integers(0, vocabulary - 1)) % vocabulary, first
    )
    tokens = np.concatenate([first[None], changed]).astype(np.int32)
    leaves, form = jax.tree.flatten(params)
    look, shapes = _looking(loss_fn, form, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves), length)
    rows = look(params, tokens)
    kinds = [_kind(np.asarray(x)) if x.ndim == 3 else None for x in rows]
    gathered = {kind: _layers(shapes, kinds, kind) for kind in ("local", "causal")}
    output = [i for i, s in enumerate(shapes) if s[3] == vocabulary and kinds[i] == "causal"]
    local, causal = gathered["local"], gathered["causal"]
    causal = tuple(layer for layer in causal if local and layer.rows == local[0].rows)
    if not local:
        raise ValueError("loss_fn: no product of it with a matrix takes the tokens one by one")
    if not causal:
        raise ValueError(
            "loss_fn: no product of it with a matrix depends on a token and those before it alone"
        )
    return Layers(local, causal, output[-1] if output else None, length)


def _alone(name: tuple, used: dict[tuple, int]) -> bool:
    """Whether a matrix is used once, and neither what it is a slice of nor a slice of it."""
    related = [n for n in used if n[: len(name)] == name or name[: len(n)] == n]
    return sum(used[n] for n in related) == 1


def _kind(rows: Array | np.ndarray) -> str | None:
    """How inputs [1 + L, T, n] of an example, and of it with each token changed, depend on the tokens."""
    moved: Bool[np.ndarray, "l t"] = np.abs(rows[1:] - rows[:1]).max(-1) > 0
    count = moved.shape[1]
    if count > moved.shape[0] or moved[count:].any() or not np.diag(moved).all():
        return None
    if (moved[:count] == np.eye(count, dtype=bool)).all():
        return "local"
    return "causal" if not np.tril(moved[:count], -1).any() else None


def _layers(shapes, kinds, kind) -> tuple[Layer, ...]:
    """The products of one kind whose matrices are used once, gathered by their input."""
    gathered: dict[int, list[int]] = {}
    for i, (source, *_rest, once) in enumerate(shapes):
        if kinds[i] == kind and once:
            gathered.setdefault(source, []).append(i)
    return tuple(Layer(tuple(i), shapes[i[0]][1], shapes[i[0]][2]) for i in gathered.values())
