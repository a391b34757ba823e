"""``python -m workers.launcher``: the process that starts workers and sees them die. See ``workers.launching``."""

from workers.template_process import TemplateProcess


def main() -> None:
    template = TemplateProcess()  # first of all: it imports on one core what the rest of this process does on another
    from workers.launching import run

    run(template)


if __name__ == "__main__":
    main()
