"""Wire models and the only validation of user input.

Owns what a request may say and how a refusal names the field and what is allowed. What a model can
do arrives as `ModelLimits`; where those come from is not known here. A prompt never appears in an
error text.
"""

from service.schemas.generation import Generation, resolve
from service.schemas.limits import ModelLimits
from service.schemas.parsing import check_json_size, parse_generation, parse_generation_form
from service.schemas.refusals import allowed_values, first_refusal
from service.schemas.requests import (
    MAX_NUM_IMAGES,
    MAX_SEED,
    PRIORITIES,
    GenerateRequest,
    JobRequest,
    PriorityName,
)

__all__ = [
    "MAX_NUM_IMAGES",
    "MAX_SEED",
    "PRIORITIES",
    "GenerateRequest",
    "Generation",
    "JobRequest",
    "ModelLimits",
    "PriorityName",
    "allowed_values",
    "check_json_size",
    "first_refusal",
    "parse_generation",
    "parse_generation_form",
    "resolve",
]
