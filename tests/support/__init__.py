"""What the tests share."""

from support.commands import bearer, toolscore, with_config
from support.doubles import Double, text
from support.executors import ExecutorProcess, executor_process
from support.memory import MemoryGateway, eventually, in_memory_gateway
from support.model_double import ModelDouble, Turn, model_double
from support.nursery import VARIABLE, fixture, forked, nursery, start_nursery
from support.processes import (
    EXECUTOR,
    ODD,
    PYTHON,
    ROOT,
    SCRIPTS,
    SERVERS,
    Fickle,
    GatewayProcess,
    answer_of,
    command_of,
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
    "Turn",
    "VARIABLE",
    "Double",
    "ExecutorProcess",
    "Fickle",
    "GatewayProcess",
    "MemoryGateway",
    "ModelDouble",
    "answer_of",
    "bearer",
    "command_of",
    "debian_package",
    "eventually",
    "executor_process",
    "fixture",
    "forked",
    "free_port",
    "in_memory_gateway",
    "model_double",
    "nursery",
    "odd",
    "process_gone",
    "running_gateway",
    "text",
    "start_nursery",
    "toolscore",
    "wait_for",
    "with_config",
]
