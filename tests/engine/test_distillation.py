"""One training run under every layout: the same loss and gradient, those of plain transformers; the gate; going on.

Teacher 4 layers, FFN 96; student 2 layers, FFN 64; random weights; temperature 2; 4 sequences of 32 tokens a step. The
vocabulary of `llama` is 263, padded to 384 (192 columns for each of two ranks, 71 real ones on the second); `tied`
shares its embedding, of which two pipeline stages hold a copy each. The reference for `llama` is

    loss = 4 / (4 * 32) * sum over 128 tokens of KL(softmax(teacher / 2) || softmax(student / 2))

in float64, and its gradient by autograd. `tied` learns from `ranks.MIXTURE` and from hidden states, 48 wide against 64,
on both pipeline stages, on sequences of which uneven numbers of tokens count, so that micro-batches and data-parallel
ranks differ in their counts.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import ranks
import torch
from transformers import AutoModelForCausalLM

from bielik_nemo import artifacts
from bielik_nemo.architecture import Architecture
from bielik_nemo.config_prune import TextSource
from bielik_nemo.engine import checkpoint, convert, datasets, distributed, forward, model
from bielik_nemo.errors import CheckpointError, GateError

on_two_ranks = pytest.mark.parametrize("layout", ["tp2", "pp2", "dp2"], indirect=True)
KINDS = ("llama", "tied")


def training(metrics: list[dict]) -> list[dict]:
    return [record for record in metrics if "loss" in record]


def held_out(metrics: list[dict]) -> list[dict]:
    return [record for record in metrics if "held_out_loss" in record]


def same(found: dict, wanted: dict, rel: float) -> bool:
    """Whether two records agree; one token of 128 may be so near to a tie that rounding decides it."""
    agreed = abs(found.get("agreement", 0) - wanted.get("agreement", 0)) < 1.5 / 128
    found, wanted = ({key: record[key] for key in record if key != "agreement"} for record in (found, wanted))
    return agreed and found == pytest.approx(wanted, rel=rel)


@pytest.fixture(scope="module")
def reference(single, inputs):
    """By kind: metrics of the first step, in float64 with plain transformers."""

    def compute(kind: str, weights: dict[str, float]) -> dict[str, float]:
        single[f"distill {kind}"]
        batch = torch.load(single.path / kind / "batch.pt", weights_only=True)
        assert batch["tokens"].shape == (4, 32)
        teacher, student = (
            AutoModelForCausalLM.from_pretrained(inputs / name, dtype=torch.float64)
            for name in (kind, f"{kind}_student")
        )
        streams: list[dict[int, torch.Tensor]] = [{}, {}]
        for model_, kept in zip((student, teacher), streams, strict=True):
            for number, layer in enumerate(model_.model.layers):
                layer.register_forward_hook(lambda _, __, out, kept=kept, number=number: kept.update({number: out}))
        with torch.no_grad():
            from_teacher = teacher(batch["tokens"]).logits
        logits = student(batch["tokens"]).logits
        p, q = ((each / 2).log_softmax(-1) for each in (from_teacher, logits))
        r = torch.logaddexp(p, q) - math.log(2)
        tokens = {
            "forward_kl": 4 * (p.exp() * (p - q)).sum(-1),
            "reverse_kl": 4 * (q.exp() * (q - p)).sum(-1),
            "jensen_shannon": 2 * (p.exp() * (p - r)).sum(-1) + 2 * (q.exp() * (q - r)).sum(-1),
            "cross_entropy": -logits.log_softmax(-1).gather(-1, batch["labels"].unsqueeze(-1)).squeeze(-1),
            "agreement": (from_teacher.argmax(-1) == logits.argmax(-1)).double(),
        }
        trained = list(student.parameters())
        if kind == "tied":
            tokens["hidden_state"] = 0
            for number, (mine, its) in enumerate(ranks.HIDDEN_LAYERS):
                w = torch.randn(64, 48, generator=torch.Generator().manual_seed(number)) / 48**0.5
                trained.append(w.double().requires_grad_())
                projected = streams[0][mine] @ trained[-1].T
                tokens["hidden_state"] += 1 - torch.cosine_similarity(projected, streams[1][its], dim=-1)
        mask = batch["loss_mask"]
        means = {name: (each * mask).sum() / mask.sum() for name, each in tokens.items()}
        loss = sum(weight * means[name] for name, weight in weights.items())
        loss.backward()
        squares = [parameter.grad.square().sum() for parameter in trained]
        shown = {name: means[name].item() for name in (*weights, "agreement")}
        shown["kl"] = shown.pop("forward_kl")
        return {"loss": loss.item(), "grad_norm": torch.stack(squares).sum().sqrt().item()} | shown

    mixed = ranks.MIXTURE | {"hidden_state": ranks.HIDDEN_WEIGHT}
    return {"llama": compute("llama", {"forward_kl": 1.0}), "tied": compute("tied", mixed)}


@pytest.mark.parametrize("kind", KINDS)
def test_first_step_is_that_of_plain_transformers(kind, single, reference):
    """Loss, its parts, agreement, and the gradient's norm."""
    wanted = reference[kind]
    first = training(single.metrics(kind))[0]
    assert first.keys() - wanted.keys() == {"step", "lr", "tokens"}
    assert same({key: first[key] for key in wanted}, wanted, rel=1e-5)
    assert wanted["loss"] > 0.5
    assert wanted["grad_norm"] > 0.3  # above optim.clip_grad: the norm is the one before clipping


