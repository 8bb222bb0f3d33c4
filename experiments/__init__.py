"""Questions asked of the library, one folder each, installed as `stmoe.experiments`."""
