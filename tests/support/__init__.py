"""What the tests share."""

from support.commands import bearer, toolscore, with_config
from support.executors import ExecutorProcess, executor_process
from support.processes import (
    EXECUTOR,
    ODD,
    PYTHON,
    ROOT,
    SCRIPTS,
    SERVERS,
    Fickle,
    GatewayProcess,
    debian_package,
    free_port,
    odd,
    process_gone,
    running_gateway,
    wait_for,
)

__all__ = [
    "EXECUTOR",
    "ODD",
    "PYTHON",
    "ROOT",
    "SCRIPTS",
    "SERVERS",
    "ExecutorProcess",
    "Fickle",
    "GatewayProcess",
    "bearer",
    "debian_package",
    "executor_process",
    "free_port",
    "odd",
    "process_gone",
    "running_gateway",
    "toolscore",
    "wait_for",
    "with_config",
]
