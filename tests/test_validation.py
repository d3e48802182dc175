import pytest

from bielik_nemo.config import compose
from bielik_nemo.config_prune import Target
from bielik_nemo.errors import ConfigError
from bielik_nemo.validation.shapes import source_architecture, target_architecture

FULL = "bielik_minitron_7b"
HIDDEN = "distill.weights.hidden_state=1"
BLEND = "prune.calibration.sources="
MIX = "data.sources=[{path:a,language:pl,weight:2},{path:b,language:en},{path:c,language:pl,weight:1}]"
PLAIN = "data.sources=[{path:a,language:pl},{path:b,language:en}]"
LORA = ("pipeline.stages=[chat,sft]", "sft.lora.rank=8")
RELEASE = "pipeline.stages=[import_hf,export,release]"
MERGE = "pipeline.stages=[import_hf,merge,export]"
SWAP = "swap_tokenizer.tokenizer=builtin:tiny_bpe"
LANGUAGES = "data.language_weights={pl: 0.7, en: 0.3}"


def test_layers_by_hand_give_the_depth_where_the_target_gives_none():
    """50 layers without 3; with a depth of its own the target must agree."""
    config = compose(FULL, ["prune.target.num_layers=null", "prune.drop_layers=[7,48,9]", "prune.keep_last_layers=1"])
    target = target_architecture(config, source_architecture(config))
    assert (target.num_layers, target.ffn_hidden_size) == (47, 11264)
    config = compose(FULL, ["prune.target.num_layers=47", "prune.drop_layers=[7,48,9]"])
    assert target_architecture(config, source_architecture(config)).num_layers == 47
    config = compose(FULL, ["prune.target.num_layers=null", "prune.drop_layers=[]"])
    assert target_architecture(config, source_architecture(config)).num_layers == 50
    assert target_architecture(config, source_architecture(config), Target(hidden_size=64)).hidden_size == 64


