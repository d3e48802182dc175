"""What engine/ takes from NeMo, Megatron-Core, Model Optimizer, Lightning, torch and transformers is still there.

Versions are pinned, so this says at once what an upgrade would break: a name that moved, an argument that went, or a
default that we rely on. Tests of the workarounds for these versions ("why ... is there") stand beside the modules that
hold them.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch

from bielik_nemo.engine import cpu

PROJECT = Path(__file__).parents[2]


def found(path: str):
    """The object at `module:attribute.attribute`."""
    cpu.enable()
    module, _, attributes = path.partition(":")
    value = importlib.import_module(module)
    for name in attributes.split("."):
        value = getattr(value, name)
    return value


def pinned() -> list[tuple[str, str]]:
    dependencies = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]
    matches = (re.fullmatch(r"([\w.-]+)==([\w.]+)", dependency) for dependency in dependencies)
    return [match.groups() for match in matches if match]


def test_the_stack_is_pinned_exactly():
    assert {"nemo_toolkit", "megatron-core", "nvidia-modelopt", "lightning", "nemo_run", "transformers"} <= {
        name for name, _ in pinned()
    }


@pytest.mark.parametrize(("name", "version"), pinned())
def test_the_pinned_version_is_installed(name, version):
    assert metadata.version(name) == version


# Callable -> arguments that are passed to it by name.
SIGNATURES = {
    # cpu, distributed
    "megatron.core.parallel_state:initialize_model_parallel": "tensor_model_parallel_size pipeline_model_parallel_size",
    "megatron.core.parallel_state:destroy_model_parallel": "",
    "megatron.core.parallel_state:get_tensor_model_parallel_group": "",
    "megatron.core.parallel_state:get_tensor_model_parallel_rank": "",
    "megatron.core.parallel_state:get_tensor_model_parallel_world_size": "",
    "megatron.core.parallel_state:get_pipeline_model_parallel_group": "",
    "megatron.core.parallel_state:get_pipeline_model_parallel_rank": "",
    "megatron.core.parallel_state:get_pipeline_model_parallel_world_size": "",
    "megatron.core.parallel_state:get_pipeline_model_parallel_last_rank": "",
    "megatron.core.parallel_state:get_data_parallel_rank": "",
    "megatron.core.parallel_state:is_pipeline_last_stage": "",
    "megatron.core.num_microbatches_calculator:destroy_num_microbatches_calculator": "",
    "megatron.core.rerun_state_machine:destroy_rerun_state_machine": "",
    "megatron.core.tensor_parallel:model_parallel_cuda_manual_seed": "seed",
    "megatron.core.tensor_parallel:gather_from_tensor_model_parallel_region": "input_",
    # model, forward, rollouts
    "nemo.collections.llm.gpt.model.base:GPTConfig": "num_layers hidden_size ffn_hidden_size num_attention_heads "
    "num_query_groups kv_channels vocab_size share_embeddings_and_output_weights rotary_base rotary_percent "
    "layernorm_epsilon add_qkv_bias add_bias_linear normalization gated_linear_unit position_embedding_type "
    "qk_layernorm seq_length window_size hidden_dropout attention_dropout activation_func tensor_model_parallel_size "
    "pipeline_model_parallel_size params_dtype pipeline_dtype bf16 bias_activation_fusion bias_dropout_fusion "
    "masked_softmax_fusion apply_rope_fusion persist_layer_norm calculate_per_token_loss",
    "nemo.collections.llm.gpt.model.llama:Llama31Config": "scale_factor low_freq_factor high_freq_factor "
    "old_context_len",
    "nemo.collections.llm.gpt.model.base:GPTConfig.configure_model": "tokenizer",
    "megatron.core.models.gpt:GPTModel.forward": "input_ids position_ids attention_mask labels inference_context "
    "runtime_gather_output",
    "megatron.core.models.gpt:GPTModel.sharded_state_dict": "prefix",
    "megatron.core.models.gpt:GPTModel.compute_language_model_loss": "labels logits",
    "megatron.core.pipeline_parallel:get_forward_backward_func": "",
    "megatron.core.pipeline_parallel.schedules:forward_backward_pipelining_without_interleaving": "forward_step_func "
    "data_iterator model num_microbatches seq_length micro_batch_size forward_only collect_non_loss_data",
    "megatron.core.pipeline_parallel.schedules:forward_backward_no_pipelining": "forward_step_func data_iterator model "
    "num_microbatches seq_length micro_batch_size forward_only collect_non_loss_data",
    "megatron.core.inference.contexts:StaticInferenceContext": "max_batch_size max_sequence_length",
    "megatron.core.inference.model_inference_wrappers.inference_wrapper_config:InferenceWrapperConfig": "hidden_size "
    "params_dtype inference_batch_times_seqlen_threshold padded_vocab_size fp32_residual_connection",
    "megatron.core.inference.model_inference_wrappers.gpt.gpt_inference_wrapper:GPTInferenceWrapper": "model "
    "inference_wrapper_config inference_context",
    "megatron.core.inference.model_inference_wrappers.gpt.gpt_inference_wrapper:GPTInferenceWrapper."
    "forward_pass_with_pipeline_parallel_small_input_batch": "inference_input",
    "megatron.core.models.common.embeddings.rope_utils:apply_rotary_pos_emb": "t freqs config cp_group",
    "megatron.core.transformer.attention:Attention._adjust_key_value_for_inference": "inference_context query key "
    "value rotary_pos_emb",
    "megatron.core.transformer.dot_product_attention:DotProductAttention.forward": "query key value attention_mask "
    "attn_mask_type attention_bias packed_seq_params",
    "megatron.core.parallel_state:get_model_parallel_group": "",
    "megatron.core.parallel_state:get_tensor_model_parallel_src_rank": "",
    # checkpoint, datasets
    "nemo.lightning.io.pl:MegatronCheckpointIO": "save_ckpt_format async_save",
    "nemo.lightning.io.pl:MegatronCheckpointIO.save_checkpoint": "checkpoint path",
    "nemo.lightning.io.pl:MegatronCheckpointIO.load_checkpoint": "path sharded_state_dict strict",
    "megatron.core.datasets.indexed_dataset:IndexedDatasetBuilder": "bin_path dtype",
    "megatron.core.datasets.indexed_dataset:IndexedDatasetBuilder.add_document": "tensor lengths",
    "megatron.core.datasets.indexed_dataset:IndexedDatasetBuilder.finalize": "idx_path",
    "megatron.core.datasets.indexed_dataset:DType.optimal_dtype": "cardinality",
    "megatron.core.datasets.indexed_dataset:IndexedDataset": "path_prefix",
    # minitron
    "modelopt.torch.prune:prune": "model mode constraints dummy_input config",
    "modelopt.torch.prune.plugins.mcore_minitron:get_mcore_minitron_config": "hidden_size_divisor "
    "ffn_hidden_size_divisor num_layers_divisor",
    "modelopt.torch.nas.modules.norm:_DynamicLayerNorm._cut_to_active_features": "mod value",
    "modelopt.torch.nas.modules.norm:_DynamicLayerNorm._get_normalized_shape": "mod value",
    # distillation, training, progress
    "modelopt.torch.distill:convert": "model mode",
    "modelopt.torch.distill.distillation_model:DistillationModel.compute_kd_loss": "skip_balancer loss_fn_kwargs",
    "nemo.collections.llm.modelopt.distill.model:DistillationGPTModel": "config teacher_config teacher_ckpt_path optim "
    "tokenizer",
    "nemo.collections.llm.modelopt.distill.utils:DistillationConfig": "",
    "nemo.collections.llm.modelopt.distill.utils:adjust_distillation_model_for_mcore": "model distill_cfg",
    "nemo.lightning.megatron_parallel:MaskedTokenLossReduction.forward": "batch forward_out",
    "nemo.collections.llm:train": "model data trainer log resume optim",
    "nemo.collections.llm.gpt.data.pre_training:PreTrainingDataModule": "paths tokenizer seq_length micro_batch_size "
    "global_batch_size num_workers pin_memory seed split index_mapping_dir output_log dataset_cls",
    "nemo.collections.common.tokenizers.huggingface.auto_tokenizer:AutoTokenizer": "pretrained_model_name use_fast",
    "nemo.lightning:MegatronStrategy": "tensor_model_parallel_size pipeline_model_parallel_size pipeline_dtype ddp "
    "kwargs ckpt_async_save replace_progress_bar",
    "nemo.lightning:MegatronMixedPrecision": "precision",
    "nemo.lightning:MegatronOptimizerModule": "config lr_scheduler",
    "nemo.lightning:lr_scheduler.CosineAnnealingScheduler": "max_steps warmup_steps constant_steps min_lr",
    "nemo.lightning:NeMoLogger": "explicit_log_dir use_datetime_version log_global_rank_0_only tensorboard ckpt",
    "nemo.lightning:RestoreConfig": "path load_artifacts",
    "nemo.lightning.pytorch.callbacks:ModelCheckpoint": "dirpath filename monitor save_top_k save_last "
    "every_n_train_steps save_optim_on_train_end always_save_context save_context_on_train_end",
    "megatron.core.distributed:DistributedDataParallelConfig": "use_distributed_optimizer check_for_nan_in_grad",
    "megatron.core.optimizer:OptimizerConfig": "optimizer lr weight_decay adam_beta1 adam_beta2 clip_grad bf16 "
    "use_distributed_optimizer",
    "lightning.pytorch:Callback.on_train_batch_end": "trainer pl_module",
    # torch, safetensors
    "torch.distributed.checkpoint:CheckpointException": "failures",
    "safetensors.torch:save_file": "tensors filename metadata",
}


def parameters(path: str) -> set[str]:
    """Names that a callable takes; a class also those that it hands on to its bases."""
    value = found(path)
    layers = [c.__init__ for c in value.__mro__ if "__init__" in vars(c)] if isinstance(value, type) else [value]
    return {name for layer in layers for name in inspect.signature(layer).parameters}


@pytest.mark.parametrize("path", SIGNATURES)
def test_arguments_that_we_pass_are_still_taken(path):
    assert set(SIGNATURES[path].split()) <= parameters(path)


def test_a_prefix_for_tensors_of_the_model_is_not_a_default():
    """Checkpoints carry NeMo's `module.` before every name, which is why `prefix` is passed."""
    assert (
        inspect.signature(found("megatron.core.models.gpt:GPTModel.sharded_state_dict")).parameters["prefix"].default
        == ""
    )


