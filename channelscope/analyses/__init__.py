"""The analyses of a study: each module of this package registers one (see ``analyses.base``)."""

from channelscope.analyses.base import check_needs
from channelscope.errors import import_modules

import_modules(__name__, __path__)

check_needs()  # now that every analysis is there
