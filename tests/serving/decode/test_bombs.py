"""Small files that ask for much memory: measured as the peak of a process of its own, C libraries included."""

import json
import subprocess
import sys
from pathlib import Path

from tests.serving.hostile_files import accepted_dicoms, dicom_bombs, png_bomb

_MEASURE = """
import json, resource, sys
from pathlib import Path
from app.core.exceptions import ApiError
from app.core.settings import load_settings
from app.serving.decode.image import decode

found, settings = {}, load_settings()
for path in map(Path, sys.argv[1:]):
    try:
        decode(path.read_bytes(), settings)
        answer = "decoded"
    except ApiError as error:
        answer = f"{error.status} {error.detail}"
    found[path.name] = answer, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps(found))
"""
# The largest inflated data set has two bytes for each of 25 million pixels and 10 MiB more, and growing the buffer
# takes as much again.
LIMIT_MIB = 160


def test_bombs_take_little_memory(tmp_path: Path) -> None:
    files = {"warm": accepted_dicoms()["dicom deflated"], "png": png_bomb(), **dicom_bombs()}
    paths = []
    for name, data in files.items():
        assert len(data) < 10 * 1024**2
        paths.append(tmp_path / name)
        paths[-1].write_bytes(data)
    command = [sys.executable, "-c", _MEASURE, *map(str, paths)]
    peaks = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout)
    _, before = peaks.pop("warm")
    assert max(peak for _, peak in peaks.values()) - before < LIMIT_MIB, peaks
    # A palette is expanded up to the entries that it must have.
    assert [name for name, (answer, _) in peaks.items() if answer == "decoded"] == ["palette segments"]
    assert peaks["deflated behind a long meta header"][0].startswith("413 ")