def test_checkpoint_failures_are_still_outside_exception():
    """Why `checkpoint.load` names it beside Exception."""
    error = found("torch.distributed.checkpoint:CheckpointException")
    assert issubclass(error, BaseException)
    assert not issubclass(error, Exception)
    assert isinstance(error.failures, property)


def test_torch_still_obeys_the_variable_that_forces_weights_only(monkeypatch, tmp_path):
    torch.save({"a": dataclasses.field}, tmp_path / "function.pt")
    assert torch.load(tmp_path / "function.pt", weights_only=False)["a"] is dataclasses.field
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(Exception, match=r"dataclasses\.field"):
        torch.load(tmp_path / "function.pt", weights_only=False)


def test_the_local_layer_spec_is_chosen_without_transformer_engine():
    """Its norms are torch's RMSNorm, under names of their own: what hf_weights.py and minitron.py know."""
    if found("nemo.collections.llm.gpt.model.base:HAVE_TE"):
        pytest.skip("Transformer Engine is installed")
    spec = found("nemo.collections.llm.gpt.model.base:GPTConfig").__dataclass_fields__["transformer_layer_spec"].default
    name = spec.__name__ if hasattr(spec, "__name__") else str(spec)
    assert name == "default_layer_spec"


def test_names_of_parameters_are_those_of_the_mapping(llama):
    """A 4-layer llama: embedding, output and last norm, and 6 parameters in each layer."""
    from bielik_nemo.engine.hf_weights import hf_names

    names = [name for name, _ in llama[0].named_parameters()]
    assert len(names) == 3 + 4 * 6
    mapped = [hf for name in names for hf in hf_names(name, int(name.split(".")[2]) if "layers" in name else -1)]
    assert len(mapped) == len(set(mapped)) == 3 + 4 * 9
    assert {type(m).__name__ for m in llama[0].modules() if "Norm" in type(m).__name__} == {"RMSNorm"}


