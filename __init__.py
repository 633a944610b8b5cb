"""ComfyUI's door: the pack's nodes, and the folder of what its pages load."""

try:
    import comfy_api.latest  # noqa: F401
except ImportError:
    # No ComfyUI, as in the tests of trainer/, or one from before its present kind of nodes.
    from .host_version import warn_if_too_old

    warn_if_too_old()
else:
    # Outside the try: what is broken in here must be seen.
    from .nodes import comfy_entrypoint  # noqa: F401

WEB_DIRECTORY = "./web"
