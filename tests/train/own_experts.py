"""A model whose folder has its class, with experts in a list of modules."""

from pathlib import Path

from transformers import LlamaConfig

from ift_scale.models import config_class
from ift_scale.train.proof import shrink

_CLASS = """
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM


class Experts(nn.Module):
    def __init__(self, config):
        super().__init__()
        size = config.hidden_size
        self.gate = nn.Linear(size, 4, bias=False)
        self.experts = nn.ModuleList(nn.Linear(size, size, bias=False) for _ in range(4))

    def forward(self, hidden):
        shares = self.gate(hidden).softmax(-1)
        share, chosen = shares.max(-1)
        out = torch.zeros_like(hidden)
        for number, expert in enumerate(self.experts):
            rows = chosen == number
            if rows.any():  # an expert that no token chose does not run
                out[rows] = expert(hidden[rows]) * share[rows][:, None]
        return out


class OwnForCausalLM(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = Experts(config)
        self.post_init()
"""


def write(folder: Path) -> None:
    """A model whose class is in its folder: experts in a list of modules, of which few run."""
    folder.mkdir()
    (folder / "modeling_own.py").write_text(_CLASS)
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "head_dim": 16}
    settings = LlamaConfig(**sizes, vocab_size=128, intermediate_size=64)
    settings.auto_map = {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    settings.save_pretrained(folder)
    kind = config_class.class_of(settings, folder / "config.json", trust_remote_code=True)
    shrink.tiny_model(kind, settings, 0).save_pretrained(folder)
    settings.save_pretrained(folder)
