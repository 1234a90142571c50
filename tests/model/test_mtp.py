"""The multi-token prediction module against transformers' own MTP layer around a DeepSeek-V3 decoder layer."""

from pathlib import Path

import seeded
import torch
from safetensors.torch import load_file, save_file
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import MtpLayer
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3DecoderLayer, DeepseekV3RMSNorm

from deepwell.model import Decoder, from_hugging_face, param_specs
from deepwell.ops.torch_ops import TorchOps
from deepwell.weights.checkpoint import Checkpoint

LAYER = 3
RENAMED = {"mtp_block.": "", "post_norm.": "shared_head.norm."}


def official(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' names and fused experts as DeepSeek's checkpoints have them, under `model.layers.3`."""
    tensors = {}
    for key, value in state.items():
        for theirs, ours in RENAMED.items():
            key = key.replace(theirs, ours)
        if not key.startswith("mlp.experts."):
            tensors[f"model.layers.{LAYER}.{key}"] = value
            continue
        parts = ("gate_proj", "up_proj") if "gate_up" in key else ("down_proj",)
        for expert, fused in enumerate(value):
            for part, rows in zip(parts, fused.chunk(len(parts)), strict=True):
                tensors[f"model.layers.{LAYER}.mlp.experts.{expert}.{part}.weight"] = rows
    return tensors


def test_predicts_what_transformers_does(tmp_path: Path) -> None:
    main = seeded.save("v3", tmp_path)
    torch.manual_seed(5)
    module = MtpLayer(main.config, DeepseekV3DecoderLayer, DeepseekV3RMSNorm, LAYER).eval()
    with torch.no_grad():
        for key, weight in [*module.named_parameters(), *module.named_buffers()]:
            weight.normal_(0, weight.shape[-1] ** -0.5) if weight.ndim > 1 else weight.uniform_(0.5, 1.5)
            if key.endswith("correction_bias"):
                weight.uniform_(-0.5, 0.5)
        tokens_BS = torch.randint(0, 320, (2, 91))
        states = main.model(tokens_BS[:, :-1]).last_hidden_state
        embeds = main.model.embed_tokens(tokens_BS[:, 1:])
        positions = torch.arange(90)[None].expand(2, -1)
        mask = create_causal_mask(
            config=main.config, inputs_embeds=embeds, attention_mask=None, past_key_values=None, position_ids=positions
        )
        rotary = main.model.rotary_emb(embeds, positions)
        wanted = main.lm_head(module(embeds, states, rotary, mask, positions, None))

    tensors = {**load_file(tmp_path / "model.safetensors"), **official(module.state_dict())}
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    config = from_hugging_face(main.config.to_dict())
    weights = {p.key: torch.from_numpy(checkpoint.whole(p)) for p in param_specs(config, mtp=True)}
    decoder, ops = Decoder(config, weights), TorchOps(tokens_BS[:, :-1])
    with torch.no_grad():
        following = TorchOps(tokens_BS[:, 1:]).embed(weights["embed"])
        _, logits = decoder.predict_ahead(ops, decoder.hidden(ops), following)
    assert (logits.view_as(wanted) - wanted).abs().max() < 1e-4
    assert wanted.std() > 0.3
