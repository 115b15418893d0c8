"""What holds for every test.

Hypothesis measures no time: on a shared machine a slow moment is nobody's fault.
"""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("shared machine")
