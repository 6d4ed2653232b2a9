"""Settings: what is wrong is refused with its place, what is right says what it is."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, Struct

from shared import config
from shared.errors import ConfigError


class Bus(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    servers: tuple[str, ...] = ("nats://127.0.0.1:4222",)
    """NATS servers, tried in turn."""
    name: str = "one"
    """Shown in NATS monitoring."""


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    floor_mib: Annotated[int, Meta(ge=1)] = 64
    """MiB. Never less."""


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    period_s: Annotated[float, Meta(gt=0, le=3600)] = 10.0
    """Seconds between samples.

    Shorter costs CPU.
    """
    lease_s: int = 60
    """Seconds."""
    mode: Literal["observe", "enforce"] = "observe"
    """What may be done."""
    state_directory: Path = Path("/var/lib/hrapaq")
    """Where state is kept."""
    note: str | None = None
    """Anything."""
    bus: Bus = Bus()
    """The bus."""
    vms: dict[str, Limits] = {}
    """By VM name."""
    peers: list[Limits] = []
    """More of them."""

    def problems(self) -> list[str]:
        if self.lease_s < 2 * self.period_s:
            return ["lease_s must be at least twice period_s"]
        return []


class Required(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    inner: "Needs"
    """A table."""


class Needs(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    key: str
    """Must be given."""


def load(tmp_path, text: str = "", environ=None, kind=Settings, **options):
    path = tmp_path / "hrapaq.toml"
    path.write_text(text)
    return config.load(path, kind, environ or {}, **options)


def refusal(tmp_path, text: str = "", environ=None, kind=Settings, **options) -> str:
    """What a person reads, with the folder left out."""
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, text, environ, kind, **options)
    return str(refused.value).replace(f"{tmp_path}/", "")


def test_without_a_file_the_defaults_hold():
    assert config.load(None, Settings, {"PATH": "/bin"}) == Settings()


def test_a_file_and_variables_over_it(tmp_path):
    text = 'period_s = 5\nmode = "enforce"\n[bus]\nname = "two"\n[vms.web]\nfloor_mib = 128\n'
    environ = {"HRAPAQ_PERIOD_S": "2.5", "HRAPAQ_BUS__SERVERS": '["nats://a:1", "nats://b:2"]'}
    settings = load(tmp_path, text, environ)
    assert settings.period_s == 2.5
    assert settings.mode == "enforce"
    assert settings.bus == Bus(name="two", servers=("nats://a:1", "nats://b:2"))
    assert settings.vms == {"web": Limits(floor_mib=128)}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain words", "plain words"),
        ('"quoted"', "quoted"),
        ("123", "123"),
        ("true", "true"),
        ("a\nb = 1", "a\nb = 1"),
        ('"x"\nperiod_s = 1', '"x"\nperiod_s = 1'),
        ("", ""),
    ],
)
def test_a_text_in_a_variable_needs_no_quotes(tmp_path, text, value):
    assert load(tmp_path, environ={"HRAPAQ_BUS__NAME": text}).bus.name == value


def test_a_path_in_a_variable(tmp_path):
    settings = load(tmp_path, environ={"HRAPAQ_STATE_DIRECTORY": "/srv/x"})
    assert settings.state_directory == Path("/srv/x")


def test_a_section_of_a_common_file(tmp_path):
    text = "[controller]\ncycle_s = 60\n[agent]\nperiod_s = 5\n[agent.bus]\nname = 'a'\n"
    environ = {"HRAPAQ_AGENT__LEASE_S": "30", "HRAPAQ_CONTROLLER__CYCLE_S": "10"}
    settings = load(tmp_path, text, environ, section="agent", other_sections=["controller"])
    assert (settings.period_s, settings.lease_s, settings.bus.name) == (5, 30, "a")
    assert load(tmp_path, "", section="agent") == Settings()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\n\nperiod = 5", "hrapaq.toml:3: period is unknown; did you mean 'period_s'?"),
        (
            "[bus]\nname = 'x'\nserver = ['a']",
            "hrapaq.toml:3: bus.server is unknown; did you mean 'servers'?",
        ),
        ("[bsu]\nname = 'x'", "hrapaq.toml:1: bsu is unknown; did you mean 'bus'?"),
        (
            "[vms.web]\nfloor = 1",
            "hrapaq.toml:2: vms.web.floor is unknown; did you mean 'floor_mib'?",
        ),
        (
            "[[peers]]\nfloor_mib = 1\n[[peers]]\nflor_mib = 1",
            "hrapaq.toml:4: peers.flor_mib is unknown; did you mean 'floor_mib'?",
        ),
        ("bus.nam = 'x'", "hrapaq.toml:1: bus.nam is unknown; did you mean 'name'?"),
        ("bus = { nam = 'x' }", "hrapaq.toml:1: bus.nam is unknown; did you mean 'name'?"),
        ("[bus]\nzzz = 1", "hrapaq.toml:2: bus.zzz is unknown; known are name, servers"),
        ("period_s = 0", "hrapaq.toml:1: period_s = 0: must be float > 0 and <= 3600"),
        ("# a\nlease_s = 'x'", "hrapaq.toml:2: lease_s = 'x': must be int"),
        ("lease_s = true", "hrapaq.toml:1: lease_s = True: must be int"),
        ("lease_s = 1.5", "hrapaq.toml:1: lease_s = 1.5: must be int"),
        ("mode = 'on'", 'hrapaq.toml:1: mode = \'on\': must be "observe" or "enforce"'),
        ("note = 5", "hrapaq.toml:1: note = 5: must be str"),
        ("state_directory = 5", "hrapaq.toml:1: state_directory = 5: must be path"),
        ("bus = 5", "hrapaq.toml:1: bus = 5: must be table"),
        ("[bus]\nservers = 'a'", "hrapaq.toml:2: bus.servers = 'a': must be list of str"),
        ("x = 'unclosed", "hrapaq.toml:1: Expected "),
        ("a = 1\na = 2", "hrapaq.toml:2: Cannot overwrite a value"),
        ("a = 1\nb = [\n", "hrapaq.toml:2: "),
        ("lease_s = 15", "hrapaq.toml:1: lease_s must be at least twice period_s"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path, text, said):
    assert refusal(tmp_path, text).startswith(said)


def test_values_inside_lists_and_maps_are_refused_at_their_table(tmp_path):
    said = refusal(tmp_path, "[vms.web]\nfloor_mib = 0")
    assert said.startswith("hrapaq.toml:") and ">= 1" in said


def test_everything_unknown_is_said_at_once(tmp_path):
    said = refusal(tmp_path, "perod_s = 1\nleas_s = 1", {"HRAPAQ_MODUS": "x"})
    assert len(said.splitlines()) == 3


def test_variables_are_refused_in_the_same_way(tmp_path):
    assert refusal(tmp_path, environ={"HRAPAQ_PERIOD": "5"}) == (
        "HRAPAQ_PERIOD: no such setting; did you mean 'HRAPAQ_PERIOD_S'?"
    )
    assert refusal(tmp_path, environ={"HRAPAQ_LEASE_S": "soon"}) == (
        "HRAPAQ_LEASE_S: lease_s = 'soon': must be int"
    )
    said = refusal(tmp_path, "period_s = 10", {"HRAPAQ_LEASE_S": "15"})
    assert said == "HRAPAQ_LEASE_S: lease_s must be at least twice period_s"
    assert load(tmp_path, environ={"HRAPAQ_X": "1"}, ignored_variables=["HRAPAQ_X"]) == Settings()


def test_an_unknown_section_is_refused(tmp_path):
    said = refusal(tmp_path, "[agnet]\nperiod_s = 1", section="agent", other_sections=["bus"])
    assert said == "hrapaq.toml:1: agnet is unknown here; did you mean 'agent'?"
    said = refusal(tmp_path, "agent = 5", section="agent")
    assert said == "hrapaq.toml:1: agent must be a table [agent]"
    said = refusal(tmp_path, environ={"HRAPAQ_PERIOD_S": "1"}, section="agent")
    assert "HRAPAQ_AGENT__PERIOD_S" in said


def test_a_setting_that_must_be_given(tmp_path):
    said = refusal(tmp_path, "[inner]\n", kind=Required)
    assert said == "hrapaq.toml:1: inner.key is missing, it has no default"
    environ = {"HRAPAQ_INNER__KEY": "x"}
    assert load(tmp_path, environ=environ, kind=Required).inner.key == "x"


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        config.load(tmp_path / "none.toml", Settings, {})
    (tmp_path / "bad.toml").write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigError, match=r"bad\.toml: is no UTF-8 text at byte 5"):
        config.load(tmp_path / "bad.toml", Settings, {})


def test_settings_say_what_they_are():
    docs = {doc.name: doc for doc in config.describe(Settings)}
    assert list(docs)[:4] == ["period_s", "lease_s", "mode", "state_directory"]
    assert docs["period_s"].type == "float > 0 and <= 3600"
    assert docs["period_s"].default == "10.0"
    assert docs["period_s"].doc == "Seconds between samples.\n\nShorter costs CPU."
    assert docs["bus.servers"].default == '["nats://127.0.0.1:4222"]'
    assert docs["note"].default == "not set"
    assert docs["vms"].type == "table of table"
    assert config.describe(Required)[0].default is None


def test_what_is_printed_reads_back_as_the_same_settings(tmp_path):
    changed = Settings(period_s=3, bus=Bus(name='a "b"\n'), vms={"w.x": Limits(floor_mib=9)})
    for settings in (Settings(), changed):
        assert load(tmp_path, config.as_toml(settings)) == settings
        text = config.as_toml(settings, "agent")
        assert load(tmp_path, text, section="agent") == settings
        assert "# Seconds between samples." in text


@given(st.text(max_size=60))
def test_no_file_raises_anything_but_config_errors(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(text.encode("utf-8", "replace"))
    try:
        config.load(path, Settings, {})
    except ConfigError:
        return
    assert set(tomllib.loads(path.read_bytes().decode())) <= {
        info.name.split(".")[0] for info in config.describe(Settings)
    }
