"""A model is asked a task of lm-evaluation-harness, by the harness itself: scores, and all that was answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_eval.api.metrics import mean
from lm_eval.evaluator import evaluate

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.api.task import ConfigurableTask


def ask(lm: LM, task: ConfigurableTask, limit: int | None, chat_template: bool) -> dict[str, Any]:
    """Ask a model a task; plain values, the same on every rank.

    Args:
        lm: any model of the harness.
        task: one of `data.harness.build`.
        limit: how many documents, the first ones; None: all.
        chat_template: whether to ask in the tokenizer's, examples as turns.

    Returns:
        `metric`, whether it is a `mean` over documents and `higher_is_better`, `shots`, all `scores` by metric, and
        `documents`: of each its number and digest, the model's answer, and what the metric keeps of it.
    """
    name = task.config.task
    found = evaluate(
        lm,
        {"tasks": {name: task}},
        limit=limit,
        bootstrap_iters=0,
        apply_chat_template=chat_template,
        fewshot_as_multiturn=chat_template,
    )
    metric = main_metric(task)
    samples = [sample for sample in found["samples"][name] if metric in sample]
    of_first = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    scores = {key.partition(",")[0]: value for key, value in found["results"][name].items() if "," in key}
    return {
        "metric": metric,
        "mean": task.aggregation()[metric] is mean,
        "higher_is_better": bool(task.higher_is_better()[metric]),
        "shots": task.config.num_fewshot,
        "scores": plain({key: value for key, value in scores.items() if not key.endswith("_stderr")}),
        "documents": [
            {
                "id": sample["doc_id"],
                "digest": sample["doc_hash"],
                "answer": plain(sample["filtered_resps"]),
                "value": plain(sample[metric]),
            }
            for sample in of_first
        ],
    }


def main_metric(task: ConfigurableTask) -> str:
    """The metric that a task is compared by: `acc_norm` where it has it, else its first."""
    metrics = list(task.aggregation())
    return "acc_norm" if "acc_norm" in metrics else metrics[0]


def plain(value: Any) -> Any:
    """A value as JSON has it, NumPy's numbers among them."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value.item() if hasattr(value, "item") else value
