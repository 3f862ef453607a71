"""Plans as TOML files: what they say, what they refuse, and that a written one reads back the same."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.errors import ConfigError, CorruptFileError, FileError
from latentloom.steering.capture import BlockActivations, save_activations
from latentloom.steering.control.files import save_control
from latentloom.steering.control.vector import ControlVector
from latentloom.steering.plan import (
    ActivationsPayload,
    DirectionPayload,
    Plan,
    PlanePayload,
    PromptPayload,
    RowsPayload,
    Site,
)
from latentloom.steering.plan_file import (
    OperationConfig,
    PlanConfig,
    build_plan,
    load_plan_config,
    plan_to_toml,
    resolve_paths,
)
from latentloom.storage import save_object
from latentloom.tensors import TextEmbeddings

N, D, T = 6, 8, 4
RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("steer_*.toml"))


def encode(prompts: list[str]) -> TextEmbeddings:
    """A stand-in for a text encoder: as many tokens as words, each the word's length."""
    return TextEmbeddings.from_list(
        [torch.tensor([[float(len(word))] * T for word in text.split()]).view(-1, T) for text in prompts]
    )


def control(seed: int = 0, windows: tuple = ((0.0, 0.5), (0.5, 1.0)), site: Site = "hidden_states", blocks: int = N):
    directions = torch.randn(len(windows), blocks, D, generator=torch.Generator().manual_seed(seed))
    return ControlVector(site, directions, "micro", windows)


@pytest.fixture
def plan_of(tmp_path):
    """The plan of a TOML text in a folder with one file of every kind."""
    save_object(tmp_path / "text.safetensors", encode(["a bb"]))
    save_object(tmp_path / "rows.safetensors", TextEmbeddings.from_list([torch.ones(3, D)]))
    save_control(tmp_path / "v.safetensors", control())
    save_control(tmp_path / "w.safetensors", control(1))
    save_control(tmp_path / "whole.gguf", control(2, ((0.0, 1.0),)))
    save_control(tmp_path / "deep.safetensors", control(blocks=30))
    save_activations(
        tmp_path / "a.safetensors", BlockActivations({b: torch.ones(1, 5, D) for b in (1, 2)}, "hidden_states", 500.0)
    )

    def build(text: str) -> Plan:
        (tmp_path / "plan.toml").write_text(text)
        return build_plan(load_plan_config(tmp_path / "plan.toml"), N, encode, tmp_path)

    return build


def test_an_operation_says_where_how_when_and_on_what(plan_of):
    (operation,) = plan_of(
        '[[operations]]\nsite = "hidden_states"\nmethod = "lerp"\nblocks = "2-4"\nstrength = "0.2..1"\nside = "both"\n'
        'window = [0.25, 0.75]\ntokens = [1, 3]\nprompt = "a bb ccc"'
    ).operations
    assert (operation.site, operation.method, operation.side) == ("hidden_states", "lerp", "both")
    assert operation.strengths == pytest.approx((0, 0, 0.2, 0.6, 1, 0))
    assert (operation.window, operation.tokens) == ((0.25, 0.75), (1, 3))
    assert isinstance(operation.payload, PromptPayload)
    assert operation.payload.text.tokens[:, 0].tolist() == [1, 2, 3]


def test_what_is_left_out_follows_from_the_payload(plan_of):
    operations = plan_of(
        '[[operations]]\nprompt = "a"\n[[operations]]\nprompts = ["a", "b c"]\n[[operations]]\n'
        'embeddings = "text.safetensors"\n[[operations]]\nembeddings = "rows.safetensors"\nspace = "model"\n'
        '[[operations]]\nactivations = "a.safetensors"\nblocks = "1,2"\n[[operations]]\nvector = "whole.gguf"\n'
    ).operations
    assert [(each.site, each.method, type(each.payload)) for each in operations] == [
        ("context", "lerp", PromptPayload),
        ("context", "lerp", PromptPayload),
        ("context", "lerp", PromptPayload),
        ("context", "lerp", RowsPayload),
        ("hidden_states", "lerp", ActivationsPayload),
        ("hidden_states", "add", DirectionPayload),
    ]
    assert operations[0].strengths == (1.0,) * N
    assert len(operations[1].payload.text) == 2


