"""CUDA itself mixes devices where the fake device of the other tests does, and nowhere else, and
casts and scales as it does."""

import pytest

from tests.trainer.test_fake_device import (  # noqa: F401 (pytest runs them with this folder's device)
    test_a_module_moves_there_and_back,
    test_allows_what_is_allowed_and_gives_the_same_numbers,
    test_autocast,
    test_files_hold_the_numbers,
    test_fp16_gradients_are_scaled_and_bad_steps_left_out,
    test_gives_numbers_where_the_cpu_asks_for_them,
    test_its_own_generators_draw_on_it,
    test_no_numpy_without_a_copy,
    test_refuses_to_mix_devices,
    test_views_and_changes_in_place,
)

pytestmark = pytest.mark.gpu
