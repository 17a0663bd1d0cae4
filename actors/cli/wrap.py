"""Breaking streamed text between words, so that a terminal does not break it inside them."""

from rich.cells import cell_len


class Wrapper:
    """Takes text in any pieces, gives text with line breaks.  The word that may go on is held back."""

    def __init__(self, width: int) -> None:
        self._width = width  # in cells; a word that is wider is left to the terminal
        self._column = 0
        self._blanks = ""  # before the held word: dropped if a line break takes their place
        self._word = ""

    def feed(self, text: str) -> str:
        """What can be shown now."""
        shown: list[str] = []
        for char in text:
            if char == "\n":
                shown.append(self.flush() + "\n")
                self._column = 0
            elif char in " \t":
                if self._word:
                    shown.append(self._take_word())
                self._blanks += char
            else:
                self._word += char
                if cell_len(self._word) >= self._width:
                    shown.append(self._take_word())
        return "".join(shown)

    def flush(self) -> str:
        """Everything held back; after this the text has ended or a line has."""
        word = self._take_word() if self._word else self._blanks
        self._blanks = ""
        return word

    def _take_word(self) -> str:
        size = cell_len(self._blanks) + cell_len(self._word)
        if self._column and self._column + size > self._width:
            text = "\n" + self._word
            self._column = cell_len(self._word)
        else:
            text = self._blanks + self._word
            self._column += size
        self._blanks = self._word = ""
        return text