def test_a_vector_is_one_operation_per_window_within_the_operations_own(plan_of):
    both = plan_of('[[operations]]\nvector = "v.safetensors"\nstrength = 2.0\nblocks = "0-1"').operations
    assert [each.window for each in both] == [(0.0, 0.5), (0.5, 1.0)]
    assert both[0].strengths == (2.0, 2.0, 0, 0, 0, 0)
    for index, operation in enumerate(both):
        assert isinstance(operation.payload, DirectionPayload)
        assert torch.equal(operation.payload.vectors, control().directions[index])
    cut = plan_of('[[operations]]\nvector = "v.safetensors"\nmethod = "ablate"\nwindow = [0.2, 0.5]\ntokens = "all"')
    assert [(each.window, each.method, each.tokens) for each in cut.operations] == [((0.2, 0.5), "ablate", "all")]


def test_two_vectors_span_a_plane_and_a_block_that_one_leaves_alone_stays(plan_of, tmp_path):
    directions = control().directions.clone()
    directions[0, 3] = 0
    save_control(tmp_path / "gap.safetensors", ControlVector("hidden_states", directions, "micro", control().windows))
    first, second = plan_of('[[operations]]\nfirst = "gap.safetensors"\nsecond = "w.safetensors"').operations
    assert (first.method, first.strengths, second.strengths) == ("rotate", (1, 1, 1, 0, 1, 1), (1,) * N)
    assert isinstance(first.payload, PlanePayload)
    assert torch.equal(first.payload.first[:3], directions[0, :3])
    assert torch.equal(first.payload.second[4:], control(1).directions[0, 4:])


def test_a_prompt_that_two_operations_share_is_encoded_once():
    asked: list[list[str]] = []

    def counted(prompts: list[str]) -> TextEmbeddings:
        asked.append(prompts)
        return encode(prompts)

    sites = ("context", "hidden_states")
    build_plan(PlanConfig(operations=tuple(OperationConfig(site=site, prompt="a b") for site in sites)), N, counted)
    assert asked == [["a b"]]


PROMPT = '[[operations]]\nprompt = "a"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the plan has no operation"),
        ("operations = []", "the plan has no operation"),
        (f"num_blocks = 30\n{PROMPT}", "the plan is for a model of 30 blocks and this one has 6"),
        (f"{PROMPT}strenght = 1.0", "unknown setting 'operations.strenght'; the nearest is 'operations.strength'"),
        (f"depth = 3\n{PROMPT}", "unknown setting 'depth'"),
        ("[[operations]]\nblocks = 'all'", "none given; an operation has one payload"),
        (f"{PROMPT}vector = 'v.safetensors'", "prompt and vector given; an operation has one payload"),
        ("[[operations]]\nfirst = 'v.safetensors'", "a plane needs two vectors"),
        (f"{PROMPT}second = 'v.safetensors'", "a plane needs two vectors"),
        (f"{PROMPT}space = 'model'", "space is said of embeddings"),
        ("[[operations]]\nprompts = []", "operations.0.prompts"),
        (f"{PROMPT}blocks = '0-9'", "this model has 6 blocks"),
        (f"{PROMPT}blocks = 'lateish'", "blocks 'lateish' are not understood"),
        (f"{PROMPT}strength = 1.5", "strength 1.5 of lerp in block 0 is out of range; use 0 to 1"),
        (f"{PROMPT}strength = nan", "strength nan of lerp"),
        (f"{PROMPT}strength = '0.1,0.2'", "2 strengths for 6 blocks"),
        (f"{PROMPT}strength = true", "operations.0.strength"),
        (f"{PROMPT}method = 'replace'\nstrength = 0.5", "use 0 or 1"),
        (f"{PROMPT}method = 'rotate'", "rotate on context was given PromptPayload"),
        (f"{PROMPT}site = 'keys'", "operations.0.site = 'keys'"),
        (f"{PROMPT}window = [0.5, 0.5]", "window (0.5, 0.5)"),
        (f"{PROMPT}window = [0.0, 0.5, 1.0]", "operations.0.window"),
        (f"{PROMPT}tokens = [3, 1]", "tokens (3, 1)"),
        (f"{PROMPT}{PROMPT}strength = -1", "operation 2: strength -1.0 of lerp"),
        ("[[operations]]\nvector = 'v.safetensors'\nsite = 'context'", "is of site hidden_states"),
        ("[[operations]]\nvector = 'v.safetensors'\nmethod = 'lerp'", "takes no control vector"),
        ("[[operations]]\nvector = 'v.safetensors'\nwindow = [0.5, 2.0]", "both from 0 to 1"),
        ("[[operations]]\nvector = 'deep.safetensors'", "is for a model of 30 blocks, not 6"),
        ("[[operations]]\nfirst = 'v.safetensors'\nsecond = 'whole.gguf'", "differ in site, windows or width"),
        ("[[operations]]\nactivations = 'a.safetensors'", "has no activations of block 0; it has blocks 1, 2"),
    ],
)
def test_a_mistake_is_told_in_one_line(plan_of, text, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        plan_of(text)
    assert "\n" not in str(error.value)


def test_a_window_that_holds_nothing_of_the_vector_is_refused(plan_of, tmp_path):
    save_control(tmp_path / "early.safetensors", control(windows=((0.0, 0.3),)))
    with pytest.raises(ConfigError, match="holds nothing of"):
        plan_of("[[operations]]\nvector = 'early.safetensors'\nwindow = [0.5, 1.0]")


def test_files_that_are_missing_of_another_kind_or_not_finite_are_refused(plan_of, tmp_path):
    with pytest.raises(FileError, match=r"none\.safetensors"):
        plan_of("[[operations]]\nembeddings = 'none.safetensors'")
    with pytest.raises(FileError, match=r"holds TextEmbeddings"):
        plan_of("[[operations]]\nvector = 'text.safetensors'")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "v.safetensors").read_bytes()[:99])
    with pytest.raises(CorruptFileError):
        plan_of("[[operations]]\nvector = 'cut.safetensors'")
    save_object(tmp_path / "nan.safetensors", TextEmbeddings.from_list([torch.full((2, T), torch.nan)]))
    with pytest.raises(ConfigError, match="NaN"):
        plan_of("[[operations]]\nembeddings = 'nan.safetensors'")


