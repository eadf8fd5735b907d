"""The ring: what travels between stages, how links behave, and the stage process."""
