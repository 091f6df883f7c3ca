"""BiGS, a language model of gated state-space layers; importing this makes transformers' Auto classes know it."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from luthier.models.bigs.model import BigsConfig, BigsForCausalLM, BigsForMaskedLM, BigsModel

AutoConfig.register(BigsConfig.model_type, BigsConfig)
AutoModel.register(BigsConfig, BigsModel)
AutoModelForCausalLM.register(BigsConfig, BigsForCausalLM)
AutoModelForMaskedLM.register(BigsConfig, BigsForMaskedLM)

__all__ = ["BigsConfig", "BigsForCausalLM", "BigsForMaskedLM", "BigsModel"]
