"""Strict JAX for every test: shapes checked against their annotations, no implicit rank promotion."""

import tempfile

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_rank_promotion", "raise")

# Most of the time of these tests is XLA compiling, often the same program once more for another test: each
# process keeps what it compiled, for itself and until it ends.  Tracing, which the tests count, is as it was.
_PROGRAMS = tempfile.TemporaryDirectory(prefix="jaxdp-programs-")
jax.config.update("jax_compilation_cache_dir", _PROGRAMS.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

install_import_hook("jaxdp", "numeric_tower.check")


@pytest.fixture
def quick_compilation():
    """Machine code compiled in a hurry, for tests whose programs take longer to compile than to run.

    The programs are the same; only their code is slower and rounds otherwise.  Not for tests of what
    rounding, or the code of real runs, does.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(autouse=True)
def full_float32(request):
    """Oracles are compared in full float32; guarantees must hold at a device's own precision."""
    guarantee = request.node.get_closest_marker("default_precision")
    if guarantee or jax.default_backend() == "cpu":
        yield
    else:
        with jax.default_matmul_precision("highest"):
            yield


# What takes minutes on two cores: `make test-all` runs these too.
SLOW = (
    "tests/test_device_benchmark.py",
    "tests/test_streaming_benchmark.py",
    "tests/test_compilation.py",
    "tests/test_lattice.py",
    "tests/laboratory/test_study.py",
    "tests/laboratory/test_audit.py::test_a_canary_contributes",
    "tests/laboratory/test_audit.py::test_the_claim_stands",
    "tests/laboratory/test_audit.py::test_the_bug_is_caught",
    "tests/laboratory/test_audit.py::test_one_run",
    "tests/laboratory/test_audit.py::test_l2_max",
    "tests/laboratory/test_audit.py::test_noise_",
    "tests/laboratory/test_audit.py::test_each_departure",
    "tests/laboratory/test_audit.py::test_departures",
    "tests/attacks/test_inversion.py",
    "tests/attacks/test_tokens.py::test_a_batch_comes_back_exactly[tied-written_out]",
    "tests/attacks/test_tokens.py::test_a_batch_comes_back_exactly[untied-scanned]",
    "tests/gradients/test_correlation.py",
    "tests/gradients/test_pooling.py::test_pooling_is_that_of_reduce_window",
    "tests/accounting/test_filters.py::test_kill_9",
    "tests/test_notebooks.py",
    "tests/test_tasks.py::test_adaptive_noise_stays",
    "tests/test_updates.py::test_noise_of_another_scale",
    "tests/gradients/test_gradients.py::test_convolutions",
    "tests/gradients/test_gradients.py::test_own_models[cifar_cnn]",
    "tests/gradients/test_gradients.py::test_own_models[tanh_cnn]",
    "tests/training/test_any_loss.py::test_whatever_changes",
    "tests/training/test_hostile.py::test_dividing_by",
    "tests/training/test_hostile.py::test_copies_of",
    "tests/training/test_training.py::test_the_loop_equals",
    "tests/training/test_training.py::test_a_shuffled_epoch_goes_on",
    "tests/training/test_training.py::test_a_decay_scales",
    "tests/training/test_training.py::test_kill_9",
    "tests/training/test_training.py::test_accuracy",
    "tests/training/test_training.py::test_the_ledger_says_how_batches_were_drawn[shuffled]",
    "tests/clipping/test_mesh.py::test_meshes_with_other_axes",
    "tests/training/test_mesh.py::test_four_devices",
    "tests/training/test_mesh.py::test_parameters_and",
    "tests/training/test_mesh.py::test_examples_along",
    "tests/training/test_mesh.py::test_a_",
    "tests/commands/test_processes.py",
    "tests/test_devices.py::test_shards_draw",
    "tests/test_tasks.py::test_one_gradient_is_inverted",
    "tests/gradients/test_architectures.py::test_transformer_in_float64",
    "tests/gradients/test_gradients.py::test_gram_and_product",
    "tests/gradients/test_gradients.py::test_linen_transformer",
    "tests/gradients/test_language_models.py::test_decoder_computed",
    "tests/gradients/test_language_models.py::test_linen_scan",
    "tests/gradients/test_language_models.py::test_nnx_scan",
    "tests/gradients/test_language_models.py::test_the_program_for_a_gpu",
    "tests/training/test_feed.py::test_kill_9",
    "tests/training/test_training.py::test_a_resumed_run_keeps",
    "tests/training/test_training.py::test_one_compilation_for_epochs_of_any_length[linear]",
    "tests/training/test_training.py::test_quantile_clipping_costs",
)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.nodeid.startswith(SLOW):
            item.add_marker(pytest.mark.slow)
