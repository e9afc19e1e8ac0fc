"""transformers' LLaVA classes under the names by which the rest of the project says them.

A model of ours subclasses `Model`, its config subclasses `Config`; nobody else names a class of a family of models.
"""

from __future__ import annotations

from transformers import LlavaConfig as Config
from transformers import LlavaForConditionalGeneration as Model
from transformers import LlavaProcessor as Processor
from transformers.models.llava.modeling_llava import LlavaCausalLMOutputWithPast as Output

__all__ = ["Config", "Model", "Output", "Processor"]
