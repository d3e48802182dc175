"""Every benchmark of ours, made from documents as its dataset has them: what is asked, and which answer is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason='needs lm-evaluation-harness: pip install "bielik_nemo[measure]"')

from bielik_nemo.config_outcome import Harness
from bielik_nemo.data import harness

PASSAGE = {"passage_text": "Ur leży nad Eufratem.", "question": "Co leży nad Eufratem?", "answers": "['Ur', 'Uruk']"}
SQUAD = {"context": "Ur leży nad Eufratem.", "question": "Co leży?", "answers": {"text": ["Ur"], "answer_start": [0]}}
REVIEW = {"sentence": "Hotel jest zaniedbany.", "target": "__label__meta_minus_m"}
FLORES = {"sentence_pol_Latn": "Kot śpi.", "sentence_deu_Latn": "Die Katze schläft."}
DOCUMENTS: dict[str, tuple[str, str, dict[str, Any], Any]] = {  # task -> folder, split, a document, the right answer
    "bielik_polemo2_in": ("klej-polemo2-in", "test", REVIEW, 1),
    "bielik_polemo2_out": ("klej-polemo2-out", "test", REVIEW, 1),
    "bielik_klej_ner": ("klej-nkjp-ner", "test", {"sentence": "Jan śpi.", "target": "persName"}, 2),
    "bielik_8tags": ("8tags", "test", {"sentence": "Nowy silnik.", "label": 4}, 4),
    "bielik_dyk": ("klej-dyk", "test", {"question": "Kto?", "answer": "Jan.", "target": "1"}, 1),
    "bielik_ppc": ("ppc", "test", {"sentence_A": "Kot śpi.", "sentence_B": "Pies je.", "label": 3}, 2),
    "bielik_psc": ("klej-psc", "test", {"extract_text": "Kot.", "summary_text": "Pies.", "label": 0}, 0),
    "bielik_cbd": ("klej-cbd", "test", {"sentence": "Miłego dnia!", "target": 0}, 0),
    "bielik_polqa_reranking": ("polqa/pairs", "test", PASSAGE | {"relevant": "True"}, 1),
    "bielik_polqa_open_book": ("polqa/pairs", "test", PASSAGE | {"relevant": True}, "Ur, Uruk"),
    "bielik_polqa_closed_book": ("polqa/pairs", "test", PASSAGE | {"answers": ["Ur", "Uruk"]}, "Ur"),
    "bielik_poquad": ("poquad", "validation", SQUAD, "Ur"),
    "bielik_flores_pol_Latn-deu_Latn": ("flores/all", "devtest", FLORES, "Die Katze schläft."),
    "bielik_flores_deu_Latn-pol_Latn": ("flores/all", "devtest", FLORES, "Kot śpi."),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_is_asked_and_which_answer_is_right(name: str, tmp_path: Path):
    folder, split, document, right = DOCUMENTS[name]
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / f"{split}.jsonl").write_text(json.dumps(document) + "\n")
    settings = Harness(tasks=[name], data_dir=str(tmp_path))
    (task,) = harness.chosen(settings)
    assert set(task.fields) <= set(document) and task.file(settings.data_dir, split)
    settings.shots = 0
    built = harness.build(task, settings)
    (only,) = built.eval_docs
    assert built.doc_to_target(only) == right
    built.build_all_requests()
    asked = [request.args for request in built.instances]
    texts = [value for value in document.values() if isinstance(value, str) and " " in value]
    shown = [text for text in texts if text in asked[0][0]]
    if built.OUTPUT_TYPE == "multiple_choice":
        assert shown == texts or name.startswith("bielik_polqa")
        assert len(asked) == len(built.config.doc_to_choice) and asked[right][1].startswith(" ")
        found = built.process_results(only, [(-float(n != right), False) for n in range(len(asked))])
        assert next(iter(found.values())) in (1, (right, right))
    else:
        assert shown and asked[0][0].endswith(":")
        answer = built.process_results(only, [right if name.startswith("bielik_flores") else "ur"])
        assert answer in ({"levenshtein": 1}, {"bleu": (right, right)}, {"bleu": [right, right]})


def test_every_one_of_ours_is_tried():
    names = harness._index("", False)
    ours = {name for name, entry in names.items() if entry.kind.name == "TASK"}
    assert {name for name in ours if "flores" not in name} == {name for name in DOCUMENTS if "flores" not in name} | {
        "polish_corrections"
    }
