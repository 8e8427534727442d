import os
import subprocess
import sys
from pathlib import Path

_IMPORT = """
import socket
def refuse(*_): raise AssertionError("a connection was tried")
socket.socket.connect = refuse
import app.serving.backends.openvino
from openvino.tools import ovc
print(type(ovc.telemetry).__module__)
"""


def test_the_runtime_tells_nobody_that_it_is_used(tmp_path: Path) -> None:
    """OpenVINO would send an event on each import, and keep an identity in the home folder."""
    environment = {key: value for key, value in os.environ.items() if key not in ("CI", "TF_BUILD", "JENKINS_URL")}
    command = [sys.executable, "-c", _IMPORT]
    done = subprocess.run(
        command, env=environment | {"HOME": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "openvino.tools.ovc.telemetry_stub"
    assert list(tmp_path.iterdir()) == []
