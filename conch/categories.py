"""Triton's names for the groups of endpoints that can be restricted: every HTTP route and every RPC belongs to one."""

import enum


class Category(enum.Enum):
    HEALTH = "health"
    METADATA = "metadata"
    INFERENCE = "inference"
    SHARED_MEMORY = "shared-memory"
    MODEL_CONFIG = "model-config"
    MODEL_REPOSITORY = "model-repository"
    STATISTICS = "statistics"
    TRACE = "trace"
    LOGGING = "logging"
