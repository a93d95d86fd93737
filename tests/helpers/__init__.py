"""What tests share: import as ``helpers.NAME``."""
