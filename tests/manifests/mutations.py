"""A manifest with one mistake: a place in a rendered object, and what is written there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from manifests.objects import Objects, name_of, render

# Takes the place of a value: the key is removed.
GONE = object()


@dataclass(frozen=True)
class Mutation:
    """One mistake.

    Attributes:
        check: the name of the check that must find it.
        overlay: where it is made.
        target: the object; a generated name is given up to its digest.
        path: the place in it, keys and indices by spaces; empty for the object itself.
        value: what stands there then; of a dictionary or list that is there, see `extends`.
        extends: the value is added to the list at the place.
    """

    check: str
    overlay: str
    target: str
    path: str
    value: Any = GONE
    extends: bool = False

    def __str__(self) -> str:
        what = "gone" if self.value is GONE else str(self.value)
        return f"{self.check}: {self.target} {self.path.split(' ')[-1]} {what}"[:110]

    def applied(self) -> Objects:
        """The overlay's objects with the mistake in them."""
        objects = render(self.overlay)
        (one,) = (o for o in objects if name_of(o).startswith(self.target))
        if not self.path:
            objects.remove(one)
            if self.value is not GONE:
                objects += self.value(one)
            return objects
        *way, last = (int(key) if key.isdigit() else key for key in self.path.split())
        place: Any = one
        for key in way:
            place = place[key]
        if self.value is GONE:
            del place[last]
        elif self.extends:
            place[last] = [*place.get(last, []), self.value]
        else:
            assert not isinstance(place, dict) or place.get(last) != self.value, self
            place[last] = self.value
        return objects


API, WORKER = "Deployment/onestep-api", "Deployment/onestep-worker"
REDIS, JOB = "StatefulSet/onestep-redis", "Job/onestep-distill"
POD = "spec template spec"
MAIN, INIT = f"{POD} containers 0", f"{POD} initContainers 0"
COMPONENT = "app.kubernetes.io/component"
