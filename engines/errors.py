"""Every error that the package raises on purpose.

    EnginesError
    ├── BundleError    a model folder is missing, damaged or of another format
    ├── BackendError   a runtime could not load or run a stage
    │   ├── OutOfMemoryError   the batch is too large for the device
    │   ├── BadPictureError    a stage gave numbers that are no picture, twice
    │   └── PlanError          no compiled plan fits what is wanted
    │       └── DamagedPlanError   one does, and its file or its list is not what was written
    ├── ExportError    a torch folder cannot become graphs
    └── ParityError    two backends draw different pictures

Each message is one line that names the file or field and the remedy. Owns no behaviour.
"""


class EnginesError(Exception):
    """Root of the tree; catch it at a command's or worker's boundary."""


class BundleError(EnginesError):
    """A model folder is missing, damaged or of another format."""


class BackendError(EnginesError):
    """A runtime could not load or run a stage."""


class OutOfMemoryError(BackendError):
    """The batch is too large for the device; a smaller one may fit."""


class BadPictureError(BackendError):
    """A stage gave numbers that are no picture, in the highest precision too."""


class PlanError(BackendError):
    """No compiled plan fits what is wanted."""


class DamagedPlanError(PlanError):
    """A plan's file or the list of plans is not what was written."""


class ExportError(EnginesError):
    """A torch folder cannot become graphs."""


class ParityError(EnginesError):
    """Two backends draw different pictures for the same prompt and seed."""
