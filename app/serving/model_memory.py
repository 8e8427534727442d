"""Memory of loaded models: kept out of garbage collection, and given back once a model is replaced."""

import ctypes
import gc
import sys
from contextlib import suppress


def release_replaced() -> None:
    """Give back the memory of a replaced model: it was frozen with the rest when its successor was loaded."""
    freeze_garbage_collector()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # a training on the same device may need it


def freeze_garbage_collector() -> None:
    """Exclude the hundreds of thousands of objects of a loaded model from garbage collection.

    A full collection over them stops every thread for 0.2 s or more.
    """
    gc.unfreeze()  # the objects of a replaced model
    gc.collect()
    gc.freeze()
    # Compiling a graph frees hundreds of megabytes in pieces that glibc keeps for itself otherwise.
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
