"""The ``conch`` command. Each subcommand's code is imported when it runs: starting up quickly is part of the job."""

import sys

USAGE = """\
usage: conch serve --model-repository DIR ...    run a server in the foreground (conch serve --help)
       conch status                              show a running server's processes and models (conch status --help)
       conch logs MODEL [--follow]               what a model prints and logs (conch logs --help)
       conch debug MODEL                         attach to a model of 'conch serve --debug=MODEL'
       conch --version
"""


def main() -> int:
    """Returns the exit status."""
    arguments = sys.argv[1:]
    match arguments[:1]:
        case ["serve"]:
            from conch.cli.serve import serve

            return serve(arguments[1:])
        case ["status"]:
            from conch.cli.status import status

            return status(arguments[1:])
        case ["logs"]:
            from conch.cli.model_logs import logs

            return logs(arguments[1:])
        case ["debug"]:
            from conch.cli.debug import debug

            return debug(arguments[1:])
        case ["--version"]:
            from conch import __version__

            print(f"conch {__version__}")
            return 0
        case ["--help" | "-h" | "help"]:
            print(USAGE, end="")
            return 0
        case [unknown]:
            print(f"conch: unknown command '{unknown}'\n", file=sys.stderr)
    print(USAGE, end="", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
