"""Suites on the Hugging Face hub: download what is asked for, upload a release, write its card."""
