"""Doors for other programs: plug-ins for serving engines."""
