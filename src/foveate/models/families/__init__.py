"""One small file per family that deviates from the conventions; importing this package registers
them all.
"""

import importlib
import pkgutil

for _info in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_info.name}")
