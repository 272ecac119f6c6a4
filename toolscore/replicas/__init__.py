"""Several gateways as one: who is there, who has what, and the one hop from one to another."""

from toolscore.replicas.hop import Link
from toolscore.replicas.rules import ReplicaRules
from toolscore.replicas.together import Replicas, open_replicas

__all__ = ["Link", "ReplicaRules", "Replicas", "open_replicas"]
