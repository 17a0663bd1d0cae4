"""Reading and checking GGUF model files."""

from actors.runner.gguf.reader import GGUFFile as GGUFFile
from actors.runner.gguf.reader import TensorInfo as TensorInfo
from actors.runner.gguf.strings import StringArray as StringArray
from actors.runner.gguf.values import Value as Value