@pytest.mark.parametrize(
    "recipe, overrides, expected",
    [
        # Ranges and words, each for every kind of bound.
        ("", ["trainer.max_steps=0"], "trainer.max_steps: found 0, allowed: a positive number"),
        ("", ["optim.lr=nan"], "optim.lr: found nan, allowed: a positive number"),
        ("", ["optim.lr=inf"], "optim.lr: found inf, allowed: a positive number"),
        ("", ["distill.temperature=0"], "distill.temperature: found 0.0, allowed: a positive number"),
        ("", ["run.seed=-1"], "run.seed: found -1, allowed: zero or a positive number"),
        ("", ["optim.min_lr=-1"], "optim.min_lr: found -1.0, allowed: zero or a positive number"),
        ("", ["prune.target.num_layers=0"], "prune.target.num_layers: found 0, allowed: a positive number, or null"),
        ("", ["cluster.devices_per_node=0"], "cluster.devices_per_node: found 0, allowed: a positive number, or null"),
        ("", ["optim.beta2=1"], "optim.beta2: found 1.0, allowed: 0 up to, not including, 1"),
        ("", ["data.held_out_fraction=-0.1"], "data.held_out_fraction: found -0.1, allowed: 0 up to"),
        ("", ["benchmark.points=[]"], "benchmark.points: found none, allowed: one at least"),
        (
            "",
            ["benchmark.points=[{},{output_tokens:1}]"],
            "benchmark.points[1].output_tokens: found 1, allowed: 2 or more",
        ),
        ("", ["benchmark.points=[{concurrency:0}]"], "benchmark.points[0].concurrency: found 0, allowed: 1 or more"),
        ("", ["benchmark.engine=llama"], "benchmark.engine: found 'llama', allowed: transformers, vllm"),
        (
            "",
            ["benchmark.bandwidth_gb_s=0"],
            "benchmark.bandwidth_gb_s: found 0.0, allowed: a positive number, or null",
        ),
        ("", ["tokenizers.documents=0"], "tokenizers.documents: found 0, allowed: a positive number"),
        ("", ["swap_tokenizer.min_count=0"], "swap_tokenizer.min_count: found 0, allowed: a positive number"),
        ("", ["adapt.boundary_layers=-1"], "adapt.boundary_layers: found -1, allowed: zero or a positive number"),
        (
            "tiny",
            ["pipeline.stages=[adapt]", "adapt.boundary_layers=3"],
            "found 3, allowed: 0 to 2, half of the layers",
        ),
        (
            "tiny",
            ["pipeline.stages=[adapt]", "adapt.boundary_layers=1", "parallel.pp=4", "data.global_batch_size=4"],
            "parallel.pp: found 4, allowed: 1 or 2 with adapt, which leaves the stages between nothing to train",
        ),
        ("", ["pipeline.stages=[adapt]", "adapt.warmup_steps=1000"], "adapt.warmup_steps: found 1000, allowed: less"),
        (
            "tiny",
            ["pipeline.stages=[import_hf,swap_tokenizer]"],
            "swap_tokenizer.tokenizer: found none, allowed: a directory with the new tokenizer",
        ),
        (
            "tiny",
            ["pipeline.stages=[import_hf,swap_tokenizer,data,adapt,score,prune,distill]", SWAP],
            "pipeline.stages: found distill with swap_tokenizer, allowed: with pretrain between them; the old model",
        ),
        (
            "tiny",
            ["pipeline.stages=[import_hf,swap_tokenizer,chat,sft]", SWAP, "sft.forward_kl=0.5"],
            "sft.forward_kl: found 0.5, allowed: 0 with swap_tokenizer and without pretrain",
        ),
        (
            "tiny",
            ["pipeline.stages=[import_hf,swap_tokenizer,data,score,prune]", SWAP, "prune.streaming=true"],
            "prune.streaming: found True, allowed: False with swap_tokenizer in pipeline.stages (it cuts model.source)",
        ),
        ("", ["run.name=' '"], "run.name: found ' ', allowed: text that is not blank"),
        ("", ["run.dir='~/runs'"], "run.dir: found '~/runs', allowed: a path without ~, such as '$HOME/runs'"),
        ("", ["data.sources=[{path:''}]"], "data.sources[0].path: found '', allowed: text that is not blank"),
        ("", ["data.sources=[{path:'~/x'}]"], "data.sources[0].path: found '~/x', allowed: a path without ~"),
        (
            "",
            ["data.sources=[{path:a},{path:b,language:../b}]"],
            "data.sources[1].language: found '../b', allowed: a word such as pl or en-GB, or none",
        ),
        ("", [BLEND + "[{path:' '}]"], "prune.calibration.sources[0].path: found ' ', allowed: text that is not"),
        ("", [BLEND + "[{path:a},{path:'~/x'}]"], "prune.calibration.sources[1].path: found '~/x', allowed: a path"),
        ("", [BLEND + "[{path:a,text_key:''}]"], "prune.calibration.sources[0].text_key: found '', allowed: text"),
        ("", [BLEND + "[{path:a,language:p}]"], "prune.calibration.sources[0].language: found 'p', allowed: a word"),
        ("", [BLEND + "[{path:a,weight:0}]"], "prune.calibration.sources[0].weight: found 0.0, allowed: a positive"),
        ("", [BLEND + "[{path:a,weight:inf}]"], "prune.calibration.sources[0].weight: found inf, allowed: a positive"),
        ("", ["sft.sources=[{path:a},{path:' '}]"], "sft.sources[1].path: found ' ', allowed: text that is not blank"),
        ("", ["dpo.sources=[{path:'~/x'}]"], "dpo.sources[0].path: found '~/x', allowed: a path without ~"),
        ("", ["dpo.sources=[{path:a,language:p}]"], "dpo.sources[0].language: found 'p', allowed: a word such as"),
        ("", ["grpo.sources=[{path:' '}]"], "grpo.sources[0].path: found ' ', allowed: text that is not blank"),
        ("", ["grpo.sources=[{path:a}]"], "grpo.sources[0].rewards: found none, allowed: one at least, such as"),
        (
            "",
            ["grpo.sources=[{path:a,rewards:[{function:a.b},{function:' '}]}]"],
            "grpo.sources[0].rewards[1].function: found ' ', allowed: the dotted path of a function",
        ),
        (
            "",
            ["grpo.sources=[{path:a,rewards:[{function:a.b,weight:inf}]}]"],
            "grpo.sources[0].rewards[0].weight: found inf, allowed: a finite number",
        ),
        (
            "",
            ["grpo.sources=[{path:a,rewards:[{function:a.b,options:{limit:nan}}]}]"],
            "grpo.sources[0].rewards[0].options.limit: found nan, allowed: a finite number",
        ),
        (
            "",
            ["grpo.group_size=1"],
            "grpo.group_size: found 1, allowed: 2 or more, to compare each reward with the others",
        ),
        ("", ["grpo.top_p=0"], "grpo.top_p: found 0.0, allowed: above 0, up to 1"),
        ("", ["grpo.engine=nemorl"], "grpo.engine: found 'nemorl', allowed: megatron, nemo_rl; did you mean nemo_rl?"),
        ("tiny", ["grpo.seq_length=79"], "grpo.seq_length: found 79, allowed: at least 80 = grpo.max_prompt_tokens + "),
        ("tiny", ["grpo.clip_high=0.1"], "grpo.clip_high: found 0.1, allowed: at least grpo.clip_low=0.2"),
        (
            "tiny",
            ["grpo.global_batch_size=3"],
            "grpo.prompts_per_rollout: found 16, allowed: multiples of grpo.global_batch_size=3",
        ),
        ("tiny", ["grpo.warmup_steps=8"], "grpo.warmup_steps: found 8, allowed: less than grpo.max_steps=8"),
        ("tiny", ["grpo.rollouts=vllm", "grpo.top_k=5"], "grpo.top_k: found 5, allowed: 0 with grpo.rollouts=vllm"),
        ("tiny", ["grpo.rollouts=vllm", "grpo.top_p=0.9"], "grpo.top_p: found 0.9, allowed: 1 with grpo.rollouts=vllm"),
        (
            "bielik_minitron_7b",
            ["parallel.sequence_parallel=true", "parallel.tp=2"],
            "parallel.sequence_parallel: found True, allowed: False with grpo in pipeline.stages, which samples",
        ),
        ("", ["grpo.rewards.timeout_s=0"], "grpo.rewards.timeout_s: found 0.0, allowed: a positive number"),
        (
            "",
            ["sft.sources=[{path:a,format:message}]"],
            "sft.sources[0].format: found 'message', allowed: auto, mess",
        ),
        (
            "",
            ["sft.sources=[{path:a,weight:0.005}]"],
            "sft.sources[0].weight: found 0.005, allowed: hundredths from",
        ),
        ("", ["sft.sources=[{path:a,weight:1.5}]"], "sft.sources[0].weight: found 1.5, allowed: hundredths from 0.01"),
        ("", ["data.sources=[{path:a,weight:0}]"], "data.sources[0].weight: found 0.0, allowed: a positive number, or"),
        ("", [MIX], "data.sources[1].weight: found null, allowed: a positive number, since others have one"),
        (
            "",
            ["data.sources=[{path:a,language:pl,weight:2},{path:b,language:pl}]", "data.language_weights={pl:1}"],
            "data.sources[1].weight: found null, allowed: a positive number, since others in this language have one",
        ),
        ("", [MIX, "data.language_weights={pl:1}"], "data.sources[1].language: found 'en', allowed: one that data.lan"),
        (
            "",
            [MIX, "data.language_weights={pl: 1, en: 2, de: 3}"],
            "data.language_weights.de: found a language without a source, allowed: one that has some",
        ),
        ("", [MIX, LANGUAGES.replace("0.3", "-1")], "data.language_weights.en: found -1.0, allowed: a positive number"),
        ("", [MIX, LANGUAGES.replace("0.3", "a")], "data.language_weights.en: found 'a', allowed: a number"),
        ("", ["model.dtype=float16"], "model.dtype: found 'float16', allowed: float32, bfloat16; did you mean"),
        # What must fit together.
        ("", ["optim.lr=1e-6"], "optim.min_lr: found 1e-05, allowed: 0 to optim.lr=1e-06"),
        ("", ["trainer.max_steps=50"], "optim.warmup_steps: found 50, allowed: less than trainer.max_steps=50"),
        ("", ["optim.schedule=linear"], "optim.schedule: found 'linear', allowed: cosine, wsd, constant"),
        ("", ["optim.reference_tokens=0"], "optim.reference_tokens: found 0, allowed: a positive number, or null"),
        # 1,000 steps less 50 of warm-up.
        ("", ["optim.schedule=wsd"], "optim.decay_steps: found 0, allowed: 1 to 950, the steps after warm-up, with"),
        ("", ["optim.schedule=wsd", "optim.decay_steps=951"], "optim.decay_steps: found 951, allowed: 1 to 950"),
        (
            "",
            ["pipeline.stages=[data,pretrain]", "pretrain.warmup_steps=2000"],
            "pretrain.warmup_steps: found 2000, allowed: less than pretrain.max_steps=1000",
        ),
        (
            "",
            ["pipeline.stages=[data,pretrain]", "pretrain.min_lr=1"],
            "pretrain.min_lr: found 1.0, allowed: 0 to pretrain.lr=2e-05",
        ),
        (
            "",
            [PLAIN, "pipeline.stages=[data,pretrain]", "pretrain.language_weights={pl: 1}"],
            "data.sources[1].language: found 'en', allowed: one that pretrain.language_weights has: pl",
        ),
        (
            "",
            ["pipeline.stages=[data,pretrain,score,prune]", "prune.streaming=true"],
            "prune.streaming: found True, allowed: False with pretrain in pipeline.stages",
        ),
        (
            "tiny",
            ["pipeline.stages=[distill,distill_long]", "distill_long.seq_length=2048"],
            "distill_long.seq_length: found 2048, allowed: 1 to 1024, the model's context, or more with distill_lo",
        ),
        (
            "",
            ["pipeline.stages=[distill,distill_long]", "distill_long.micro_batch_size=3"],
            "distill_long.global_batch_size: found 64, allowed: multiples of 3 = distill_long.micro_batch_size 3 *",
        ),
        (
            "",
            ["distill_long.rotary_base=0"],
            "distill_long.rotary_base: found 0.0, allowed: a positive number, or null",
        ),
        (
            "tiny",
            ["pipeline.stages=[chat,sft]", "sft.seq_length=2048"],
            "sft.seq_length: found 2048, allowed: 1 to 1024, the model's context",
        ),
        (
            "",
            ["pipeline.stages=[chat,sft]", "sft.max_steps=100"],
            "sft.warmup_steps: found 100, allowed: less than sft.max_steps=100",
        ),
        (
            "",
            ["pipeline.stages=[chat,sft]", "sft.micro_batch_size=3"],
            "sft.global_batch_size: found 64, allowed: multiples of 3 = sft.micro_batch_size 3 * data-parallel",
        ),
        (
            FULL,
            ["pipeline.stages=[chat,sft]", "sft.micro_batch_size=2"],
            "sft.micro_batch_size: found 2, allowed: 1 with sft.packing",
        ),
        (
            FULL,
            ["pipeline.stages=[chat,sft]", "parallel.cp=2"],
            "sft.packing: found True, allowed: False with parallel.cp=2",
        ),
        (
            "",
            ["pipeline.stages=[preferences,reference,dpo]", "dpo.max_steps=50"],
            "dpo.warmup_steps: found 50, allowed: less than dpo.max_steps=50",
        ),
        (
            FULL,
            ["pipeline.stages=[preferences,reference]", "dpo.micro_batch_size=2"],
            "dpo.micro_batch_size: found 2, allowed: 1 on GPUs",
        ),
        (
            FULL,
            ["pipeline.stages=[preferences,reference,dpo]", "parallel.cp=2"],
            "parallel.cp: found 2, allowed: 1 with reference or dpo in pipeline.stages",
        ),
        ("", ["dpo.loss=paper"], "dpo.loss: found 'paper', allowed: bielik, smaug, plain"),
        ("", ["dpo.beta_rejected=0"], "dpo.beta_rejected: found 0.0, allowed: a positive number, or null"),
        ("", ["dpo.label_smoothing=0.5"], "dpo.label_smoothing: found 0.5, allowed: 0 up to, not including, 0.5"),
        # (2 ** 31 - 1) / 100 = 21,474,836 tokens; 1024 * 32768 = 33,554,432.
        (
            "",
            ["pipeline.stages=[chat,sft]", "sft.normalization=weights", "sft.global_batch_size=1024"],
            "sft.global_batch_size: found 1024 sequences of 32768, allowed: at most 21,474,836 tokens with",
        ),
        (
            "",
            [
                "pipeline.stages=[chat,sft]",
                "sft.normalization=weights",
                "sft.forward_kl=1",
                "sft.reference_tokens=1000",
            ],
            "sft.normalization: found 'weights', allowed: tokens with sft.forward_kl and sft.reference_tokens",
        ),
        ("", ["sft.normalization=token"], "sft.normalization: found 'token', allowed: tokens, weights; did you mean"),
        # 2 nodes * 3 devices = 6, not a multiple of tp 2 * pp 2 = 4.
        (
            "",
            ["cluster.nodes=2", "cluster.devices_per_node=3", "parallel.tp=2", "parallel.pp=2"],
            "cluster.nodes * cluster.devices_per_node: found 6, allowed: multiples of parallel.tp * parallel.pp * "
            "parallel.cp = 4",
        ),
        # 16 devices / tp 2 = 8 copies of micro-batch 3: 24 does not divide 512.
        (
            FULL,
            ["parallel.tp=2", "data.micro_batch_size=3"],
            "data.global_batch_size: found 512, allowed: multiples of 24 = data.micro_batch_size 3 * data-parallel",
        ),
        # Splitting a sequence: 16 devices / (tp 2 * cp 2) = 4 copies; 4 tokens of a piece each: 2 * cp 2 * tp 2 = 8.
        ("", ["parallel.cp=2"], "parallel.cp: found 2, allowed: 1 without GPUs (cluster.gpu_memory_gib=0)"),
        (
            "",
            ["parallel.sequence_parallel=true"],
            "parallel.sequence_parallel: found True, allowed: False without GPUs",
        ),
        (
            FULL,
            ["parallel.sequence_parallel=true", "parallel.tp=1"],
            "parallel.sequence_parallel: found True, allowed: False with parallel.tp=1",
        ),
        (
            FULL,
            ["parallel.tp=2", "parallel.cp=2", "parallel.sequence_parallel=true", "data.seq_length=4092"],
            "data.seq_length: found 4092, allowed: multiples of 8 with this parallel.cp and parallel.tp",
        ),
        (
            FULL,
            ["data.separate_documents=true", "data.micro_batch_size=2"],
            "data.micro_batch_size: found 2, allowed: 1 with data.separate_documents",
        ),
        (
            FULL,
            ["data.separate_documents=true", "parallel.cp=2"],
            "data.separate_documents: found True, allowed: False with parallel.cp=2",
        ),
        ("", ["trainer.recompute=ful"], "trainer.recompute: found 'ful', allowed: none, selective, full; did you mean"),
        # Stages.
        ("", ["teacher.samples_per_token=0"], "teacher.samples_per_token: found 0, allowed: a positive number"),
        ("", ["teacher.kind=topk"], "teacher.kind: found 'topk', allowed: sampled, top_k; did you mean top_k?"),
        (
            FULL,
            ["pipeline.stages=[teacher,distill]", "teacher.kind=top_k", "teacher.top_k=32129"],
            "teacher.top_k: found 32129, allowed: 1 to 32128, the vocabulary",
        ),
        (
            "",
            ["pipeline.stages=[teacher,distill]", "distill.temperature=2"],
            "distill.temperature: found 2.0, allowed: 1 with teacher in pipeline.stages and teacher.kind=sampled",
        ),
        (
            "",
            ["distill.weights.reverse_kl=-1"],
            "distill.weights.reverse_kl: found -1.0, allowed: zero or a positive number",
        ),
        (
            "",
            ["distill.weights.cross_entropy=inf"],
            "distill.weights.cross_entropy: found inf, allowed: zero or a positive number",
        ),
        (
            "",
            ["distill.weights.forward_kl=0"],
            "distill.weights: found none above 0, allowed: at least one of forward_kl, reverse_kl, jensen_shannon",
        ),
        (
            "",
            ["distill.weights.hidden_state=1"],
            "distill.hidden_layers: found [], allowed: some pairs with distill.weights.hidden_state=1.0",
        ),
        (
            "",
            ["distill.hidden_layers=[[0,0]]"],
            "distill.hidden_layers: found [[0, 0]], allowed: none with distill.weights.hidden_state=0.0",
        ),
        (
            "",
            [HIDDEN, "distill.hidden_layers=[[0,0],[1]]"],
            "distill.hidden_layers: found [1], allowed: pairs [student layer, teacher layer]",
        ),
        (
            "",
            [HIDDEN, "distill.hidden_layers=[[0,0]]", "trainer.recompute=full"],
            "distill.weights.hidden_state: found 1.0, allowed: 0 with trainer.recompute=full, which runs a layer again",
        ),
        (
            "",
            [HIDDEN, "distill.hidden_layers=[[0,0]]", "pipeline.stages=[teacher,distill]"],
            "distill.weights.hidden_state: found 1.0, allowed: 0 with teacher in pipeline.stages",
        ),
        (
            "",
            [HIDDEN, "distill.hidden_layers=[[0,0]]", "pipeline.stages=[search]"],
            "distill.weights.hidden_state: found 1.0, allowed: 0 with search in pipeline.stages, whose",
        ),
        # 40 layers of 50; of five pipeline stages the second has the student's 8 to 15 and the teacher's 10 to 19.
        (
            FULL,
            [HIDDEN, "distill.hidden_layers=[[39,49],[40,49]]"],
            "distill.hidden_layers: found [40, 49], allowed: a student's layer, 0 to 39, and a teacher's, 0 to 49",
        ),
        (
            FULL,
            [HIDDEN, "distill.hidden_layers=[[15,10],[8,9]]", "parallel.pp=5", "cluster.devices_per_node=40"],
            "distill.hidden_layers: found [8, 9], allowed: for the student's layer 8 the teacher's 10 to 19, which",
        ),
        (
            "",
            ["distill.jensen_shannon_beta=1"],
            "distill.jensen_shannon_beta: found 1.0, allowed: between 0 and 1, both excluded",
        ),
        (
            "",
            ["pipeline.stages=[teacher,distill]", "distill.weights.reverse_kl=0.5"],
            "distill.weights.reverse_kl: found 0.5, allowed: 0 with teacher in pipeline.stages, which keeps too little",
        ),
        (
            "",
            ["pipeline.stages=[teacher,distill]", "distill.weights.jensen_shannon=1"],
            "distill.weights.jensen_shannon: found 1.0, allowed: 0 with teacher in pipeline.stages",
        ),
        ("", ["pipeline.stages=[]"], "pipeline.stages: found no stage, allowed: some of import_hf, t"),
        ("", ["pipeline.stages=[expor]"], "pipeline.stages: found 'expor', allowed: import_hf, tokenizers"),
        ("", ["pipeline.stages=[expor]"], "did you mean export?"),
        (
            "",
            ["pipeline.stages=[export,import_hf]"],
            "pipeline.stages: found export, import_hf, allowed: each once and in order: import_hf, export",
        ),
        (
            "",
            ["pipeline.stages=[data,data]"],
            "pipeline.stages: found data, data, allowed: each once and in order: data",
        ),
        # Shapes: the teacher has 50 layers, FFN 14336, 32 heads in 8 groups.
        (FULL, ["prune.target.num_layers=51"], "prune.target.num_layers: found 51, allowed: 1 to 50"),
        (
            FULL,
            ["prune.target.ffn_hidden_size=14337"],
            "prune.target.ffn_hidden_size: found 14337, allowed: 1 to 14336",
        ),
        (FULL, ["prune.target.num_attention_heads=30"], "allowed: 8 to 32 in steps of num_query_groups=8"),
        (FULL, ["prune.target.num_query_groups=4"], "num_query_groups: found 4, allowed: 8, the source's, or null"),
        # Layers by hand: the target has 40 of 50.
        (
            FULL,
            ["prune.drop_layers=[1,2]"],
            "prune.drop_layers: found 2 of 50 layers, allowed: 10, which leave prune.target.num_layers=40",
        ),
        (FULL, ["prune.drop_layers=[3,1,3]"], "prune.drop_layers: found 3 twice, allowed: 0 to 49, each once"),
        (FULL, ["prune.drop_layers=[-1,50]"], "prune.drop_layers: found -1, allowed: 0 to 49, each once"),
        (FULL, ["prune.drop_layers=[-1,50]"], "prune.drop_layers: found 50, allowed: 0 to 49, each once"),
        ("tiny", ["prune.drop_layers=[0,1,2,3]"], "prune.drop_layers: found all 4 layers, allowed: at most 3"),
        (
            "tiny",
            ["prune.drop_layers=[0,3]", "prune.target.num_layers=null", "prune.keep_first_layers=1"],
            "prune.drop_layers: found 0, allowed: none that prune.keep_first_layers=1 keeps",
        ),
        (
            "tiny",
            ["prune.drop_layers=[0,3]", "prune.target.num_layers=null", "prune.keep_last_layers=2"],
            "prune.drop_layers: found 3, allowed: none that prune.keep_last_layers=2 keeps",
        ),
        (
            "tiny",
            ["prune.drop_layers=[1]", "prune.target.num_layers=null", "parallel.pp=2"],
            "parallel.pp=2: does not divide num_layers=3; allowed: 1, 3 (pruned model)",
        ),
        (
            FULL,
            ["prune.keep_first_layers=30", "prune.keep_last_layers=11"],
            "prune.keep_first_layers + prune.keep_last_layers: found 30 + 11, allowed: together at most the 40 layers",
        ),
        (
            FULL,
            ["prune.streaming=true", "prune.compensation.ffn=true"],
            "prune.compensation.ffn: found True, allowed: False with prune.streaming=True",
        ),
        (FULL, ["parallel.tp=16", "data.micro_batch_size=1"], "parallel.tp=16: does not divide num_query_groups=8"),
        (FULL, ["prune.target.ffn_hidden_size=11265", "parallel.tp=2"], "ffn_hidden_size=11265"),
        (
            FULL,
            ["parallel.pp=4"],
            "parallel.pp=4: does not divide num_layers=50; allowed: 1, 2, 5, 10, 25, 50 (source model)",
        ),
        (
            FULL,
            ["prune.target.num_layers=45", "parallel.pp=2"],
            "num_layers=45; allowed: 1, 3, 5, 9, 15, 45 (pruned model)",
        ),
        ("tiny", ["data.seq_length=1025"], "data.seq_length: found 1025, allowed: 1 to 1024, the model's context"),
        ("tiny", ["prune.importance.block_sizes=[1,4]"], "prune.importance.block_sizes: found 4, allowed: 1 to 3"),
        ("tiny", ["prune.importance.block_sizes=[0]"], "prune.importance.block_sizes: found 0, allowed: 1 to 3"),
        # 4 layers, of which the target has 3.
        (
            "tiny",
            ["prune.importance.layers=contiguous_block", "prune.importance.block_sizes=[2,3]"],
            "prune.importance.block_sizes: found [2, 3], allowed: lists with 1, the number of layers to drop (4 - 3)",
        ),
        (
            "tiny",
            ["prune.importance.layers=loss_increase", "prune.calibration.seq_length=1"],
            "prune.calibration.seq_length: found 1, allowed: at least 2 to measure a loss",
        ),
        ("", ["prune.importance.scores='~/s'"], "prune.importance.scores: found '~/s', allowed: a path without ~"),
        ("tiny", ["prune.calibration.seq_length=2000"], "prune.calibration.seq_length: found 2000, allowed: 1 to 1024"),
        (
            "tiny",
            ["model.shape.head_dim=0"],
            "model.shape: architecture: head_dim: found 0, allowed: a positive integer",
        ),
        ("", ["sft.lora.rank=-1"], "sft.lora.rank: found -1, allowed: zero or a positive number"),
        (
            "",
            [*LORA, "sft.lora.rank=9", "parallel.tp=2"],
            "sft.lora.rank: found 9, allowed: 0, or multiples of p",
        ),
        ("", ["sft.lora.alpha=0"], "sft.lora.alpha: found 0, allowed: a positive number"),
        ("", ["sft.lora.dropout=1"], "sft.lora.dropout: found 1.0, allowed: 0 up to, not including, 1"),
        (
            "",
            [*LORA, "sft.lora.targets=[]"],
            "sft.lora.targets: found [], allowed: some of linear_qkv, linear_p",
        ),
        ("", [*LORA, "sft.lora.targets=[output_layer]"], "sft.lora.targets: found ['output_layer'], allowed: some of"),
        ("", [*LORA, "sft.forward_kl=1"], "sft.forward_kl: found 1.0, allowed: 0 with sft.lora.rank=8"),
        # Measuring.
        ("", ["evaluate.models=[{name:a,path:' '}]"], "evaluate.models[0].path: found ' ', allowed: text that is not"),
        (
            "",
            ["evaluate.models=[{name:sft,path:m}]"],
            "evaluate.models[0].name: found 'sft', allowed: letters,",
        ),
        (
            "",
            ["evaluate.models=[{name:a,path:m},{name:a,path:n}]"],
            "evaluate.models[1].name: found 'a', allowed: letters, digits, -, _ and . other than source, pruned,",
        ),
        (
            "",
            ["evaluate.models=[{name:a/b,path:m}]"],
            "evaluate.models[0].name: found 'a/b', allowed: letters,",
        ),
        # Merging.
        ("", ["trainer.snapshot_every=0"], "trainer.snapshot_every: found 0, allowed: a positive number, or null"),
        ("", ["merge.models=[{path:' '}]"], "merge.models[0].path: found ' ', allowed: text that is not blank"),
        ("", ["merge.models=[{path:'~/m'}]"], "merge.models[0].path: found '~/m', allowed: a path without ~"),
        (
            "",
            ["merge.models=[{path:m},{path:n,weight:-1}]"],
            "merge.models[1].weight: found -1.0, allowed: zero or a positive number",
        ),
        ("", [MERGE], "merge.models: found none, allowed: one at least, or merge.snapshots from 2 on: there is"),
        ("", [MERGE, "merge.snapshots=1"], "merge.models: found none, allowed: one at least, or merge.snapshots from"),
        (
            "",
            [MERGE, "merge.models=[{path:m,weight:0}]", "merge.weight=0"],
            "merge.weight: found 0 here and in all of merge.models, allowed: a positive number in one of them",
        ),
        (
            "",
            [MERGE, "merge.models=[{path:m},{path:n}]", "merge.method=slerp"],
            "merge.method: found 'slerp' with 3 models (1 of the pipeline and 2 in merge.models), allowed: with 2",
        ),
        (
            "",
            [MERGE, "merge.snapshots=3"],
            "merge.snapshots: found 3, allowed: 0, or more where sft, dpo or grpo in pipeline.stages leaves",
        ),
        ("", [MERGE, "merge.snapshots=3", "trainer.snapshot_every=9"], "merge.snapshots: found 3, allowed: 0, or more"),
        ("", [RELEASE], "release.licence: found '', allowed: an SPDX identifier such as Apache-2.0, or LicenseRef-"),
        ("", [RELEASE, "release.licence=Apache"], "release.licence: found 'Apache', allowed: an SPDX identifier"),
        ("", [RELEASE, "release.licence=MIT", "release.name=a/b"], "release.name: found 'a/b', allowed: letters, "),
        (
            "",
            [RELEASE, "release.licence=MIT", "release.base_model=/models/x"],
            "release.base_model: found '/models/x', allowed: owner/name on the Hugging Face Hub",
        ),
        ("", ["pipeline.stages=[import_hf,release]", "release.licence=MIT"], "found release without export, allowed"),
        ("tiny", ["model.shape.model_type=gpt2"], "model.shape: architecture: model_type: found 'gpt2'"),
    ],
)
def test_problem_is_named(recipe: str, overrides: list[str], expected: str):
    with pytest.raises(ConfigError) as caught:
        compose(recipe, overrides)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "recipe, overrides",
    [
        ("", ["trainer.max_steps=51"]),  # one more than the warm-up
        ("", ["optim.lr=1e-5"]),  # equal to min_lr
        ("", ["optim.min_lr=0", "optim.warmup_steps=0", "optim.clip_grad=0", "data.held_out_fraction=0", "run.seed=0"]),
        ("tiny", ["data.seq_length=1024", "parallel.tp=2", "prune.target.num_layers=4"]),
        ("tiny", ["parallel=pp2", "prune.target.num_layers=2"]),
        ("tiny", ["prune.importance.layers=contiguous_block", "prune.importance.block_sizes=[1,3]"]),
        ("tiny", ["prune.importance.layers=contiguous_block", "prune.target.num_layers=4"]),  # no layer is dropped
        ("tiny", ["prune.importance.layers=contiguous_block", "prune.target.num_layers=null", "prune.drop_layers=[1]"]),
        (FULL, ["parallel.tp=8", "parallel.pp=2"]),
        ("", ["pipeline.stages=[import_hf,export]"]),
        ("", [MERGE, "merge.models=[{path:m},{path:n,weight:0}]"]),
        ("", [RELEASE, "release.licence=apache-2.0", "release.base_model=owner/Model-1.5"]),
        ("", [RELEASE, "release.licence=LicenseRef-mine"]),
        ("", [MERGE, "merge.models=[{path:m}]", "merge.weight=0", "merge.method=slerp"]),
    ],
)
def test_bounds_themselves_are_possible(recipe: str, overrides: list[str]):
    compose(recipe, overrides)


