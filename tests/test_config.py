"""Every option composes, the paper's hyperparameters are there, and mistakes get one sentence."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qpa_exp import __main__ as train
from qpa_exp import plan
from qpa_exp.cli import compose_config, compose_whole, conf_dir, known_keys, with_values
from qpa_exp.config import Config, QPAConfig, validate
from qpa_exp.errors import InputError
from qpa_exp.generator.rules import VARIANTS

OPTIONS = sorted(
    (path.parent.name, path.stem)
    for path in conf_dir().glob("*/*.yaml")
    if not path.stem.startswith("_")
)
NEEDS = {
    ("model", "hf"): "model.name_or_path=some/model",
    ("data", "text"): "data.path=some.txt",
    ("data", "labelled"): "data.path=some.csv",
    ("data", "instruct"): "data.path=some.jsonl",
}


def refusal(*overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        compose_config(overrides)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def with_value(config: Config, key: str, value: object) -> Config:
    """A copy with the value of one dotted key replaced."""
    changed = copy.deepcopy(config)
    group, _, name = key.rpartition(".")
    setattr(getattr(changed, group) if group else changed, name, value)
    return changed


# --- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_of_every_group_composes(group, option):
    needed = [NEEDS[group, option]] if (group, option) in NEEDS else []
    assert isinstance(compose_config([f"{group}={option}", *needed]), Config)


@pytest.mark.parametrize("model", ["tiny", "gpt2_xl", "hf"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_has_a_recipe_on_every_model(model, variant):
    needed = [NEEDS["model", "hf"]] if model == "hf" else []
    config = compose_config([f"model={model}", f"qpa={variant}", *needed])
    assert config.qpa.variant == variant
    assert 0 < config.optim.lr < 1
    assert config.trainer.max_epochs >= 1


@pytest.mark.parametrize(
    ("experiment", "model", "corpus"),
    [
        ("gpt2_wikitext2", "gpt2", "wikitext2"),
        ("gpt2_ptb", "gpt2", "ptb"),
        ("gemma_wikitext2", "gemma", "wikitext2"),
        ("gemma_ptb", "gemma", "ptb"),
    ],
)
def test_an_experiment_is_the_papers_protocol(experiment, model, corpus):
    config = compose_config([f"experiment={experiment}"])
    assert (config.model.name, config.data.name) == (model, corpus)
    assert (config.qpa.variant, config.peft.method) == ("paper", "lora")
    assert (config.data.layout, config.data.max_length) == ("lines", 512)


def test_an_experiment_can_be_overridden():
    assert compose_config(["experiment=gpt2_ptb", "qpa=off"]).qpa.variant == "off"


def test_the_default_is_the_tuned_variant_on_the_bundled_model():
    config = compose_config([])
    assert (config.model.name, config.qpa.variant, config.data.name) == ("tiny", "tuned", "pydoc")


def test_python_and_the_command_line_mean_the_same_by_tuned():
    assert compose_config(["model=gpt2"]).qpa == QPAConfig()


def test_the_seed_of_the_run_is_the_generators():
    assert compose_config(["seed=7"]).qpa.seed == 7
    assert compose_config(["seed=7", "qpa.seed=8"]).qpa.seed == 8


VALUES = {
    "qpa": st.sampled_from([name for name in VARIANTS if name != "off"]),
    "peft": st.sampled_from(["lora", "dora"]),
    "seed": st.integers(0, 99),
    "qpa.n_mlp": st.integers(1, 4096),
    "peft.target_modules": st.sampled_from(["[lm_head]", "all-linear", "'.*attn'", ".*(q|v)_proj"]),
    "data.path": st.sampled_from(["null", "~/my texts", "o'neil/ä.txt", "a=b", "1e3"]),
    "optim.lr": st.sampled_from(["1e-3", ".5", "1.0e-02"]),
    "peft.options.n_frequency": st.integers(1, 9),
}


@settings(max_examples=25)
@given(given_=st.fixed_dictionaries({}, optional=VALUES))
def test_a_run_has_the_config_that_every_other_command_composes(given_):
    """They set single values on a copy; for a run Hydra composes all."""
    overrides = [f"{key}={value}" for key, value in given_.items()]
    found = []
    for compose in (compose_config, lambda words: compose_whole(words)[0]):
        try:
            found.append(compose(overrides))
        except InputError as error:
            found.append(str(error))
    assert found[0] == found[1]


def test_composing_does_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    here = compose_config(["model=gpt2"])
    monkeypatch.chdir(tmp_path)
    assert compose_config(["model=gpt2"]) == here
    assert not list(Path(tmp_path).iterdir())


# --- the paper's hyperparameters --------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "epochs", "dropout"), [("gpt2", 3, 0.05), ("gemma", 5, 0.0), ("gemma2", 5, 0.0)]
)
@pytest.mark.parametrize("variant", ["paper", "released", "off"])
def test_lora_is_trained_as_table_4_says(model, epochs, dropout, variant):
    config = compose_config([f"model={model}", f"qpa={variant}", "data=wikitext2"])
    assert config.trainer.max_epochs == epochs
    assert config.peft.lora_dropout == dropout
    assert config.peft.lora_alpha == 2 * config.peft.r == 8
    assert config.data.batch_size == 1
    assert config.optim.name == "adamw"
    assert config.optim.schedule == "linear"
    assert config.optim.lr == 1e-5
    assert config.optim.warmup_steps == 0


@pytest.mark.parametrize("r", [1, 2, 16])
def test_alpha_follows_the_rank(r):
    assert compose_config([f"peft.r={r}"]).peft.lora_alpha == 2 * r


@pytest.mark.parametrize(
    ("model", "n_mlp"),
    [("tiny", 64), ("gpt2", 2048), ("gpt2_xl", 2048), ("gemma", 8192), ("gemma2", 8192)],
)
def test_the_chunk_size_follows_the_model(model, n_mlp):
    config = compose_config([f"model={model}", "qpa=paper"])
    assert config.qpa.n_mlp == n_mlp
    assert (config.qpa.n_layers, config.peft.target_modules) == (8, ["lm_head"])


@pytest.mark.parametrize("corpus", ["wikitext2", "ptb"])
def test_the_papers_corpora_are_lines_of_512_tokens(corpus):
    data = compose_config([f"data={corpus}"]).data
    assert (data.layout, data.max_length) == ("lines", 512)


@pytest.mark.parametrize(
    ("variant", "switches"),
    [
        ("paper", (False, "relu", False, "fixed", False)),
        ("released", (False, "none", True, "random", True)),
        ("tuned", (True, "gelu", False, "fixed", False)),
    ],
)
def test_the_variants_differ_in_their_switches(variant, switches):
    qpa = compose_config([f"qpa={variant}"]).qpa
    assert (qpa.anchor, qpa.activation, qpa.squash, qpa.basis_order, qpa.center) == switches


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_published_variants_start_as_torch_does_and_scale_nothing(variant):
    qpa = compose_config([f"qpa={variant}"]).qpa
    assert (qpa.mapping_init, qpa.scale) == ("default", 1.0)


# --- mistakes ---------------------------------------------------------------------------------

NAN, INF = math.nan, math.inf
OUT_OF_RANGE = {
    "peft.r": [0, -1],
    "peft.lora_alpha": [0],
    "peft.lora_dropout": [1.0, -0.1, NAN],
    "peft.target_modules": [[]],
    "qpa.n_mlp": [0, -5],
    "qpa.n_layers": [0, 10_001],
    "qpa.scale": [0.0, -1.0, NAN, INF],
    "qpa.seed": [-1],
    "data.max_length": [1],
    "data.stride": [0, 129],
    "data.join": ["space"],
    "data.batch_size": [0],
    "data.eval_batch_size": [0],
    "optim.lr": [0.0, -1.0, 101.0, NAN, INF],
    "optim.eps": [0.0, -1.0, NAN, INF],
    "optim.weight_decay": [-1.0, NAN, INF],
    "optim.betas": [[0.9], [0.9, 1.0], [-0.1, 0.9], [0.9, NAN]],
    "optim.warmup_steps": [-1],
    "optim.warmup_ratio": [-0.1, 1.1, NAN],
    "trainer.patience": [0],
    "trainer.min_delta": [-1.0, NAN],
    "trainer.accelerator": ["tpu"],
    "trainer.precision": ["64"],
    "trainer.devices": [0],
    "trainer.max_epochs": [0],
    "trainer.max_steps": [0, -2],
    "trainer.accumulate_grad_batches": [0],
    "trainer.gradient_clip_val": [0.0, -1.0, NAN, INF],
    "trainer.log_every_n_steps": [0],
    "trainer.validate_every_n_steps": [0],
    "trainer.checkpoint_every_n_steps": [0],
    "trainer.limit_eval_batches": [0],
    "qpa.n_circuits": [0, -1],
    "qpa.window": [0, -1],
    "qpa.mapping_hidden": [[0], [32, -1]],
    "seed": [-1],
}


@pytest.fixture(scope="module")
def in_range():
    return compose_config([])


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in OUT_OF_RANGE.items() for value in values]
)
def test_a_value_out_of_range_is_refused_with_its_key_and_what_would_be_right(in_range, key, value):
    config = with_value(in_range, key, value)
    with pytest.raises(InputError) as caught:
        validate(config)
    sentence = str(caught.value)
    assert sentence.startswith(f"{key}={value}")
    assert "give" in sentence or "for example" in sentence
    assert "\n" not in sentence


def test_one_of_two_that_say_the_same_and_none_that_says_nothing():
    said = refusal("optim.warmup_steps=5", "optim.warmup_ratio=0.1")
    assert said.startswith("optim.warmup_ratio=0.1 stands beside optim.warmup_steps=5: give one")
    said = refusal("trainer.min_delta=0.1")
    assert said.startswith("trainer.min_delta=0.1 has no effect without trainer.patience")


@pytest.mark.parametrize("override", ["data.join=text", "data.stride=64"])
def test_lines_are_neither_joined_nor_overlap(override):
    assert refusal("data=ptb", override).startswith(
        f"{override} has no effect: data.layout=lines does not read it"
    )
    compose_config(["data=ptb", "data.layout=blocks", override])


def test_a_slice_is_written_as_datasets_does_and_a_wrong_one_is_one_sentence():
    config = compose_config(["data=ptb", "data.train_split=validation[:90%]"])
    assert config.data.train_split == "validation[:90%]"
    assert refusal("data=ptb", "data.test_split=test[:x]").startswith("data.test_split=test[:x] is")


@pytest.mark.parametrize(
    "override",
    ["seed=-1", "qpa.n_mlp=0", "peft.r=0", "optim.lr=nan", "trainer.max_steps=0", "qpa.seed=-1"],
)
def test_a_value_out_of_range_is_refused_under_the_key_that_was_given(override):
    assert refusal(override).startswith(override)


@pytest.mark.parametrize(
    ("key", "value"),
    [("seed", 0), ("qpa.n_layers", 1), ("qpa.n_layers", 10_000), ("optim.lr", 100.0)],
)
def test_the_ends_of_a_range_are_allowed(in_range, key, value):
    validate(with_value(in_range, key, value))


@pytest.mark.parametrize(
    ("override", "right"),
    [
        ("qpa.n_mlp=abc", "a whole number"),
        ("qpa.n_mlp=1.5", "a whole number"),
        ("seed=x", "a whole number"),
        ("trainer.devices=auto", "a whole number"),
        ("data.max_length=1e9", "a whole number"),
        ("optim.lr=fast", "a number"),
        ("qpa.anchor=maybe", "bool"),
        ("peft.target_modules=3", "list"),
        ("optim.betas=0.9", "list"),
        ("qpa.activation=swish", "none, relu, gelu, tanh"),
        ("qpa.variant=other", "paper, released, tuned, random, off"),
        ("qpa.backend=other", "statevector"),
        ("qpa.basis_order=other", "fixed, random"),
        ("peft.method=other", "lora"),
        ("model.dtype=float8", "float32, bfloat16, float16"),
        ("data.layout=grid", "lines, blocks"),
        ("optim.name=sgd", "adamw, cobyla, nelder_mead, spsa"),
        ("optim.schedule=exponential", "linear, cosine, constant"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_with_the_right_kind(override, right):
    sentence = refusal(override)
    assert sentence.startswith(override)
    assert right in sentence


@pytest.mark.parametrize(
    ("override", "right"),
    [
        ("model=gpt3", "gemma, gemma2, gpt2, gpt2_xl, hf, smollm2, tiny"),
        ("peft=adapter", "lora"),
        ("qpa=ours", "off, paper, random, released, tuned"),
        ("data=imdb", "instruct, labelled, ptb, pydoc, text, wikitext2"),
        ("optim=sgd", "adamw"),
        ("trainer=tpu", "cpu, ddp, gpu"),
        ("logger=print", "csv, tensorboard, wandb"),
        ("experiment=other", "gemma_ptb, gemma_wikitext2, gpt2_ptb, gpt2_wikitext2"),
    ],
)
def test_an_option_that_no_group_has_is_refused_with_those_it_has(override, right):
    sentence = refusal(override)
    assert sentence.startswith(f"{override} ")
    assert right in sentence


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("qpa.nmlp=4", "qpa.n_mlp"),
        ("qpa.n_layer=4", "qpa.n_layers"),
        ("peft.rank=4", "peft."),
        ("optim.learning_rate=1", "optim"),
        ("trainer.max_epoch=1", "trainer.max_epochs"),
        ("modle=gpt2", "model"),
        ("sed=1", "seed"),
    ],
)
def test_a_misspelt_key_is_refused_with_the_nearest(override, nearest):
    sentence = refusal(override)
    assert sentence.startswith(f"{override.split('=')[0]} is not a key")
    assert nearest in sentence


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("+new.key=1", "new"),
        ("+new=1", "new"),
        ("++new=1", "new"),
        ("+qpa.new=1", "qpa.new"),
        ("++qpa.new=1", "qpa.new"),
        ("+model.recipe.new=1", "model.recipe.new"),
    ],
)
def test_keys_cannot_be_added(override, key):
    assert refusal(override).startswith(f"{key} is not a key of the configuration")


@pytest.mark.parametrize("override", ["qpa=3", "model=null", "=3", "qpa.n_mlp", "{", "a b"])
def test_an_override_that_cannot_be_read_is_refused_by_name(override):
    assert override in refusal(override)


@pytest.mark.parametrize("override", ["qpa.n_layers=null", "seed=null", "optim.lr=null"])
def test_a_value_that_must_be_there_cannot_be_null(override):
    assert refusal(override).startswith(f"{override} is not allowed")


HF = ["model=hf", NEEDS["model", "hf"]]  # its architecture is null


@pytest.mark.parametrize(
    ("given", "override"),
    [
        (HF, "model.architecture.foo=1"),
        (HF, "model.architecture.foo.bar=1"),
        (HF, "+model.architecture.foo=1"),
        (HF, "++model.architecture.foo=1"),
        (["model.architecture=null"], "model.architecture.n_embd=8"),
        (HF, "model.architecture={foo:1}"),
    ],
)
def test_a_key_below_null_is_refused_by_name(given, override):
    key = override.strip("+").partition("=")[0]
    said = refusal(*given, override)
    assert said.startswith(f"{key} cannot be set: the table is null here")
    with pytest.raises(InputError, match=f"^{re.escape(said)}$"):
        compose_whole([*given, override])


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (plan.main, [*HF, "model.architecture.foo=1"]),
        (train.main, [*HF, "model.architecture.foo=1"]),
        (train.main, ["-m", *HF, "model.architecture.foo=1"]),
        (train.main, ["-m", *HF, "model.architecture.foo=1,2"]),
        (train.main, ["--cfg", "job", *HF, "model.architecture.foo=1"]),
    ],
)
def test_so_does_every_command(main, words, refusal, tmp_path):
    said = refusal(main, words, tmp_path)
    assert said.startswith("error: model.architecture.foo cannot be set: the table is")
    assert not list(tmp_path.iterdir())


def test_a_run_that_goes_on_says_so_too():
    with pytest.raises(InputError, match=r"^model\.architecture\.foo cannot be set"):
        with_values(compose_config(HF), ["model.architecture.foo=1"])


@pytest.mark.parametrize(
    ("overrides", "key"), [(["model=hf"], "model.name_or_path=<"), (["data=text"], "data.path=<")]
)
def test_a_value_that_is_missing_is_asked_for(overrides, key):
    assert f"{key}" in refusal(*overrides)


@pytest.mark.parametrize("override", ["~qpa", "~qpa.n_mlp", "~model"])
def test_nothing_can_be_taken_away(override):
    assert override.lstrip("~") in refusal(override)


def test_known_keys_reach_every_level():
    assert {"seed", "qpa", "qpa.n_mlp", "model.recipe.lr", "trainer.precision"} <= set(known_keys())


# --- what is typed means what it says ---------------------------------------------------------


@settings(max_examples=60)
@given(st.text(st.sampled_from("0123456789e_.+-xtrufalsn/"), min_size=1))
def test_a_name_that_looks_like_a_number_is_a_name(name):
    assume(name != "null")
    assert compose_config(["data=text", f"data.path={name}"]).data.path == name


@pytest.mark.parametrize("order", [1, -1])
def test_an_override_by_force_is_an_override(order):
    later = ["seed=1", "++seed=2", "seed=3", "++qpa.n_mlp=32", "qpa.n_mlp=64"][::order]
    config = compose_config(later)
    assert (config.seed, config.qpa.n_mlp) == ((3, 64) if order == 1 else (1, 32))
    assert with_values(config, ["++trainer.max_epochs=9"]).trainer.max_epochs == 9
    assert compose_whole(later)[0] == config


@pytest.mark.parametrize("override", ["+seed=3", "+trainer.max_epochs=3"])
def test_a_key_that_is_there_cannot_be_added(override):
    assert refusal(override).startswith(f"{override.partition('=')[0]} adds a key, and this one is")


NAMES = ["ü", "o'neil", "p(1)", "my run", "a,b", "1e3", "$x", "'quoted'"]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_continued_whatever_its_name(name, monkeypatch):
    resumed = []
    monkeypatch.setattr(
        "qpa_exp.runs.train.resume", lambda run_dir, config: resumed.append(run_dir)
    )
    train.main([f"resume={name}"])
    assert resumed == [Path(name.strip("'"))]


def test_a_path_may_lead_upwards():
    given = ["init_from=../run", "data=text", "data.path=../a.txt"]
    for config in (compose_config(given), compose_whole(given)[0]):
        assert (config.init_from, config.data.path) == ("../run", "../a.txt")


@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir", "hydra.sweeper.records"])
@pytest.mark.parametrize("name", ["~/x y", "a,b", "ü(1)"])
def test_a_place_is_where_it_was_typed(key, name):
    placed = train.place_as_typed(f"{key}={name}")
    value = OverridesParser.create().parse_override(placed).value()
    assert str(value).strip("'") == str(Path(name).expanduser())
    assert train.place_as_typed(placed) == placed


@pytest.mark.parametrize("flags", [["-m"], ["--config-dir", "."], ["--run"]])
def test_a_run_is_not_begun_where_one_was_to_be_continued(flags, refusal, tmp_path):
    said = refusal(train.main, [*flags, "resume=run"], tmp_path)
    assert said.startswith("error: resume=run goes on with that run: give it to qpa-exp train")


def test_a_directory_of_configs_makes_an_ordinary_run(refusal, tmp_path):
    """As without it: what is refused leaves nothing, and paths may have any name."""
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "x.yaml").write_text(
        "# @package _global_\nqpa: {n_mlp: 32}\n"
    )
    given = ["--config-dir", "mine", "experiment=x", "data=text", "hydra.run.dir=out/run"]
    said = refusal(train.main, [*given, "data.path=ä b.txt"], tmp_path)
    assert said == "error: data.path=ä b.txt does not exist.\n"
    assert [place.name for place in tmp_path.iterdir()] == ["mine"]
    config, _ = compose_whole(["experiment=x"], "config", str(tmp_path / "mine"))
    assert config.qpa.n_mlp == 32
