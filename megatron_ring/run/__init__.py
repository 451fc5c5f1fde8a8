"""What surrounds any stage: its start, the run directory, metrics, alarms, watch, phases, progress, continuing."""
