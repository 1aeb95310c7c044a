"""List what the Python bindings of TensorRT offer, on a machine where TensorRT cannot be installed.

Run by hand when a new class is used or the version moves; the unit tests read its output:

    python tests/tensorrt_api.py tests/unit/engines/tensorrt_11_4_api.json

The bindings' wheel is on PyPI and small; the libraries that it links against are not. So the wheel
is loaded over libraries that hold the entry points alone, which is enough to look at classes.
Needs pip, a C compiler and Python of a version that the wheel is made for.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from types import ModuleType

VERSION = "11.4.0.106"
# Classes whose members are listed; for all others the name is enough.
CLASSES = (
    *("Builder", "BuilderFlag", "IBuilderConfig", "INetworkDefinition", "IOptimizationProfile"),
    *("ITensor", "IProgressMonitor", "ITimingCache", "IHostMemory", "ILogger", "Logger"),
    *("OnnxParser", "OnnxParserRefitter", "ParserError", "Refitter"),
    *("Runtime", "ICudaEngine", "IExecutionContext", "IRuntimeConfig", "ISerializationConfig"),
    *("SerializationFlag", "DataType", "TensorIOMode", "ExecutionContextAllocationStrategy"),
)
_ENTRY_POINTS = (
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "getInferLibVersion"),
    *("createInferRuntime_INTERNAL", "createNvOnnxParser_INTERNAL", "getNvOnnxParserVersion"),
    *("createNvOnnxParserRefitter_INTERNAL", "getBuilderPluginRegistry", "getPluginRegistry"),
    "initLibNvInferPlugins",
)


def load_bindings(folder: Path) -> ModuleType:
    """Fetch the wheel into `folder` and import the module in it."""
    wheel = f"tensorrt-cu13-bindings=={VERSION}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--dest", str(folder), wheel], check=True)
    (downloaded,) = folder.glob("*.whl")
    with zipfile.ZipFile(downloaded) as archive:
        archive.extractall(folder)
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _ENTRY_POINTS))
    major = VERSION.partition(".")[0]
    for stem in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        library = folder / f"lib{stem}.so.{major}"
        options = ["-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", str(library)]
        subprocess.run(["cc", *options, str(source)], check=True)
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    (path,) = folder.rglob("tensorrt.so")
    spec = importlib.util.spec_from_file_location("tensorrt", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tensorrt"] = module
    spec.loader.exec_module(module)
    return module


def public(thing: object) -> list[str]:
    """Names that a caller may use."""
    return sorted(name for name in dir(thing) if not name.startswith("_"))


def main(out: str) -> None:
    """Write names and members as JSON, a line per class."""
    with tempfile.TemporaryDirectory() as folder:
        module = load_bindings(Path(folder))
        members = ",\n".join(
            f"{json.dumps(name)}: {json.dumps(public(getattr(module, name)))}" for name in CLASSES
        )
        text = f'{{\n"names": {json.dumps(public(module))},\n"members": {{\n{members}\n}}\n}}\n'
    Path(out).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
