"""The hardware profiles, one YAML file per device, node or fabric, read as package data."""
