"""ganlab: a plugin-based kit for GAN experiments, mainly in single-image super-resolution.

A plugin imports from here and from nowhere else in the project. `__init__.pyi` lists the names.
Each name is imported when it is first used, so that `ganlab --help` does not import torch.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
