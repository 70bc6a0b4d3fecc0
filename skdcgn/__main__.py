"""The package's commands: python -m skdcgn COMMAND [OPTION...], each with --help."""

import importlib
import sys

import tyro

from skdcgn.cli import entry
from skdcgn.errors import InputError

COMMANDS = {
    "weights": "list the pretrained files, or download some",
    "teacher-sets": "write stored teacher sets, or check them",
    "counterfactuals": "write a data set of counterfactual images",
    "onnx": "write three students as one ONNX graph",
    "train-cgn": "train an MNIST CGN and write its weights",
    "archive": "move runs between stores: export or import an archive",
    "feature-network": "train the digit classifier behind the Fréchet distances on MNIST",
}
"""Each is a module of `skdcgn.commands`, loaded only when it is called."""


def main() -> None:
    """Run the command that the first argument names.

    Raises:
        InputError: there is no such command.
    """
    name, arguments = next(iter(sys.argv[1:]), "--help"), sys.argv[2:]
    if name in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print(f"{__doc__}\n", *(f"  {command:{width}}  {purpose}" for command, purpose in COMMANDS.items()), sep="\n")
        return
    if name not in COMMANDS:
        raise InputError(f"there is no command {name!r}: choose from {', '.join(COMMANDS)}.")
    module = importlib.import_module(f"skdcgn.commands.{name.replace('-', '_')}")
    prog = f"python -m skdcgn {name}"
    module.main(tyro.cli(module.Config, prog=prog, description=module.__doc__, args=arguments))


if __name__ == "__main__":
    entry(main)