def test_megatron_still_lets_padded_columns_into_its_softmax():
    """Why the language-model loss is replaced: 2 real columns with logits 0 beside 2 of padding, ln 2 becomes ln 4."""
    from bielik_nemo.engine import distributed
    from bielik_nemo.losses.cross_entropy import token_cross_entropy

    with distributed.model_parallel():
        loss = found("megatron.core.tensor_parallel:vocab_parallel_cross_entropy")
        logits, labels = torch.zeros(1, 1, 4), torch.zeros(1, 1, dtype=torch.int64)
        assert loss(logits.clone(), labels).item() == pytest.approx(1.3863, abs=1e-4)
    assert token_cross_entropy(logits, labels, vocab_size=2).item() == pytest.approx(0.6931, abs=1e-4)


def test_nemo_s_importer_still_maps_names_that_the_local_spec_does_not_have():
    """Why conversion is our own: the norms of every layer would be lost without an error."""
    source = inspect.getsource(found("nemo.collections.llm.gpt.model.llama:HFLlamaImporter"))
    assert "linear_qkv.layer_norm_weight" in source
    assert '"decoder.layers.*.input_layernorm.weight"' not in source


def test_nemo_s_mistral_importer_still_sees_one_token_too_many():
    """Why architecture.py passes W - 1: Hugging Face's window counts the token itself, Megatron's those before it."""
    source = inspect.getsource(found("nemo.collections.llm.gpt.model.mistral:HFMistralImporter.config.fget"))
    assert "window_size = [source.sliding_window, 0]" in source


def test_nemo_s_data_module_still_makes_attention_masks_without_transformer_engine():
    source = inspect.getsource(found("nemo.collections.llm.gpt.data.pre_training:PreTrainingDataModule.__init__"))
    assert "self.create_attention_mask = create_attention_mask or not HAVE_TE" in source


def test_nemo_still_learns_the_split_of_student_and_teacher_in_the_first_training_step():
    """Why `configure_model` sets it: the student is measured before. When this fails, that line can go."""
    source = inspect.getsource(found("nemo.collections.llm.modelopt.distill.utils:adjust_distillation_model_for_mcore"))
    assert "self._tensor_split_idx = shapes[0][-1]" in source
    assert source.count("_tensor_split_idx") == 3


def test_nemo_s_distillation_loss_still_leaves_out_the_square_of_the_temperature():
    """Why the criterion is our own (beside padding): see losses/forward_kl.py."""
    source = inspect.getsource(found("nemo.collections.llm.modelopt.distill.loss:LogitsKLLoss"))
    assert "self._temperature" in source
    assert "**2" not in source.replace(" ", "")
    assert "pow(" not in source
