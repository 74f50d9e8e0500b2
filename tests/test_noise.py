"""The words of a secret, the quantile, and noise on its grid, against RFC 8439, mpmath and exact laws."""

import functools
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from noise_oracle import grid_step, is_normal
from scipy import stats

from jaxdp import noise
from jaxdp.accounting import generator
from jaxdp.noise import chacha, grid

# --- words ------------------------------------------------------------------------------------------------


def stream(key, counter, place, rounds) -> str:
    """The first block as RFC 8439 writes it: little-endian bytes."""
    words = chacha.blocks(jnp.asarray(key), jnp.asarray([counter], jnp.uint32), place, rounds)
    return np.concatenate(words).astype("<u4").tobytes().hex()


@pytest.mark.parametrize(
    ("key", "counter", "nonce", "rounds", "expected"),
    [
        (  # RFC 8439, 2.3.2
            bytes(range(32)), 1, "000000090000004a00000000", 20,
            "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
            "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e",
        ),
        (  # A.1, 1
            bytes(32), 0, "00" * 12, 20,
            "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
            "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586",
        ),
        (  # A.1, 4: the key's second byte, counter 2
            bytes([0, 255, *[0] * 30]), 2, "00" * 12, 20,
            "72d54dfbf12ec44b362692df94137f328fea8da73990265ec1bbbea1ae9af0ca"
            "13b25aa26cb4a648cb9b9d1be65b2c0924a66c54d545ec1b7374f4872e99f096",
        ),
        (  # draft-strombergson-chacha-test-vectors, TC1, 12 rounds
            bytes(32), 0, "00" * 12, 12,
            "9bf49a6a0755f953811fce125f2683d50429c3bb49e074147e0089a52eae155f"
            "0564f879d27ae3c02ce82834acfa8c793a629f2ca0de6919610be82f411326be",
        ),
    ],
)  # fmt: skip
def test_words_are_chacha_s(key, counter, nonce, rounds, expected):
    place = tuple(np.frombuffer(bytes.fromhex(nonce), "<u4"))
    assert stream(np.frombuffer(key, "<u4"), counter, place, rounds) == expected


# --- the quantile -----------------------------------------------------------------------------------------

FRACTIONS = (-0.5, -0.37, -0.25, -1e-3, 0.0, 0.11, 0.25, 0.5)
SCALES = (6.4, 9.1, 12.79)
BITS = 95


@functools.partial(jax.jit, static_argnames="by_number")
def numbers(tails, fractions, scales, signs, by_number):
    """k as the release computes it, of tail probabilities given as three words: as the first of each block."""
    with jax.enable_x64(True):
        zero = jnp.zeros_like(signs)
        words = [(tails[0] << 1) | signs, tails[1], zero, tails[2], *[zero] * 12]
        columns = jnp.broadcast_to(fractions[:, None], (len(fractions), grid.IN_BLOCK))
        if by_number:
            one = lambda words, row, scale: grid._number_by_number(jnp.stack(words), row, scale)[0]  # noqa: E731
            return jax.vmap(one)(words, columns, scales)
        packed = jax.vmap(
            lambda words, row, scale: grid._packed(lambda *_: words, None, words[0], None, row, scale)
        )(words, columns, scales)
        return (packed & 255).astype(jnp.int32) - 128


def boundaries(fraction, scale, by_number):
    """Of every k: how many of the 2^95 tails are at least as far out, for both signs, by bisection."""
    ks = np.arange(-grid.MOST, grid.MOST + 1)
    ks, signs = np.concatenate([ks, ks]), np.repeat([0, 1], len(ks)).astype(np.uint32)
    low, high = np.zeros(len(ks), object), np.full(len(ks), 2**BITS, object)
    fixed = (jnp.full(len(ks), fraction, jnp.float32), jnp.full(len(ks), scale, jnp.float32), signs)
    for _ in range(BITS):
        middle = (low + high) // 2
        words = [np.array([m >> shift & 0xFFFFFFFF for m in middle], np.uint32) for shift in (64, 32, 0)]
        found = np.asarray(numbers(tuple(words), *fixed, by_number))
        out = np.where(signs == 0, found >= ks, found <= ks)
        low, high = np.where(out, middle + 1, low), np.where(out, high, middle)
    return low.reshape(2, -1)


