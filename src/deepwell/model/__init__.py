"""What a model is: config, parameters, decoder, accounting."""

from deepwell.model.accounting import Accounting, account
from deepwell.model.config import ModelConfig, from_hugging_face
from deepwell.model.config_json import config_json
from deepwell.model.decoder import Decoder
from deepwell.model.params import Param, param_specs, stage_specs
from deepwell.model.presets import PRESETS, preset

__all__ = [
    "PRESETS",
    "Accounting",
    "Decoder",
    "ModelConfig",
    "Param",
    "account",
    "config_json",
    "from_hugging_face",
    "param_specs",
    "preset",
    "stage_specs",
]
