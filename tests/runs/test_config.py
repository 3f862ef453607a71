import math
import string
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import Field

from latentloom.errors import ConfigError, FileError
from latentloom.runs import Config, load_config, to_toml


class Optimizer(Config):
    learning_rate: float = Field(default=1e-3, gt=0)
    warmup: int = 10
    betas: tuple[float, float] = (0.9, 0.99)


class Settings(Config):
    name: str = "a"
    num_epochs: int = 3
    folder: Path = Path("runs")
    resume: Path | None = None
    limit: int | None = 5
    shuffle: bool = True
    sampler: str = "unipc"
    weights: dict[str, float] = Field(default_factory=dict)
    optimizer: Optimizer = Optimizer()


KNOWN = ["num_epochs", "shuffle", "sampler", "optimizer.learning_rate", "optimizer.warmup", "optimizer.betas"]


def test_overrides_win_over_toml_and_toml_over_defaults(tmp_path):
    (tmp_path / "s.toml").write_text("num_epochs = 5\nshuffle = false\n[optimizer]\nwarmup = 7\nlearning_rate = 1e-4\n")
    settings = load_config(Settings, tmp_path / "s.toml", ["optimizer.warmup=8", "num_epochs=6", "num_epochs = 9"])
    assert (settings.num_epochs, settings.shuffle, settings.name) == (9, False, "a")
    assert (settings.optimizer.warmup, settings.optimizer.learning_rate) == (8, 1e-4)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("name=1e3", "name", "1e3"),
        ("name=007", "name", "007"),
        ('name="quoted text"', "name", "quoted text"),
        ("name=two words, and a comma", "name", "two words, and a comma"),
        ("name=a=b", "name", "a=b"),
        ("sampler=none", "sampler", "none"),
        ("resume=none", "resume", None),
        ("resume=runs/3", "resume", Path("runs/3")),
        ("limit=none", "limit", None),
        ("shuffle=False", "shuffle", False),
        ("weights.colour=2", "weights", {"colour": 2.0}),
        ("num_epochs=1_000", "num_epochs", 1000),
    ],
)
def test_override_values_are_what_the_field_asks_for(override, key, value):
    assert getattr(load_config(Settings, None, [override]), key) == value


def test_lists_and_sections_can_be_overridden():
    settings = load_config(Settings, None, ["optimizer.betas=[0.8, 0.9]", "optimizer={warmup = 2}"])
    assert settings.optimizer == Optimizer(warmup=2)


@given(st.sampled_from(KNOWN), st.data())
def test_a_slip_in_a_key_names_the_key_that_was_meant(key, data):
    place = data.draw(st.integers(0, len(key) - 1).filter(lambda place: key[place] != "."))
    letter = data.draw(st.sampled_from(string.ascii_lowercase))
    slips = [
        key[:place] + key[place + 1 :],
        key[:place] + letter + key[place:],
        key[:place] + letter + key[place + 1 :],
    ]
    given_key = data.draw(st.sampled_from(slips))
    assume(given_key != key)
    with pytest.raises(ConfigError) as error:
        load_config(Settings, None, [f"{given_key}=1"])
    assert f"unknown setting {given_key!r}; the nearest is {key!r}" in str(error.value)


