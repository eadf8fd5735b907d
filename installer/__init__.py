"""What installs together: standard library only, in the syntax of Python 3.6. Knows nothing of the app."""