def test_uneven_masks_are_uneven(single):
    """In the first step: another number in each of the two micro-batches of two, and so on each of two ranks."""
    single["distill tied"]
    mask = torch.load(single.path / "tied" / "batch.pt", weights_only=True)["loss_mask"]
    one, two = mask[:2].sum().item(), mask[2:].sum().item()
    assert 0 < one != two > 0
    assert mask.sum() < 128


@on_two_ranks
@pytest.mark.parametrize("kind", KINDS)
def test_first_step_is_the_same_under_every_layout(kind, layout, reference):
    """And so that of plain transformers: the gradient is divided once, by the global count, on every rank."""
    first = training(layout.metrics(kind))[0]
    assert same({key: first[key] for key in reference[kind]}, reference[kind], rel=1e-5)


@on_two_ranks
@pytest.mark.parametrize("kind", KINDS)
def test_whole_runs_are_the_same_under_every_layout(kind, layout, single):
    """Six steps of AdamW amplify the differences of fp32 sums a little."""
    one, two = single.metrics(kind), layout.metrics(kind)
    assert [record.keys() for record in one] == [record.keys() for record in two]
    for a, b in zip(one, two, strict=True):
        assert same(b, a, rel=1e-4)


@pytest.mark.parametrize("size", [1, 4])
def test_the_split_into_micro_batches_changes_nothing(size, single):
    whole, split = (training(single.metrics(name))[0] for name in ("tied", f"split{size}"))
    assert same(split, whole, rel=1e-5)


@pytest.fixture(scope="module")
def alone(single, inputs) -> tuple[float, float]:
    """Loss and gradient norm of the first batch with every document read by itself, in float64.

    Tokens that end a document predict nothing, so that the four sequences count different numbers of tokens.
    """
    single["distill separate"]
    batch = torch.load(single.path / "separate" / "batch.pt", weights_only=True)
    teacher, student = (
        AutoModelForCausalLM.from_pretrained(inputs / name, dtype=torch.float64) for name in ("llama", "llama_student")
    )
    eod, total, counts = ranks.EOD, 0.0, []
    for tokens in batch["tokens"]:
        ends = [*((tokens == eod).nonzero().flatten() + 1).tolist(), len(tokens)]
        for first, end in zip([0, *ends], ends, strict=False):
            piece = tokens[None, first:end]
            if piece.numel():
                with torch.no_grad():
                    p = (teacher(piece).logits / 2).log_softmax(-1)
                q = (student(piece).logits / 2).log_softmax(-1)
                total = total + 4 * ((p.exp() * (p - q)).sum(-1) * (piece != eod)).sum()
        counts.append((tokens != eod).sum().item())
    assert len(set(counts)) > 1
    loss = total / sum(counts)
    loss.backward()
    squares = [parameter.grad.square().sum() for parameter in student.parameters()]
    return loss.item(), torch.stack(squares).sum().sqrt().item()


@pytest.mark.parametrize("layout", ["single", "tp2", "pp2", "dp2"], indirect=True)
def test_separate_documents_are_those_read_by_themselves(layout, alone):
    (first,) = training(layout.metrics("separate"))
    assert first["loss"] == pytest.approx(alone[0], rel=1e-5)
    assert first["grad_norm"] == pytest.approx(alone[1], rel=1e-4)
    assert first["loss"] != pytest.approx(training(layout.metrics("llama"))[0]["loss"], rel=1e-3)


