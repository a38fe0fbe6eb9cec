"""The kit for tests of plugins: `from ganlab.testing import check_plugin`.

`__init__.pyi` lists the names. Each is imported when it is first used, so that pytest, which loads
`pytest_plugin`, does not import torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
