"""The HTTP routes through which pages show and change folders of photos. ComfyUI's own route for
uploads writes the files, under names that `_add` chooses, and never overwrites one.

Routes that change something are POST and accept JSON alone: a page of another site can send neither
without asking the browser first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from ..trainer.data.photo_set import PhotoSet
from . import class_images, folders, host, photo_view
from .class_view import CLASS_ROUTE
from .json_requests import JSON, NOT_JSON, read_object
from .photo_view import (
    ADD_ROUTE,
    CAPTION_ROUTE,
    CHANGED_ROUTE,
    PHOTOS_EVENT,
    PHOTOS_ROUTE,
    REMOVE_ROUTE,
    RESTORE_ROUTE,
    THUMBNAIL_ROUTE,
)
from .thumbnails import thumbnail

MAX_NAMES = 10_000
Values = Mapping[str, Any]


def _photos(values: Values) -> Any:
    """What a folder contains: `folder` is its name in the menu, `prompt` the instance prompt."""
    name = _text(values, "folder")
    path = folders.find_photo_folder(name)
    is_editable = folders.is_in_input(name)
    return photo_view.view(name, path, values.get("prompt", ""), is_editable=is_editable)


def _thumbnail(values: Values) -> bytes:
    """A photo as a small JPEG."""
    path = PhotoSet(folders.find_photo_folder(_text(values, "folder"))).find(_text(values, "name"))
    small = thumbnail(path)
    if small.fault:
        raise ValueError(small.fault)
    return small.jpeg


def _add(values: Values) -> Any:
    """Make a folder in ComfyUI's input folder, if it does not exist, and choose names for new
    photos in it. The page uploads them into `subfolder`."""
    names = values.get("names")
    if isinstance(names, list) and len(names) > MAX_NAMES:
        raise ValueError(f"At most {MAX_NAMES} photos can be added at once, got {len(names)}.")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("names must be a list of texts.")
    folder, path = folders.new_photo_set(_text(values, "folder"))
    found = PhotoSet(path).names_for(names)
    if any(found):
        path.mkdir(parents=True, exist_ok=True)
    subfolder = folder.removeprefix(f"{folders.INPUT}/")
    return {"folder": folder, "subfolder": subfolder, "names": found}


def _changed(values: Values) -> Any:
    """Tell all pages that photos were uploaded into a folder."""
    return _announced(_text(values, "folder"))


def _caption(values: Values) -> Any:
    """Write the caption of a photo. `replace` false: unless it has another one."""
    folder, name, text = (_text(values, key) for key in ("folder", "name", "text"))
    is_replaced = values.get("replace", True) is not False
    folders.photo_set(folder).write_caption(name, text, replace=is_replaced)
    return _announced(folder)


def _remove(values: Values) -> Any:
    """Remove a photo and its captions so that they can be brought back."""
    folder = _text(values, "folder")
    name = folders.photo_set(folder).remove(_text(values, "name"))
    return {**_announced(folder), "name": name}


def _restore(values: Values) -> Any:
    """Bring back a photo that was removed."""
    folder = _text(values, "folder")
    name = folders.photo_set(folder).restore(_text(values, "name"))
    return {**_announced(folder), "name": name}


def _announced(folder: str) -> dict[str, str]:
    folders.find_photo_folder(folder)
    host.send_event(PHOTOS_EVENT, {"folder": folder})
    return {"folder": folder}


def _text(values: Values, key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{key} must be a text.")
    return value


# --- Answers ------------------------------------------------------------------------------------


async def _answer(act: Callable[[Values], Any], values: Values) -> Any:
    """Call `act` in another thread, because it may read files."""
    try:
        found = await asyncio.to_thread(act, values)
    except FileNotFoundError as error:
        return host.json_answer({"error": str(error)}, status=404)
    except FileExistsError as error:
        return host.json_answer({"error": str(error)}, status=409)
    except ValueError as error:
        return host.json_answer({"error": str(error)}, status=400)
    except OSError as error:
        return host.json_answer({"error": f"The file system refused: {error}."}, status=500)
    return host.image_answer(found) if isinstance(found, bytes) else host.json_answer(found)


def _get(path: str, act: Callable[[Values], Any]) -> None:
    async def answer(request: Any) -> Any:
        return await _answer(act, request.query)

    host.add_route("GET", path, answer)


def _post(path: str, act: Callable[[Values], Any]) -> None:
    async def answer(request: Any) -> Any:
        values = await read_object(request)
        if values is None:
            status = 400 if request.content_type == JSON else 415
            return host.json_answer({"error": NOT_JSON}, status=status)
        return await _answer(act, values)

    host.add_route("POST", path, answer)


def add_routes() -> None:
    """Called once, when ComfyUI starts."""
    _get(PHOTOS_ROUTE, _photos)
    _get(THUMBNAIL_ROUTE, _thumbnail)
    _get(CLASS_ROUTE, lambda values: {"views": class_images.latest()})
    _post(ADD_ROUTE, _add)
    _post(CHANGED_ROUTE, _changed)
    _post(CAPTION_ROUTE, _caption)
    _post(REMOVE_ROUTE, _remove)
    _post(RESTORE_ROUTE, _restore)
