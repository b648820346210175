"""Processes of a node, by their environment."""

import psutil


def living(name: str, value: str) -> list[psutil.Process]:
    """Living processes with this value of an environment variable."""
    processes = []
    for process in psutil.process_iter():
        try:
            inherited = process.environ().get(name) == value
            if inherited and process.status() != psutil.STATUS_ZOMBIE:
                processes.append(process)
        except psutil.Error:
            pass
    return processes