@pytest.mark.parametrize("layout", ["single", "tp2"], indirect=True)
@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputed_activations_are_the_same_ones(recompute, layout):
    """Two steps: the second one's loss has the first one's update in it."""
    kept, again = training(layout.metrics("llama"))[:2], training(layout.metrics(recompute))
    for one, two in zip(kept, again, strict=True):
        assert [two[key] for key in ("loss", "grad_norm")] == [one[key] for key in ("loss", "grad_norm")]


@pytest.mark.parametrize("kind", KINDS)
def test_training_trains(kind, single):
    """Held-out cross-entropy falls, records are complete: steps 1 to 6, measured at 0, 3 and 6; 128 tokens a step."""
    metrics = single.metrics(kind)
    assert [record["step"] for record in training(metrics)] == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in held_out(metrics)] == [0, 3, 6]
    assert all(record["tokens"] == 128 * record["step"] for record in metrics)
    assert held_out(metrics)[-1]["held_out_loss"] < held_out(metrics)[0]["held_out_loss"] - 0.01


def cross_entropy(directory: Path, blocks: torch.Tensor) -> float:
    hf = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    with torch.no_grad():
        logits = hf(blocks[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), blocks[:, 1:].flatten()).item()


@pytest.mark.parametrize("layout", ["single", "tp2", "pp2", "dp2"], indirect=True)
@pytest.mark.parametrize("kind", KINDS)
def test_the_curve_starts_at_the_student_that_was_given_and_ends_at_the_one_that_is_kept(
    kind, layout, inputs, tmp_path
):
    blocks = datasets.blocks(inputs / "held_out" / "text", ranks.SEQ_LENGTH, ranks.HELD_OUT)
    measured = held_out(layout.metrics(kind))
    assert measured[0]["held_out_loss"] == pytest.approx(cross_entropy(inputs / f"{kind}_student", blocks), rel=1e-5)
    a = Architecture.from_hf(inputs / f"{kind}_student")
    with distributed.model_parallel():
        kept = model.build(model.gpt_config(a, seq_length=32), a)
        checkpoint.load(kept, layout.path / kind / "megatron")
        convert.save_hf(kept, tmp_path / "hf", a)
    assert measured[-1]["held_out_loss"] == pytest.approx(cross_entropy(tmp_path / "hf", blocks), rel=1e-5)


@pytest.mark.parametrize("layout", ["single", "tp2"], indirect=True)
def test_a_killed_run_goes_on_bit_identically(layout, request):
    """SIGKILL in step 6; the checkpoint of step 4 is the newest. Losses and norms are equal to the last bit."""
    if layout.path.name == "single":
        layout = request.getfixturevalue("resumed")
    assert_the_same(layout, "resumed")


def assert_the_same(layout, name: str) -> None:
    """Bit for bit that of the run without interruption."""
    assert layout.metrics(name) == layout.metrics("llama")
    one, two = (_tensors(layout.path / run / "megatron") for run in ("llama", name))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[tensor], two[tensor]) for tensor in one)


@pytest.mark.parametrize("layout", ["single", "tp2"], indirect=True)
def test_a_signal_to_one_rank_saves_on_all_and_the_run_goes_on_bit_identically(layout, request):
    """SIGUSR1 to the last rank in step 3, after which no checkpoint is due."""
    if layout.path.name == "single":
        layout = request.getfixturevalue("resumed")
    assert layout["stopped"] == "stopped by SIGUSR1 after step 3, which is saved: the same command goes on from here"
    assert_the_same(layout, "stopped")


def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_bit_identically(resumed):
    """Killed in step 6, a byte of the checkpoint of step 4 changed: it goes on from that of step 2."""
    assert_the_same(resumed, "damaged")
    left = {path.name for path in (resumed.path / "damaged" / "checkpoints").iterdir()}
    assert left == {"step=3", "step=3-damaged", "step=5"}


def test_a_run_that_is_killed_while_it_saves_asynchronously_goes_on_from_the_checkpoint_before(resumed):
    """The second checkpoint, of step 4, was never finished; the sums are those of synchronous saves."""
    assert_the_same(resumed, "asynchronous")
    left = {path.name for path in (resumed.path / "asynchronous" / "checkpoints").iterdir()}
    assert left == {"step=3", "step=5"}


