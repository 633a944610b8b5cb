"""How much memory a run needs on the device, and the settings with which it fits."""
