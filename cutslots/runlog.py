"""Former name of `cutslots.tracking`: the loader of models that earlier versions logged."""

from cutslots.tracking.models import _load_pyfunc as _load_pyfunc
