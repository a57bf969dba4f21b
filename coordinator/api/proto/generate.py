"""Generates the Python stubs of the protocol; `make proto` calls it.

The compiler derives import paths from the proto's folder, `metasearch/v1`; the stubs live in `coordinator.api.stubs`.
"""

import re
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

PROTO_FOLDER = Path(__file__).parent
PROTO = "metasearch/v1/search.proto"


def generate(target: Path) -> None:
    """Writes search_pb2.py, search_pb2.pyi and search_pb2_grpc.py into `target`."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            "protoc",
            f"-I{PROTO_FOLDER}",
            f"-I{files('grpc_tools') / '_proto'}",
            f"--python_out={folder}",
            f"--pyi_out={folder}",
            f"--grpc_python_out={folder}",
            PROTO,
        ]
        if protoc.main(arguments) != 0:
            sys.exit("protoc failed; see above")
        for path in sorted((Path(folder) / PROTO).parent.iterdir()):
            text = path.read_text("utf-8")
            text = re.sub(r"^from metasearch\.v1 import", "from coordinator.api.stubs import", text, flags=re.MULTILINE)
            (target / path.name).write_text(text, "utf-8")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PROTO_FOLDER.parent / "stubs")
