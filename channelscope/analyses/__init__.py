"""The analyses of a study: each module of this package registers one (see ``analyses.base``)."""

from importlib import import_module
from pkgutil import iter_modules

from channelscope.analyses.base import check_needs

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

check_needs()  # now that every analysis is there
