"""What of an installation and of a machine a training needs, looked at and tried."""
