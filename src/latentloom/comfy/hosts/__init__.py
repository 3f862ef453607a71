"""The two hosts whose models and prompts our nodes read and write, behind one set of functions."""

from latentloom.comfy.hosts.host import Host
from latentloom.comfy.hosts.native import NativeHost
from latentloom.comfy.hosts.wrapper import WrapperHost
from latentloom.comfy.schema import HostName

__all__ = ["Host", "host_named"]

_HOSTS: dict[HostName, Host] = {"native": NativeHost(), "wrapper": WrapperHost()}


def host_named(name: HostName) -> Host:
    """The host of a node."""
    return _HOSTS[name]
