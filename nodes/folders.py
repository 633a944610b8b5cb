"""ComfyUI's folders, and the menus of the files in them."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ..trainer import toy
from ..trainer.data.photo_set import PhotoSet
from ..trainer.storage.names import KNOWN_AS, made_safe, shown_name
from .paths import MAX_DEPTH, existing_name, inside, subfolders

TOY = "toy (embedded)"
INPUT = "input"
TOY_PHOTOS = "toy cup photos (embedded)"
GRAPH = "Model from Graph"
"""Stands for the name of a checkpoint that this node saved, which users do not know."""
KNOWN_AS |= {toy.MODEL: TOY, toy.JUDGE: TOY}


def checkpoint_menu() -> list[str]:
    return [TOY, *folder_paths.get_filename_list("checkpoints")]


def find_checkpoint(name: str) -> Path:
    """The file with that name in `checkpoint_menu`."""
    if name == TOY:
        return toy.MODEL
    return _find("checkpoints", name, "checkpoint")


def checkpoint_name(path: Path) -> str:
    """Its name in the menus of checkpoint loaders; for other files, the file's name."""
    return _name_in("checkpoints", path)


def lora_menu() -> list[str]:
    return list(folder_paths.get_filename_list("loras"))


def find_lora(name: str) -> Path:
    """The file with that name in `lora_menu`."""
    return _find("loras", name, "LoRA")


def lora_name(path: Path) -> str:
    """Its name in the menus of LoRA loaders; for other files, the file's name."""
    return _name_in("loras", path)


def menu_name(path: Path) -> str:
    """The name of a checkpoint or a LoRA in the menus of its loaders; for other files, the file's
    name."""
    return _name_in("checkpoints", path, otherwise=lora_name(path))


def _name_in(kind: str, path: Path, *, otherwise: str = "") -> str:
    for root in folder_paths.get_folder_paths(kind):
        if path.is_relative_to(root):
            return str(path.relative_to(root))
    return otherwise or shown_name(path)


def judge_menu() -> list[str]:
    return [TOY, *folder_paths.get_filename_list("clip_vision")]


def find_judge(name: str) -> Path:
    """The model with that name in `judge_menu`, as a path for `encoders.load`: the file, or its
    folder if that contains a config.json too."""
    if name == TOY:
        return toy.JUDGE
    file = _find("clip_vision", name, "judge")
    is_in_folder = len(Path(name).parts) > 1 and (file.parent / "config.json").is_file()
    return file.parent if is_in_folder else file


def _find(kind: str, name: str, what: str) -> Path:
    # Only files that ComfyUI lists. It follows links out of its model folders, and so do we: people
    # keep models on other disks, and nobody can create a link there over the network.
    if name in folder_paths.get_filename_list(kind):
        return Path(folder_paths.get_full_path_or_raise(kind, name))
    raise FileNotFoundError(
        f"There is no {what} {name!r} in ComfyUI's {kind} folders. Choose one from the menu; new "
        "files appear in it after a refresh (R)."
    )


def photo_folder_menu() -> list[str]:
    """The embedded photos, and all folders in input/ and the datasets folders."""
    folders = [f"{label}/{name}" for label, root in _photo_roots() for name in subfolders(root)]
    return [TOY_PHOTOS, *dict.fromkeys(folders)]


def find_photo_folder(name: str) -> Path:
    """The folder with that name in `photo_folder_menu`."""
    if name == TOY_PHOTOS:
        return toy.PHOTOS
    label, _, rest = name.partition("/")
    for candidate, root in _photo_roots():
        # Unlike Path.is_dir, it does not fail for names that are too long.
        if candidate == label and os.path.isdir(folder := inside(root, rest)):
            return folder
    raise FileNotFoundError(
        f"There is no folder {name!r}. Choose one from the menu, or drop photos on Load Instance "
        "Images, which makes one."
    )


def photo_set(name: str) -> PhotoSet:
    """The folder with that name in `photo_folder_menu`, to change it. Raises ValueError if it is
    not one in ComfyUI's input folder."""
    if not is_in_input(name):
        raise ValueError(f"The photos of {name!r} are only changed in their folder, not here.")
    return PhotoSet(find_photo_folder(name))


def is_in_input(name: str) -> bool:
    """Whether a name in `photo_folder_menu` is that of a folder in ComfyUI's input folder."""
    return name.startswith(f"{INPUT}/")


def new_photo_set(wish: str) -> tuple[str, Path]:
    """The name in `photo_folder_menu` and the path of the folder for new photos, which may exist:
    the wish, which may have subfolders, made safe. Raises ValueError if it leads out of ComfyUI's
    input folder, or is a file."""
    root = folder = Path(folder_paths.get_input_directory())
    if wish.count("/") >= MAX_DEPTH:
        raise ValueError(
            f"A folder can be inside at most {MAX_DEPTH - 1} others. Choose another name."
        )
    for part in wish.split("/"):
        folder /= existing_name(folder, made_safe(part))
    name = folder.relative_to(root).as_posix()
    inside(root, name)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{name!r} is a file in ComfyUI's input folder. Choose another name.")
    return f"{INPUT}/{name}", folder


def _photo_roots() -> list[tuple[str, Path]]:
    roots = [(INPUT, Path(folder_paths.get_input_directory()))]
    if "datasets" in folder_paths.folder_names_and_paths:  # ComfyUI 0.30 and newer
        roots += [("datasets", Path(path)) for path in folder_paths.get_folder_paths("datasets")]
    return roots


def trained_folder() -> Path:
    """The folder for new checkpoints; Load Checkpoint lists them."""
    return Path(folder_paths.get_folder_paths("checkpoints")[0]) / "dreambooth"


def loras_folder() -> Path:
    """The folder for new LoRAs; Load LoRA lists them."""
    return Path(folder_paths.get_folder_paths("loras")[0]) / "dreambooth"


def embeddings_folder() -> Path:
    """The folder for new embeddings; ComfyUI's prompts find them there."""
    return Path(folder_paths.get_folder_paths("embeddings")[0])


def embedding_name(path: Path) -> str:
    """What follows `embedding:` in ComfyUI's own prompts: the path in an embeddings folder, without
    the extension."""
    for root in folder_paths.get_folder_paths("embeddings"):
        if path.is_relative_to(root):
            return path.relative_to(root).with_suffix("").as_posix()
    return path.stem


def runs_folder() -> Path:
    """The folder of what is needed to reuse finished runs and to resume others."""
    return Path(folder_paths.get_output_directory()) / "dreambooth" / "runs"


def below_output(path: Path) -> str:
    """The path of something in ComfyUI's output folder below that folder, with forward slashes."""
    return path.relative_to(folder_paths.get_output_directory()).as_posix()


def class_images_folder() -> Path:
    return Path(folder_paths.get_output_directory()) / "dreambooth" / "class_images"


def temp_folder(name: str) -> Path:
    """A new folder in ComfyUI's temp folder, which it empties when it starts and ends."""
    folder = Path(folder_paths.get_temp_directory()) / "dreambooth" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
