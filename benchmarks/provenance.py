"""Where a result file comes from: what every benchmark writes beside its figures."""

import datetime
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from lvmmed.data.store import Store
from lvmmed.engine.environment import code_version, device_name


def provenance(*, store: Path | None = None) -> dict[str, Any]:
    """Tell command, date, code, device, threads and data of this process.

    Args:
        store: the images that were trained on or judged, by their fingerprint.

    Returns:
        Plain values; folders of the command are those of the machine it ran on.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "code": code_version(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if store is not None:
        found["store_fingerprint"] = Store.open(store).fingerprint
    return found
