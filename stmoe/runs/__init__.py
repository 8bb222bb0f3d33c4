"""Run directories on disk: who owns one, and what its files hold."""