texts = st.text(st.characters(exclude_categories=["Cs"]))
windows = st.tuples(st.floats(0, 0.4), st.floats(0.5, 1))
payloads = st.one_of(
    st.builds(lambda text: {"prompt": text}, texts | st.just("none")),
    st.builds(lambda prompts: {"prompts": tuple(prompts)}, st.lists(texts, min_size=1, max_size=3)),
    st.sampled_from([{"vector": Path("none")}, {"first": Path("a b"), "second": Path("none")}]),
    st.just({"embeddings": Path("x/e.safetensors"), "space": "model"}),
)
operations = st.builds(
    lambda payload, **rest: OperationConfig(**payload, **rest),
    payloads,
    site=st.sampled_from([None, "context", "hidden_states"]),
    method=st.sampled_from([None, "lerp", "add"]),
    blocks=st.sampled_from(["all", "0-2,5", "010101"]),
    strength=st.floats(-2, 2) | st.sampled_from(["0.2..1", "1,2"]),
    window=windows,
    tokens=st.sampled_from(["text", "all", (0, 5)]),
)


@given(st.builds(PlanConfig, num_blocks=st.none() | st.integers(1, 40), operations=st.lists(operations).map(tuple)))
def test_a_written_plan_reads_back_the_same(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("plan") / "plan.toml"
    path.write_text(plan_to_toml(config), encoding="utf-8", newline="")
    read = load_plan_config(path)
    # a prompt that reads `none` comes back as the list of it: in TOML that word alone is nothing
    assert [as_list(each) for each in read.operations] == [as_list(each) for each in config.operations]
    assert read.num_blocks == config.num_blocks


def as_list(config: OperationConfig) -> OperationConfig:
    return config.model_copy(update={"prompt": None, "prompts": config.prompts or (config.prompt,)})


def test_resolved_paths_hold_from_anywhere(tmp_path):
    config = PlanConfig(operations=(OperationConfig(vector=Path("v.gguf")), OperationConfig(prompt="a")))
    resolved = resolve_paths(config, tmp_path / "plans" / "..")
    assert resolved.operations[0].vector == tmp_path / "v.gguf"
    assert resolved.operations[1] == config.operations[1]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_the_recipes_are_plans_for_models_of_any_depth(path):
    config = load_plan_config(path)
    for num_blocks in (6, 30, 40):
        assert build_plan(config, num_blocks, encode).num_blocks == num_blocks
