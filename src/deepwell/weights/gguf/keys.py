"""The metadata keys of GGUF files, each spelled once: config.py, tokenizer.py and folder.py read them, metadata.py and
vocabulary.py write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class Key:
    """Of an architecture, behind its name and a dot."""

    VOCAB = "vocab_size"
    CONTEXT = "context_length"
    HIDDEN = "embedding_length"
    BLOCKS = "block_count"
    NEXTN = "nextn_predict_layers"
    INTER = "feed_forward_length"
    HEADS = "attention.head_count"
    KV_HEADS = "attention.head_count_kv"
    EPS = "attention.layer_norm_rms_epsilon"
    KEY_WIDTH = "attention.key_length"
    VALUE_WIDTH = "attention.value_length"
    MLA_KEY_WIDTH = "attention.key_length_mla"
    MLA_VALUE_WIDTH = "attention.value_length_mla"
    Q_LORA = "attention.q_lora_rank"
    KV_LORA = "attention.kv_lora_rank"
    INDEX_HEADS = "attention.indexer.head_count"
    INDEX_WIDTH = "attention.indexer.key_length"
    INDEX_TOP_K = "attention.indexer.top_k"
    FIRST_DENSE = "leading_dense_block_count"
    EXPERT_INTER = "expert_feed_forward_length"
    EXPERTS = "expert_count"
    EXPERTS_USED = "expert_used_count"
    EXPERTS_SHARED = "expert_shared_count"
    EXPERT_SCALE = "expert_weights_scale"
    EXPERT_NORM = "expert_weights_norm"
    EXPERT_GATING = "expert_gating_func"
    EXPERT_GROUPS = "expert_group_count"
    EXPERT_GROUPS_USED = "expert_group_used_count"
    ROTATED = "rope.dimension_count"
    ROPE_BASE = "rope.freq_base"
    ROPE_LINEAR = "rope.scale_linear"
    ROPE_TYPE = "rope.scaling.type"
    ROPE_FACTOR = "rope.scaling.factor"
    ROPE_ORIGINAL = "rope.scaling.original_context_length"
    YARN_FAST = "rope.scaling.yarn_beta_fast"
    YARN_SLOW = "rope.scaling.yarn_beta_slow"
    YARN_LOG = "rope.scaling.yarn_log_multiplier"
    YARN_ATTN_FACTOR = "rope.scaling.yarn_attn_factor"
    ATTN_FACTOR = "rope.scaling.attn_factor"


class General:
    """Of the file."""

    ARCHITECTURE = "general.architecture"
    NAME = "general.name"
    QUANTIZATION = "general.quantization_version"
    FILE_TYPE = "general.file_type"
    ALIGNMENT = "general.alignment"


class TokenizerKey:
    """Of the tokenizer, whole."""

    PREFIX = "tokenizer."
    MODEL = "tokenizer.ggml.model"
    PRE = "tokenizer.ggml.pre"
    TOKENS = "tokenizer.ggml.tokens"
    TYPES = "tokenizer.ggml.token_type"
    MERGES = "tokenizer.ggml.merges"
    SCORES = "tokenizer.ggml.scores"
    ADD_BLANK = "tokenizer.ggml.add_space_prefix"
    ADD_BOS = "tokenizer.ggml.add_bos_token"
    ADD_EOS = "tokenizer.ggml.add_eos_token"
    BOS = "tokenizer.ggml.bos_token_id"
    EOS = "tokenizer.ggml.eos_token_id"
    EOT = "tokenizer.ggml.eot_token_id"
    EOM = "tokenizer.ggml.eom_token_id"
    UNKNOWN = "tokenizer.ggml.unknown_token_id"
    SEPARATOR = "tokenizer.ggml.seperator_token_id"
    PADDING = "tokenizer.ggml.padding_token_id"
    TEMPLATE = "tokenizer.chat_template"
    TOOL_TEMPLATE = "tokenizer.chat_template.tool_use"
    ENDS = (EOS, EOT, EOM)
    """Tokens that end an answer; the first is the one that the tokenizer names."""
    GAP_ENDS = tuple(f"tokenizer.ggml.fim_{name}_token_id" for name in ("pad", "rep", "sep"))
    """Tokens that end the middle of a gap, and so an answer."""
    NAMED: ClassVar[Mapping[str, str]] = {
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": UNKNOWN,
        "sep_token": SEPARATOR,
        "pad_token": PADDING,
    }
    """Those that templates may use, by the names they have there."""


class Kind:
    """What `TokenizerKey.TYPES` says of a token."""

    NORMAL, UNKNOWN, CONTROL, ADDED, UNUSED, BYTE = range(1, 7)


SOFTMAX, SIGMOID = 1, 2
"""Values of `Key.EXPERT_GATING`."""
ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "deepseek": "deepseek",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "deepseek_v32": "deepseek32",
}
"""Architectures by family; of those with more families than one, the scoring of experts tells which."""
PAIRED = ("llama", "deepseek")
"""Architectures whose converters reorder the rows of q and k, so that a rotated pair lies in neighbouring columns."""