@pytest.mark.parametrize("layout", ["resharded", "pp2"], indirect=True)
def test_a_run_goes_on_under_another_layout(layout, tp2):
    """Saved by two ranks that share every layer; gone on with by one, and by two with half of the layers each."""
    whole, moved = tp2.metrics("llama"), layout.metrics("moved")
    assert [record["step"] for record in moved] == [record["step"] for record in whole]
    for a, b in zip(whole, moved, strict=True):
        assert b == pytest.approx(a, rel=1e-5)
    one, two = _tensors(tp2.path / "llama" / "megatron"), _tensors(layout.path / "moved" / "megatron")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name][:263], two[name][:263], rtol=1e-5, atol=1e-5)


def _tensors(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a Megatron checkpoint, without a model."""
    from torch.distributed.checkpoint import FileSystemReader, load
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    reader = FileSystemReader(directory / "weights")
    entries = reader.read_metadata().state_dict_metadata.items()
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries
        if isinstance(entry, TensorStorageMetadata)
    }
    load(state, storage_reader=reader, no_dist=True)
    return state


def test_the_killed_run_did_not_finish_by_itself(resumed):
    """So that the test above can fail: the interrupted attempt left a TensorBoard file of its own."""
    resumed["distill resumed"]
    events = list((resumed.path / "resumed").rglob("events.out.tfevents*"))
    assert len(events) == 2


@pytest.mark.parametrize("layout", ["single", "tp2", "pp2"], indirect=True)
def test_the_teacher_is_not_saved(layout):
    """The student's checkpoint has its own 2 layers and no other tensors; so do those of the run."""
    layout["distill llama"]
    here = layout.path / "llama"
    directories = [here / "megatron", *(path.parents[1] for path in here.glob("checkpoints/*/weights/.metadata"))]
    assert len(directories) == 3  # the run keeps two to go on from
    for directory in directories:
        names = [name for name in _tensors(directory) if not name.startswith(("optimizer", "chained"))]
        assert not any("teacher" in name for name in names)
        assert _tensors(directory)["module.decoder.layers.mlp.linear_fc2.weight"].shape == (2, 64, 64)


@pytest.mark.parametrize("layout", ["single", "tp2", "pp2"], indirect=True)
def test_projections_of_hidden_states_are_in_the_run_s_checkpoints_and_not_in_the_student(layout):
    """Two pairs of layers, 48 wide against 64, also where each is on a pipeline stage of its own."""
    layout["distill tied"]
    *_, found = (path.parents[1] for path in (layout.path / "tied").glob("checkpoints/*/weights/.metadata"))
    kept, student = _tensors(found), _tensors(layout.path / "tied" / "megatron")
    for number in (0, 1):
        assert kept[f"module.hidden_states.projections.{number}"].shape == (64, 48)
    assert any("exp_avg" in name and "hidden_states.projections" in name for name in kept)
    assert not any("hidden_states" in name for name in student)


# The gate


@pytest.fixture(scope="module")
def tiny(tiny_hf, tmp_path_factory) -> Path:
    """The trained tiny model as a Megatron checkpoint, and its own kind of text as held-out dataset."""
    from transformers import AutoTokenizer

    from bielik_nemo.data.text import PACKAGE_DOCS, read_documents

    directory = tmp_path_factory.mktemp("tiny")
    tokenizer = AutoTokenizer.from_pretrained(tiny_hf)
    document = next(iter(read_documents(PACKAGE_DOCS))).text[:4000]
    (directory / "held_out").mkdir()
    datasets.write(directory / "held_out" / "text", [tokenizer(document)["input_ids"]], 263)
    a = Architecture.from_hf(tiny_hf)
    with distributed.model_parallel():
        megatron = model.build(model.gpt_config(a, seq_length=64), a)
        convert.load_hf(megatron, tiny_hf, a)
        checkpoint.save(megatron, directory / "good")
        embedding = megatron.embedding.word_embeddings.weight
        with torch.no_grad():
            embedding[:263] = embedding[torch.randperm(263, generator=torch.Generator().manual_seed(0))]
            checkpoint.save(megatron, directory / "shuffled")
            embedding.zero_()
        checkpoint.save(megatron, directory / "zeroed")
    return directory


def gate(tiny: Path, max_loss: float = 4.0, expected: float | None = None, tolerance: float = 0.02):
    from bielik_nemo.engine.distillation import TeacherGate

    return TeacherGate(datasets.HeldOut(str(tiny / "held_out"), 64, 1024, 4), max_loss, expected, tolerance)


def judge(tiny: Path, tiny_hf: Path, checkpoint_name: str, **settings) -> float:
    a = Architecture.from_hf(tiny_hf)
    with distributed.model_parallel():
        teacher = model.build(model.gpt_config(a, seq_length=64), a)
        checkpoint.load(teacher, tiny / checkpoint_name)
        return gate(tiny, **settings)(teacher)


def test_a_good_teacher_passes(tiny, tiny_hf):
    blocks = datasets.blocks(tiny / "held_out" / "text", 64, 1024)
    expected = cross_entropy(tiny_hf, blocks)
    assert expected < 3.5
    assert judge(tiny, tiny_hf, "good", expected=expected) == pytest.approx(expected, rel=1e-5)
    assert judge(tiny, tiny_hf, "good", expected=expected * 1.019) == pytest.approx(expected, rel=1e-5)


def test_a_teacher_with_a_zeroed_embedding_is_stopped(tiny, tiny_hf):
    """All hidden states are zero, all logits equal: ln 263 = 5.572 nats."""
    with pytest.raises(GateError, match=r"teacher: held-out loss 5\.572 .* at step 0, .*distill\.gate_max_loss=4\.0"):
        judge(tiny, tiny_hf, "zeroed")


def test_a_teacher_whose_words_were_shuffled_is_stopped(tiny, tiny_hf):
    """Every tensor has its size and its values, no number is unusual: only the loss tells, also one that is allowed."""
    good = judge(tiny, tiny_hf, "good")
    with pytest.raises(GateError, match=r"distill\.gate_max_loss=4\.0; its weights or its tokenizer"):
        judge(tiny, tiny_hf, "shuffled", expected=good)
    with pytest.raises(GateError, match=rf"the source model measured {good:.4f}"):
        judge(tiny, tiny_hf, "shuffled", max_loss=100.0, expected=good)


@pytest.mark.parametrize("factor", [1.03, 0.97])
def test_a_teacher_with_another_loss_than_the_source_model_is_stopped(factor, tiny, tiny_hf):
    """3 % off, in either direction, where 2 % are allowed."""
    loss = judge(tiny, tiny_hf, "good")
    with pytest.raises(
        GateError, match=rf"the source model measured {loss * factor:.4f}; distill\.gate_tolerance=0\.02"
    ):
        judge(tiny, tiny_hf, "good", expected=loss * factor)


def test_a_loss_that_is_not_a_number_is_stopped(tiny, tiny_hf, monkeypatch):
    monkeypatch.setattr(forward, "held_out_loss", lambda *args: float("nan"))
    with pytest.raises(GateError, match="held-out loss nan"):
        judge(tiny, tiny_hf, "good", expected=2.0)


@pytest.mark.parametrize(
    ("teacher", "error", "named"),
    [
        ("zeroed", GateError, "held-out loss 5.572"),
        ("truncated", CheckpointError, "not a finished Megatron checkpoint"),
    ],
)
def test_a_bad_teacher_stops_the_stage_before_the_first_step(teacher, error, named, tiny, tiny_hf, tmp_path):
    """Through the stage itself: nothing but logs is left of it."""
    from bielik_nemo.config import Config
    from bielik_nemo.stages import distill

    a = Architecture.from_hf(tiny_hf)
    for stage in ("import_hf", "prune"):
        (tmp_path / stage).mkdir()
        a.to_json(tmp_path / stage / "architecture.json")
        shutil.copytree(tiny / "good", tmp_path / stage / "megatron")
    if teacher == "zeroed":
        shutil.rmtree(tmp_path / "import_hf" / "megatron")
        shutil.copytree(tiny / "zeroed", tmp_path / "import_hf" / "megatron")
    else:
        (tmp_path / "import_hf" / "megatron" / "weights" / ".metadata").unlink()
    shutil.copytree(tiny_hf, tmp_path / "import_hf" / "tokenizer")
    for name, suffix in ((n, s) for n in ("train/000", "held_out/text") for s in ("bin", "idx")):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tiny / "held_out" / f"text.{suffix}", tmp_path / "data" / f"{name}.{suffix}")
    (tmp_path / "distill").mkdir()
    config = Config()
    config.data.seq_length, config.data.global_batch_size, config.data.held_out_tokens = 64, 2, 1024
    config.trainer.max_steps, config.data.sources = 2, [TextSource()]
    counts = {"name": "", "tokens": 10_000}
    artifacts.write_json(tmp_path / "data" / "summary.json", {"sources": [counts]})
    with pytest.raises(error, match=named):
        distill.run(config, tmp_path)
    here = tmp_path / "distill"
    assert not (here / "megatron").exists()
    assert not (here / "metrics.jsonl").exists()
    assert not list(here.rglob("*.distcp"))