def test_a_key_without_its_section_names_the_section(tmp_path):
    (tmp_path / "s.toml").write_text("warmup = 3\n")
    with pytest.raises(ConfigError, match=r"'warmup'; the nearest is 'optimizer\.warmup'"):
        load_config(Settings, tmp_path / "s.toml")
    (tmp_path / "s.toml").write_text("[optimizer]\nwarmpu = 3\n")
    with pytest.raises(ConfigError, match=r"'optimizer\.warmpu'; the nearest is 'optimizer\.warmup'"):
        load_config(Settings, tmp_path / "s.toml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("num_epochs", "section.key=value"),
        ("=3", "section.key=value"),
        ("num_epochs=many", "num_epochs = 'many'"),
        ("optimizer.learning_rate=-1", "optimizer.learning_rate = -1"),
        ("optimizer=3", "optimizer = 3"),
        ("num_epochs.deep=3", "unknown setting 'num_epochs.deep'"),
        ("name." + "x." * 2000 + "y=1", "unknown setting"),
        ("num_epochs=" + "[" * 5000, "num_epochs"),
    ],
)
def test_mistakes_are_told_in_one_line(override, message):
    with pytest.raises(ConfigError) as error:
        load_config(Settings, None, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_missing_or_not_toml_is_named(tmp_path):
    with pytest.raises(FileError, match=r"none\.toml"):
        load_config(Settings, tmp_path / "none.toml")
    for content in (b"num_epochs = = 3", b"\xff\xfe", b"a = " + b"[" * 5000):
        (tmp_path / "s.toml").write_bytes(content)
        with pytest.raises(ConfigError, match=r"s\.toml is not TOML"):
            load_config(Settings, tmp_path / "s.toml")


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Settings().name = "b"  # pyright: ignore[reportAttributeAccessIssue] - the refusal is what is tested


texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    st.builds(
        Settings,
        name=texts | st.just("none"),
        limit=st.none() | st.integers(-(2**62), 2**62),
        resume=st.none() | st.just(Path("a b/c")),
        shuffle=st.booleans(),
        weights=st.dictionaries(texts, st.floats(allow_nan=False), max_size=3),
        optimizer=st.builds(Optimizer, learning_rate=st.floats(1e-300, math.inf, exclude_min=True)),
    )
)
def test_written_settings_are_read_back_the_same(tmp_path_factory, settings):
    path = tmp_path_factory.mktemp("toml") / "config.toml"
    path.write_text(to_toml(settings), encoding="utf-8", newline="")
    assert load_config(Settings, path) == settings


class Layer(Config):
    kind: str
    width: int | None = 8
    optimizer: Optimizer | None = None


class Network(Config):
    depth: int = 1
    layers: tuple[Layer, ...] = ()


LAYERS = '[[layers]]\nkind = "a"\nwidth = "none"\n[[layers]]\nkind = "b"\n[layers.optimizer]\nwarmup = 3\n'


def test_a_list_of_sections_is_read_section_by_section(tmp_path):
    (tmp_path / "s.toml").write_text(LAYERS)
    network = load_config(Network, tmp_path / "s.toml", ["depth=2"])
    assert network == Network(
        depth=2, layers=(Layer(kind="a", width=None), Layer(kind="b", optimizer=Optimizer(warmup=3)))
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[layers]]\nkind = "a"\n[[layers]]\nkind = "b"\nwitdh = 3', "'layers.witdh'; the nearest is 'layers.width'"),
        ('[[layers]]\nkind = "a"\n[layers.optimizer]\nwarm = 3', "the nearest is 'layers.optimizer.warmup'"),
        ('[[layers]]\nkind = "a"\nwidth = "wide"', "layers.0.width = 'wide'"),
        ("[[layers]]\nwidth = 3", "layers.0.kind"),
        ("layers = [3]", "layers.0 = 3"),
        ("[layers]\nwidth = 3", "layers = "),
    ],
)
def test_a_mistake_in_a_list_of_sections_is_told_in_one_line(tmp_path, text, message):
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(Network, tmp_path / "s.toml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_override_into_a_list_of_sections_is_refused():
    with pytest.raises(ConfigError, match="change the TOML file"):
        load_config(Network, None, ["layers.width=3"])


layers = st.builds(
    Layer, kind=texts, width=st.none() | st.integers(0, 9), optimizer=st.none() | st.just(Optimizer(warmup=1))
)


@given(st.builds(Network, depth=st.integers(0, 9), layers=st.lists(layers, max_size=3).map(tuple)))
def test_written_lists_of_sections_are_read_back_the_same(tmp_path_factory, network):
    path = tmp_path_factory.mktemp("toml") / "config.toml"
    path.write_text(to_toml(network), encoding="utf-8", newline="")
    assert load_config(Network, path) == network
