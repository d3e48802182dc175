from __future__ import annotations

import pytest

from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config, compose
from bielik_nemo.engine import cpu
from bielik_nemo.errors import ConfigError
from bielik_nemo.validation.shapes import source_architecture

cpu.enable()

from bielik_nemo.stages import import_hf  # noqa: E402


@pytest.fixture
def config() -> Config:
    return compose("tiny")


def test_a_checkpoint_of_the_configured_shape_is_accepted(config: Config):
    import_hf.check_shape(config, source_architecture(config))


def test_without_a_shape_any_checkpoint_is(config: Config):
    found: Architecture = source_architecture(config)
    config.model.shape = None
    import_hf.check_shape(config, found)


def test_every_difference_is_named(config: Config):
    found = source_architecture(config)
    config.model.shape.num_layers, config.model.shape.tie_embeddings = 5, True
    with pytest.raises(ConfigError) as caught:
        import_hf.check_shape(config, found)
    assert str(caught.value) == (
        "model.source=builtin:tiny: num_layers: model.shape says 5, the checkpoint 4; "
        "tie_embeddings: model.shape says True, the checkpoint False"
    )
