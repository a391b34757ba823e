"""What every Conch process shares: messages, channels, errors, datatypes, model configuration, settings and the CLI."""

__version__ = "0.1.0"
