"""Text to token ids and back, built from what a GGUF file says about its vocabulary."""

from actors.runner.tokenizer.stop import StopMatcher as StopMatcher
from actors.runner.tokenizer.stop import cut_at_stop as cut_at_stop
from actors.runner.tokenizer.stream import TextStream as TextStream
from actors.runner.tokenizer.tokenizer import Tokenizer as Tokenizer