@functools.cache
def errors(fraction, scale, by_number):
    """Ideal probabilities p of the k within 9.5 deviations, and the relative errors of the real ones."""
    up, down = boundaries(fraction, scale, by_number)
    up, down = np.append(up, 0), np.append(0, down)  # nothing passes the outermost
    counts = [int(a - b) + int(c - d) for a, b, c, d in zip(up, up[1:], down[1:], down, strict=False)]
    ideal, relative = [], []
    with mpmath.workdps(60):
        for k, count in zip(range(-grid.MOST, grid.MOST + 1), counts, strict=True):
            scale_, fraction_ = mpmath.mpf(float(np.float32(scale))), mpmath.mpf(float(np.float32(fraction)))
            edges = sorted(abs((k + side - fraction_) / scale_) for side in (-0.5, 0.5))
            if edges[1] > 9.5:
                continue
            inside = abs(k - fraction_) < 0.5  # the cell of zero has both signs
            tails = [mpmath.erfc(edge / mpmath.sqrt(2)) / 2 for edge in edges]
            p = 1 - tails[0] - tails[1] if inside else tails[0] - tails[1]
            ideal.append(float(p))
            relative.append(float(mpmath.mpf(count) / mpmath.mpf(2) ** (BITS + 1) / p - 1))
    return np.array(ideal), np.array(relative)


@pytest.mark.parametrize("by_number", [False, True], ids=["packed", "by number"])
@pytest.mark.parametrize("scale", SCALES)
def test_cells_have_the_probabilities_that_are_charged_for(scale, by_number):
    """At every boundary of the compiled function, against mpmath."""
    for fraction in FRACTIONS:
        p, relative = errors(fraction, scale, by_number)
        assert p.sum() == pytest.approx(1, abs=1e-12)
        assert math.sqrt(p @ relative**2) < generator.DEVIATION < 1e-11
        assert np.abs(relative).max() < generator.LARGEST


# --- noise on its grid ------------------------------------------------------------------------------------

TREE = {
    "large": (300, 256),
    "odd": (7, 13),
    "scalar": (),
    "none": (0, 3),
    "vector": (1000,),
    "flat": (521, 8 * 19),
}
SHAPES = {name: jnp.zeros(shape) for name, shape in TREE.items()}
KEY = noise.secret(5)


def sums(seed=0, scale=3.0):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(scale * rng.normal(size=shape), jnp.float32) for name, shape in TREE.items()}


@functools.partial(jax.jit, static_argnames=("purpose", "generator", "platform"))
def release(key, step, tree, std, purpose=noise.GRADIENTS, generator="chacha12", platform="auto"):
    return noise.released(noise.Stream(key, step, purpose, generator, platform), tree, std)


