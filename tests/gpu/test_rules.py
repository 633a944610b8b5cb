"""CUDA passes the tests of the fake device: it refuses and allows the same mixtures of devices, and
casts and scales alike."""

import pytest

from tests.trainer.test_fake_device import (  # noqa: F401 (pytest runs them with this folder's device)
    test_a_module_moves_to_the_device_and_back,
    test_allows_what_cuda_allows_and_computes_the_same_numbers,
    test_autocast,
    test_fp16_gradients_are_scaled_and_steps_that_overflow_are_skipped,
    test_generators_of_the_device_draw_on_it,
    test_numpy_needs_a_copy_on_the_cpu,
    test_refuses_to_mix_devices,
    test_saved_files_hold_the_numbers,
    test_values_can_be_read_on_the_cpu,
    test_views_and_changes_in_place,
)

pytestmark = pytest.mark.gpu
