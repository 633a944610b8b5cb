"""Where ComfyUI keeps files, and the menus of them."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ..trainer import toy
from .paths import inside, subfolders

TOY = "toy (embedded)"
TOY_PHOTOS = "toy cup photos (embedded)"


def checkpoint_menu() -> list[str]:
    return [TOY, *folder_paths.get_filename_list("checkpoints")]


def find_checkpoint(name: str) -> Path:
    """The file of a name in `checkpoint_menu`."""
    if name == TOY:
        return toy.MODEL
    return _find("checkpoints", name, "checkpoint")


def checkpoint_name(path: Path) -> str:
    """As the menus of checkpoint loaders have it."""
    for root in folder_paths.get_folder_paths("checkpoints"):
        if path.is_relative_to(root):
            return str(path.relative_to(root))
    return path.name


def judge_menu() -> list[str]:
    return [TOY, *folder_paths.get_filename_list("clip_vision")]


def find_judge(name: str) -> Path:
    """What a name in `judge_menu` means, as `encoders.load` takes it: a file, or the folder of
    its own that it lies in with its config.json."""
    if name == TOY:
        return toy.JUDGE
    file = _find("clip_vision", name, "judge")
    is_in_folder = len(Path(name).parts) > 1 and (file.parent / "config.json").is_file()
    return file.parent if is_in_folder else file


def _find(kind: str, name: str, what: str) -> Path:
    # Only what ComfyUI itself lists. It follows links out of its model folders, and so do we:
    # people keep models on other disks, and nobody can place a link there over the network.
    if name in folder_paths.get_filename_list(kind):
        return Path(folder_paths.get_full_path_or_raise(kind, name))
    raise FileNotFoundError(
        f"There is no {what} {name!r} in ComfyUI's {kind} folders. Choose one from the menu; new "
        "files appear in it after a refresh (R)."
    )


def photo_folder_menu() -> list[str]:
    """The embedded photos, and every folder under input/ and the datasets folders."""
    folders = [f"{label}/{name}" for label, root in _photo_roots() for name in subfolders(root)]
    return [TOY_PHOTOS, *dict.fromkeys(folders)]


def find_photo_folder(name: str) -> Path:
    """The folder of a name in `photo_folder_menu`."""
    if name == TOY_PHOTOS:
        return toy.PHOTOS
    label, _, rest = name.partition("/")
    for candidate, root in _photo_roots():
        if candidate == label and (folder := inside(root, rest)).is_dir():
            return folder
    raise FileNotFoundError(
        f"There is no folder {name!r}. Choose one from the menu; put new ones into ComfyUI's input "
        "folder and refresh (R)."
    )


def _photo_roots() -> list[tuple[str, Path]]:
    roots = [("input", Path(folder_paths.get_input_directory()))]
    if "datasets" in folder_paths.folder_names_and_paths:  # ComfyUI 0.30 and newer
        roots += [("datasets", Path(path)) for path in folder_paths.get_folder_paths("datasets")]
    return roots


def trained_folder() -> Path:
    """Where new checkpoints go, so that Load Checkpoint lists them."""
    return Path(folder_paths.get_folder_paths("checkpoints")[0]) / "dreambooth"


def embeddings_folder() -> Path:
    """Where learned words go, so that prompts find them."""
    return Path(folder_paths.get_folder_paths("embeddings")[0])


def embedding_name(path: Path) -> str:
    """As a prompt has it behind `embedding:`."""
    return path.stem


def runs_folder() -> Path:
    """What is needed to find a finished run again and to resume an unfinished one."""
    return Path(folder_paths.get_output_directory()) / "dreambooth" / "runs"


def class_images_folder() -> Path:
    return Path(folder_paths.get_output_directory()) / "dreambooth" / "class_images"


def temp_folder(name: str) -> Path:
    """A folder that ComfyUI empties when it starts and when it ends."""
    folder = Path(folder_paths.get_temp_directory()) / "dreambooth" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
