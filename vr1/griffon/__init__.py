"""Griffon-G as a model of transformers: `GriffonGForConditionalGeneration`, its config and its processor.

Griffon-G is the second model of the Vision-R1 paper. Its released code subclasses Gemma 2 of transformers 4.45, and its
weights are no class of transformers. In reading order: `config` holds the sizes, and reads the ``config.json`` of
released weights; `released` is the table of names between released weights and these; `model` computes; `processor`
resizes the image and puts its tokens into the prompt.

Importing this package registers the classes with transformers, so that ``AutoConfig``, ``AutoProcessor`` and
``AutoModelForImageTextToText`` read both kinds of folders, without ``trust_remote_code``. `vr1.policy` imports it.

Source: Griffon-G, arXiv 2410.16163; its released code, github.com/jefferyZhan/Griffon @ 9866875 (Apache-2.0).
"""

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from vr1.griffon.config import GriffonGConfig, GriffonLlama2Config, GriffonQwen2Config, ReleasedGriffonGConfig
from vr1.griffon.model import GriffonGForConditionalGeneration, GriffonGModel
from vr1.griffon.processor import GriffonGProcessor

__all__ = ["GriffonGConfig", "GriffonGForConditionalGeneration", "GriffonGModel", "GriffonGProcessor"]


for _config in (GriffonGConfig, ReleasedGriffonGConfig, GriffonLlama2Config, GriffonQwen2Config):
    AutoConfig.register(_config.model_type, _config)
AutoModelForImageTextToText.register(GriffonGConfig, GriffonGForConditionalGeneration)
AutoProcessor.register(GriffonGConfig, GriffonGProcessor)