def by_hand(key, step, leaf, index, fraction, scale, purpose=noise.GRADIENTS, rounds=12):
    """k of one entry, from its place alone."""
    words = chacha.blocks(key, jnp.asarray([index // 8], jnp.uint32), (step, leaf, purpose), rounds)
    number = index % 8
    first, second, third = (int(words[i][0]) for i in (2 * number, 2 * number + 1, (2 * number + 3) % 16))
    with mpmath.workdps(50):
        tail = (mpmath.mpf(first >> 1) * 2**64 + second * 2**32 + third + mpmath.mpf(1) / 2) / 2**95
        z = mpmath.sqrt(2) * mpmath.erfinv(1 - tail)
        return round(fraction + scale * float(-z if first & 1 else z))


@pytest.mark.parametrize("std", [1.0, 1.7, 1e-3, 12345.0])
def test_an_entry_is_a_function_of_key_step_and_place(std):
    """Whether it is drawn alone or with other leaves: against one number at a time, in mpmath."""
    tree = sums()
    released, gamma = release(KEY, 3, tree, std), grid_step(std)
    rng = np.random.default_rng(0)
    for leaf, (name, value) in enumerate(sorted(tree.items())):
        if not value.size:
            assert released[name].shape == value.shape
            continue
        for index in {0, value.size - 1, *rng.integers(value.size, size=12).tolist()}:
            scaled = np.float64(np.float32(np.ravel(value)[index])) / gamma
            near = np.round(scaled)
            k = by_hand(KEY, 3, leaf, index, scaled - near, float(np.float32(std)) / gamma)
            assert np.ravel(released[name])[index] == np.float32(gamma * (near + k))


def flat(tree):
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize("std", [0.7, 1.0, 3.1e-7, 6e8])
def test_noise_has_the_deviation_asked_for_and_lies_on_the_grid(std):
    given = sums(scale=std)
    released = flat(release(KEY, 0, given, std))
    steps = released / grid_step(std)
    np.testing.assert_array_equal(steps, np.round(steps))
    drawn = released - flat(given)
    assert is_normal(drawn, std)
    assert not is_normal(drawn, 1.05 * std) and not is_normal(drawn, std / 1.05)


@pytest.mark.parametrize("generator", noise.GENERATORS)
def test_cells_are_hit_as_often_as_they_should_be(generator):
    """A million draws of one fraction, by chi-square; a deviation wrong by 1 % is caught."""
    std, sum_, n = 1.3, 0.37, 1 << 20
    released = np.asarray(release(KEY, 1, jnp.full(n, sum_), std, generator=generator), np.float64)
    gamma = grid_step(std)
    ks = np.round(released / gamma).astype(int)
    edges = np.arange(ks.min() + 8, ks.max() - 7)

    def p_value(deviation):
        cumulated = stats.norm.cdf((gamma * (edges - 0.5) - np.float32(sum_)) / deviation)
        expected = n * np.diff(np.concatenate([[0], cumulated, [1]]))
        found = np.histogram(ks, np.concatenate([[-10_000], edges - 0.5, [10_000]]))[0]
        return stats.chisquare(found, expected, sum_check=False).pvalue

    assert p_value(std) > 1e-4 > p_value(1.01 * std) and p_value(std / 1.01) < 1e-4


def test_draws_reach_the_tails_as_often_as_they_should():
    """Four million draws: counts beyond 3, 4 and 5 deviations within what a Poisson law allows."""
    std = 1.0
    drawn = np.abs(flat([release(KEY, step, jnp.zeros(1 << 20), std) for step in range(4)]))
    for far in (3, 4, 5):
        far = grid_step(std) * (math.ceil(far / grid_step(std)) - 0.5)  # an edge between cells
        expected = len(drawn) * 2 * stats.norm.sf(far)
        assert 1e-4 < stats.poisson.cdf(np.sum(drawn > far), expected) < 1 - 1e-4


def test_draws_of_leaves_steps_purposes_keys_and_generators_are_unrelated():
    zeros = jnp.zeros((300, 256))
    base = [release(KEY, 0, [zeros, zeros], 1.0)]
    base += [release(KEY, 1, [zeros, zeros], 1.0), release(KEY, 0, [zeros, zeros], 1.0, noise.CLIPPER)]
    base += [release(noise.secret(6), 0, [zeros, zeros], 1.0)]
    base += [release(KEY, 0, [zeros, zeros], 1.0, generator=name) for name in ("chacha20", "threefry")]
    rows = np.array([np.ravel(leaf) for pair in base for leaf in pair], np.float64)
    rows = np.concatenate([rows, np.roll(rows[:1], 1, axis=1), np.roll(rows[:1], 8, axis=1)])
    for values in (rows, rows**2):
        correlation = np.corrcoef(values) - np.eye(len(values))
        assert np.abs(correlation).max() < 5.5 / math.sqrt(rows.shape[1])


@pytest.mark.parametrize(
    "transformed",
    [
        lambda f, x: jnp.stack([f(i, x) for i in range(3)]),
        lambda f, x: jax.vmap(f, in_axes=(0, None))(jnp.arange(3), x),
        lambda f, x: jax.jit(jax.vmap(f))(jnp.arange(3), jnp.stack([x] * 3)),
        lambda f, x: jax.lax.scan(lambda c, i: (c, f(i, x)), 0, jnp.arange(3))[1],
        lambda f, x: jax.lax.map(lambda i: f(i, x), jnp.arange(3), batch_size=2),
        lambda f, x: jax.lax.fori_loop(0, 3, lambda i, out: out.at[i].set(f(i, x)), jnp.zeros((3, *x.shape))),
    ],
    ids=["one by one", "vmap", "jit of vmap", "scan", "map in batches", "fori_loop"],
)
def test_numbers_are_the_same_under_every_transformation(transformed):
    x = sums()["odd"]
    one = lambda i, x: noise.released(noise.Stream(KEY, i, 0), x, 1.0)  # noqa: E731
    found = transformed(one, x)
    assert found.dtype == jnp.float32 and not jax.config.jax_enable_x64
    np.testing.assert_array_equal(found, jnp.stack([release(KEY, i, x, 1.0) for i in range(3)]))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_sums_of_any_float_type(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        given = jnp.asarray(sums()["flat"]).astype(dtype)
        drawn = release(KEY, 0, given, 1.0)
        assert drawn.dtype == jnp.promote_types(dtype, jnp.float32)
        assert is_normal(np.asarray(drawn, float) - np.asarray(given, float), 1.0)


def test_a_leaf_that_is_no_real_float_is_refused():
    with pytest.raises(ValueError, match=r"tree\['a'\]=int32: must be real floats"):
        noise.released(noise.Stream(KEY, 0, 0), {"a": jnp.zeros(3, jnp.int32)}, 1.0)


@pytest.mark.parametrize("std", [0.0, 1e-37, math.inf, math.nan, -1.0])
def test_a_deviation_without_a_grid_gives_no_number(std):
    assert np.isnan(flat(release(KEY, 0, sums(), std))).all()


def test_what_is_not_finite_spills_into_no_neighbour():
    given = sums()
    spoilt = given | {"vector": given["vector"].at[3].set(jnp.nan).at[12].set(jnp.inf)}
    clean, found = (np.asarray(release(KEY, 0, tree, 1.0)["vector"]) for tree in (given, spoilt))
    np.testing.assert_array_equal(np.flatnonzero(clean != found), [3, 12])
    assert np.isnan(found[3]) and found[12] == np.inf


def test_sums_beyond_the_grid_s_resolution_are_rounded_as_whole_numbers_are():
    given = jnp.full(64, 3e9)
    np.testing.assert_array_equal(release(KEY, 0, given, 1.0), given)


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_the_program_branches_and_gathers_nowhere(platform):
    traced = release.trace(KEY, 0, sums(), 1.0, platform=platform)
    lowered = traced.lower(lowering_platforms=(platform,)).as_text()
    for word in ("stablehlo.case", "stablehlo.while", "gather", "custom_call"):
        assert word not in lowered


@pytest.mark.parametrize("generator", noise.GENERATORS)
@pytest.mark.parametrize("devices", [1, 4])
def test_the_program_of_a_gpu_draws_the_same_numbers(generator, devices, monkeypatch):
    """All leaves at once where there is one device, each where it lies where there are more."""
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    own = jax.jit(lambda tree: noise.released(noise.Stream(KEY, 7, 0, generator, "cuda"), tree, 1.3))
    jax.tree.map(
        np.testing.assert_array_equal, own(sums()), release(KEY, 7, sums(), 1.3, 0, generator, "cpu")
    )


def test_a_gpu_compiles_one_block_function_for_all_leaves():
    """It takes seconds for each; and every kernel of it a few of the rounds."""
    tree = {name: jnp.zeros((512, 512)) for name in "abcd"}
    text = release.trace(KEY, 0, tree, 1.0, platform="cuda").lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("stablehlo.xor") == 12 // 2 * 8 * 4
    assert text.count("optimization_barrier") == 12 // 2 // chacha._STAGE + 2


def test_a_block_is_computed_once():
    """By XLA for CPUs: where words are rotated is one loop for each part of the tree."""
    text = release.lower(KEY, 0, {"a": jnp.zeros((512, 512)), "b": jnp.zeros(9)}, 1.0).compile().as_text()
    bodies = [part for part in text.split("\n\n") if part.count("shift-left") > 100]
    assert len(bodies) == 2 and all(body.count(" xor(") < 700 for body in bodies)


_ON_FOUR_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxdp import noise
key, tree = noise.secret(5), {"k": jnp.ones((512, 256)), "e": jnp.ones((1024, 80)), "b": jnp.ones(7)}
release = lambda key, step, tree: noise.released(noise.Stream(key, step, 0), tree, 1.3)
whole = jax.jit(release)(key, 2, tree)
mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
for spec in (P("d"), P(None, "d")):
    where = {"k": NamedSharding(mesh, spec), "e": NamedSharding(mesh, P("d")), "b": NamedSharding(mesh, P())}
    same = NamedSharding(mesh, P())
    sharded = jax.jit(release, in_shardings=(same, same, where), out_shardings=where)
    placed = jax.device_put(tree, where)
    jax.tree.map(np.testing.assert_array_equal, sharded(key, np.int32(2), placed), whole)
    program = sharded.lower(key, np.int32(2), placed).compile().as_text()
    assert not any(f"{word}(" in program for word in ("all-gather", "all-to-all", "collective-permute"))
"""


def test_shards_draw_the_same_numbers_where_they_live():
    """On four devices, rows or columns apart: nothing is gathered."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", _ON_FOUR_DEVICES]
    subprocess.run(command, env={**os.environ, **flags}, check=True)


# --- secrets and batches ----------------------------------------------------------------------------------


def test_secrets_of_seeds_and_keys():
    given = [
        0,
        1,
        -1,
        jax.random.key(0),
        jax.random.key(1),
        jax.random.key(0, impl="rbg"),
        noise.entropy_key(),
    ]
    found = {tuple(np.asarray(noise.secret(key)).tolist()) for key in given}
    assert len(found) == len(given) and all(len(key) == 8 for key in found)
    np.testing.assert_array_equal(noise.secret(jax.random.PRNGKey(0)), noise.secret(jax.random.key(0)))
    np.testing.assert_array_equal(noise.secret(given[-1]), given[-1])
    with pytest.raises(ValueError, match=r"key=uint32\[3\]: must be of jaxdp.entropy_key"):
        noise.secret(jnp.zeros(3, jnp.uint32))


def test_all_bits_of_an_entropy_key_vary():
    keys = np.array([noise.entropy_key() for _ in range(200)])
    bits = np.unpackbits(keys.view(np.uint8), axis=1)
    assert bits.shape == (200, 256) and (np.abs(bits.mean(0) - 0.5) < 0.25).all()


def test_batches_and_noise_of_one_secret_are_unrelated():
    """Different words at the same step; and what is below a threshold is as often as it says."""
    drawn = [noise.words(KEY, 0, 4096), noise.words(KEY, 1, 4096), noise.words(noise.secret(6), 0, 4096)]
    drawn += [np.concatenate(chacha.blocks(KEY, jnp.arange(256, dtype=jnp.uint32), (0, 0, noise.GRADIENTS)))]
    assert len(np.unique(np.concatenate(drawn))) > 4 * 4096 - 20
    below = np.asarray(noise.below(KEY, 0, 100_003, jnp.uint32(2**32 // 5)))
    assert below.shape == (100_003,) and stats.binomtest(int(below.sum()), len(below), 0.2).pvalue > 1e-4
    one_by_one = np.stack(chacha.blocks(KEY, jnp.arange(2, dtype=jnp.uint32), (0, 0, noise.BATCHES)), 1)
    np.testing.assert_array_equal(below[:32], one_by_one.ravel() < 2**32 // 5)
