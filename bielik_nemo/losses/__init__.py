"""Losses as pure functions of vocabulary-sharded logits `[s, b, v/tp]`; each returns `(sum, count)`.

The sum runs over the counted tokens of this rank's batch and is the same on every tensor-parallel rank; the count is
what the trainer adds up over micro-batches and data-parallel ranks before it divides once. Losses on preferences take
what `answer_log_probs` makes of the logits, and count pairs; `grpo` takes what `token_log_probs` makes of them, and
counts answers.
"""

from bielik_nemo.losses.agreement import agreement, most_likely
from bielik_nemo.losses.cross_entropy import cross_entropy
from bielik_nemo.losses.dpo import dpo
from bielik_nemo.losses.dpo_positive import dpo_positive
from bielik_nemo.losses.forward_kl import forward_kl
from bielik_nemo.losses.grpo import advantages, grpo
from bielik_nemo.losses.hidden_state import hidden_state
from bielik_nemo.losses.jensen_shannon import jensen_shannon
from bielik_nemo.losses.log_probs import answer_log_probs, token_log_probs
from bielik_nemo.losses.mixture import PARTS, Sampled, Teacher, TopK, favourite, mixture
from bielik_nemo.losses.reverse_kl import reverse_kl
from bielik_nemo.losses.sampled_kl import draw, sampled_kl
from bielik_nemo.losses.sparse_kl import sparse_kl, top_k

__all__ = [
    "PARTS",
    "Sampled",
    "Teacher",
    "TopK",
    "advantages",
    "agreement",
    "answer_log_probs",
    "cross_entropy",
    "dpo",
    "dpo_positive",
    "draw",
    "favourite",
    "forward_kl",
    "grpo",
    "hidden_state",
    "jensen_shannon",
    "mixture",
    "most_likely",
    "reverse_kl",
    "sampled_kl",
    "sparse_kl",
    "token_log_probs",
    "top_k",
]
