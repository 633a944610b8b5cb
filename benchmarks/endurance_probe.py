"""What a running ComfyUI holds, as an extension: `endurance.py` puts this file into custom_nodes.
GET /probe returns numbers by name."""

import ctypes
import gc
import logging
import sys
import threading
from typing import Any

import comfy.model_management
import torch
from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS: dict[str, type] = {}


def _pack(module: str) -> Any:
    """A module of the DreamBooth pack."""
    ending = f"ComfyUI-DreamBooth.{module}"
    (found,) = {name for name in sys.modules if name.endswith(ending)}
    return sys.modules[found]


def _numbers() -> dict[str, int]:
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # otherwise freed memory would be counted
    objects = gc.get_objects()
    tensors = [each for each in objects if issubclass(type(each), torch.Tensor)]
    pack = _pack("nodes").__name__.rpartition(".nodes")[0]
    return {
        "threads of asyncio's pool": sum(
            thread.name.startswith("asyncio_") for thread in threading.enumerate()
        ),
        "routes": len(PromptServer.instance.app.router.routes()),
        "models that ComfyUI keeps": len(comfy.model_management.current_loaded_models),
        "log handlers of the pack": len(logging.getLogger(pack).handlers),
        "nodes that accept requests": len(_pack("nodes.training_observer").training),
        "views of training nodes": len(_pack("nodes.live")._views),
        "views of class images": len(_pack("nodes.class_images")._views),
        "names of embedded and graph models": len(_pack("trainer.storage.names").KNOWN_AS),
        "thumbnails": _pack("nodes.thumbnails")._read.cache_info().currsize,
        "Python objects": len(objects),
        "tensors": len(tensors),
        "tensors, kB": sum(tensor.nbytes for tensor in tensors) >> 10,
    }


async def _answer(request: Any) -> Any:
    return web.json_response(_numbers())


PromptServer.instance.routes.get("/probe")(_answer)
