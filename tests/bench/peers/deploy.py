"""The peer's side of `cargo xtask bench`: what homelab manages on a node, as people write it for pyinfra."""
from io import StringIO

from pyinfra import host
from pyinfra.facts.server import Command
from pyinfra.operations import files, server, systemd

data = host.data
files.put(name="node binary", src=data.binary, dest="/usr/local/lib/peer/homelab-node", mode="755")
for name, dest in (
    ("node_json", "/etc/peer-node.json"),
    ("sysctl", "/etc/sysctl.d/90-peer.conf"),
    ("conflist", "/etc/cni/net.d/05-peer.conflist"),
):
    files.put(name=name, src=StringIO(getattr(data, name)), dest=dest, mode="644")
unit = files.put(name="unit", src=StringIO(data.unit), dest="/etc/systemd/system/peer.service", mode="644")
if host.get_fact(Command, data.observe) != data.expected:
    server.shell(name="kernel state", commands=[data.converge])
systemd.service(name="service", service="peer.service", running=True, enabled=True, daemon_reload=unit.changed)
