"""Many requests through one ring: `scheduler` decides, `engine` runs the loop, `text` speaks the model's words."""
