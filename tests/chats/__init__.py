"""Tests of the conversations that the head keeps."""
