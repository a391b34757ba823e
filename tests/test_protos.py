"""conch.protos: Triton's messages without the weight of grpc."""

import subprocess
import sys

ALONE = """
import sys
from conch.protos import model_config_pb2
heavy = {"grpc", "numpy", "asyncio"} & set(sys.modules)
assert not heavy, heavy
assert model_config_pb2.__name__ == "tritonclient.grpc.model_config_pb2"
import tritonclient.grpc
from tritonclient.grpc import model_config_pb2 as theirs, service_pb2
assert theirs is model_config_pb2
assert type(service_pb2.ModelConfigResponse().config) is model_config_pb2.ModelConfig
"""

AFTERWARDS = """
import tritonclient.grpc
from conch.protos import model_config_pb2
assert model_config_pb2 is tritonclient.grpc.model_config_pb2
"""


def test_loaded_alone_and_shared_with_tritonclient() -> None:
    for script in (ALONE, AFTERWARDS):
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=False)
        assert result.returncode == 0, result.stderr
