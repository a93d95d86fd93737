"""Build the stand-in device's library with the C++ compiler, once for each source and torch."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from torch.utils import cpp_extension

SOURCE = Path(__file__).with_name("standin.cpp")


class NoCompiler(Exception):
    """There is no C++ compiler here, or none that builds for this torch."""


def build() -> Path:
    """Return the library's file, which is built if the cache has none for this source and torch.

    The cache is torch's for its extensions: TORCH_EXTENSIONS_DIR, or ~/.cache/torch_extensions.
    """
    source = SOURCE.read_bytes()
    name = hashlib.sha256(source + torch.__version__.encode()).hexdigest()[:16]
    library = Path(cpp_extension.get_default_build_root(), f"channelscope_standin_{name}.so")
    if library.exists():
        return library
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        raise NoCompiler("there is no C++ compiler: install g++ or clang, or name one in CXX")
    library.parent.mkdir(parents=True, exist_ok=True)
    unfinished = library.with_suffix(f".{os.getpid()}")
    options = ["-std=c++20", "-O0", "-w", "-shared", "-fPIC"]
    options += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    options += [f"-I{path}" for path in cpp_extension.include_paths()]
    options += [f"-L{path}" for path in cpp_extension.library_paths()]
    command = [compiler, *options, str(SOURCE), "-ltorch", "-ltorch_cpu", "-lc10"]
    done = subprocess.run([*command, "-o", str(unfinished)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"The stand-in device does not build:\n{done.stderr[-4000:]}")
    unfinished.rename(library)  # another process may have built it meanwhile: the same
    return library


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{build()}\n")
    except NoCompiler as reason:
        sys.stdout.write(f"not built: {reason}\n")
