"""What every Roost process needs and what knows nothing of mail: settings, logs, health endpoints, signals."""
