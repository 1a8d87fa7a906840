"""Whether the authority that a device trusts is that of the fleet it names."""

import pytest
from certificates import Authority as Company

from broker_coordinator.fleet.authority import Authority
from edge_agent.belonging import foreign_authority
from edge_agent.configuration import AgentConfiguration
from fl_io.tls import TlsFiles, fleets_of
from fl_protocol.errors import ConfigError


@pytest.fixture
def named(tmp_path):
    """What is wrong with a device of ``fleet`` whose ``ca.pem`` has this content."""

    def ask(fleet, content):
        (tmp_path / "ca.pem").write_bytes(content)
        configuration = AgentConfiguration(
            device="pi-07",
            fleet=fleet,
            broker="mqtts://broker.example",
            state=tmp_path / "state",
            insecure=True,
            tls=TlsFiles(ca=tmp_path / "ca.pem"),
        )
        return foreign_authority(configuration)

    return ask


def test_an_authority_says_whose_it_is(named):
    """The fleet's own is right, another's is named."""
    barn = Authority.make("barn").certificate
    assert named("barn", barn) == ""
    said = "ca.pem is the authority of fleet 'barn', but fleet in agent.toml is 'bran'"
    assert named("bran", barn) == said


def test_of_several_authorities_one_is_enough(named):
    """A device between two fleets trusts both."""
    both = Authority.make("barn").certificate + Authority.make("yard").certificate
    assert named("yard", both) == ""
    assert "fleet 'barn' and 'yard'" in named("bran", both)


def test_an_authority_of_no_fleet_says_nothing(named, tmp_path):
    """A company's own, whatever its name: nothing follows from it."""
    assert named("bran", Company(tmp_path, "company").ca.read_bytes()) == ""


@pytest.mark.parametrize("content", [None, b"", b"rubbish"])
def test_a_file_that_is_no_authoritys_is_an_error(tmp_path, content):
    """It is named."""
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"ca\.pem"):
        fleets_of(path)
