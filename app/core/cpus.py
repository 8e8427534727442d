"""How many processors this process may use, which in a container is seldom how many the machine has."""

from joblib import cpu_count


def usable_cpus() -> int:
    """The processors of this process's affinity, or fewer where its container has a quota; at least 1."""
    return max(1, int(cpu_count()))
