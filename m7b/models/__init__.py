"""Which model, how it is to run, and loading it: one `Model` value.

Knows names, checkpoints and engines. It asks nothing, shows nothing and fetches nothing: whoever calls hands
in what to do with progress.
"""

from m7b.models.adapters import OpenAdapter, find_adapter, mix_adapters, open_adapters
from m7b.models.choice import ModelChoice, chat_releases, installed_variant
from m7b.models.files import ModelFiles, open_model
from m7b.models.loading import LoadEvent, Loading, Remark, join_names, load_model, split_name
from m7b.models.model import Model
from m7b.models.prompt_cache import PromptCache, list_prompts
from m7b.models.text import (
    find_stop_ids,
    load_chosen_template,
    load_chosen_tokenizer,
    load_texts,
    read_tokenizer,
    refuse_base,
    require_template,
)

__all__ = [
    "LoadEvent",
    "Loading",
    "Model",
    "ModelChoice",
    "ModelFiles",
    "OpenAdapter",
    "PromptCache",
    "Remark",
    "chat_releases",
    "find_adapter",
    "find_stop_ids",
    "installed_variant",
    "join_names",
    "list_prompts",
    "load_chosen_template",
    "load_chosen_tokenizer",
    "load_model",
    "load_texts",
    "mix_adapters",
    "open_adapters",
    "open_model",
    "read_tokenizer",
    "refuse_base",
    "require_template",
    "split_name",
]