def test_all_problems_of_a_kind_come_at_once():
    with pytest.raises(ConfigError) as caught:
        compose(FULL, ["prune.target.num_layers=51", "prune.target.hidden_size=5000", "trainer.max_steps=10"])
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "optim.warmup_steps",
        "prune.target.num_layers",
        "prune.target.hidden_size",
    ]


def test_weights_by_source_within_languages():
    config = compose("", [MIX, LANGUAGES])
    assert config.data.language_weights == {"pl": 0.7, "en": 0.3}
    assert [source.weight for source in config.data.sources] == [2.0, None, 1.0]


@pytest.mark.parametrize(
    "stages, override, expected",
    [
        (["sft"], "sft.packing=true", "sft.packing: found True, allowed: False without GPUs"),
        (
            ["distill"],
            "data.separate_documents=true",
            "data.separate_documents: found True, allowed: False without GPU",
        ),
        (["reference", "dpo"], "dpo.beta=0.1", "pipeline.stages: found dpo, which keeps answers apart; not possible"),
    ],
)
def test_texts_are_not_kept_apart_by_a_mask_where_a_window_takes_its_place(stages, override, expected):
    """Megatron's own attention replaces a mask by its window's; on GPUs Transformer Engine heeds both."""
    from dataclasses import replace

    from bielik_nemo.validation.shapes import shape_problems

    config = compose("", [override, f"pipeline.stages=[{','.join(stages)}]"])
    plain = source_architecture(compose(FULL, []))
    windowed = replace(plain, sliding_window=16, model_type="mistral")
    assert not any(expected in problem for problem in shape_problems(config, plain, stages))
    assert any(problem.startswith(expected) for problem in shape_problems(config, windowed, stages))
    config.cluster.gpu_memory_gib = 80.0
    assert not any(problem.startswith(expected) for problem in shape_problems(config, windowed, stages))
