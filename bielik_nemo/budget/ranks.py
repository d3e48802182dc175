"""What each pipeline rank holds of a model under a layout, counted by arithmetic; tensor ranks hold alike.

`bielik-nemo check` compares it with the model that Megatron builds (see engine/layout.py).
"""

from __future__ import annotations

from bielik_nemo.architecture import Architecture


def ranks(model: Architecture, tp: int, pp: int) -> list[dict[str, int]]:
    """Parameters of each pipeline rank by part, and its number of layers (`num_layers`).

    The first has the embedding; the last the norm behind the layers and the output matrix: of a tied model its own copy
    of the embedding, if it is not the first as well. Norms are not split over tensor ranks, all the rest is.
    """
    hidden, depth = model.hidden_size, model.num_layers // pp
    vocabulary = model.padded_vocab_size(tp) // tp * hidden
    query, key_value = model.num_attention_heads * model.head_dim, 2 * model.num_query_groups * model.head_dim
    matrices = hidden * (2 * query + key_value + 3 * model.ffn_hidden_size) + model.qkv_bias * (query + key_value)
    own_output = not model.tie_embeddings or pp > 1
    return [
        {
            "embedding": vocabulary * (stage == 0),
            "layers": depth * (matrices // tp + 2 * hidden),
            "norm": hidden * (stage == pp - 1),
            "output": vocabulary * (own_output and stage == pp - 1),
            "num_layers": depth,
        }
        for stage in range(pp)
    ]


def parameters(rank: dict[str, int]) -> int:
    """All parameters of a rank."""
    return sum(rank.values()) - rank["num_layers"]
