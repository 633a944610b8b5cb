"""The module that ComfyUI loads: it provides the pack's nodes and the folder of its web files."""

WEB_DIRECTORY: str | None = "./web"

try:
    import comfy_api.latest  # noqa: F401
except ImportError:
    # Either this is not ComfyUI (as in the tests of trainer/), or it is too old for these nodes.
    from .host_version import warn_if_too_old

    warn_if_too_old()
else:
    # Not inside the try block: an error in the pack itself must be shown.
    from .host_version import find_other_copy, refuse_second_copy

    if find_other_copy():
        # A second route or page extension with the same name would stop ComfyUI or its page.
        comfy_entrypoint = refuse_second_copy
        WEB_DIRECTORY = None
    else:
        from .nodes import comfy_entrypoint  # noqa: F401
