"""What /api/create is asked to make, as a value.  Decoded from JSON by `msgspec.convert(body, Recipe)`."""

import msgspec

from actors.errors import RequestError, Unsupported
from actors.gateway.library.manifest import Message, OptionValue


class Recipe(msgspec.Struct, frozen=True, kw_only=True, rename={"base": "from"}):
    """How to make a model.  Field names are those of /api/create; None means "as in the base model"."""

    base: str = ""  # JSON "from": the name of a model here
    files: dict[str, str] = {}  # file name -> digest of an uploaded blob
    template: str | None = None  # Jinja
    system: str | None = None
    license: str | list[str] | None = None
    parameters: dict[str, OptionValue | None] | None = None
    messages: list[Message] | None = None
    # what Ollama has and this runtime refuses by name
    adapters: dict[str, str] = {}
    draft_files: dict[str, str] = {}
    quantize: str = ""
    draft_quantize: str = ""
    renderer: str = ""
    parser: str = ""
    remote_host: str = ""

    @property
    def licenses(self) -> tuple[str, ...]:
        """The licence texts given."""
        if self.license is None:
            return ()
        return (self.license,) if isinstance(self.license, str) else tuple(self.license)

    def check(self, *, has_file: bool = False) -> None:
        """RequestError when it does not say what to make; Unsupported names what is not implemented."""
        given = bool(self.base) + bool(self.files) + has_file
        if given != 1:
            raise RequestError(
                "neither 'from' nor 'files' was specified"
                if not given
                else "both 'from' and 'files' were specified",
                where="library.create",
                mend="name a model with 'from', or one uploaded GGUF file with 'files'",
            )
        for field in (
            "adapters", "draft_files", "quantize", "draft_quantize", "renderer", "parser", "remote_host"
        ):  # fmt: skip
            if getattr(self, field):
                raise Unsupported(
                    f"create does not support '{field}' here",
                    where="library.create",
                    mend="leave it out",
                )
        if len(self.files) > 1:
            raise Unsupported(
                f"create takes one GGUF file, {len(self.files)} were given",
                where="library.create",
                mend="merge the shards of a split model first; vision projectors are not supported",
            )
