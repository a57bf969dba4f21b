"""Configuration: presets, precedence, and that every mistake is answered by field, value and remedy."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from common.config import InnerConfig, NetworkConfig, RelaxationConfig, SpaceConfig, StudyConfig, validate
from common.errors import InvalidInputError, NotFoundError
from common.loading import load, preset_names
from common.meta.prior import initial_prior
from common.space.primitives import PRIMITIVES, PROFILES
from common.space.topology import Topology


def load_smoke(*overrides, **environment):
    return load("smoke", overrides, {f"METASEARCH_SET_{name}": value for name, value in environment.items()})


@pytest.fixture
def study_file(tmp_path):
    path = tmp_path / "study.toml"

    def write(text):
        path.write_text(text, "utf-8")
        return path

    return write


# Presets and files


def test_kinds_of_cell_have_one_order_however_they_are_written():
    written = {"space": {"cell_kinds": {"reduction": 2, "normal": 1}}}
    assert list(validate(written).space.cell_kinds) == ["normal", "reduction"]


def test_the_presets_are_listed_by_name():
    assert preset_names() == (
        *("architecture", "demo", "few_shot", "few_shot_smoke", "maml", "mini_imagenet", "paper", "paper_smoke"),
        *("reptile", "single_path", "smoke"),
    )


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid_and_survives_json(name):
    config = load(name, environment={})
    assert validate(json.loads(config.to_json())) == config


def test_paper_preset_is_the_papers_meta_training():
    config = load("paper", environment={})
    assert config.rounds == 130
    assert sum(family.tasks_per_round for family in config.families) == 24
    assert {family.image_size: family.num_ways for family in config.families} == {32: 10, 64: 10, 224: 10}
    assert config.network.heads == {32: 2, 64: 2, 224: 8}
    assert config.relaxation.kind == "gumbel"


def test_defaults_are_a_valid_study():
    assert validate({}) == StudyConfig()
    assert len(StudyConfig().families) == 1


def test_a_file_gives_its_values_and_the_defaults_the_rest(study_file):
    config = load(study_file('rounds = 7\n[inner]\nsteps = 3\n[space]\nprofile = "darts"\n'), environment={})
    assert (config.rounds, config.inner.steps, config.space.profile) == (7, 3, "darts")
    assert config.adapt == InnerConfig()


def test_a_file_may_be_named_by_text_or_path(study_file):
    path = study_file("rounds = 7\n")
    assert load(str(path), environment={}) == load(path, environment={})


def test_a_file_that_starts_from_a_preset_changes_only_what_it_names(study_file):
    smoke = load_smoke()
    config = load(study_file('preset = "smoke"\n[inner.theta]\nlr = 0.5\n'), environment={})
    assert config.inner.theta.lr == 0.5
    assert config.inner.theta.weight_decay == smoke.inner.theta.weight_decay == 0.0
    assert config.model_copy(update={"inner": smoke.inner}) == smoke


def test_a_list_in_a_file_replaces_that_of_its_preset(study_file):
    config = load(
        study_file('preset = "smoke"\n[[families]]\nimage_size = 16\n[[families]]\nimage_size = 16\nnum_ways = 5\n'),
        environment={},
    )
    assert [family.num_ways for family in config.families] == [10, 5]


def test_a_preset_wins_over_a_file_of_the_same_name(tmp_path, monkeypatch):
    (tmp_path / "smoke").write_text("rounds = 99", "utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_smoke().rounds == 3


@pytest.mark.parametrize("name", ["smok", "no/such/file.toml", ".", ""])
def test_a_missing_file_is_answered_with_the_presets(name):
    with pytest.raises(NotFoundError, match=rf"no preset or file '{name}'; presets are {', '.join(preset_names())}"):
        load(name, environment={})


@pytest.mark.parametrize("base", ['"nope"', "3", '["demo"]'])
def test_a_file_with_an_unknown_preset_is_answered_with_the_presets(study_file, base):
    with pytest.raises(
        NotFoundError, match=r"study\.toml starts from preset .*; presets are architecture, demo, few_shot"
    ):
        load(study_file(f"preset = {base}"), environment={})


def test_a_file_that_is_not_toml_is_named_with_the_place(study_file):
    with pytest.raises(InvalidInputError, match=r"study\.toml is not a TOML file: .*line 2"):
        load(study_file("rounds = 3\n[inner\n"), environment={})


def test_a_binary_file_is_named(tmp_path):
    path = tmp_path / "prior.safetensors"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInputError, match=r"prior\.safetensors is not a TOML file"):
        load(path, environment={})


def test_a_mistake_in_a_file_is_found(study_file):
    with pytest.raises(InvalidInputError, match=r"configuration: inner\.stps: no such field; check the spelling"):
        load(study_file("[inner]\nstps = 3\n"), environment={})


# Precedence


def test_file_beats_preset_environment_beats_file_and_flag_beats_environment(study_file):
    path = study_file('preset = "smoke"\nrounds = 20\nseed = 20\n[inner]\nsteps = 20\n')
    environment = {"METASEARCH_SET_SEED": "30", "METASEARCH_SET_INNER__STEPS": "30"}
    config = load(path, ["inner.steps=40"], environment)
    assert config.adapt.steps == 4  # preset
    assert config.rounds == 20  # file
    assert config.seed == 30  # environment
    assert config.inner.steps == 40  # flag


def test_the_last_of_two_flags_wins():
    assert load_smoke("inner.steps=5", "inner.steps=6").inner.steps == 6


def test_the_process_environment_is_read_where_none_is_given(monkeypatch):
    monkeypatch.setenv("METASEARCH_SET_INNER__STEPS", "17")
    assert load("smoke").inner.steps == 17
    assert load("smoke", environment={}).inner.steps == 2


def test_other_environment_variables_are_ignored():
    config = load("smoke", environment={"METASEARCH_LOG": "x", "INNER__STEPS": "9", "METASEARCH_SETTING": "1"})
    assert config == load_smoke()


def test_an_environment_variable_reaches_into_lists_and_tables():
    config = load_smoke(FAMILIES__0__DATA__SOURCE="glyphs", INNER__THETA__LR="0.25")
    assert (config.families[0].data.source, config.inner.theta.lr) == ("glyphs", 0.25)


def test_loading_leaves_presets_unchanged():
    before = load_smoke()
    load_smoke("families.0.num_ways=7", "network.heads.32=2", "inner.steps=9")
    assert load_smoke() == before


# Values of --set


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("inner.steps=5", lambda c: c.inner.steps, 5),
        (" inner.steps = 5 ", lambda c: c.inner.steps, 5),
        ("inner.theta.lr=1e-2", lambda c: c.inner.theta.lr, 0.01),
        ("inner.clip_norm=1", lambda c: c.inner.clip_norm, 1.0),
        ("space.profile=base+", lambda c: c.space.profile, "base+"),
        ('space.profile="base+"', lambda c: c.space.profile, "base+"),
        ("inner.augment.flip=true", lambda c: c.inner.augment.flip, True),
        ("families.0.num_ways=4", lambda c: c.families[0].num_ways, 4),
        ("families.0.data.source=/data/a=b.zip", lambda c: c.families[0].data.source, "/data/a=b.zip"),
        ("inner.augment={ crop_padding = 2 }", lambda c: c.inner.augment.crop_padding, 2),
        ('network.cells=["reduction", "normal"]', lambda c: c.network.cells, ("reduction", "normal")),
        ("network.heads.64=4", lambda c: c.network.heads, {16: 4, 64: 4}),
        ("network.heads={ 16 = 2, 64 = 4 }", lambda c: c.network.heads, {16: 2, 64: 4}),
        ("space.primitives=['none', 'skip_connect']", lambda c: c.space.ops, ("none", "skip_connect")),
        ("inner.op_penalty.skip_connect=0.5", lambda c: c.inner.op_penalty, {"skip_connect": 0.5}),
    ],
)
def test_set_takes_toml_values_and_bare_words(override, read, expected):
    assert read(load_smoke()) != expected
    assert read(load_smoke(override)) == expected


def test_set_reaches_single_elements_of_a_list():
    config = load_smoke("network.cells=['normal', 'normal', 'reduction']", "network.cells.0=reduction")
    assert config.network.cells == ("reduction", "normal", "reduction")


@pytest.mark.parametrize("override", ["inner.steps", "=5", "", "="])
def test_set_without_field_or_value_is_refused_with_an_example(override):
    with pytest.raises(InvalidInputError, match=r"--set takes FIELD=VALUE, for example inner\.steps=5, got '"):
        load_smoke(override)


@pytest.mark.parametrize("part", ["1", "-1", "x", "²"])
def test_a_list_element_that_does_not_exist_is_refused_with_those_that_do(part):
    with pytest.raises(InvalidInputError, match=rf"--set families\.{part}\.num_ways=3: families has elements 0 to 0"):
        load_smoke(f"families.{part}.num_ways=3")


def test_an_element_of_the_environment_that_does_not_exist_names_the_variable():
    with pytest.raises(InvalidInputError, match="METASEARCH_SET_FAMILIES__4__NUM_WAYS: families has elements 0 to 0"):
        load_smoke(FAMILIES__4__NUM_WAYS="3")


def test_a_field_of_a_plain_value_is_refused():
    with pytest.raises(InvalidInputError, match=r"inner\.steps is a value, it has no field 'x'"):
        load_smoke("inner.steps.x=3")


def test_a_value_with_a_line_break_sets_nothing_else():
    with pytest.raises(InvalidInputError, match=r"inner\.steps: Input should be a valid integer"):
        load_smoke("inner.steps=1\nother=3")


# Mistakes: each is one InvalidInputError with field, value and remedy


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stepz=3", ["stepz: no such field; check the spelling", "got 3"]),
        ("inner.theta.lrr=3", ["inner.theta.lrr: no such field", "got 3"]),
        ("families.0.size=3", ["families.0.size: no such field", "got 3"]),
        ("families.0.data.folder=x", ["families.0.data.folder: no such field", "got 'x'"]),
        ("inner=5", ["inner: Input should be a valid dictionary", "got 5"]),
        ("families=[]", ["families", "at least 1 item"]),
        ("families=5", ["families: Input should be a valid tuple", "got 5"]),
        ("seed=-1", ["seed", "greater than or equal to 0", "got -1"]),
        ("rounds=0", ["rounds", "greater than or equal to 1", "got 0"]),
        ("rounds=1.5", ["rounds", "valid integer", "got 1.5"]),
        ("rounds=many", ["rounds", "valid integer", "got 'many'"]),
        ("space.profile=dart", ["space.profile", "'darts', 'base' or 'base+'", "got 'dart'"]),
        ("space.num_nodes=0", ["space.num_nodes", "greater than or equal to 1", "got 0"]),
        ("space.num_nodes=17", ["space.num_nodes", "less than or equal to 16", "got 17"]),
        ("space.normalisation=cell", ["space.normalisation", "'edge' or 'node'", "got 'cell'"]),
        ("space.primitives=['none', 'conv_9x9']", ["space.primitives", "'conv_9x9'", *PRIMITIVES]),
        ("space.primitives=['none', 'none']", ["space.primitives: an op is listed twice; remove one"]),
        ("space.primitives=['none']", ["space.primitives: list at least one op beside none"]),
        ("space.primitives=[]", ["space.primitives: list at least one op beside none"]),
        ("space.cell_kinds={}", ["space.cell_kinds: name at least one kind of cell"]),
        ("space.cell_kinds={normal = 3}", ["space.cell_kinds.normal: Input should be 1 or 2", "got 3"]),
        ("network.channels=3", ["network.channels", "multiple of 2", "got 3"]),
        ("network.channels=0", ["network.channels", "greater than or equal to 2", "got 0"]),
        ("network.cells=[]", ["network.cells: list at least one cell"]),
        ("network.image_channels=2", ["network.image_channels", "1 or 3", "got 2"]),
        ("network.heads={}", ["network.heads: register at least one image size, for example {32 = 2}"]),
        ("network.heads={16 = 3}", ["network.heads: head 16 has stride 3; use a power of two from 1 to the image"]),
        ("network.heads={16 = 32}", ["head 16 has stride 32; use a power of two from 1 to the image size"]),
        ("network.heads={16 = 0}", ["head 16 has stride 0; use a power of two"]),
        ("network.heads={16 = -2}", ["head 16 has stride -2; use a power of two"]),
        ("network.heads={0 = 1}", ["head 0 has stride 1; use a power of two from 1 to the image size"]),
        ("network.heads={big = 2}", ["network.heads.big", "valid integer", "got 'big'"]),
        ("relaxation.kind=soft", ["relaxation.kind", "'softmax', 'straight_through' or 'single_path'", "got 'soft'"]),
        ("relaxation.hard_kind=gumbel", ["relaxation.hard_kind", "'straight_through' or 'single_path'", "'gumbel'"]),
        ("outer.theta_average=ops", ["outer.theta_average", "'tasks', 'users' or 'uses'", "got 'ops'"]),
        ("relaxation.tau_start=0", ["relaxation.tau_start", "greater than 0", "got 0"]),
        ("relaxation.hard_after_round=-1", ["relaxation.hard_after_round", "greater than or equal to 0", "got -1"]),
        ("inner.steps=0", ["inner.steps", "greater than or equal to 1", "got 0"]),
        ("inner.batch_size=1", ["inner.batch_size", "greater than or equal to 2", "got 1"]),
        ("inner.theta.lr=0", ["inner.theta.lr", "greater than 0", "got 0"]),
        ("inner.theta.lr=1e30", ["inner.theta.lr", "less than or equal to 1000", "got 1e+30"]),
        ("inner.theta.lr=nan", ["inner.theta.lr", "finite", "got nan"]),
        ("inner.theta.lr=inf", ["inner.theta.lr", "finite", "got inf"]),
        ("inner.theta.momentum=1.5", ["inner.theta.momentum", "less than or equal to 1", "got 1.5"]),
        ("inner.alpha.lr=-1", ["inner.alpha.lr", "greater than or equal to 0", "got -1"]),
        ("inner.alpha.betas=[0.5]", ["inner.alpha.betas.1", "required"]),
        ("inner.clip_norm=0", ["inner.clip_norm", "greater than 0", "got 0"]),
        (
            "inner.relaxation=soft",
            ["inner.relaxation", "'softmax', 'straight_through' or 'single_path'", "'prior'", "'soft'"],
        ),
        ("inner.level=tri", ["inner.level", "'single' or 'bilevel'", "got 'tri'"]),
        ("inner.op_penalty.conv=1", ["inner.op_penalty: unknown op 'conv'; use ops out of", *PRIMITIVES]),
        ("inner.op_penalty.none=-1", ["inner.op_penalty.none", "greater than or equal to 0", "got -1"]),
        ("inner.augment.crop_padding=-1", ["inner.augment.crop_padding", "greater than or equal to 0", "got -1"]),
        ("adapt.weights=gaussian", ["inner.weights and adapt.weights must agree"]),
        ("adapt.gaussian_scale=element", ["inner.weights and adapt.weights must agree (gaussian_scale too)"]),
        ("outer.rule=max", ["outer.rule", "'mean', 'clipped_mean', 'median' or 'trimmed_mean'", "got 'max'"]),
        ("outer.alpha_rate=1.1", ["outer.alpha_rate", "less than or equal to 1", "got 1.1"]),
        ("outer.trim_fraction=0.5", ["outer.trim_fraction", "less than 0.5", "got 0.5"]),
        ("families.0.num_ways=1", ["families.0.num_ways", "greater than or equal to 2", "got 1"]),
        ("families.0.data.source=''", ["families.0.data.source", "at least 1 character", "got ''"]),
        ("families.0.image_size=20", ["image_size 20", "network.heads has 16", "network.heads.20 = 2"]),
        ("network.cells=['normal', 'stem']", ["network.cells names 'stem'; space.cell_kinds has normal, reduction"]),
        ("network.cells=['normal']", ["space.cell_kinds has 'reduction'", "remove it"]),
        ("checkpoint.keep_last=0", ["checkpoint.keep_last", "greater than or equal to 1", "got 0"]),
        ("cluster.task_timeout_s=0", ["cluster.task_timeout_s", "greater than 0", "got 0"]),
    ],
)
def test_a_mistake_is_answered_with_field_value_and_remedy(override, said):
    with pytest.raises(InvalidInputError) as caught:
        load_smoke(override)
    message = str(caught.value)
    assert message.startswith("configuration: ")
    assert "\n" not in message
    assert "Value error" not in message
    for part in said:
        assert part in message


@pytest.mark.parametrize("rule", ["median", "trimmed_mean"])
def test_a_rule_without_weights_is_refused_beside_a_weighting(rule):
    with pytest.raises(InvalidInputError, match=rf"outer: rule '{rule}' has no weights; set outer\.weighting to 'unif"):
        load_smoke(f"outer.rule={rule}", "outer.weighting=examples")
    assert load_smoke(f"outer.rule={rule}").outer.rule == rule
    assert load_smoke("outer.rule=clipped_mean", "outer.weighting=examples").outer.weighting == "examples"


@pytest.mark.parametrize("average", ["users", "uses"])
def test_differences_are_divided_by_use_only_where_they_are_summed_as_points(average):
    with pytest.raises(
        InvalidInputError, match=r"outer: rule 'median' is no sum to divide by.*theta_average to 'tasks'"
    ):
        load_smoke("outer.rule=median", f"outer.theta_average={average}")
    gaussian = ["inner.weights=gaussian", "adapt.weights=gaussian"]
    with pytest.raises(
        InvalidInputError, match=r"theta_average '\w+' knows no standard deviations; set inner\.weights"
    ):
        load_smoke(*gaussian, f"outer.theta_average={average}")
    assert load_smoke(*gaussian).outer.theta_average == "tasks"


def test_trials_need_logits_that_add_up_and_sources_that_compete():
    trials = "outer.alpha_trials={steps = 5}"
    with pytest.raises(InvalidInputError, match=r"outer: alpha_trials moves logits, .*alpha_average to 'logits'"):
        load_smoke(trials)
    with pytest.raises(InvalidInputError, match=r"alpha_trials chooses sources too, .*normalisation to 'node'"):
        load_smoke(trials, "outer.alpha_average=logits", "space.normalisation=edge")
    config = load_smoke(trials, "outer.alpha_average=logits", "space.normalisation=node")
    assert config.outer.alpha_trials is not None
    assert config.outer.alpha_trials.steps == 5


def test_a_round_has_no_more_tasks_than_exact_sums_have_room_for():
    assert load_smoke("families.0.tasks_per_round=4096").tasks_per_round == 4096
    with pytest.raises(InvalidInputError, match=r"4,097 tasks per round together, .* 4,096; lower tasks_per_round"):
        load_smoke("families.0.tasks_per_round=4097")


def test_all_mistakes_are_named_at_once():
    with pytest.raises(InvalidInputError, match=r"rounds: .*\(got 0\); inner\.steps: .*\(got 0\); outer\.x: no such"):
        load_smoke("rounds=0", "inner.steps=0", "outer.x=1")


def test_a_rejected_tree_is_not_repeated_in_the_message():
    with pytest.raises(InvalidInputError) as caught:
        validate({"space": {"num_nodes": 2}, "nosuch": {"deep": [1, 2, 3]}})
    assert str(caught.value) == "configuration: nosuch: no such field; check the spelling"


def test_a_mistake_hides_where_it_came_from_inside():
    with pytest.raises(InvalidInputError) as caught:
        validate({"rounds": 0})
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


# Values


def test_a_configuration_cannot_be_changed():
    config = load_smoke()
    with pytest.raises(ValidationError, match="frozen"):
        config.rounds = 5
    with pytest.raises(ValidationError, match="frozen"):
        config.inner.theta.lr = 5.0


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_ops_are_those_of_the_profile(profile):
    assert SpaceConfig(profile=profile).ops == PROFILES[profile]


def test_profiles_extend_each_other():
    darts, base, base_plus = (PROFILES[name] for name in ("darts", "base", "base+"))
    assert (len(darts), len(base), len(base_plus)) == (8, 9, 10)
    assert base[:8] == darts
    assert base_plus[:9] == base


def test_an_own_list_of_ops_takes_the_place_of_the_profile_in_its_order():
    space = SpaceConfig(profile="darts", primitives=("skip_connect", "none"))
    assert space.ops == ("skip_connect", "none")


def test_topology_has_the_nodes_of_the_space():
    assert SpaceConfig(num_nodes=3).topology == Topology(3)


def test_default_network_is_the_darts_search_network():
    network = NetworkConfig()
    assert network.channels == 16
    assert [index for index, kind in enumerate(network.cells) if kind == "reduction"] == [2, 5]
    assert len(network.cells) == 8


def test_more_than_two_kinds_of_cell_are_allowed():
    tree = {
        "space": {"cell_kinds": {"early": 1, "down": 2, "late": 1}},
        "network": {"cells": ["early", "down", "late"]},
    }
    assert validate(tree).space.cell_kinds == {"early": 1, "down": 2, "late": 1}


@given(st.integers(0, 10**6), st.integers(1, 10**6), st.floats(1e-6, 1e3), st.sampled_from(sorted(PROFILES)))
def test_json_round_trip(seed, rounds, lr, profile):
    config = validate({"seed": seed, "rounds": rounds, "inner": {"theta": {"lr": lr}}, "space": {"profile": profile}})
    text = config.to_json()
    assert validate(json.loads(text)) == config
    assert validate(json.loads(text)).to_json() == text


def test_json_spells_out_defaults_with_sorted_keys():
    tree = json.loads(StudyConfig().to_json())
    assert tree["inner"]["theta"]["lr"] == 0.025
    assert tree["network"]["heads"] == {"32": 2, "64": 2, "224": 8}
    assert list(tree) == sorted(tree)


def test_equal_configurations_give_equal_json_whatever_the_order_of_their_fields():
    a = validate({"network": {"heads": {"32": 2, "16": 4}, "channels": 8}, "rounds": 2})
    b = validate({"rounds": 2, "network": {"channels": 8, "heads": {16: 4, 32: 2}}})
    assert a == b
    assert a.to_json() == b.to_json()


def test_kinds_of_cell_have_one_order_whatever_order_they_are_written_in():
    written = validate({"space": {"cell_kinds": {"reduction": 2, "normal": 1}}})
    assert list(written.space.cell_kinds) == list(SpaceConfig().cell_kinds) == ["normal", "reduction"]
    assert initial_prior(written).digest() == initial_prior(StudyConfig()).digest()


# Relaxation schedule


def test_temperature_falls_exponentially_from_the_first_to_the_last_version():
    schedule = RelaxationConfig(kind="gumbel", tau_start=4.0, tau_end=1.0)
    assert [schedule.at(version, 5)[1] for version in range(5)] == pytest.approx(
        [4.0, 4 / 2**0.5, 2.0, 2**0.5, 1.0], rel=1e-12
    )


def test_temperature_stays_at_its_end_after_the_last_round():
    schedule = RelaxationConfig(tau_start=4.0, tau_end=1.0)
    assert schedule.at(5, 5)[1] == pytest.approx(1.0)
    assert schedule.at(500, 5)[1] == pytest.approx(1.0)


def test_a_study_of_one_round_starts_at_the_start_temperature():
    schedule = RelaxationConfig(tau_start=4.0, tau_end=1.0)
    assert schedule.at(0, 1)[1] == pytest.approx(4.0)
    assert schedule.at(1, 1)[1] == pytest.approx(1.0)


def test_relaxation_turns_hard_from_the_given_round_on():
    schedule = RelaxationConfig(kind="gumbel", hard_after_round=2)
    assert [schedule.at(version, 5)[0] for version in range(4)] == [
        "gumbel",
        "gumbel",
        "straight_through",
        "straight_through",
    ]
    assert RelaxationConfig(kind="softmax").at(100, 5)[0] == "softmax"
    assert RelaxationConfig(kind="softmax", hard_after_round=0).at(0, 5)[0] == "straight_through"
    single = RelaxationConfig(hard_after_round=1, hard_kind="single_path")
    assert [single.at(version, 5)[0] for version in range(3)] == ["gumbel", "single_path", "single_path"]
