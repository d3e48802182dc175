import json
from dataclasses import replace
from pathlib import Path

import pytest

from bielik_nemo.architecture import Architecture
from bielik_nemo.config_prune import Search
from bielik_nemo.errors import ConfigError
from bielik_nemo.prune import latency

TABLE = {
    "device": "made up",
    "context": 4096,
    "batch_size": 1,
    "layers": [
        {"hidden_size": 8, "ffn_hidden_size": 16, "num_attention_heads": 2, "milliseconds": 0.5},
        {"hidden_size": 8, "ffn_hidden_size": 12, "num_attention_heads": 2, "milliseconds": 0.25},
        {"hidden_size": 4, "ffn_hidden_size": 16, "num_attention_heads": 2, "milliseconds": 0.125},
    ],
    "base": [{"hidden_size": 8, "milliseconds": 3}],
}


def written(tmp_path: Path, **changes) -> Search:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(TABLE | changes))
    return Search(latency_table=str(path))


def test_memory_by_hand():
    """2**30 weights of 4 bits are 2**29 bytes; a cache of 2**28 more makes 3 * 2**28: 0.75 GiB."""
    assert latency.memory_gib(2**30, 2**28, Search(bits_per_weight=4)) == 0.75


def test_analytic_latency_by_hand():
    """3e9 weights of 16 bits and a cache of 1e9 bytes are 7e9 bytes; at 1,000 GB/s 7 ms."""
    assert latency.analytic_ms(3_000_000_000, 1_000_000_000, Search(memory_bandwidth_gb_s=1000)) == 7.0
    assert latency.analytic_ms(3_000_000_000, 1_000_000_000, Search()) is None


def test_a_measured_model_is_its_base_and_its_layers(tmp_path: Path):
    """3 + 4 * 0.25 = 4; nothing is guessed for a layer or a hidden size that was not measured."""
    table = latency.load(written(tmp_path))
    assert table.milliseconds(4, (8, 12, 2)) == 4.0
    assert table.milliseconds(4, (8, 14, 2)) is None
    assert table.milliseconds(4, (4, 16, 2)) is None
    assert latency.load(Search()) is None


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"context": 2048},
            r"^prune\.search\.context: found 4096, allowed: 2048, at which .*table\.json was measured$",
        ),
        ({"batch_size": 8}, r"^prune\.search\.batch_size: found 1, allowed: 8"),
        ({"layers": [{"hidden_size": 8}]}, r"latency_table: .*table\.json: not a table .*ffn_hidden_size"),
        ({"layers": {}, "base": 3}, r"latency_table: .*table\.json: not a table of latencies: TypeError"),
        ({"base": [{"hidden_size": 8.5, "milliseconds": 1}]}, r"found 8\.5, allowed: a positive integer"),
        ({"base": [{"hidden_size": 8, "milliseconds": -1}]}, "found -1, allowed: zero or a positive number"),
        ({"base": [{"hidden_size": 8, "milliseconds": "1"}]}, "found '1', allowed: zero or a positive number"),
    ],
)
def test_a_table_that_cannot_be_used_is_an_error_that_says_why(tmp_path: Path, changes: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        latency.load(written(tmp_path, **changes))


def test_a_missing_or_broken_file_is_named(tmp_path: Path):
    path = tmp_path / "none.json"
    with pytest.raises(ConfigError, match=rf"^prune\.search\.latency_table: {path}: No such file"):
        latency.load(Search(latency_table=str(path)))
    path.write_text("{")
    with pytest.raises(ConfigError, match=rf"^prune\.search\.latency_table: {path}: not a table"):
        latency.load(Search(latency_table=str(path)))


def test_bytes_of_a_decode_step_by_hand():
    """One layer of 8 channels: 8 * (2 * 8 + 2 * 4) + 3 * 8 * 12 + 2 * 8 = 496 weights, and 8 + 5 * 8 = 48: 544.

    After 3 tokens of the prompt, steps for answers of 4 see 4, 5 and 6 tokens, 5 on the mean, and write 1. A token's
    keys and values are 2 * 1 * 4 numbers, its row of the embedding 8: 6 * 8 + 8 = 56 numbers for a sequence.
    A window of 5 tokens leaves (4 + 5 + 5) / 3 to be read.
    """
    shape = Architecture(1, 8, 12, 2, 1, 4, 5, tie_embeddings=False, model_type="mistral")
    assert latency.decode_bytes(shape, 2, 3, 4, 1) == 2 * (544 + 56)
    assert latency.decode_bytes(shape, 4, 3, 4, 10) == 4 * (544 + 10 * 56)
    windowed = replace(shape, sliding_window=5)
    assert latency.decode_bytes(windowed, 2, 3, 4, 1) == pytest.approx(2 * (544 + (14 / 3 + 1) * 8 + 8))
    assert latency.decode_bytes(replace(shape, tie_embeddings=True), 2, 3, 4, 1) == 2 * (544 + 56)
