"""One Hub on loopback for the whole session, and an environment in which no client can reach another."""

import itertools
import os
import re
import sys
import tempfile
from collections.abc import Iterator

import pytest
from hub_server import HubServer

if "huggingface_hub" in sys.modules:
    raise RuntimeError("huggingface_hub was imported before tests/conftest.py: it would talk to the public Hub")

HUB = HubServer().start()
HF_HOME = tempfile.TemporaryDirectory(prefix="hf_home_")  # removed when the process ends

# tests/gpu takes back what is hidden below; workers start with what was set before them.
os.environ.setdefault("DEVICES_OF_THE_USER", os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
# The clients read these once, at import; what the user has set of them must not reach the tests.
for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING_FACE_", "TRANSFORMERS_"))]:
    del os.environ[name]
os.environ |= {
    "HF_ENDPOINT": HUB.url,
    "HF_HOME": HF_HOME.name,
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DOWNLOAD_TIMEOUT": "5",
    "HF_EVALUATE_OFFLINE": "1",
    "NO_PROXY": "127.0.0.1",
    "CUDA_VISIBLE_DEVICES": "",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",  # the tests share the cores among them: busy threads would wait for each other
}

REPO_COUNTER = itertools.count()


@pytest.fixture(scope="session")
def hub() -> HubServer:
    """The Hub that all clients of the session talk to, subprocesses included."""
    return HUB


@pytest.fixture(autouse=True)
def _no_failures_left() -> Iterator[None]:
    """What one test lets fail must not fail in the next."""
    yield
    HUB.clear_failures()


@pytest.fixture
def repo_name(request: pytest.FixtureRequest) -> str:
    """A repository name no other test has.

    On 401, 403 and 404 the clients fall back to their cache, so a name that another identity pulled before
    would be read although the server refuses.
    """
    words = re.findall(r"[A-Za-z0-9]+", request.node.name)
    return f"{'-'.join(words)[:60].rstrip('-')}-{next(REPO_COUNTER)}"
