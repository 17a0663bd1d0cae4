"""Train, export and evaluate in one command: `python -m tools.train_builtin`."""

import sys

from tools.train_builtin import evaluate, export, train


def main() -> int:
    train.main([])
    export.main([])
    return evaluate.main(["--write-questions"])


if __name__ == "__main__":
    sys.exit(main())
