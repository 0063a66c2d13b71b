"""BERT4Rec in the Hugging Face ecosystem."""

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from hf_bert4rec.configuration_bert4rec import Bert4RecConfig
from hf_bert4rec.modeling_bert4rec import Bert4RecForMaskedLM, Bert4RecModel

AutoConfig.register("bert4rec", Bert4RecConfig, exist_ok=True)
AutoModel.register(Bert4RecConfig, Bert4RecModel, exist_ok=True)
AutoModelForMaskedLM.register(Bert4RecConfig, Bert4RecForMaskedLM, exist_ok=True)
