"""The note that a running `hrapaq up` leaves, so that the other commands find it by themselves."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from shared.errors import ConfigError

ADMIN_DEFAULT = "127.0.0.1:7421"


@dataclass(frozen=True, slots=True)
class RunFile:
    """Where the parts of one run listen; addresses are HOST:PORT, `nats` is a URL."""

    pid: int
    started_at_unix_ns: int
    admin: str
    nats: str
    nats_monitor: str
    controller_metrics: str
    agent_metrics: str
    state_directory: str


def run_file_path(environment: Mapping[str, str] = os.environ, user_id: int | None = None) -> Path:
    """XDG_RUNTIME_DIR where it is set, /run/hrapaq for root, ~/.local/state/hrapaq otherwise."""
    runtime = environment.get("XDG_RUNTIME_DIR")
    if runtime:
        return Path(runtime) / "hrapaq" / "up.json"
    if (os.getuid() if user_id is None else user_id) == 0:
        return Path("/run/hrapaq/up.json")
    return Path(environment.get("HOME", "/")) / ".local/state/hrapaq/up.json"


def write_run_file(path: Path, run: RunFile) -> None:
    """Atomically; readable by its owner only."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(asdict(run), indent=2) + "\n")
    new.chmod(0o600)
    new.replace(path)


def read_run_file(path: Path) -> RunFile | None:
    """The run that is alive, or None; what a killed run left behind does not count."""
    try:
        run = RunFile(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} is no run file ({error}); delete it") from error
    return run if is_alive(run.pid) else None


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
