"""A small model, of which everything can be counted by hand.

2 layers, hidden 8, FFN 16, 2 heads of 4 in 1 group, vocabulary 100. Layer: Q and O 8*8 each, K and V 8*4 each: 192; FFN
3*8*16 = 384; norms 16: 592. Two: 1184. Last norm 8. One embedding matrix 100*8 = 800, untied 1600. All: 2792; with one
matrix 1992. Padded vocabulary: 128, a matrix of 1024. Target: 1 layer of FFN 8: 192 + 192 + 16 = 400; + 8 + 1600 =
2008; with one matrix 1208.
"""

from __future__ import annotations

import pytest

from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config, Shape
from bielik_nemo.config_prune import Target
from bielik_nemo.validation.shapes import source_architecture, target_architecture


@pytest.fixture
def config() -> Config:
    config = Config()
    config.model.shape = Shape(2, 8, 16, 2, 1, 4, 100, max_position_embeddings=64)
    config.prune.target = Target(num_layers=1, ffn_hidden_size=8)
    config.data.seq_length, config.data.micro_batch_size, config.data.global_batch_size = 10, 2, 4
    config.trainer.max_steps = 3
    return config


@pytest.fixture
def source(config: Config) -> Architecture:
    return source_architecture(config)


@pytest.fixture
def target(config: Config, source: Architecture) -> Architecture:
    return target_architecture(config, source)
