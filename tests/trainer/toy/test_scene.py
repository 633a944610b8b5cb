"""Scenes are immutable values, equal if they show the same."""

import dataclasses

import pytest

from trainer.toy.scene import Scene


def test_scenes_are_values():
    scene = Scene(shape="cup", background="snow", body=(1, 2, 3))
    assert scene == Scene(shape="cup", background="snow", body=(1, 2, 3))
    assert scene != dataclasses.replace(scene, flipped=True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        scene.shape = "cat"
