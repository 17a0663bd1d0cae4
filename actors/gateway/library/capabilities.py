"""What a model can do, by what its file and template say."""

from actors.gateway.library.entry import Entry
from actors.gateway.templates.chat import served_template
from actors.protocol import ModelInfo


def capabilities(entry: Entry, info: ModelInfo) -> tuple[str, ...]:
    """Ollama's names, in its order: completion or embedding, tools, insert, thinking.

    Found by looking for words in the template, as there is nothing better in a file.  Vision and audio are
    never claimed: no family here reads images or sound yet.
    """
    if f"{info.architecture}.pooling_type" in info.metadata:
        return ("embedding",)
    template = (served_template(entry, info) or entry.template or "").lower()
    found = ["completion"]
    if "tools" in template or "tool_call" in template:
        found.append("tools")
    if "suffix" in template:
        found.append("insert")
    if any(word in template for word in ("<think>", "enable_thinking", "reasoning_effort")):
        found.append("thinking")
    return tuple(found)
