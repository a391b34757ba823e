"""The command line: ``conch serve`` and ``conch status``."""
