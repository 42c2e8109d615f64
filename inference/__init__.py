"""Any image -> named predictions."""
