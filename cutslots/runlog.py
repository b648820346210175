"""The former name of `cutslots.tracking`: models that were logged to MLflow under it name it as their loader."""

from cutslots.tracking.models import _load_pyfunc as _load_pyfunc
